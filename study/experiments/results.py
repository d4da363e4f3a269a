"""The runs that figures and tables are made of: where they are, what they hold, the size of their models."""

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
from model import GPT
from study.update import gpt_config
from study.device import describe
from study.files import why_unreadable
from study.run_folder import load_model, read_run_json
from study.settings import defaults_of, run_config_file

GRIDS = {"math": "math", "facts": "facts", "combined": "both"}  # grid -> what its runs' names begin with
SIZES = {"n14": "14", "n28": "28", "n56": "56", "MLT": "mlt"}  # model -> what its runs' names end with
LATE = 20_000  # evaluations from this iteration on are late ones

# A results.csv must have the columns NEEDED. Other COLUMNS may be missing (zeros): held-out ones,
# which the paper's own files do not have, and those of a task that was added after the run.
NEEDED = ["iter", "add_correct", "add_total", "sub_correct", "sub_total", "facts_correct", "facts_total",
          "val_loss"]
COUNTS = [f"{group}_{kind}" for group in COUNTED for kind in ("correct", "total")]
COLUMNS = list(dict.fromkeys([*NEEDED, *COUNTS]))


class Run(NamedTuple):
    info: dict  # its row of runs.csv (see study/experiments/runs.py), or as much as its folder tells
    rows: list  # its rows of results.csv, {column: text}
    results: dict  # columns() of them


def read_run(folder):
    """Return the Run in a folder, complete or not."""
    rows = read_rows(Path(folder) / "results.csv")
    return Run(read_info(Path(folder)), rows, columns(rows))


def read_rows(path):
    """Return the rows of a results.csv, {column: text}, sorted by iteration and with finite numbers only.

    A last line that is cut off, as while a run writes it, is left out with a note on standard error. Any
    other damage, or a file without an evaluation, raises StudyError.
    """
    try:
        # utf-8-sig: with or without a byte order mark.
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"cannot read {path} ({why_unreadable(error)}): it must be the results.csv of a run")
    if lines and not lines[-1].endswith("\n"):
        print(f"note: the last line of {path} is cut off and left out", file=sys.stderr)
        lines.pop()
    reader = csv.DictReader(lines)
    missing = [column for column in NEEDED if column not in (reader.fieldnames or [])]
    if not lines:
        raise StudyError(f"{path} is empty: wait for the run's first evaluation")
    if missing:
        raise StudyError(f"{path} is not the results.csv of a run: it lacks the columns {', '.join(missing)}")
    rows = []
    try:
        for row in reader:
            it = columns([row])["iter"][0]
            if rows and it <= float(rows[-1]["iter"]):
                raise StudyError(f"{path}, line {reader.line_num}: iteration {it:g} follows iteration "
                                 f"{float(rows[-1]['iter']):g}; sort the lines by iter or run again")
            rows.append(row)
    except (TypeError, ValueError, csv.Error):
        raise StudyError(f"{path}, line {reader.line_num}: not a finite number in every column; "
                         "remove the line or run again")
    if not rows:
        raise StudyError(f"{path} has no evaluation yet: wait for the run's first one")
    return rows


def columns(rows):
    """Return rows of a results.csv as {column: float array (evaluations,)}, with "held_out_answers" added.

    These are a list of {held-out problem, such as "5+7": its most frequent answer}. Raises TypeError or
    ValueError unless all values are finite numbers.
    """
    numbers = np.array([[float(row[column] if column in NEEDED else row.get(column, 0)) for column in COLUMNS]
                        for row in rows])
    if not np.isfinite(numbers).all():
        raise ValueError("a number that is not finite")
    answers = [dict(pair.split("=") for pair in (row.get("held_out_answers") or "").split()) for row in rows]
    return dict(zip(COLUMNS, numbers.T)) | {"held_out_answers": answers}


def read_runs(root_dir):
    """Return {name: Run} of the experiments' tables in a folder, and of other_runs().

    Raises StudyError if there is no such folder or a table is damaged.
    """
    root = Path(root_dir)
    if not root.is_dir():
        raise StudyError(f"folder {root} does not exist: --root_dir must name a folder of runs")
    runs = published_runs(root)
    return other_runs(root, runs) | runs


def other_runs(root, runs):
    """Return {name: Run} of the run folders in a folder and in its runs/, without the runs of the tables.

    If two folders have the same name, the run with more iterations wins.
    """
    patterns = ("*/results.csv", "runs/*/results.csv")
    files = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    others = [read_other_run(path.parent) for path in files if path.parent.name not in runs]
    others = sorted(filter(None, others), key=lambda run: run.results["iter"][-1])
    return {run.info["run"]: run for run in others}


def read_other_run(folder):
    """Return the Run in a folder that the user has not named; None, with a note on stderr, if it is damaged.

    A damaged results.csv of a run with a config still raises StudyError: figures and tables need that run.
    """
    try:
        return read_run(folder)
    except StudyError as error:
        if config_params(folder.name):
            read_rows(folder / "results.csv")  # raises if this is what is damaged
        print(f"left out {folder}: {error}", file=sys.stderr)


def published_runs(root):
    """{name: Run} of the tables of all experiments in a folder."""
    tables = [read_tables(path.parent) for path in sorted(root.glob("*/runs.csv"))]
    return {name: run for runs in tables for name, run in runs.items()}


def read_tables(folder):
    """Return {name: Run} of an experiment's runs.csv and evaluations.csv.gz; raises StudyError."""
    try:
        with open(folder / "runs.csv", encoding="utf-8", newline="") as file:
            infos = {info["run"]: info for info in csv.DictReader(file)}
        rows = {name: [] for name in infos}
        with gzip.open(folder / "evaluations.csv.gz", "rt", encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            scores = reader.fieldnames[(reader.fieldnames or []).index("iter"):]  # after the run's settings
            for row in reader:
                if row["run"] in rows:
                    rows[row["run"]].append({column: row[column] for column in scores})
        if not all(rows.values()):
            raise ValueError("a run without evaluations")
        return {name: Run(info, rows[name], columns(rows[name])) for name, info in infos.items()}
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError, KeyError, TypeError,
            ValueError) as error:
        raise StudyError(f"the tables in {folder}, runs.csv and evaluations.csv.gz, are damaged "
                         f"({type(error).__name__}: {error}): "
                         "restore them, or remove both and run the experiment again")


def read_info(folder):
    """What a run's folder says of it, complete or not, under the column names of runs.csv."""
    info = read_run_json(folder)
    parts = [*info.get("earlier_parts", []), info] if info else []
    return {
        "run": folder.name,
        "held_out": info.get("held_out", HELD_OUT),
        "max_iters": info.get("config", {}).get("max_iters", 0),
        "num_params": num_params(folder),
        "made_on": "; ".join(dict.fromkeys(map(describe, parts))),
    }


def unfinished_note(run):
    """Return "at 6,000 of 30,000" for a run that is not complete, else ""."""
    last, most = int(run.results["iter"][-1]), int(run.info["max_iters"])
    return f"at {last:,} of {most:,}" if last < most else ""


def best_evaluation(results, what="combined", latest=False):
    """Return the index of the evaluation with the most right answers, the earliest (or latest) of equals.

    what: as for right_and_total().
    """
    right, _ = right_and_total(results, what, slice(None))
    return int(np.flatnonzero(right == right.max())[-1 if latest else 0])


def first_evaluation_with(results, what, share):
    """Return the index of the first evaluation with a share of the samples right; None if there is none.

    what: as for right_and_total().
    """
    right, total = right_and_total(results, what, slice(None))
    reached = np.flatnonzero(right >= share * total)
    return int(reached[0]) if len(reached) else None


def late_evaluations(results):
    """(evaluations from LATE on that have every held-out sample right, evaluations from LATE on)."""
    late = results["iter"] >= LATE
    right = results["held_out_correct"][late] == results["held_out_total"][late]
    return int(right.sum()) if results["held_out_total"].any() else 0, int(late.sum())


def right_and_total(results, what, at=-1):
    """Right samples and all samples at an evaluation.

    what: a group, "combined" for all of them, "held_out", or "trained" for the other sums and differences.
    """
    sums = {"combined": dict.fromkeys(GROUPS, 1), "trained": {"add": 1, "sub": 1, "held_out": -1}}
    counted = sums.get(what, {what: 1})
    return tuple(sum(sign * results[f"{group}_{kind}"][at] for group, sign in counted.items())
                 for kind in ("correct", "total"))


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


def num_params(folder):
    """Return the number of parameters by run.json, a checkpoint, or the folder's name; or None."""
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
    config = defaults_of(ROOT / "train_with_eval.py") | run_config_file(config_file)
    with torch.device("meta"):  # shapes only
        return GPT(gpt_config(config, len(set(text_of(config["dataset"]))))).num_params()


def find_runs(root_dir, suffix):
    """Return ({grid: {panel: name of its run}}, read_runs()).

    Prints the names of missing runs; raises StudyError if all are missing.
    """
    runs = read_runs(root_dir)
    grids = {
        grid: {panel: f"{task}_mini_{size}{suffix}" for panel, size in SIZES.items()}
        for grid, task in GRIDS.items()
    }
    names = [name for panels in grids.values() for name in panels.values()]
    missing = [name for name in names if name not in runs]
    if missing == names:
        raise StudyError(f"{root_dir} holds none of the runs, {names[0]} to {names[-1]}: "
             + (f"train one, python train_with_eval.py config/train_{names[0]}.py, or set --root_dir"
                if config_params(names[0])
                else f"there are no configs of these names, and --suffix={suffix} is not _wd"))
    for name in missing:
        print(f"not run yet: {name} (python train_with_eval.py config/train_{name}.py)", file=sys.stderr)
    return grids, runs
