"""Draw what changes with the width: accuracy, the map of capacity, the score at equal fit, each problem."""

from itertools import combinations

import numpy as np
from matplotlib.ticker import PercentFormatter

from study.experiments.figures import (
    COLUMN, CURVES, HELD_OUT, MEMORY, TRAINED, TWO_COLUMNS, draw_cells, draw_means,
    draw_nothing, label_widths, plt,
)
from study.experiments.problems import problems_of
from study.experiments.widths import FIT, NARROWEST
from study.tasks import HELD_OUT as PAPER_PAIR

FEW = 10  # the interval of a share of fewer runs would span half of the axis
SCORED = {  # samples -> label, colour and marker
    "trained": ("trained arithmetic", TRAINED, "o"),
    "held_out": ("held-out arithmetic", HELD_OUT, "s"),
    "facts": (*CURVES["facts"][:2], "^"),
}


def plot_accuracy(found, wide=False):
    """Over the width, trained and held-out problems right at the end, and the share of a random table.

    wide: for two columns, with labels at the lines.
    """
    figure, ax = plt.subplots(figsize=(TWO_COLUMNS, 3.0) if wide else (COLUMN, 2.5), layout="constrained")
    last = {n: cell["last"] for n, cell in found["by_width"]["math"].items() if n >= NARROWEST}
    tables = {int(n[1:]): cell["table"] for n, cell in found["why"]["capacity"]["by_width"].items()}
    curves = [({n: of_width["trained"] for n, of_width in last.items()}, "trained", TRAINED, "o"),
              ({n: of_width["held_out"] for n, of_width in last.items()}, "held out", HELD_OUT, "s"),
              (tables, "random table", MEMORY, "D")]
    at_curve = ((7, (-10, 3), "right", "trained problems"), (20, (8, 5), "left", "held-out problems"),
                (24, (8, -15), "left", "random table: no rule to find,\nonly answers to memorize"))
    for (cells, label, color, marker), (n, offset, side, text) in zip(curves, at_curve):
        draw_means(ax, cells, label, color, marker)
        if wide and cells:
            n = min(cells, key=lambda width: abs(width - n))
            if n == min(cells):  # no room on its left
                offset, side = (8, -12), "left"
            ax.annotate(text, (n, cells[n]["mean"]), offset, textcoords="offset points", ha=side, va="center",
                        color=color).set_in_layout(False)
    label_widths(ax)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(ylabel="right at the last evaluation (%)", ylim=(-4, 118), yticks=range(0, 101, 20),
           xlim=(0.94 * min(last), 1.08 * max(last)))
    if found["window"]:
        shade_window(ax, found["window"], list(found["by_width"]["math"]))
    runs = [len(cell["values"]) for cells, *_ in curves for cell in cells.values()]
    counts = " to ".join(map(str, sorted({min(runs), max(runs)})))
    note = f"dots: single runs, {counts} a width; lines: their mean"
    if wide:
        figure.supxlabel(note, fontsize=7)
    else:
        figure.legend(loc="outside lower center", ncols=3).set_title(note, {"size": 7})
    return figure


def shade_window(ax, window, widths):
    """Shade the widths of window(), to halfway to the next ones, and say what they are."""
    low, high = (widths.index(window[end]) for end in ("low", "high"))
    left = np.sqrt(widths[low] * widths[max(low - 1, 0)])
    right = np.sqrt(widths[high] * widths[min(high + 1, len(widths) - 1)])
    ax.axvspan(left, right, color="0.92", linewidth=0, zorder=0)
    names = " to ".join(dict.fromkeys(f"n{window[end]}" for end in ("low", "high")))
    ax.text(np.sqrt(left * right), 111, f"{names}: {window['share']:.0%} or more of the runs generalize",
            ha="center", va="center", fontsize=6.5)


def draw_shares(ax, cells, criterion, what):
    """Over the width, the share of runs that meet a criterion, with its 95% interval unless they are FEW."""
    label, color, marker = SCORED[what]
    rates = {n: cell[criterion] for n, cell in cells.items() if cell[criterion]["total"]}
    if not rates:
        return
    x = np.array(list(rates)) * {"o": 0.985, "s": 1.015}.get(marker, 1)  # beside each other, not over
    share = np.array([rate["right"] / rate["total"] for rate in rates.values()])
    few = np.array([rate["total"] < FEW for rate in rates.values()])
    low, high = np.array([rate["interval"] for rate in rates.values()]).T
    errors = [np.where(few, 0, np.maximum(error, 0)) for error in (share - low, high - share)]
    ax.errorbar(x, share, errors, color=color, ecolor=(color, 0.35), marker=marker, markersize=3,
                linewidth=0.8, elinewidth=1, label=f"all {label}")
    ax.plot(x[few], share[few], color=color, marker=marker, markersize=3, markerfacecolor="white",
            markeredgewidth=0.6, linestyle="none", zorder=3)


def plot_map(found):
    """Over the width, the shares of runs that have learned everything, and their lowest loss below."""
    figure, axes = plt.subplots(2, 3, figsize=(TWO_COLUMNS, 4.4), sharex=True, sharey="row",
                                layout="constrained", height_ratios=(5, 4))
    trained, held_out, facts = ("trained", "trained"), ("generalizes", "held_out"), ("all_capitals", "facts")
    columns = (("arithmetic", "math", (trained, held_out)), ("capitals", "facts", (facts,)),
               ("both", "both", (trained, held_out, facts)))
    widths = [n for cells in found["by_width"].values() for n in cells]
    for (shares, losses), (title, task, scored) in zip(axes.T, columns):
        cells = found["by_width"][task]
        if cells:
            for criterion, what in scored:
                draw_shares(shares, cells, criterion, what)
            low, median, high = np.array([cell["lowest_loss"]["quartiles"] for cell in cells.values()]).T
            losses.errorbar(list(cells), median, [median - low, high - median], color="0.3", marker="D",
                            markersize=2.5, linewidth=1, elinewidth=0.6, capsize=1.5)
            draw_floors(losses, found["floors"][task])
        for ax in (shares, losses):
            label_widths(ax, [1, 2, 4, 7, 14, 28, 56])
            ax.set_xlim(0.9, max(72, 1.12 * max(widths)))
            if not cells:
                draw_nothing(ax, "not run yet")
        shares.set(title=f"trained on {title}", xlabel="", ylim=(-0.03, 1.05))
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    axes[0, 0].set_ylabel("runs with all of it right at the\nlast evaluation (95% interval)")
    axes[1, 0].set(yscale="log", ylim=(0.12, 4))
    axes[1, 0].set_yticks([0.2, 0.5, 1, 2, 3], ["0.2", "0.5", "1", "2", "3"])
    axes[1, 0].minorticks_off()
    axes[1, 0].set_ylabel("lowest loss\n(nats per character)")
    artists = {label: artist for ax in axes[0] for artist, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(artists.values(), artists.keys(), loc="outside lower center", ncols=len(artists)).set_title(
        f"hollow: fewer than {FEW} runs, no interval; dashed: lowest possible loss of a model that knows "
        "the text by heart, or all but its order", {"size": 7})
    return figure


def draw_floors(ax, floors):
    """The lowest losses of models that know the text by heart, or all of it but the order of the lines."""
    labels = {"by_heart": "by heart", "order_unknown": "order unknown"}
    for name, floor in floors.items():
        ax.axhline(floor["value"], color="0.5", linewidth=0.8, linestyle="--", zorder=1)
        ax.annotate(f"{labels[name]}: {floor['value']:.3f}", (0.02, floor["value"]), (0, -1), va="top",
                    xycoords=ax.get_yaxis_transform(), textcoords="offset points", fontsize=6.5, color="0.3")


def plot_at_fit(found):
    """Over the width, the held-out score when the trained problems are first fitted, and at the end."""
    figure, ax = plt.subplots(figsize=(COLUMN, 2.5), layout="constrained")
    curves = (("first", f"first evaluation with {FIT:.0%} of the trained problems", "0.25", "o"),
              ("last", "last evaluation", HELD_OUT, "s"))
    for name, label, color, marker in curves:
        draw_means(ax, {int(n[1:]): cell[name] for n, cell in found.items()}, label, color, marker)
    label_widths(ax, [10, 14, 18, 24, 28, 40, 56])
    ax.set(ylabel="held-out problems right (%)", ylim=(-4, 104))
    never = sum(cell["fitted"]["total"] - cell["fitted"]["right"] for cell in found.values())
    figure.legend(loc="outside lower center", ncols=1).set_title(
        f"lines: mean; dots: single runs; {never} others never get there", {"size": 7})
    return figure


def share_of(rate):
    """nan without runs."""
    return rate["right"] / rate["total"] if rate and rate["total"] else np.nan


def plot_held_out(found):
    """For each width and held-out problem, the share of runs that are right at the end."""
    figure, ax = plt.subplots(figsize=(COLUMN, 0.9 + 0.15 * len(found)), layout="constrained")
    draw_cells(ax, np.array([[share_of(rate) for rate in rates.values()] for rates in found.values()]))
    problems = problems_of(PAPER_PAIR)
    ax.set_xticks(range(len(problems)), [f"{problem} = {answer}" for problem, answer in problems.items()])
    ax.set_yticks(range(len(found)), found)
    ax.set(title="% of the runs right at the last evaluation", ylabel="width")
    return figure


def plot_pairs(found):
    """For each held-out pair, the share of runs right: sums above the diagonal, differences below.

    found: by_pair(); a panel for each width.
    """
    figure, axes = plt.subplots(1, len(found), figsize=(TWO_COLUMNS if len(found) > 1 else COLUMN, 3.4),
                                squeeze=False, layout="constrained")
    for ax, (width, cell) in zip(axes.flat, found.items()):
        shares = np.full((10, 10), np.nan)
        for a, b in combinations(range(10), 2):
            for row, column, sign in ((a, b, "+"), (b, a, "-")):
                problems = (f"{a}{sign}{b}", f"{b}{sign}{a}")
                shares[row, column] = np.mean([share_of(cell["problems"].get(each)) for each in problems])
        draw_cells(ax, shares)
        for digit in range(10):
            ax.add_patch(plt.Rectangle((digit - 0.5, digit - 0.5), 1, 1, color="white", linewidth=0))
        a, b = map(int, PAPER_PAIR.split(","))
        for row, column in ((a, b), (b, a)):
            ax.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=1.4, zorder=3))
        runs = " to ".join(map(str, dict.fromkeys(cell["runs"]["values"])))
        ax.set(title=f"{width}: % of the runs right, {runs} a pair", xticks=range(10), yticks=range(10),
               xlabel="digit", ylabel="other digit")
    missing = any(cell["pairs"] < 45 for cell in found.values())
    figure.supxlabel("sums above the diagonal, differences below\nframed: the paper's pair"
                     + ("; grey: not run yet" if missing else ""), fontsize=7)
    return figure
