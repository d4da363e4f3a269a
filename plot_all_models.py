"""Plot the accuracies of the study's models, n14 to MLT, in a grid for each dataset.

    python plot_all_models.py                    (paper, figures 1 to 3)
    python plot_all_models.py --suffix _wd       (controlled regularization, figures 4 to 6)

Writes grid_math.png, grid_facts.png and grid_combined.png into root_dir.
"""

import math
from pathlib import Path

from study.experiments.figures import (
    TWO_COLUMNS, draw_accuracies, draw_nothing, label_iterations, plt, save_figure, titled)
from study.experiments.results import config_params, find_runs, unfinished_note
from study.settings import run_script

root_dir = "."  # folder of runs or of experiments; the grids are written there
suffix = ""  # of the runs' names and of the grids: _wd for controlled regularization
format = "png"  # or pdf, for print

TITLES = {"math": "arithmetic", "facts": "capital cities", "combined": "arithmetic and capital cities"}
REGULARIZED = {"": ": no weight decay, no dropout (MLT: 0.1 and 0.2)",
               "_wd": ": weight decay 0.1, no dropout"}


def plot_grid(panels, runs, title=""):
    """Return a figure with two panels per row; the panel of a missing run says so.

    panels: {panel: name of its run}. runs: {name: Run}.
    """
    rows = math.ceil(len(panels) / 2)
    figure, axes = plt.subplots(rows, 2, figsize=(TWO_COLUMNS, 2.3 * rows), sharex=True, sharey=True,
                                squeeze=False, layout="constrained")
    artists = {}
    for ax, (panel, name) in zip(axes.flat, panels.items()):
        if name in runs:
            ax.set_title(titled(panel, runs[name].info["num_params"], unfinished_note(runs[name])))
            artists |= draw_accuracies(ax, runs[name].results)
        else:
            ax.set_title(titled(panel, config_params(name)))
            draw_nothing(ax, f"{name}\nnot run yet")
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax in axes.flat[len(panels) - 2 : len(panels)]:  # the lowest of each column
        label_iterations(ax)
        ax.tick_params(labelbottom=True)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy (%)")
    figure.suptitle(title, fontsize=9)
    if artists:
        figure.legend(artists.values(), artists.keys(), loc="outside lower center", ncols=len(artists))
    return figure


def main(cfg):
    grids, runs = find_runs(cfg.root_dir, cfg.suffix)
    for grid, panels in grids.items():
        title = TITLES[grid] + REGULARIZED.get(cfg.suffix, "")
        path = Path(cfg.root_dir) / f"grid_{grid}{cfg.suffix}.{cfg.format}"
        save_figure(plot_grid(panels, runs, title), path, dpi=300)


if __name__ == "__main__":
    run_script(main, globals())
