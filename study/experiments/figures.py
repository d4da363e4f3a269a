"""What all figures share: colours, accuracies over iterations, and how a figure becomes a file."""

import io
import os

os.environ["MPLBACKEND"] = "Agg"  # needs no screen; the user's backend may not exist here
import matplotlib

matplotlib.use("Agg")  # for a program that has imported matplotlib before
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from study.tasks import GROUPS
from study.files import write_files

# Sizes are those of print: figures are one column of a paper wide or two, with text of 8 points.
COLUMN, TWO_COLUMNS = 3.3, 6.9  # inches
plt.rcParams.update({"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8,
                     "xtick.labelsize": 7, "ytick.labelsize": 7,
                     "legend.fontsize": 7, "legend.handlelength": 1.5, "legend.columnspacing": 1.2,
                     "figure.max_open_warning": 0,  # all are drawn before the first is saved
                     "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
                     "grid.linewidth": 0.5})

# Group -> label, colour (safe for the colour-blind) and line width; they fall, so that equal curves show.
CURVES = {
    "add": (GROUPS["add"], "#0072B2", 2.2),
    "sub": (GROUPS["sub"], "#E69F00", 1.6),
    "facts": (GROUPS["facts"], "#009E73", 1.2),
    "held_out": ("held out", "#CC79A7", 0.8),
}
TRAINED, HELD_OUT, MEMORY = CURVES["add"][1], CURVES["held_out"][1], "#D55E00"  # of curves over the width
WIDTHS = [4, 7, 10, 14, 18, 24, 28, 40, 56]  # ticks
MOST_PIXELS = 8_000  # width or height of a figure
PERFECT = "addition and subtraction at 100%"
ANSWERS_LEGEND = "the most frequent answer; red: wrong, framed: held out"


def titled(name, num_params, unfinished=""):
    """Return a title such as "n14 (1,456 parameters)"; unfinished: unfinished_note() of the run."""
    name = name.encode(errors="backslashreplace").decode()  # bytes of a folder's name that are not UTF-8
    what = ([f"{int(num_params):,} parameters"] if num_params else []) + ([unfinished] if unfinished else [])
    return f"{name} ({', '.join(what)})" if what else name


def label_iterations(ax):
    """The name and the numbers of an iteration axis, 10k for 10,000."""
    ax.set_xlabel("iteration")
    ax.xaxis.set_major_formatter(lambda it, _: f"{it / 1000:g}k" if it >= 1000 else f"{it:g}")


def label_widths(ax, ticks=WIDTHS):
    """A logarithmic axis of widths with these ticks."""
    ax.set_xscale("log")
    ax.set_xticks(ticks, ticks)
    ax.minorticks_off()
    ax.set_xlabel("width n")
    ax.grid(alpha=0.3)


def jittered(x, count):
    """Positions of dots at x on a logarithmic axis, side by side rather than over each other."""
    return x * np.exp(0.025 * (2 * (np.arange(count) * 0.618 % 1) - 1))  # golden ratio: evenly spaced


def draw_means(ax, cells, label, color, marker):
    """The mean over the runs for each x, and single runs as dots. cells: {x: {"values", "mean"}}."""
    cells = {x: cell for x, cell in cells.items() if cell["values"]}
    for x, cell in cells.items():
        ax.plot(jittered(x, len(cell["values"])), cell["values"], "o", color=color, markersize=2.5,
                markeredgewidth=0, alpha=0.25, zorder=1.8)  # below all lines
    ax.plot(list(cells), [cell["mean"] for cell in cells.values()], color=color, marker=marker, markersize=3,
            linewidth=1.2, label=label)


def draw_nothing(ax, why):
    """Say in the middle of a panel why it is empty."""
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color="0.4")


def draw_cells(ax, values, most=1.0, text="{:.0%}", **options):
    """Draw a heat map of values [row][column] from 0 to most with their texts, nan grey; return its image."""
    ax.set_facecolor("0.85")
    image = ax.imshow(values, cmap="Purples", vmin=0, vmax=most, aspect="auto", **options)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            ax.text(column, row, text.format(value).rstrip("%"), ha="center", va="center", fontsize=6.5,
                    color="white" if value > 0.62 * most else "black")
    return image


def draw_accuracies(ax, results):
    """Draw the accuracies that a run has, in percent; return {label: artist} for a legend."""
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
            results["iter"][perfect], np.full(perfect.sum(), 100.0), s=12, color="red", zorder=1.5,
            label=PERFECT
        )
    ax.set_ylim(-3, 105)
    ax.grid(alpha=0.3)
    return artists


def draw_table(ax, table, title):
    """Draw a table of answers: wrong cells red, held-out ones framed, those without a problem empty.

    table: {(a, b): (answer, is correct, is held out)}.
    """
    size = 1 + max(map(max, table))
    wrong = np.full((size, size), np.nan)
    for operands, (_, correct, _) in table.items():
        wrong[operands] = not correct
    ax.imshow(wrong, cmap=ListedColormap(["#DCEBF5", "#F2B8A0"]), vmin=0, vmax=1)
    for (a, b), (answer, _, held_out) in table.items():
        ax.text(b, a, answer, ha="center", va="center", fontsize=7)
        if held_out:
            ax.add_patch(plt.Rectangle((b - 0.5, a - 0.5), 1, 1, fill=False, linewidth=1.2))
    ax.set(title=title, xlabel="b", ylabel="a", xticks=range(size), yticks=range(size))


def draw_answers(tables):
    """Draw a panel for each operation of {operation: table}, see draw_table()."""
    size = 1 + max(max(operands) for table in tables.values() for operands in table)
    side = max(COLUMN, 0.33 * size)
    size_inches = (side * len(tables), side)
    figure, axes = plt.subplots(1, len(tables), figsize=size_inches, squeeze=False, layout="constrained")
    for ax, (operation, table) in zip(axes.flat, tables.items()):
        draw_table(ax, table, operation)
    figure.supxlabel(ANSWERS_LEGEND, fontsize=7)
    return figure


def save_figure(figure, path, dpi=400):
    """Write a figure as .png or .pdf, by the suffix. dpi: lower for many lines, which compress badly."""
    buffer = io.BytesIO()
    dpi = min(dpi, MOST_PIXELS / max(figure.get_size_inches()))
    # Without a date the bytes are always the same.
    options = {"metadata": {"CreationDate": None}} if path.suffix == ".pdf" else {"dpi": dpi}
    figure.savefig(buffer, format=path.suffix[1:], bbox_inches="tight", pad_inches=0.03, **options)
    write_files({path: buffer.getvalue()})
    print(f"wrote {path}")
