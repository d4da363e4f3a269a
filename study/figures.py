"""What all figures share: colours, accuracies over iterations, and how a figure becomes a file."""

import io

import matplotlib

matplotlib.use("Agg")  # draws files, needs no screen
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from data.tasks import GROUPS
from study.files import write_files

# Group -> label, colour (safe for the colour-blind) and line width, falling so that curves that coincide stay visible.
CURVES = {
    "add": (GROUPS["add"], "#0072B2", 2.6),
    "sub": (GROUPS["sub"], "#E69F00", 1.4),
    "facts": (GROUPS["facts"], "#009E73", 1.4),
    "held_out": ("held out", "#CC79A7", 1.4),
}
PERFECT = "addition and subtraction at 100%"


def titled(name, num_params):
    return f"{name} ({int(num_params):,} parameters)" if num_params else name


def label_iterations(ax):
    """The name and the numbers of an iteration axis, 10k for 10,000."""
    ax.set_xlabel("iteration")
    ax.xaxis.set_major_formatter(lambda it, _: f"{it / 1000:g}k" if it >= 1000 else f"{it:g}")


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


def draw_answers(tables):
    """A panel for each {operation: {(a, b): (answer, whether it is right, whether it is held out)}}: wrong cells red, held-out ones framed."""
    size = 1 + max(a for table in tables.values() for a, _ in table)
    figure, axes = plt.subplots(1, len(tables), figsize=(max(4, 0.45 * size) * len(tables), max(4, 0.45 * size)), squeeze=False, layout="constrained")
    for ax, (operation, table) in zip(axes.flat, tables.items()):
        ax.imshow([[not table[a, b][1] for b in range(size)] for a in range(size)], cmap=ListedColormap(["#DCEBF5", "#F2B8A0"]), vmin=0, vmax=1)
        for (a, b), (said, _, held_out) in table.items():
            ax.text(b, a, said, ha="center", va="center", fontsize=8)
            if held_out:
                ax.add_patch(plt.Rectangle((b - 0.5, a - 0.5), 1, 1, fill=False, linewidth=2))
        ax.set(title=operation, xlabel="b", ylabel="a", xticks=range(size), yticks=range(size))
    figure.supxlabel("the most frequent answer; red: wrong, framed: held out", fontsize=9)
    return figure


def save_figure(figure, path, dpi=250):
    """Writes a figure as PNG and says so. dpi: fewer for one with hundreds of lines, which compresses badly."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, bbox_inches="tight")
    write_files({path: buffer.getvalue()})
    print(f"wrote {path}")
