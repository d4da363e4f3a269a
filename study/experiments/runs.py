"""Experiments: many runs that a file in experiments/ describes, and the two tables that they become.

A file assigns `runs`, a list of {setting: value} that grid() makes. "config" names the config file, whose
values the other settings override; DATA_DEFAULTS are settings of the dataset's prepare.py.

<root_dir>/<experiment>/runs.csv has a row for each run, with the columns RUN_COLUMNS and all that
identity_of() in study/identity.py names. evaluations.csv.gz has a row for each evaluation: SETTING_COLUMNS of
its run, and the columns of results.csv, which row_of() in study/scoring.py describes. Both hold complete runs
only, and not all columns: see OPTIONAL.
"""

import csv
import difflib
import functools
import gzip
import io
import itertools
import re

import torch

from study import ROOT, StudyError
from study.dataset import text_of, texts_of
from study.experiments.results import Run, columns, read_info, read_rows, scores_of
from study.files import write_files
from study.identity import digest_of_text, identity_of
from study.run_folder import load_model, read_run_json
from study.scoring import sample_answers, stored_bits, tally
from study.settings import check_setting, defaults_of, run_config_file, settings_of
from study.tasks import COUNTED, ProblemTable, arithmetic, table_of

TRAIN = ROOT / "train_with_eval.py"
DATA_DEFAULTS = {"line_seed": -1, **ProblemTable()._asdict(), "shuffles": 1}  # of the prepare.py scripts
# Columns that a table has only where some run has another value.
OPTIONAL = {"dataset": "", "operations": "both", "max_operand": "9", "answer_seed": "-1", "shuffles": "1",
            "stored_bits": "", "table_bits": ""}
RUNNERS = {"out_dir", "init_from", "overwrite", "device"}  # settings that the runs get from what makes them
# What the columns mean. Scores are numbers of right samples, ten for each problem.
SETTING_COLUMNS = {
    "run": "name of the run",
    "config": "config/train_<config>.py, whose settings are those of the run where no column says otherwise",
    "dataset": "folder in data/ of the prepare.py that wrote the text, where it is not the config's",
    "n_embd": "width",
    "weight_decay": "AdamW's",
    "seed": "of the initial weights, the batches and the sampling",
    "line_seed": "of the order of the text's lines; -1: the paper's order",
    "held_out": "pairs whose sums and differences are not trained on",
    "operations": "of the text: add, sub or both",
    "max_operand": "the largest operand in the text",
    "answer_seed": "of the shuffled answers; -1: the true answers",
    "shuffles": "how many orders of the lines the text has",
    "step": "what made the updates",
    "dtype": "precision of the updates",
    "max_iters": "updates in total",
    "digest": "of all that can change the run's results: runs with the same digest are the same run",
}
RUN_COLUMNS = SETTING_COLUMNS | {
    "num_params": "parameters without position embeddings",
    **{f"{group}_total": f"samples at each evaluation, 0 if not asked: {group}" for group in COUNTED},
    "best_iter": "iteration of the best evaluation, with the most right samples; the earliest of equals",
    **{f"best_{group}": f"right at the best evaluation: {group}" for group in COUNTED},
    **{f"last_{group}": f"right at the last evaluation: {group}" for group in COUNTED},
    "late": "evaluations from iteration 20,000 on",
    "late_right": "those of them with every held-out sample right",
    "lowest_val_loss": "nats per character",
    "beyond_add": "of 3,000 samples of sums with an operand from 10 to 19, how many are right at the end, in "
                  "float32; only if last_held_out is perfect",
    "beyond_sub": "the same of differences",
    "stored_bits": "bits of a table of shuffled answers that the model has stored at the end, as "
                   "stored_bits() in study/scoring.py counts them",
    "table_bits": "bits of all answers of that table",
    "seconds": "wall time of training, evaluating and saving",
    "made_on": "processor or GPU, precision and software",
    "commit": "of the code; with -dirty if files of the repository had uncommitted changes",
    # The columns after these are the other settings of train_with_eval.py, and
    "data": "digest of the text",
    "device": "cpu, cuda or mps",
    "processes": "that shared each batch",
}


def grid(**axes):
    """All combinations of the axes' values as a list of {setting: value}; the first axis varies slowest.

    A value that is no list or range stands for itself.
    """
    values = [axis if isinstance(axis, (list, tuple, range)) else [axis] for axis in axes.values()]
    return [dict(zip(axes, combination)) for combination in itertools.product(*values)]


def run_name(settings):
    """What a run is called: math_mini_14 with n_embd 20 and seed 3 is math_mini_20_seed_3."""
    name = settings["config"]
    others = {key: value for key, value in sorted(settings.items()) if key != "config"}
    if "n_embd" in others and re.search(r"_mini_\d+", name):
        name = re.sub(r"(?<=_mini_)\d+", str(others.pop("n_embd")), name)
    return name + _suffix(others)


def _suffix(settings):
    return "".join(f"_{key}_{re.sub('[^0-9A-Za-z.]+', '-', str(value))}" for key, value in settings.items())


def runs_by_name(runs):
    """{name: settings} of the list that an experiment's file assigned. Raises StudyError."""
    check_runs(runs)
    experiment = {}
    for settings in runs:
        same = experiment.setdefault(run_name(settings), settings)
        if (config_of(same), dataset_of(same)) != (config_of(settings), dataset_of(settings)):
            raise StudyError(f"{same} and {settings} in `runs` would both be called {run_name(settings)}")
    return experiment


def check_runs(runs):
    """Raise StudyError if `runs` is no list of settings that can be trained with."""
    if not runs:
        raise StudyError("no runs: name an experiment's file, such as experiments/paper.py, which assigns a "
                         "list to `runs`")
    for settings in runs:
        if not isinstance(settings, dict) or "config" not in settings:
            raise StudyError(f"{settings!r} in `runs` is not the settings of a run, such as "
                             "{'config': 'math_mini_14', 'seed': 1}")
        if not config_file(settings).exists():
            raise StudyError(f"config='{settings['config']}' in `runs`: there is no "
                             f"{config_file(settings).relative_to(ROOT)}")
    trains = settings_of(TRAIN).keys() - RUNNERS
    checked = set()  # a grid repeats each value many times
    for settings in runs:
        chooses = {key: settings[key] for key in ("config", "dataset") if key in settings}
        dataset = config_of(chooses)["dataset"]
        script = prepare_script(dataset)
        if not script.exists():
            raise StudyError(f"dataset='{dataset}' in `runs`: there is no {script.relative_to(ROOT)} that "
                             "prepares it")
        prepares = settings_of(script).keys() & DATA_DEFAULTS.keys()
        for key, value in settings.items():
            if key == "config" or (script, key, str(value)) in checked:
                continue
            if key not in trains | prepares:
                nearest = difflib.get_close_matches(key, trains | prepares, n=1, cutoff=0.0)[0]
                raise StudyError(f"'{key}' in `runs` is no setting of a run on {dataset}; the nearest is "
                                 f"'{nearest}'")
            check_setting(key, value, script if key in prepares else TRAIN)
            checked.add((script, key, str(value)))
        data = data_settings(settings)
        if (script, str(data)) not in checked:
            try:
                text_of(dataset, **data)
            except ValueError as error:
                raise StudyError(f"{run_name(settings)}: {error}")
            checked.add((script, str(data)))
        config = config_of(settings)
        if config["n_embd"] % config["n_head"]:
            raise StudyError(f"{run_name(settings)}: n_embd={config['n_embd']} is not divisible by "
                             f"n_head={config['n_head']}")
        if config["max_iters"] < 1:
            raise StudyError(f"{run_name(settings)}: max_iters={config['max_iters']} must be at least 1")


def config_file(settings):
    return ROOT / "config" / f"train_{settings['config']}.py"


def prepare_script(dataset):
    return ROOT / "data" / dataset / "prepare.py"


def overrides(settings):
    """The settings of train_with_eval.py that a run has over its config file's."""
    return {key: value for key, value in settings.items() if key not in (*DATA_DEFAULTS, "config")}


def config_of(settings):
    """All settings of train_with_eval.py for a run: the defaults, its config file's, those over them.

    The dataset is the one that the config names, before data settings. Raises StudyError.
    """
    changed = run_config_file(config_file(settings)) | overrides(settings)
    return defaults_of(TRAIN) | {key: check_setting(key, value, TRAIN) for key, value in changed.items()}


def dataset_of(settings):
    """(name of the dataset that the run is trained on, arguments of the command that prepares it)."""
    dataset = config_of(settings)["dataset"]
    changed = {key: settings[key] for key in DATA_DEFAULTS if key in settings}
    script = f"data/{dataset}/prepare.py"
    if not changed:
        return dataset, (script,)
    name = dataset + _suffix(changed)
    return name, (script, *(f"--{key}={value}" for key, value in changed.items()), f"--folder=data/{name}")


def data_settings(settings):
    """DATA_DEFAULTS as they are for a run, as far as its dataset's prepare.py has them."""
    defaults = defaults_of(prepare_script(config_of(settings)["dataset"]))
    return {key: settings.get(key, defaults[key]) for key in DATA_DEFAULTS if key in defaults}


def train_settings(settings):
    """What train_with_eval.py is given for a run besides its config file; folder and device come later."""
    return overrides(settings) | {"dataset": dataset_of(settings)[0]}


def expected_identity(settings):
    """identity_of() a run that has these settings, and line_seed; None for what only the machine decides."""
    config, data = config_of(settings), data_settings(settings)
    text, val_text = texts_of(functools.partial(text_of, config["dataset"]), data)
    info = {
        "config": config, "held_out": table_of(data).held_out if "held_out" in data else None,
        "step": "", "device": "", "processes": 1,
        "data": digest_of_text(text, config["block_size"], val_text),
        "dtype": None if config["dtype"] == "auto" else config["dtype"],
    }
    return {"line_seed": data.get("line_seed", -1)} | identity_of(info) | {"step": None, "device": None}


def is_same_run(name, expected, made, path, overwrite=False):
    """Whether the run of this name in `path`, made with `made`, is the expected one.

    expected: expected_identity() of its settings. Raises StudyError if it is another and not to be
    overwritten.
    """
    for key, value in expected.items():
        if value is not None and str(value) != str(made.get(key, "not stated")):
            if overwrite:
                return False
            raise StudyError(
                f"{name} in {path} was made with {key}={made.get(key, 'not stated')}, not {value}: "
                "--overwrite=True makes it again, another --root_dir leaves it alone")
    return True


def finished_run(name, settings, folder):
    """A Run, as its rows in the tables, of the folder of a complete one."""
    info = read_run_json(folder)
    rows = read_rows(folder / "results.csv")
    results = columns(rows)
    identity = identity_of(info)
    parts = [*info["earlier_parts"], info]
    table, dataset = table_of(info), config_of(settings)["dataset"]
    row = DATA_DEFAULTS | data_settings(settings) | table._asdict() | read_info(folder) | identity | {
        "run": name, "config": settings["config"],
        "dataset": "" if dataset == config_of({"config": settings["config"]})["dataset"] else dataset,
        **{key: info[key] for key in ("step", "digest", "commit")},
        **scores_of(results),
        "seconds": round(sum(sum(part["seconds"].values()) for part in parts), 1),
    }
    generalizes = row["held_out_total"] and row["last_held_out"] == row["held_out_total"]
    if generalizes and table == ProblemTable(table.held_out):  # the paper's table, with any pairs held out
        row |= beyond_single_digits(folder)
    if table.answer_seed >= 0:
        model, chars, _, _ = last_model(folder)
        stored, in_all = stored_bits(model, chars, arithmetic(table))
        row |= {"stored_bits": round(stored, 3), "table_bits": round(in_all, 3)}
    return Run({column: str(row.get(column, "")) for column in [*RUN_COLUMNS, *identity]}, rows, results)


def last_model(folder):
    """load_model() of the end of a complete run. Raises StudyError."""
    path = folder / "ckpt_last.pt"
    if not path.exists():
        raise StudyError(f"there is no {path}, which the tables need: delete {folder} to train the run again")
    return load_model(path, torch.device("cpu"))


def beyond_single_digits(folder):
    """How the model at the end of a run answers operands up to 19, those up to 9 left out (section 5.1)."""
    model, chars, table, _ = last_model(folder)
    task = arithmetic(table, max_operand=19)
    problems = [problem for problem in task.problems if problem.beyond]
    with torch.no_grad():
        answers = sample_answers(model, chars, task, problems, torch.Generator().manual_seed(1337))
    return {f"beyond_{group}": tally(problems, answers, lambda problem: problem.group == group)[0]
            for group in ("add", "sub")}


def write_tables(folder, runs):
    """Write runs.csv and evaluations.csv.gz of {name: Run} into the experiment's folder."""
    infos = {name: OPTIONAL | run.info for name, run in runs.items()}
    left_out = {column for column, default in OPTIONAL.items()
                if all(info[column] == default for info in infos.values())}
    described = [column for column in dict.fromkeys(itertools.chain(RUN_COLUMNS, *infos.values()))
                 if column not in left_out]
    infos = {name: {column: info.get(column, "") for column in described} for name, info in infos.items()}
    setting_columns = [column for column in described if column in SETTING_COLUMNS]
    evaluations = [{column: infos[name][column] for column in setting_columns} | row
                   for name, run in runs.items() for row in run.rows]
    scored = dict.fromkeys(column for run in runs.values() for column in run.rows[0])
    scores = csv_bytes([*setting_columns, *scored], evaluations, "0")  # a task may have come later
    write_files({  # in this order: a row of runs.csv stands for evaluations that are there
        folder / "evaluations.csv.gz": gzip.compress(scores, mtime=0),  # the same bytes at any time
        folder / "runs.csv": csv_bytes(described, infos.values()),
    })


def csv_bytes(columns, rows, missing=""):
    """Rows {column: value} as a CSV file with these columns; `missing` where a row has none of them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval=missing, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
