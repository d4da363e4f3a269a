"""Plots the accuracies and the validation loss of one run over its iterations, into <folder>/plot.png.

    python plot_results.py --model_folder math_mini_14
    python plot_results.py --model_folder math_mini_mlt_gk --log_x    (paper, figure 7)
"""

import csv
import importlib
import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws files, needs no screen
import matplotlib.pyplot as plt
import numpy as np
import torch

from configurator import configure, fail, run_config_file, stated_settings
from data.dataset import write_files
from evaluation import load_model, read_run_json
from model import GPT, GPTConfig

model_folder = "out"  # folder of the run, or any folder with a results.csv
log_x = False  # logarithmic iteration axis

# The accuracies of results.csv: its columns' prefix -> label, colour (safe for the colour-blind) and
# line width, falling so that curves that coincide stay visible.
CURVES = {
    "add": ("addition", "#0072B2", 2.6),
    "sub": ("subtraction", "#E69F00", 1.4),
    "facts": ("facts", "#009E73", 1.4),
}
PERFECT = "addition and subtraction at 100%"
COLUMNS = ["iter", *(f"{group}_{kind}" for group in CURVES for kind in ("correct", "total")), "val_loss"]
HELD_OUT = ["held_out_correct", "held_out_total"]  # not in the published runs' results: zeros there


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
            rows.append([float(row[column]) for column in COLUMNS] + [float(row.get(column, 0)) for column in HELD_OUT])
        except (TypeError, ValueError):
            fail(f"{path}, line {reader.line_num}: not a number in every column; remove the line or run again")
    if not rows:
        fail(f"{path} holds no evaluation yet: wait for the run's first one")
    return dict(zip(COLUMNS + HELD_OUT, np.array(rows).T))


def params_of(config):
    """Parameters of the model that the settings of a config file describe."""
    defaults = stated_settings(Path(__file__).parent / "train_with_eval.py")
    config = {key: default for key, (default, _) in defaults.items()} | config
    vocab_size = len(set(importlib.import_module(f"data.{config['dataset']}.prepare").TEXT))
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
        model, _, _ = load_model(folder, checkpoints, torch.device("cpu"))
        return model.num_params()
    config_file = Path(__file__).parent / "config" / f"train_{folder.resolve().name}.py"
    return params_of(run_config_file(config_file)) if config_file.exists() else None


def titled(name, folder):
    count = num_params(folder)
    return name if count is None else f"{name} ({count:,} parameters)"


def draw_accuracies(ax, results):
    """Draws the accuracies the run has, in percent; returns {label: artist} for a legend."""
    artists = {}
    for group, (label, color, width) in CURVES.items():
        total = results[f"{group}_total"]
        if total.any():
            percent = 100 * results[f"{group}_correct"] / np.maximum(total, 1)
            [artists[label]] = ax.plot(results["iter"], percent, color=color, linewidth=width, label=label)
    perfect = (results["add_total"] > 0) & (results["sub_total"] > 0)
    for group in ("add", "sub"):
        perfect &= results[f"{group}_correct"] == results[f"{group}_total"]
    if perfect.any():
        artists[PERFECT] = ax.scatter(
            results["iter"][perfect], np.full(perfect.sum(), 100.0), s=14, color="red", zorder=3, label=PERFECT
        )
    ax.set_ylim(-3, 105)
    ax.grid(alpha=0.3)
    return artists


def save_figure(figure, path):
    """Writes a figure as PNG and says so."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=250, bbox_inches="tight")
    write_files({path: buffer.getvalue()})
    print(f"wrote {path}")


def plot_run(folder, log_x):
    """Figure of one run: accuracies on the left axis, validation loss on the right one."""
    results = read_results(folder)
    if log_x and results["iter"].max() <= 0:
        fail(f"{folder} has no evaluation after iteration 0, which a logarithmic axis cannot show")
    figure, ax = plt.subplots(figsize=(8, 5))
    artists = draw_accuracies(ax, results)
    ax.set(xlabel="iteration", ylabel="accuracy (%)", title=titled(Path(folder).resolve().name, folder))
    if log_x:
        ax.set_xscale("log", nonpositive="mask")  # iteration 0 has no place on it
    loss_ax = ax.twinx()
    label = "validation loss"
    [artists[label]] = loss_ax.plot(
        results["iter"], results["val_loss"], color="0.45", linewidth=1, linestyle="--", label=label
    )
    loss_ax.set_ylabel("validation loss (nats per character)")
    loss_ax.set_ylim(bottom=0)
    figure.legend(artists.values(), artists.keys(), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(artists))
    return figure


if __name__ == "__main__":
    cfg = configure(globals())
    save_figure(plot_run(cfg.model_folder, cfg.log_x), Path(cfg.model_folder) / "plot.png")
