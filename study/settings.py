"""The command line of every script: its settings, their ranges, --help, and errors in one line.

A script states each setting as an assignment with a comment,

    max_iters = 30_000  # updates in total

and calls `cfg = configure(globals())`. The arguments are then applied from left to right, later
ones winning: a name without dashes is a config file, Python that assigns to the settings, and
--key=value (or --key value, or --key alone for a switch) sets one.
"""

import ast
import atexit
import difflib
import functools
import math
import os
import signal
import sys
import traceback
import types
from pathlib import Path

# What a setting may be, whichever script it belongs to: (lowest, highest), both allowed, or the possible values.
BELOW_1 = math.nextafter(1, 0)
FINITE = sys.float_info.max
RANGES = {
    **dict.fromkeys(
        "batch_size block_size gradient_accumulation_steps n_layer n_head n_embd mlp_expansion eval_interval log_interval "
        "num_samples max_new_tokens top_k blocks block_iters evals matrix_size".split(), (1, math.inf)),
    **dict.fromkeys("learning_rate min_lr warmup_iters lr_decay_iters max_iters weight_decay grad_clip save_interval "
                    "jobs".split(), (0, FINITE)),
    "max_operand": (0, 199),  # 80,000 problems
    **dict.fromkeys("dropout beta1 beta2".split(), (0, BELOW_1)),
    "temperature": (1e-6, FINITE),
    "seed": (0, 2**32 - 1),
    "data_seed": (-1, 2**32 - 1),
    "line_seed": (-1, 2**32 - 1),
}
CHOICES = {
    "init_from": ("scratch", "resume"),
    "format": ("png", "pdf"),
    "operation": ("addition", "subtraction", "both"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "compile": ("auto", True, False),
    "cuda_graph": ("auto", True, False),
}


def fail(message, status=2, of_all=True):
    """Ends the program with one line on standard error.

    of_all: under torchrun, every process meets this error, and process 0 speaks for them.
    """
    if os.environ.get("RANK", "0") == "0" or not of_all:
        print("error: " + " ".join(str(message).split("\n")), file=sys.stderr)
    sys.exit(status)


def configure(*namespaces):
    """Reads sys.argv over the settings of one or more modules (their globals).

    Returns a SimpleNamespace of all settings. If a config file is given and nothing sets `out_dir`,
    that is the file's name without `train_`. Any mistake ends the program with status 2. From here
    on, Ctrl-C and SIGTERM end it through SystemExit, with status 130 and 143 and no traceback.
    """
    atexit.register(_flush_output)
    exit_on_signals()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends a script as it ends any other program
    settings = {}  # name -> (default, meaning)
    for namespace in namespaces:
        settings.update(stated_settings(namespace["__file__"]))
    if "--help" in sys.argv[1:] or "-h" in sys.argv[1:]:
        _print_help(namespaces[-1]["__doc__"], settings)
        sys.exit(0)

    given = {}
    config_file = None
    arguments = sys.argv[1:]
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--"):
            config_file = _existing_config(argument, settings)
            for key, value in run_config_file(config_file).items():
                given[key] = _checked(settings, key, value, argument)
            continue
        key, equals, text = argument[2:].partition("=")
        default = _default(settings, key, "--" + key)
        if not equals:
            if isinstance(default, bool):
                text = arguments.pop(0) if arguments[:1] in (["True"], ["False"]) else "True"
            elif arguments and not arguments[0].startswith("--"):
                text = arguments.pop(0)
            else:
                fail(f"--{key} needs a value: --{key}={default if default != '' else '...'}")
        given[key] = _checked(settings, key, _parsed(text, default), argument)

    values = {key: default for key, (default, _) in settings.items()} | given
    if config_file and "out_dir" in settings and "out_dir" not in given:
        values["out_dir"] = config_file.stem.removeprefix("train_")
    for key, value in values.items():
        _require_range(key, value)
    return types.SimpleNamespace(**values)


def check_setting(key, value, script):
    """`value` as what a script's setting can be; ends the program if its type or its range is not that."""
    value = _checked(stated_settings(script), key, value, key)
    _require_range(key, value)
    return value


def _existing_config(argument, settings):
    """The path of a config file that was named without dashes; says what may have been meant if there is none."""
    key = argument.lstrip("-").partition("=")[0]
    if key in settings:
        fail(f"'{argument}' is no setting: --{argument.lstrip('-')} is")
    folder = next((key for key in ("out_dir", "model_folder", "root_dir") if key in settings), "")
    if Path(argument).is_dir() and folder:
        fail(f"'{argument}' is a folder and no config file: --{folder}={argument} names it")
    in_config = Path("config") / f"train_{argument}.py"
    if not Path(argument).exists() and in_config.exists():
        fail(f"there is no config file {argument}: {in_config} is one")
    return Path(argument)


def _require_range(key, value):
    """Ends the program if a setting has a value that nothing can work with."""
    if key in CHOICES and value not in CHOICES[key]:
        fail(f"{key}='{value}' is not one of {', '.join(map(str, CHOICES[key]))}")
    if key in RANGES:
        lowest, highest = RANGES[key]
        if not value >= lowest:
            fail(f"{key}={value} must be at least {lowest}")
        if value > highest:
            bound = f"at most {highest}" if type(value) is int else "below 1" if highest == BELOW_1 else "finite"
            fail(f"{key}={value} must be {bound}")


@functools.cache  # an experiment asks for each of its runs
def stated_settings(script):
    """{name: (default, meaning)} of a script's lower-case, commented assignments of a literal."""
    source = Path(script).read_text(encoding="utf-8")
    lines = source.splitlines()
    stated = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
            if name.islower() and comment.strip().startswith("#"):
                stated[name] = (ast.literal_eval(node.value), comment.strip(" #"))
    return stated


def defaults_of(script):
    """{name: default} of a script's settings."""
    return {key: default for key, (default, _) in stated_settings(script).items()}


def _print_help(doc, settings):
    print(doc.strip())
    print("\nSettings (--key=value), with their defaults:\n")
    shown = {key: f"--{key}={default}".replace("\n", "\\n") for key, (default, _) in settings.items()}
    width = max(map(len, shown.values()))
    for key, (_, meaning) in settings.items():
        print(f"  {shown[key]:{width}}  {meaning}")


def run_config_file(path):
    """Runs a config file and returns the names it assigned, but for those with a leading underscore, which are its own.

    Inside it, include("other.py") runs another file of the same folder first.
    """

    def include(name):
        names.update(run_config_file(path.parent / name))

    names = {"__file__": str(path), "include": include}
    try:
        source = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        fail(f"config file {path} does not exist (settings are given as --key=value)")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read config file {path}: {getattr(error, 'strerror', 'it is not text')}")
    try:
        exec(compile(source, str(path), "exec"), names)
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else 1)
        fail(f"config file {path}, line {line}: {type(error).__name__}: {error}")
    return {
        key: value
        for key, value in names.items()
        if not key.startswith("_") and not callable(value) and not isinstance(value, types.ModuleType)
    }


def _default(settings, key, where):
    if key not in settings:
        nearest = difflib.get_close_matches(key, settings, n=1, cutoff=0.0)[0]
        fail(f"{where}: unknown key '{key}'; the nearest known one is '{nearest}' (--help lists all)")
    return settings[key][0]


def _parsed(text, default):
    """`text` as the type of the default if it can be read as that, else unchanged."""
    if text in ("True", "False") and (isinstance(default, bool) or default == "auto"):
        return text == "True"
    try:
        return text if isinstance(default, bool) else type(default)(text)
    except ValueError:
        return text


def _checked(settings, key, value, where):
    """`value` if its type is that of the default; an int is taken where a float is expected."""
    default = _default(settings, key, where)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is type(default) or (isinstance(value, bool) and value in CHOICES.get(key, ())):
        return value
    expected = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", list: "a list"}
    fail(f"{where}: '{key}' must be {expected[type(default)]}, like {default!r}, not {value!r}")


def catch_stop():
    """From here on a first Ctrl-C or SIGTERM only asks to stop; a second one ends the program.

    Returns the list that the first one's number is put into.
    """
    signals = []

    def ask(signum, _):
        signals.append(signum)
        exit_on_signals()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, ask)
    return signals


def _flush_output():
    """The last of the output is written when a program ends, where an error would be a traceback of the interpreter's own."""
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
        os._exit(1)


def exit_on_signals():
    """From here on a Ctrl-C or SIGTERM ends the program at once, through SystemExit."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda signum, _: sys.exit(128 + signum))
