"""The runs that figures and tables are made of: where they are, what they hold, how large their models are."""

import csv
import gzip
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from study import ROOT, StudyError
from study.dataset import text_of
from study.tasks import COUNTED, GROUPS, HELD_OUT
from model import GPT, gpt_config
from study.device import describe
from study.run_folder import load_model, read_run_json
from study.settings import defaults_of, run_config_file

GRIDS = {"math": "math", "facts": "facts", "combined": "both"}  # grid -> what its runs' names begin with
SIZES = {"n14": "14", "n28": "28", "n56": "56", "MLT": "mlt"}  # model -> what its runs' names end with
LATE = 20_000  # evaluations from this iteration on are late ones

# The columns that a results.csv must have. Those of COLUMNS that it may lack are read as zeros: the held-out ones,
# which the paper's own files do not have, and those of a task that was added after the run.
NEEDED = ["iter", "add_correct", "add_total", "sub_correct", "sub_total", "facts_correct", "facts_total", "val_loss"]
COLUMNS = list(dict.fromkeys([*NEEDED, *(f"{group}_{kind}" for group in COUNTED for kind in ("correct", "total"))]))


class Run(NamedTuple):
    info: dict  # its row of runs.csv (study/experiments/runs.py says what each column means), or as much as its folder tells
    rows: list  # its rows of results.csv, {column: text}
    results: dict  # columns() of them


def read_run(folder):
    """The Run, complete or not, that a folder holds."""
    rows = read_rows(Path(folder) / "results.csv")
    return Run(read_info(Path(folder)), rows, columns(rows))


def read_rows(path):
    """The rows of a results.csv, {column: text}, in which everything that plots and tables need is a number.

    A last line that is cut off, as while it is being written, is left out with a note on standard
    error. Ends the program if there is nothing to plot or a line before it is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"cannot read {path} ({getattr(error, 'strerror', 'it is not text')}): it must be a run's results")
    if lines and not lines[-1].endswith("\n"):
        print(f"note: the last line of {path} is cut off and left out", file=sys.stderr)
        lines.pop()
    reader = csv.DictReader(lines)
    missing = [column for column in NEEDED if column not in (reader.fieldnames or [])]
    if not lines:
        raise StudyError(f"{path} is empty: it holds rows once the run's first evaluation is done")
    if missing:
        raise StudyError(f"{path} is no results file of a run: it lacks the columns {', '.join(missing)}")
    rows = []
    for row in reader:
        try:
            columns([row])
        except (TypeError, ValueError):
            raise StudyError(f"{path}, line {reader.line_num}: not a number in every column; remove the line or run again")
        rows.append(row)
    if not rows:
        raise StudyError(f"{path} holds no evaluation yet: wait for the run's first one")
    return rows


def columns(rows):
    """Rows of a results.csv as {column: float array (evaluations,)}, and "held_out_answers": a list of dicts.

    An item of that list gives each held-out problem, such as "5+7", what it was answered with. Raises
    TypeError or ValueError for what is not a number.
    """
    numbers = [[float(row[column] if column in NEEDED else row.get(column, 0)) for column in COLUMNS] for row in rows]
    said = [dict(pair.split("=") for pair in (row.get("held_out_answers") or "").split()) for row in rows]
    return dict(zip(COLUMNS, np.array(numbers).T)) | {"held_out_answers": said}


def read_runs(root_dir):
    """{name: Run} of everything in a folder: the runs in the tables of its experiments, and the folders of others, there or in runs/.

    Of two folders of one name, as where a run of the project is being made anew, it has the one that is further.
    Ends the program if there is no such folder or a table is damaged.
    """
    root = Path(root_dir)
    if not root.is_dir():
        raise StudyError(f"folder {root} does not exist: --root_dir must name a folder of experiments or of runs")
    runs = published_runs(root)
    folders = [path.parent for pattern in ("*/results.csv", "runs/*/results.csv") for path in sorted(root.glob(pattern))]
    others = [read_run(folder) for folder in folders if folder.name not in runs]
    return {run.info["run"]: run for run in sorted(others, key=lambda run: run.results["iter"][-1])} | runs


def published_runs(root):
    """{name: Run} of the tables of all experiments in a folder."""
    return {name: run for path in sorted(root.glob("*/runs.csv")) for name, run in read_tables(path.parent).items()}


def read_tables(folder):
    """{name: Run} of an experiment's runs.csv and evaluations.csv.gz; ends the program if they are damaged."""
    try:
        with open(folder / "runs.csv", encoding="utf-8", newline="") as file:
            infos = {info["run"]: info for info in csv.DictReader(file)}
        rows = {name: [] for name in infos}
        with gzip.open(folder / "evaluations.csv.gz", "rt", encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            own = reader.fieldnames[(reader.fieldnames or []).index("iter"):]  # before them: the run's settings
            for row in reader:
                if row["run"] in rows:
                    rows[row["run"]].append({column: row[column] for column in own})
        if not all(rows.values()):
            raise ValueError("a run without evaluations")
        return {name: Run(info, rows[name], columns(rows[name])) for name, info in infos.items()}
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise StudyError(f"the tables in {folder}, runs.csv and evaluations.csv.gz, are damaged ({type(error).__name__}: {error}): "
             "restore them, or remove both and run the experiment again")


def read_info(folder):
    """What the folder of a run tells of it, complete or not, with the names of runs.csv."""
    info = read_run_json(folder)
    parts = [*info.get("earlier_parts", []), info] if info else []
    return {
        "run": folder.name,
        "held_out": info.get("held_out", HELD_OUT),
        "max_iters": info.get("config", {}).get("max_iters", 0),
        "num_params": num_params(folder),
        "made_on": "; ".join(dict.fromkeys(map(describe, parts))),
    }


def how_far(run):
    """Where a run is that has not come to its end, such as "at 6,000 of 30,000"; "" of one that has, or that does not tell."""
    last, most = int(run.results["iter"][-1]), int(run.info["max_iters"])
    return f"at {last:,} of {most:,}" if last < most else ""


def best_evaluation(results, what="combined", latest=False):
    """Index of the evaluation with the most right answers, the earliest (or latest) of equals; what: those of right_and_total()."""
    right, _ = right_and_total(results, what, slice(None))
    return int(np.flatnonzero(right == right.max())[-1 if latest else 0])


def late_evaluations(results):
    """(evaluations from LATE on that have every held-out sample right, evaluations from LATE on)."""
    late = results["iter"] >= LATE
    right = results["held_out_correct"][late] == results["held_out_total"][late]
    return int(right.sum()) if results["held_out_total"].any() else 0, int(late.sum())


def right_and_total(results, what, at=-1):
    """Right samples and all samples at an evaluation.

    what: a group, "combined" for all of them, "held_out", or "trained" for the other sums and differences.
    """
    counted = {"combined": dict.fromkeys(GROUPS, 1), "trained": {"add": 1, "sub": 1, "held_out": -1}}.get(what, {what: 1})
    return tuple(sum(sign * results[f"{group}_{kind}"][at] for group, sign in counted.items()) for kind in ("correct", "total"))


def all_right(results, what, at=-1):
    """Whether all samples are right, of those that right_and_total() counts.

    All held-out samples right at the last evaluation is what counts as generalizing, everywhere.
    """
    right, total = right_and_total(results, what, at)
    return bool(total and right == total)


def scores_of(results):
    """The columns of runs.csv that follow from a run's evaluations."""
    best = best_evaluation(results)
    late_right, late = late_evaluations(results)
    return {
        **{f"{group}_total": int(results[f"{group}_total"][-1]) for group in COUNTED},
        "best_iter": int(results["iter"][best]),
        **{f"best_{group}": int(results[f"{group}_correct"][best]) for group in COUNTED},
        **{f"last_{group}": int(results[f"{group}_correct"][-1]) for group in COUNTED},
        "late": late, "late_right": late_right,
        "lowest_val_loss": float(results["val_loss"].min()),
    }


def params_of(config):
    """Parameters of the model that settings of train_with_eval.py, all of them, describe."""
    vocab_size = len(set(text_of(config["dataset"])))
    with torch.device("meta"):  # shapes only
        return GPT(gpt_config(config, vocab_size)).num_params()


def num_params(folder):
    """Parameters of the run's model: from run.json, a checkpoint, or the config of the folder's name; or None."""
    folder = Path(folder)
    counted = read_run_json(folder).get("num_params")
    if counted:
        return counted
    checkpoints = sorted(folder.glob("ckpt*.pt"))
    if checkpoints:
        return load_model(checkpoints[0], torch.device("cpu"))[0].num_params()
    return config_params(folder.resolve().name)


def config_params(run):
    """Parameters of the model of a run with the name of a config; None for any other name."""
    config_file = ROOT / "config" / f"train_{run}.py"
    if not config_file.exists():
        return None
    return params_of(defaults_of(ROOT / "train_with_eval.py") | run_config_file(config_file))


def find_runs(root_dir, suffix):
    """({grid: {panel: name of its run}}, read_runs()); names the runs that are missing, and ends the program if all are."""
    runs = read_runs(root_dir)
    grids = {
        grid: {panel: f"{task}_mini_{size}{suffix}" for panel, size in SIZES.items()}
        for grid, task in GRIDS.items()
    }
    names = [name for panels in grids.values() for name in panels.values()]
    missing = [name for name in names if name not in runs]
    if missing == names:
        raise StudyError(f"{root_dir} holds none of the runs, {names[0]} to {names[-1]}: "
             + (f"train one, python train_with_eval.py config/train_{names[0]}.py, or set --root_dir" if config_params(names[0])
                else f"there are no configs of these names, and --suffix={suffix} is not _wd"))
    for name in missing:
        print(f"not run yet: {name} (python train_with_eval.py config/train_{name}.py)", file=sys.stderr)
    return grids, runs
