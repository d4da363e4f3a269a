"""Draw what why() found: capacity, sizes of the table, rates and weight decay, orders and shares."""

from itertools import cycle

import numpy as np

from study.experiments.figures import (
    COLUMN, HELD_OUT, MEMORY, TRAINED, TWO_COLUMNS, draw_cells, draw_means, jittered, label_widths,
    plt,
)
from study.experiments.titles import FIGURES_OF_WHY, drawn
from study.experiments.why import whole
from study.experiments.why_optimizer import rates_of, with_runs


def figures_of_why(found):
    """{name: figure} of the findings of why() that there are runs for."""
    plots = {
        "capacity": lambda: plot_capacity(found["capacity"]["by_width"]),
        "times": lambda: plot_times(found["times"]),
        "tables": lambda: plot_tables(whole(found["tables"]["by_table"], censored=True)),
        "rates": lambda: plot_rates(with_runs(found["rates"])),
        "decays": lambda: plot_decays(found["decays"]),
        "changing_order": lambda: plot_order(found["order"]["by_width"]),
        "held_out_share": lambda: plot_shares(found["shares"]["by_width"]),
    }
    return {name: plots[name]() for name in drawn(found, FIGURES_OF_WHY) if name in plots}


def plot_capacity(by_width):
    """Share of a random table that a width holds, beside its held-out score; bits stored by parameters."""
    figure, (ax, bits) = plt.subplots(1, 2, figsize=(TWO_COLUMNS, 2.5), layout="constrained")
    by_width = {int(n[1:]): cell for n, cell in by_width.items()}
    of = {what: {n: cell[what] for n, cell in by_width.items()} for what in ("table", "held_out")}
    draw_means(ax, of["table"], "random table", MEMORY, "D")
    draw_means(ax, of["held_out"], "held-out problems of the true table", HELD_OUT, "s")
    ax.set(ylabel="right at the last evaluation (%)", ylim=(-3, 105))
    label_widths(ax)
    for n, cell in by_width.items():
        values = cell["bits"]["values"]
        bits.plot(jittered(n, len(values)), values, "o", color=MEMORY, markersize=2.5, markeredgewidth=0,
                  alpha=0.4)
    bits.plot(list(by_width), [cell["bits"]["quartiles"][1] for cell in by_width.values()], color=MEMORY,
              linewidth=1.2)
    bits.set(ylabel="bits of it that are stored")
    label_widths(bits)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2).set_title(
        "lines: mean (left) and median (right) of the runs; dots: single runs", {"size": 7})
    return figure


def plot_times(found):
    """Iterations until 90% of the random table, the trained and the held-out problems are right, by width;
    and the mean held-out score of some widths by iteration."""
    figure, (ax, early) = plt.subplots(1, 2, figsize=(TWO_COLUMNS, 2.4), layout="constrained")
    curves = (("random", "random table", MEMORY, "D"), ("trained", "trained problems", TRAINED, "o"),
              ("held_out", "held-out problems", HELD_OUT, "s"))
    for name, label, color, marker in curves:
        reached = {int(n[1:]): times[name]["median"] for n, times in found.items() if times[name]["median"]}
        ax.plot(list(reached), list(reached.values()), color=color, marker=marker, markersize=3,
                linewidth=1.2, label=label)
    ax.set_yscale("log")
    ax.set_yticks([1000, 2000, 5000, 10_000, 20_000], ["1k", "2k", "5k", "10k", "20k"])
    ax.set_ylabel("iterations until 90% right\n(median, if most get there)")
    label_widths(ax)
    ax.set_xlim(9, 62)
    ax.legend(loc="upper right")
    shown = {name: times["curve"] for name, times in found.items()
             if name in ("n14", "n18", "n22", "n28", "n56") and times["curve"]}
    for (name, curve), color in zip(shown.items(), plt.get_cmap("viridis")(np.linspace(0, 0.85, len(shown)))):
        early.plot([int(it) for it in curve], list(curve.values()), color=color, linewidth=1.2, label=name)
    early.set_xscale("symlog", linthresh=1000, linscale=0.4)  # from 0 on
    early.set_xticks([0, 500, 1000, 2000, 5000, 10_000, 20_000], ["0", "500", "1k", "2k", "5k", "10k", "20k"])
    early.minorticks_off()
    early.set(xlabel="iteration", ylabel="held-out samples right,\nmean of the runs (%)", ylim=(-3, 105))
    early.grid(alpha=0.3)
    if shown:
        early.legend()
    return figure


def plot_tables(found):
    """For each table, the width at which generalization ends over that at which a random one is held.

    An arrow from the widest width stands for a score that stays above half.
    """
    figure, ax = plt.subplots(figsize=(COLUMN, 3.0), layout="constrained")
    ends = np.array([4, 144])
    ax.plot(ends, ends, color="0.6", linewidth=0.8, linestyle="--", label="equal widths")
    by_width = sorted(found.items(), key=lambda item: item[1]["n_mem"]["value"])
    for (name, table), marker in zip(by_width, cycle("osD^vP*X")):
        x, (left, right) = table["n_mem"]["value"], table["n_mem"]["interval"]
        y, (low, high) = table["n_gen"]["value"], table["n_gen"]["interval"] or (None, None)
        if table["above_half"]:
            y = low = high = table["above_half"]
            ax.annotate("", (x, 1.4 * y), (x, y), arrowprops={"arrowstyle": "->", "color": MEMORY})
        x_error, y_error = [[max(x - left, 0)], [max(right - x, 0)]], [[max(y - low, 0)], [max(high - y, 0)]]
        ax.errorbar(x, y, y_error, x_error, fmt=marker, color=MEMORY, markersize=4, elinewidth=1, label=name)
    ax.set_yscale("log")
    ticks = [4, 7, 10, 14, 20, 28, 40, 56, 96]
    ax.set_yticks(ticks, ticks)
    label_widths(ax, ticks)
    ax.set(xlabel="width that holds half of the random table", xlim=ends, ylim=ends,
           ylabel="width that has lost half of the held-out score")
    ax.minorticks_off()
    ax.legend(loc="lower right")
    return figure


def plot_rates(found):
    """Held-out score over the peak learning rate, for each width."""
    figure, ax = plt.subplots(figsize=(COLUMN, 2.4), layout="constrained")
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(found)))
    for (name, cells), color, marker in zip(found.items(), colors, cycle("os^Dv")):
        draw_means(ax, {cell["rate"]: cell["held_out"] for cell in cells.values()}, name, color, marker)
    ax.set_xscale("log")
    ticks = sorted({cell["rate"] for cells in found.values() for cell in cells.values()})
    ax.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    ax.minorticks_off()
    ax.set(xlabel="peak learning rate", ylabel="held-out samples right\nat the last evaluation (%)",
           ylim=(-3, 105))
    ax.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4).set_title(
        "lines: mean of the runs; dots: single runs", {"size": 7})
    return figure


def plot_decays(found):
    """Mean held-out score for each learning rate and weight decay: a map for each width."""
    rates = rates_of(found)
    decays = sorted({of_rate["decay"] for of_decay in found.values() for of_rate in of_decay.values()})
    figure, axes = plt.subplots(1, len(found), figsize=(TWO_COLUMNS, 1.7), sharey=True, squeeze=False,
                                layout="constrained")
    for ax, (name, of_decay) in zip(axes.flat, found.items()):
        table = np.full((len(decays), len(rates)), np.nan)
        for of_rate in of_decay.values():
            for cell in of_rate["rates"].values():
                table[decays.index(of_rate["decay"]), rates.index(cell["rate"])] = cell["score"]["value"]
        draw_cells(ax, table, most=100, text="{:.0f}", origin="lower")
        ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], rotation=90)
        ax.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        ax.set(title=f"{name}: held out, mean %", xlabel="peak learning rate")
    axes[0, 0].set_ylabel("weight decay")
    return figure


def plot_order(found):
    """Held-out score over the width, with the paper's order of the lines and with 50 orders."""
    figure, ax = plt.subplots(figsize=(COLUMN, 2.4), layout="constrained")
    for kind, label, color, marker in (("paper", "the paper's text", "0.4", "o"),
                                       ("changing", "50 orders of the lines", HELD_OUT, "s")):
        draw_means(ax, {int(n[1:]): cell[kind] for n, cell in found.items()}, label, color, marker)
    ax.set(ylabel="held-out samples right\nat the last evaluation (%)", ylim=(-3, 105))
    label_widths(ax, [14, 16, 18, 20, 24, 28, 40, 56])
    ax.set_xlim(13, 60)
    figure.legend(loc="outside lower center", ncols=2).set_title(
        "lines: mean of the runs; dots: single runs", {"size": 7})
    return figure


def plot_shares(found):
    """Held-out score over the number of pairs that are held out, for each width, with 95% intervals."""
    figure, ax = plt.subplots(figsize=(COLUMN, 2.4), layout="constrained")
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(found)))
    for (name, cell), color, marker in zip(found.items(), colors, cycle("os^Dv")):
        scores = {int(count): of_count for count, of_count in cell["by_count"].items()
                  if of_count["value"] is not None}
        values = np.array([of_count["value"] for of_count in scores.values()])
        ends = np.array([of_count["interval"] or 2 * [of_count["value"]] for of_count in scores.values()])
        ax.errorbar(list(scores), values, np.abs(ends.T - values), color=color, marker=marker, markersize=3,
                    linewidth=1.2, elinewidth=0.6, label=name)
    ax.set(xlabel="pairs held out, of 45", ylabel="held-out samples right\nat the last evaluation (%)",
           ylim=(-3, 105))
    ax.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=5).set_title(
        "lines: mean of the runs; bars: 95% intervals", {"size": 7})
    return figure
