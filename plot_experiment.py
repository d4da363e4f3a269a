"""Draw what many runs show: curves with their spread, the map of capacity, the answers to held-out problems.

    python plot_experiment.py                    (from the tables in results/, into it)

Writes seeds_<math|facts|both>.png and orders.png, those of study/experiments/width_figures.py (accuracy,
accuracy_wide, map, at_fit, held_out, pairs) and those of study/experiments/why_figures.py, each if there are
runs for it.
"""

from pathlib import Path

import numpy as np

from study import StudyError
from study.scoring import NUM_SAMPLES
from study.experiments.figures import (
    CURVES, TWO_COLUMNS, draw_cells, draw_nothing, label_iterations, plt, save_figure,
)
from study.experiments.findings import findings
from study.experiments.results import published_runs
from study.experiments.select import seeds
from study.experiments.titles import FIGURES, drawn
from study.experiments.why_figures import figures_of_why
from study.experiments.width_figures import (
    plot_accuracy, plot_at_fit, plot_held_out, plot_map, plot_pairs,
)
from study.settings import run_script

root_dir = "results"  # folder of the experiments' tables; the figures are written there
format = "png"  # or pdf, for print

WIDTHS = (14, 28, 56)
SINGLE = 5  # runs of a cell that are drawn one by one, the first seeds: more hide each other


def plot_seeds(task, runs):
    """Accuracies of the six cells of a task: single runs as thin lines, over them the median and quartiles.

    For the held-out problems it is the mean: about half of the runs of n14 have all four of them and half
    have three, so a median would jump.
    """
    cells = {(size, suffix): seeds(runs, f"{task}_mini_{size}{suffix}")
             for suffix in ("", "_wd") for size in WIDTHS}
    figure, axes = plt.subplots(2, 3, figsize=(TWO_COLUMNS, 4.3), sharex=True, sharey=True,
                                layout="constrained")
    artists = {}
    for ax, ((size, suffix), cell) in zip(axes.flat, cells.items()):
        regularized = "weight decay 0.1" if suffix else "no weight decay"
        ax.set_title(f"n{size}, {regularized}: {count_of_runs(len(cell))}")
        if not cell:
            draw_nothing(ax, "not run yet")
        for group, (label, color, _) in CURVES.items():
            if not cell or not cell[0].results[f"{group}_total"].any():
                continue
            iterations = cell[0].results["iter"]
            percent = np.array([100 * run.results[f"{group}_correct"] / run.results[f"{group}_total"]
                                for run in cell])
            middle = percent.mean(axis=0)
            if group != "held_out":
                ax.plot(iterations, percent[:SINGLE].T, color=color, linewidth=0.3, alpha=0.4, zorder=1)
                low, middle, high = np.percentile(percent, (25, 50, 75), axis=0)
                ax.fill_between(iterations, low, high, color=color, alpha=0.25, linewidth=0, zorder=2)
            [artists[label]] = ax.plot(iterations, middle, color=color, linewidth=1.2, label=label, zorder=3)
        if cell and cell[0].results["held_out_total"].any():
            share = np.mean([run.results["held_out_correct"] == run.results["held_out_total"]
                             for run in cell], axis=0)
            label = "share of runs with all held out right"
            [artists[label]] = ax.plot(iterations, 100 * share, color="0.2", linewidth=0.8, linestyle="--",
                                       label=label, zorder=4)
        ax.set_ylim(-3, 105)
        ax.grid(alpha=0.3)
    for ax in axes[1]:
        label_iterations(ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy (%)" if task == "facts" else "accuracy or share (%)")
    legend = figure.legend(artists.values(), artists.keys(), loc="outside lower center", ncols=len(artists))
    line = "median of the runs" if task == "facts" else "median of the runs (held out: mean)"
    legend.set_title(f"lines: {line}; bands: quartiles; thin: the first {SINGLE} runs", {"size": 7})
    return figure


def count_of_runs(count):
    return f"{count} run" if count == 1 else f"{count} runs"


def plot_orders(found):
    """How many held-out problems n14 answers at the end, for each order of the lines and each seed."""
    right = {key: samples / NUM_SAMPLES for key, samples in found["orders"]["held_out_right"].items()}
    orders, of_seeds = (sorted({key[i] for key in right}) for i in (0, 1))
    table = np.array([[right.get((order, seed), np.nan) for order in orders] for seed in of_seeds])
    figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 2.2), layout="constrained")
    image = draw_cells(ax, table, most=4, text="{:g}")
    ax.set_xticks(range(len(orders)), orders)
    ax.set_yticks(range(len(of_seeds)), of_seeds)
    missing = " (grey: not run yet)" if np.isnan(table).any() else ""
    ax.set(xlabel="order of the lines (line_seed)", ylabel="seed",
           title=f"n14 on arithmetic: held-out problems right at the last evaluation, of 4{missing}")
    figure.colorbar(image, ax=ax, ticks=range(5), shrink=0.8)
    return figure


def figures_of(runs):
    """{name: figure} of all that there are runs for."""
    found = findings(runs)
    plots = {
        "seeds_math": lambda: plot_seeds("math", runs), "seeds_facts": lambda: plot_seeds("facts", runs),
        "seeds_both": lambda: plot_seeds("both", runs),
        "accuracy": lambda: plot_accuracy(found), "accuracy_wide": lambda: plot_accuracy(found, wide=True),
        "map": lambda: plot_map(found), "at_fit": lambda: plot_at_fit(found["at_fit"]),
        "held_out": lambda: plot_held_out(found["held_out"]), "pairs": lambda: plot_pairs(found["by_pair"]),
        "orders": lambda: plot_orders(found),
    }
    return {name: plots[name]() for name in drawn(found, FIGURES)} | figures_of_why(found["why"])


def main(cfg):
    figures = figures_of(published_runs(Path(cfg.root_dir)))
    if not figures:
        raise StudyError(f"{cfg.root_dir} holds no runs that a figure shows: "
                         "python run_experiment.py experiments/seeds.py makes some")
    for name, figure in figures.items():
        dpi = 200 if name.startswith("seeds") else 300
        save_figure(figure, Path(cfg.root_dir) / f"{name}.{cfg.format}", dpi=dpi)


if __name__ == "__main__":
    run_script(main, globals())
