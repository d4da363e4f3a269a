"""Draws what many runs tell: curves with their spread, the map of capacity, and what held-out problems come to.

    python plot_experiment.py                    (from the tables in results/, into it)

Writes seeds_<math|facts|both>.png, accuracy.png, map.png, held_out.png, orders.png and pairs.png, each if there are runs for it.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter

from study import StudyError
from study.tasks import HELD_OUT, arithmetic
from study.experiments.figures import COLUMN, CURVES, TWO_COLUMNS, draw_nothing, label_iterations, plt, save_figure
from study.experiments.results import all_right, orders_of, pairs_of, published_runs, right_and_total, seeds_of, widths_of
from study.settings import run_script
from study.experiments.statistics import quartiles, wilson

root_dir = "results"  # folder of the experiments' tables; the figures are written there
format = "png"  # or pdf, for print

WIDTHS = (14, 28, 56)
SINGLE = 5  # runs of a cell that are drawn one by one, the first seeds: more hide each other
PROBLEMS = {problem.prompt[1:-1]: problem.answer for problem in arithmetic().problems if problem.held_out}  # "5+7": "12"
SCORED = {  # what right_and_total() counts -> label, colour and marker
    "trained": ("trained arithmetic", CURVES["add"][1], "o"),
    "held_out": ("held-out arithmetic", CURVES["held_out"][1], "s"),
    "facts": (*CURVES["facts"][:2], "^"),
}


def plot_seeds(task, runs):
    """Accuracies of the six cells of a task: single runs as thin lines, over them the median and the quartiles; None without runs.

    For the held-out problems it is the mean: about half of the runs of n14 have all four and half have three, so a median would jump.
    """
    cells = {(size, suffix): seeds_of(runs, f"{task}_mini_{size}{suffix}") for suffix in ("", "_wd") for size in WIDTHS}
    if not any(cells.values()):
        return None
    figure, axes = plt.subplots(2, 3, figsize=(TWO_COLUMNS, 4.3), sharex=True, sharey=True, layout="constrained")
    artists = {}
    for ax, ((size, suffix), seeds) in zip(axes.flat, cells.items()):
        ax.set_title(f"n{size}, {'weight decay 0.1' if suffix else 'no weight decay'}: {len(seeds)} run{'s' * (len(seeds) != 1)}")
        if not seeds:
            draw_nothing(ax, "not run yet")
        for group, (label, color, _) in CURVES.items():
            if not seeds or not seeds[0].results[f"{group}_total"].any():
                continue
            iterations = seeds[0].results["iter"]
            percent = np.array([100 * run.results[f"{group}_correct"] / run.results[f"{group}_total"] for run in seeds])
            middle = percent.mean(axis=0)
            if group != "held_out":
                ax.plot(iterations, percent[:SINGLE].T, color=color, linewidth=0.3, alpha=0.4, zorder=1)
                low, middle, high = np.percentile(percent, (25, 50, 75), axis=0)
                ax.fill_between(iterations, low, high, color=color, alpha=0.25, linewidth=0, zorder=2)
            [artists[label]] = ax.plot(iterations, middle, color=color, linewidth=1.2, label=label, zorder=3)
        if seeds and seeds[0].results["held_out_total"].any():
            share = np.mean([run.results["held_out_correct"] == run.results["held_out_total"] for run in seeds], axis=0)
            label = "share of runs with all held out right"
            [artists[label]] = ax.plot(iterations, 100 * share, color="0.2", linewidth=0.8, linestyle="--", label=label, zorder=4)
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


def plot_accuracy(runs):
    """Over the width n, the accuracy at the last evaluation on trained and on held-out problems: the runs and their mean."""
    cells = {task: widths_of(runs, task) for task in ("math", "facts")}
    if len(cells["math"]) < 2:
        return None
    figure, ax = plt.subplots(figsize=(COLUMN, 2.3), layout="constrained")
    for task, what in (("math", "trained"), ("math", "held_out"), ("facts", "facts")):
        if cells[task]:
            label, color, marker = SCORED[what]
            percents = {n: [100 * np.divide(*right_and_total(run.results, what)) for run in seeds] for n, seeds in cells[task].items()}
            for n, of_runs in percents.items():
                ax.plot([n] * len(of_runs), of_runs, color=color, marker="o", markersize=4, markeredgewidth=0, alpha=0.25, linestyle="none")
            mean = [np.mean(of_runs) for of_runs in percents.values()]
            ax.plot(list(percents), mean, color=color, marker=marker, markersize=2.5, linewidth=1.2, label=label)
    ax.set(xlabel="width n", ylabel="accuracy at the last\nevaluation (%)", ylim=(-3, 105))
    label_widths(ax, cells["math"])
    ax.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3).set_title("lines: mean of the runs; dots: single runs", {"size": 7})
    return figure


def label_widths(ax, widths):
    ax.set_xscale("log")
    ax.set_xticks([1, 2, 4, 8, 14, 28, 56], ["1", "2", "4", "8", "14", "28", "56"])  # with the paper's sizes
    ax.minorticks_off()
    ax.set_xlim(0.9, max(72, 1.12 * max(widths)))


def draw_shares(ax, cells, what):
    """The share of runs that have all of `what` right at their last evaluation, with its 95% interval, over the width."""
    label, color, marker = SCORED[what]
    right = {n: sum(all_right(run.results, what) for run in seeds) for n, seeds in cells.items()}
    share = np.array([right[n] / len(seeds) for n, seeds in cells.items()])
    low, high = np.array([wilson(right[n], len(seeds)) for n, seeds in cells.items()]).T
    x = np.array(list(cells)) * {"o": 0.985, "s": 1.015}.get(marker, 1)  # beside each other, not over
    ax.errorbar(x, share, [np.maximum(share - low, 0), np.maximum(high - share, 0)], color=color, ecolor=(color, 0.35),
                marker=marker, markersize=3, linewidth=0.8, elinewidth=1, label=f"all {label}")


def plot_map(runs):
    """Over the width n: which shares of runs have learned everything, and their lowest loss below; None without runs."""
    math, facts, both = (widths_of(runs, task) for task in ("math", "facts", "both"))
    if not (math or facts or both):
        return None
    figure, axes = plt.subplots(2, 3, figsize=(TWO_COLUMNS, 4.0), sharex=True, sharey="row", layout="constrained", height_ratios=(3, 2))
    columns = (("arithmetic", math, ("trained", "held_out")), ("capitals", facts, ("facts",)),
               ("both", both, ("trained", "held_out", "facts")))
    for (shares, losses), (task, cells, scored) in zip(axes.T, columns):
        shares.set(title=f"trained on {task}", ylim=(-0.03, 1.05))
        losses.set_xlabel("width n")
        if cells:
            for what in scored:
                draw_shares(shares, cells, what)
            low, median, high = np.array([quartiles([run.results["val_loss"].min() for run in seeds]) for seeds in cells.values()]).T
            losses.errorbar(list(cells), median, [median - low, high - median], color="0.3", marker="D", markersize=2.5,
                            linewidth=1, elinewidth=0.6, capsize=1.5)
        for ax in (shares, losses):
            label_widths(ax, [*math, *facts, *both])
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
    """What each held-out problem comes to at the last evaluation, for each width: the share of right runs, and the usual error."""
    cells = widths_of(runs, "math")
    if not cells:
        return None
    figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 0.9 + 0.21 * len(cells)), layout="constrained")
    shares = np.zeros((len(cells), len(PROBLEMS)))
    for row, (n, seeds) in enumerate(cells.items()):
        for column, (problem, correct) in enumerate(PROBLEMS.items()):
            answers = Counter(run.results["held_out_answers"][-1][problem] for run in seeds)
            shares[row, column] = answers[correct] / len(seeds)
            wrong = [(count, text) for text, count in answers.items() if text != correct]
            text = f"{100 * shares[row, column]:.0f}%"
            if wrong:
                count, said = max(wrong)
                text += "   wrong ones differ" if count == 1 < len(wrong) else f"   says {said} ({count} run{'s' * (count > 1)})"
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if shares[row, column] > 0.62 else "black")
    ax.imshow(shares, cmap="Purples", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(PROBLEMS)), [f"{problem} = {answer}" for problem, answer in PROBLEMS.items()])
    ax.set_yticks(range(len(cells)), [f"n{n} ({len(seeds)} run{'s' * (len(seeds) > 1)})" for n, seeds in cells.items()])
    ax.set_title("Held-out problems at the last evaluation: share of runs that are right,\n"
                 "and the most frequent wrong answer (one of them if several tie; ? is no number)")
    return figure


def plot_orders(runs):
    """How many held-out samples n14 has right at the end, for each order of the lines and each seed; None without runs."""
    named = orders_of(runs)
    if not named:
        return None
    orders, seeds = (sorted({key[i] for key in named}) for i in (0, 1))
    table = np.array([[named[order, seed].results["held_out_correct"][-1] if (order, seed) in named else np.nan
                       for order in orders] for seed in seeds])
    figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 2.2), layout="constrained")
    ax.set_facecolor("0.85")  # where a run is missing
    image = ax.imshow(table, cmap="Purples", vmin=0, vmax=40, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if not np.isnan(value):
            ax.text(column, row, f"{value:g}", ha="center", va="center", fontsize=7, color="white" if value > 25 else "black")
    ax.set_xticks(range(len(orders)), orders)
    ax.set_yticks(range(len(seeds)), seeds)
    ax.set(xlabel="order of the lines (line_seed)", ylabel="seed",
           title="n14 on arithmetic: held-out samples right at the last evaluation, of 40"
           + " (grey: not run yet)" * bool(np.isnan(table).any()))
    figure.colorbar(image, ax=ax, ticks=range(0, 41, 10), shrink=0.8)
    return figure


def plot_pairs(runs):
    """The share of runs that generalize, for each held-out pair, with its 95% interval; None without runs of other pairs."""
    cells = pairs_of(runs)
    if not cells:
        return None
    cells[f"{HELD_OUT}\n(the paper's)"] = seeds_of(runs, "math_mini_14")
    figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 2.6), layout="constrained")
    for x, (pair, seeds) in enumerate(cells.items()):
        right = sum(all_right(run.results, "held_out") for run in seeds)
        if seeds:
            share, (low, high) = right / len(seeds), wilson(right, len(seeds))
            color = "0.5" if "paper" in pair else CURVES["held_out"][1]
            ax.bar(x, share, 0.6, color=color, alpha=0.6)
            ax.errorbar(x, share, [[max(share - low, 0)], [max(high - share, 0)]], color="black", linewidth=1, capsize=3)
            ax.text(x, 1.02, f"{right} of {len(seeds)}", ha="center", fontsize=7)
    ax.set_xticks(range(len(cells)), cells)
    ax.set_ylim(0, 1.1)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlabel="held-out pair", ylabel="runs that generalize",
           title="n14 on arithmetic: all four held-out problems right at the last evaluation")
    return figure


def main(cfg):
    runs = published_runs(Path(cfg.root_dir))
    figures = {f"seeds_{task}": plot_seeds(task, runs) for task in ("math", "facts", "both")}
    figures |= {"accuracy": plot_accuracy(runs), "map": plot_map(runs), "held_out": plot_held_out(runs),
                "orders": plot_orders(runs), "pairs": plot_pairs(runs)}
    if not any(figures.values()):
        raise StudyError(f"{cfg.root_dir} holds no runs that a figure shows: python run_experiment.py experiments/seeds.py makes some")
    for name, figure in figures.items():
        if figure:
            many_lines = name.startswith("seeds") or name == "held_out"
            save_figure(figure, Path(cfg.root_dir) / f"{name}.{cfg.format}", dpi=200 if many_lines else 300)


if __name__ == "__main__":
    run_script(main, globals())
