"""The command line of every script: settings, their ranges, --help, and errors in one line.

A script defines each setting as an assignment with a comment,

    max_iters = 30_000  # updates in total

and ends in `run_script(main, globals())`, which calls main(cfg). Arguments are applied from left to right,
so later ones win. An argument without dashes is a config file: Python that assigns to settings. --key=value
or --key value sets one setting, and --key alone turns it on.
"""

import ast
import atexit
import contextlib
import difflib
import functools
import math
import os
import runpy
import signal
import sys
import traceback
import types
from pathlib import Path

from study import StudyError
from study.files import why_unreadable

# Lowest and highest value of each number that some script has as a setting, both allowed.
BELOW_1 = math.nextafter(1, 0)
FINITE = sys.float_info.max
RANGES = {
    "n_layer": (1, 1_000), "n_head": (1, 10**7), "n_embd": (1, 10**7), "mlp_expansion": (1, 10_000),
    "block_size": (1, 10**9), "batch_size": (1, 10**12), "gradient_accumulation_steps": (1, 10_000),
    "max_iters": (0, 10**15), "warmup_iters": (0, 10**15), "lr_decay_iters": (0, 10**15),
    "eval_interval": (1, 10**15), "log_interval": (1, 10**15),
    "num_samples": (1, 10**12), "max_new_tokens": (1, 10**6), "top_k": (1, 10**9),
    "blocks": (1, 10**6), "block_iters": (1, 10**6), "evals": (1, 10**6), "matrix_size": (1, 10**6),
    **dict.fromkeys("learning_rate min_lr weight_decay grad_clip save_interval".split(), (0, FINITE)),
    **dict.fromkeys("dropout beta1 beta2".split(), (0, BELOW_1)),
    "temperature": (1e-6, FINITE),
    "jobs": (0, 10_000),
    "max_operand": (0, 199),  # 80,000 problems
    "shuffles": (1, 1_000),
    "seeds": (1, 1_000),
    "seed": (0, 2**32 - 1), **dict.fromkeys("data_seed line_seed answer_seed".split(), (-1, 2**32 - 1)),
}
CHOICES = {
    "init_from": ("scratch", "resume"),
    "format": ("png", "pdf"),
    "operation": ("addition", "subtraction", "both"),
    "operations": ("add", "sub", "both"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "compile": ("auto", True, False),
    "cuda_graph": ("auto", True, False),
}
TYPES = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", list: "a list"}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_script(main, *namespaces):
    """Call main(cfg) with the settings of the command line; on a StudyError print it and exit.

    namespaces: as for configure(). Ctrl-C, SIGTERM and SIGHUP raise SystemExit.
    """
    atexit.register(_flush_output)
    exit_on_signals()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # so that `| head` ends a script quietly
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does with what it cannot encode
    try:
        main(configure(*namespaces))
    except StudyError as error:
        if os.environ.get("RANK", "0") == "0" or not error.of_all:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)


def configure(*namespaces, arguments=None):
    """Return a SimpleNamespace of all settings: the defaults of modules, then the arguments.

    namespaces: the globals of each module, vars(module). arguments: by default those of the command line.
    out_dir defaults to the name of the config file without `train_`, if there is one. Raises StudyError.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    settings = {}  # name -> (default, meaning)
    for namespace in namespaces:
        settings.update(defined_settings(namespace))
    if "--help" in arguments or "-h" in arguments:
        _print_help(namespaces[-1]["__doc__"], settings)
        sys.exit(0)

    given = {}
    config_file = None
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
                raise StudyError(f"--{key} needs a value: --{key}={default if default != '' else '...'}")
        given[key] = _checked(settings, key, _parsed(text, default), f"--{key}")

    values = {key: default for key, (default, _) in settings.items()} | given
    if config_file and "out_dir" in settings and "out_dir" not in given:
        values["out_dir"] = config_file.stem.removeprefix("train_")
    for key, value in values.items():
        _require_range(key, value)
    return types.SimpleNamespace(**values)


def defined_settings(namespace):
    """Return {name: (default, meaning)} of a module's lower-case assignments with a comment.

    Names and comments come from the source, values from the executed module.
    """
    return {name: (namespace[name], meaning) for name, meaning in _comments(namespace["__file__"]).items()
            if type(namespace.get(name)) in TYPES}


@functools.cache
def _comments(path):
    """Return {name: comment} of the assignments at the top level of a script."""
    source = Path(path).read_text(encoding="utf-8")
    lines = source.splitlines()
    comments = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip()
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            if comment.startswith("#"):
                comments |= {name: comment.strip(" #") for name in names if name.islower()}
    return comments


@functools.cache  # an experiment needs them for each of its runs
def settings_of(script):
    """Return defined_settings() of the script at a path."""
    return defined_settings(runpy.run_path(str(script)) | {"__file__": str(script)})


def defaults_of(script):
    """Return {name: default} of a script's settings."""
    return {key: default for key, (default, _) in settings_of(script).items()}


def check_setting(key, value, script):
    """Return `value` in the type of a script's setting; raise StudyError if its type or range is wrong."""
    value = _checked(settings_of(script), key, value, key)
    _require_range(key, value)
    return value


def _existing_config(argument, settings):
    """Return the path of a config file; if `argument` looks like something else, raise StudyError."""
    key = argument.lstrip("-").partition("=")[0]
    if key in settings:
        raise StudyError(f"'{argument}' is not a setting: write --{argument.lstrip('-')}")
    folder = next((key for key in ("out_dir", "model_folder", "root_dir") if key in settings), "")
    if os.path.isdir(argument) and folder:
        raise StudyError(f"'{argument}' is a folder, not a config file: write --{folder}={argument}")
    in_config = f"config/train_{argument}.py"
    if not os.path.exists(argument) and os.path.exists(in_config):
        raise StudyError(f"there is no config file {argument}: write {in_config}")
    return Path(argument)


def _shown(value):
    """Return a value as text for an error message, shortened if it is long."""
    try:
        text = repr(value) if not isinstance(value, (int, float)) else str(value)
    except ValueError:  # Python does not print a whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def _require_range(key, value):
    """Raise StudyError if the value of a setting is not one of CHOICES or outside of RANGES."""
    if key in CHOICES and value not in CHOICES[key]:
        raise StudyError(f"{key}={_shown(value)} is not one of {', '.join(map(str, CHOICES[key]))}")
    if key in RANGES:
        lowest, highest = RANGES[key]
        if not value >= lowest:
            raise StudyError(f"{key}={_shown(value)} must be at least {lowest}")
        if value > highest:
            bound = {BELOW_1: "below 1", FINITE: "finite"}.get(highest, f"at most {highest}")
            raise StudyError(f"{key}={_shown(value)} must be {bound}")


def _print_help(doc, settings):
    print(doc.strip())
    print("\nSettings (--key=value), with their defaults:\n")
    shown = {key: f"--{key}={default}".replace("\n", "\\n") for key, (default, _) in settings.items()}
    width = max(map(len, shown.values()))
    for key, (_, meaning) in settings.items():
        print(f"  {shown[key]:{width}}  {meaning}")


def run_config_file(path, including=()):
    """Run a config file; return what it assigned, without names that begin with an underscore.

    In the file, include("other.py") runs another file of the same folder. including: the files that led to
    this one. Raises StudyError.
    """
    path = Path(path)
    chain = [*including, path]
    if os.path.realpath(path) in map(os.path.realpath, including):
        raise StudyError(f"config file {path} includes itself: {' includes '.join(map(str, chain))}")

    def include(name):
        names.update(run_config_file(path.parent / name, chain))

    names = {"__file__": str(path), "include": include}
    try:
        source = path.read_text(encoding="utf-8-sig")  # Windows editors write a byte order mark
    except (FileNotFoundError, IsADirectoryError):
        raise StudyError(f"config file {path} does not exist (settings are given as --key=value)")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"cannot read config file {path}: {why_unreadable(error)}")
    try:
        exec(compile(source, str(path), "exec"), names)
    except StudyError:  # from a file that it includes
        raise
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else 1)
        raise StudyError(f"config file {path}, line {line}: {type(error).__name__}: {error}")
    return {
        key: value
        for key, value in names.items()
        if not key.startswith("_") and not callable(value) and not isinstance(value, types.ModuleType)
    }


def _default(settings, key, where):
    if key not in settings:
        nearest = difflib.get_close_matches(key, settings, n=1, cutoff=0.0)[0]
        raise StudyError(f"{where}: unknown key '{key}'; the nearest known one is '{nearest}' "
                         "(--help lists all)")
    return settings[key][0]


def _parsed(text, default):
    """Return `text` in the type of the default, or unchanged if it cannot be converted."""
    if text in ("True", "False") and (isinstance(default, bool) or default == "auto"):
        return text == "True"
    try:
        return text if isinstance(default, bool) else type(default)(text)
    except ValueError:
        return text


def _checked(settings, key, value, where):
    """Return `value` if it has the type of the default; convert a whole number if that is a float."""
    default = _default(settings, key, where)
    if type(default) is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise StudyError(f"{where}: '{key}' must be a number, like {default!r}, not {_shown(value)}")
    if type(value) is type(default) or (isinstance(value, bool) and value in CHOICES.get(key, ())):
        return value
    raise StudyError(f"{where}: '{key}' must be {TYPES[type(default)]}, like {default!r}, "
                     f"not {_shown(value)}")


@contextlib.contextmanager
def catch_stop():
    """Collect the first Ctrl-C, SIGTERM or SIGHUP instead of ending the program; a second one ends it.

    Yields the list that the number of the first signal is appended to.
    """
    signals = []

    def stop(signum, _):
        signals.append(signum)
        exit_on_signals()

    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    _handle_stop_signals(stop)
    try:
        yield signals
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def hold_stop_signals():
    """Hold Ctrl-C, SIGTERM and SIGHUP back, here and in the processes that are started from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def release_stop_signals():
    """Let Ctrl-C, SIGTERM and SIGHUP through again, those held back among them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def exit_on_signals():
    """Make Ctrl-C, SIGTERM and SIGHUP raise SystemExit."""
    _handle_stop_signals(lambda signum, _: sys.exit(128 + signum))


def _handle_stop_signals(handler):
    for signum in STOP_SIGNALS:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(signum, handler)


def _flush_output():
    """Flush stdout before the interpreter does, which would print a traceback on a full disk."""
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
        os._exit(1)
