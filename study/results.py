"""The runs that figures and tables are made of: where they are, what they hold, how large their models are."""

import csv
import importlib
import sys
from pathlib import Path

import numpy as np
import torch

from data.tasks import GROUPS, HELD_OUT
from model import GPT, GPTConfig
from study.run_folder import find_checkpoint, load_model, read_run_json
from study.settings import fail, run_config_file, stated_settings

ROOT = Path(__file__).resolve().parents[1]
GRIDS = {"math": "math", "facts": "facts", "combined": "both"}  # grid -> what its runs' names begin with
SIZES = {"n14": "14", "n28": "28", "n56": "56", "MLT": "mlt"}  # model -> what its runs' names end with
LATE = 20_000  # evaluations from this iteration on are late ones

COLUMNS = ["iter", *(f"{group}_{kind}" for group in GROUPS for kind in ("correct", "total")), "val_loss"]
HELD_OUT_COLUMNS = ["held_out_correct", "held_out_total"]  # not in the published runs' results: zeros there


def read_results(folder):
    """The columns of <folder>/results.csv that plots and tables need, as float arrays (evaluations,).

    A last line that is cut off, as while it is being written, is left out with a note on standard
    error. Ends the program if there is nothing to plot or a line before it is damaged.
    """
    path = Path(folder) / "results.csv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {path} ({getattr(error, 'strerror', 'it is not text')}): it must be a run's results")
    if lines and not lines[-1].endswith("\n"):
        print(f"note: the last line of {path} is cut off and left out", file=sys.stderr)
        lines.pop()
    reader = csv.DictReader(lines)
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or [])]
    if not lines:
        fail(f"{path} is empty: it holds rows once the run's first evaluation is done")
    if missing:
        fail(f"{path} is no results file of a run: it lacks the columns {', '.join(missing)}")
    rows = []
    for row in reader:
        try:
            rows.append([float(row[column]) for column in COLUMNS] + [float(row.get(column, 0)) for column in HELD_OUT_COLUMNS])
        except (TypeError, ValueError):
            fail(f"{path}, line {reader.line_num}: not a number in every column; remove the line or run again")
    if not rows:
        fail(f"{path} holds no evaluation yet: wait for the run's first one")
    return dict(zip(COLUMNS + HELD_OUT_COLUMNS, np.array(rows).T))


def best_evaluation(results):
    """Index of the evaluation with the most right answers over all tasks of the run, the earliest of equals."""
    return np.argmax(results["add_correct"] + results["sub_correct"] + results["facts_correct"])


def late_share(results):
    """Share of the evaluations from LATE on that have every held-out sample right."""
    late = results["iter"] >= LATE
    if not late.any() or not results["held_out_total"].any():
        return "none made"
    right = results["held_out_correct"][late] == results["held_out_total"][late]
    return f"{100 * right.mean():.0f}% ({right.sum()} of {len(right)})"


def held_out_in(folder):
    """The pairs that a run holds out, as its run.json says; the paper's if it does not."""
    return read_run_json(folder).get("held_out", HELD_OUT)


def params_of(config):
    """Parameters of the model that the settings of a config file describe."""
    defaults = stated_settings(ROOT / "train_with_eval.py")
    config = {key: default for key, (default, _) in defaults.items()} | config
    vocab_size = len(set(importlib.import_module(f"data.{config['dataset']}.prepare").text()))
    fields = {key: value for key, value in config.items() if key in GPTConfig.__dataclass_fields__}
    with torch.device("meta"):  # shapes only
        return GPT(GPTConfig(**fields, vocab_size=vocab_size)).num_params()


def num_params(folder):
    """Parameters of the run's model: from run.json, a checkpoint, or the config of the folder's name; or None."""
    folder = Path(folder)
    counted = read_run_json(folder).get("num_params")
    if counted:
        return counted
    checkpoints = sorted(path.name for path in folder.glob("ckpt*.pt"))
    if checkpoints:
        model, _, _ = load_model(find_checkpoint(folder, *checkpoints), torch.device("cpu"))
        return model.num_params()
    config_file = ROOT / "config" / f"train_{folder.resolve().name}.py"
    return params_of(run_config_file(config_file)) if config_file.exists() else None


def find_runs(root_dir, suffix):
    """{grid: {panel: run folder}}; names the runs that are missing, and ends the program if all are."""
    root = Path(root_dir)
    if not root.is_dir():
        fail(f"folder {root} does not exist: --root_dir must name the folder that holds the runs' folders")
    grids = {
        grid: {name: root / f"{task}_mini_{size}{suffix}" for name, size in SIZES.items()}
        for grid, task in GRIDS.items()
    }
    folders = [folder for runs in grids.values() for folder in runs.values()]
    missing = [folder for folder in folders if not (folder / "results.csv").exists()]
    if missing == folders:
        fail(f"{root} holds none of the runs, {missing[0].name} to {missing[-1].name}: train one, "
             f"python train_with_eval.py config/train_{missing[0].name}.py, or set --root_dir")
    for folder in missing:
        print(f"not run yet: {folder.name} (python train_with_eval.py config/train_{folder.name}.py)", file=sys.stderr)
    return grids
