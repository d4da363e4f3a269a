"""Draws what many runs show: curves with their spread, the map of capacity, the answers to held-out problems.

    python plot_experiment.py                    (from the tables in results/, into it)

Writes seeds_<math|facts|both>.png, accuracy.png, map.png, held_out.png, orders.png and pairs.png, and those
of study/experiments/why_figures.py, each if there are runs for it.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter

from study import StudyError
from study.tasks import HELD_OUT, arithmetic
from study.experiments.figures import (
    COLUMN, CURVES, TWO_COLUMNS, draw_nothing, label_iterations, plt, save_figure, use_widths,
)
from study.experiments.findings import drawn, findings
from study.experiments.results import published_runs
from study.experiments.select import seeds, seeds_by
from study.experiments.why_figures import figures_of_why
from study.settings import run_script

root_dir = "results"  # folder of the experiments' tables; the figures are written there
format = "png"  # or pdf, for print

WIDTHS = (14, 28, 56)
SINGLE = 5  # runs of a cell that are drawn one by one, the first seeds: more hide each other
PROBLEMS = {problem.prompt[1:-1]: problem.answer  # "5+7": "12"
            for problem in arithmetic().problems if problem.held_out}
SCORED = {  # samples -> label, colour and marker
    "trained": ("trained arithmetic", CURVES["add"][1], "o"),
    "held_out": ("held-out arithmetic", CURVES["held_out"][1], "s"),
    "facts": (*CURVES["facts"][:2], "^"),
}


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


def plot_accuracy(found):
    """Over the width n, the accuracy on trained and held-out problems at the end: the runs and their mean."""
    figure, ax = plt.subplots(figsize=(COLUMN, 2.3), layout="constrained")
    for task, what in (("math", "trained"), ("math", "held_out"), ("facts", "facts")):
        last = {n: cell["last"][what] for n, cell in found["by_width"][task].items()}
        if last:
            label, color, marker = SCORED[what]
            for n, percents in last.items():
                ax.plot([n] * len(percents["values"]), percents["values"], color=color, marker="o",
                        markersize=4, markeredgewidth=0, alpha=0.25, linestyle="none")
            ax.plot(list(last), [percents["mean"] for percents in last.values()], color=color, marker=marker,
                    markersize=2.5, linewidth=1.2, label=label)
    ax.set(xlabel="width n", ylabel="accuracy at the last\nevaluation (%)", ylim=(-3, 105))
    label_widths(ax, found["by_width"]["math"])
    ax.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3).set_title("lines: mean of the runs; dots: single runs",
                                                                 {"size": 7})
    return figure


def label_widths(ax, widths):
    use_widths(ax, [1, 2, 4, 8, 14, 28, 56])  # with the paper's sizes
    ax.set_xlim(0.9, max(72, 1.12 * max(widths)))


def draw_shares(ax, cells, criterion, what):
    """Over the width, the share of runs that meet a criterion, with its 95% interval."""
    label, color, marker = SCORED[what]
    rates = {n: cell[criterion] for n, cell in cells.items() if cell[criterion]["total"]}
    if not rates:
        return
    share = np.array([rate["right"] / rate["total"] for rate in rates.values()])
    low, high = np.array([rate["interval"] for rate in rates.values()]).T
    x = np.array(list(rates)) * {"o": 0.985, "s": 1.015}.get(marker, 1)  # beside each other, not over
    ax.errorbar(x, share, [np.maximum(share - low, 0), np.maximum(high - share, 0)], color=color,
                ecolor=(color, 0.35), marker=marker, markersize=3, linewidth=0.8, elinewidth=1,
                label=f"all {label}")


def plot_map(found):
    """Over the width n, the shares of runs that have learned everything, and their lowest loss below."""
    figure, axes = plt.subplots(2, 3, figsize=(TWO_COLUMNS, 4.0), sharex=True, sharey="row",
                                layout="constrained", height_ratios=(3, 2))
    trained, held_out, facts = ("trained", "trained"), ("generalizes", "held_out"), ("all_capitals", "facts")
    columns = (("arithmetic", "math", (trained, held_out)), ("capitals", "facts", (facts,)),
               ("both", "both", (trained, held_out, facts)))
    for (shares, losses), (title, task, scored) in zip(axes.T, columns):
        cells = found["by_width"][task]
        shares.set(title=f"trained on {title}", ylim=(-0.03, 1.05))
        losses.set_xlabel("width n")
        if cells:
            for criterion, what in scored:
                draw_shares(shares, cells, criterion, what)
            low, median, high = np.array([cell["lowest_loss"]["quartiles"] for cell in cells.values()]).T
            losses.errorbar(list(cells), median, [median - low, high - median], color="0.3", marker="D",
                            markersize=2.5, linewidth=1, elinewidth=0.6, capsize=1.5)
        for ax in (shares, losses):
            label_widths(ax, [n for of_task in found["by_width"].values() for n in of_task])
            ax.grid(alpha=0.3)
            if not cells:
                draw_nothing(ax, "not run yet")
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    axes[0, 0].set_ylabel("runs with all of it right at the\nlast evaluation (95% interval)")
    axes[1, 0].set_ylabel("lowest loss\n(nats per character)")
    artists = {label: artist for ax in axes[0] for artist, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(artists.values(), artists.keys(), loc="outside lower center", ncols=len(artists))
    return figure


def plot_held_out(runs):
    """For each width and held-out problem, the share of runs that are right, and the usual error."""
    cells = seeds_by("n_embd", runs, "math_mini_14")
    figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 0.9 + 0.21 * len(cells)), layout="constrained")
    shares = np.zeros((len(cells), len(PROBLEMS)))
    for row, cell in enumerate(cells.values()):
        for column, (problem, correct) in enumerate(PROBLEMS.items()):
            answers = Counter(run.results["held_out_answers"][-1][problem] for run in cell)
            shares[row, column] = answers[correct] / len(cell)
            wrong = [(count, text) for text, count in answers.items() if text != correct]
            text = f"{100 * shares[row, column]:.0f}%"
            if wrong:
                count, most = max(wrong)
                several = count == 1 < len(wrong)
                text += "   wrong ones differ" if several else f"   says {most} ({count_of_runs(count)})"
            color = "white" if shares[row, column] > 0.62 else "black"
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    ax.imshow(shares, cmap="Purples", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(PROBLEMS)), [f"{problem} = {answer}" for problem, answer in PROBLEMS.items()])
    ax.set_yticks(range(len(cells)), [f"n{n} ({count_of_runs(len(cell))})" for n, cell in cells.items()])
    ax.set_title("Held-out problems at the last evaluation: share of runs that are right,\n"
                 "and the most frequent wrong answer (one of them if several tie; ? is no number)")
    return figure


def plot_orders(found):
    """How many held-out samples n14 has right at the end, for each order of the lines and each seed."""
    right = found["orders"]["held_out_right"]
    orders, of_seeds = (sorted({key[i] for key in right}) for i in (0, 1))
    table = np.array([[right.get((order, seed), np.nan) for order in orders] for seed in of_seeds])
    figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 2.2), layout="constrained")
    ax.set_facecolor("0.85")  # where a run is missing
    image = ax.imshow(table, cmap="Purples", vmin=0, vmax=40, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if not np.isnan(value):
            color = "white" if value > 25 else "black"
            ax.text(column, row, f"{value:g}", ha="center", va="center", fontsize=7, color=color)
    ax.set_xticks(range(len(orders)), orders)
    ax.set_yticks(range(len(of_seeds)), of_seeds)
    missing = " (grey: not run yet)" if np.isnan(table).any() else ""
    ax.set(xlabel="order of the lines (line_seed)", ylabel="seed",
           title=f"n14 on arithmetic: held-out samples right at the last evaluation, of 40{missing}")
    figure.colorbar(image, ax=ax, ticks=range(0, 41, 10), shrink=0.8)
    return figure


def plot_pairs(found):
    """The share of runs that generalize, for each held-out pair, with its 95% interval."""
    cells = found["pairs"]["cells"] | {f"{HELD_OUT}\n(the paper's)": found["pairs"]["paper"]}
    figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 2.6), layout="constrained")
    for x, (pair, cell) in enumerate(cells.items()):
        right, total = cell["generalizes"]["right"], cell["generalizes"]["total"]
        if total:
            share, (low, high) = right / total, cell["generalizes"]["interval"]
            color = "0.5" if "paper" in pair else CURVES["held_out"][1]
            ax.bar(x, share, 0.6, color=color, alpha=0.6)
            ax.errorbar(x, share, [[max(share - low, 0)], [max(high - share, 0)]], color="black", linewidth=1,
                        capsize=3)
            ax.text(x, 1.02, f"{right} of {total}", ha="center", fontsize=7)
    ax.set_xticks(range(len(cells)), cells)
    ax.set_ylim(0, 1.1)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel="held-out pair", ylabel="runs that generalize",
           title="n14 on arithmetic: all four held-out problems right at the last evaluation")
    return figure


def figures_of(runs):
    """{name: figure} of all that there are runs for."""
    found = findings(runs)
    plots = {
        "seeds_math": lambda: plot_seeds("math", runs), "seeds_facts": lambda: plot_seeds("facts", runs),
        "seeds_both": lambda: plot_seeds("both", runs),
        "accuracy": lambda: plot_accuracy(found), "map": lambda: plot_map(found),
        "held_out": lambda: plot_held_out(runs), "orders": lambda: plot_orders(found),
        "pairs": lambda: plot_pairs(found),
    }
    return {name: plots[name]() for name in drawn(found) if name in plots} | figures_of_why(found["why"])


def main(cfg):
    figures = figures_of(published_runs(Path(cfg.root_dir)))
    if not figures:
        raise StudyError(f"{cfg.root_dir} holds no runs that a figure shows: "
                         "python run_experiment.py experiments/seeds.py makes some")
    for name, figure in figures.items():
        many_lines = name.startswith("seeds") or name == "held_out"
        save_figure(figure, Path(cfg.root_dir) / f"{name}.{cfg.format}", dpi=200 if many_lines else 300)


if __name__ == "__main__":
    run_script(main, globals())
