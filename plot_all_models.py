"""Plots the study's three grids, n14 to MLT for each dataset: grid_math.png, grid_facts.png, grid_combined.png.

    python plot_all_models.py                    (paper, figures 1 to 3)
    python plot_all_models.py --suffix _wd       (controlled regularization, figures 4 to 6)
"""

import sys
from pathlib import Path

from configurator import configure, fail
from plot_results import draw_accuracies, plt, read_results, save_figure, titled

root_dir = "."  # folder that holds the runs' folders; the grids are written there
suffix = ""  # of the runs' folders and of the grids: _wd for controlled regularization

GRIDS = {"math": "math", "facts": "facts", "combined": "both"}  # grid -> what its runs' names begin with
SIZES = {"n14": "14", "n28": "28", "n56": "56", "MLT": "mlt"}  # panel -> what its runs' names end with


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


def plot_grid(runs):
    """2x2 figure of {panel name: run folder}; a run without results leaves a panel that says so."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, sharey=True, layout="constrained")
    artists = {}
    for ax, (name, folder) in zip(axes.flat, runs.items()):
        ax.set_title(titled(name, folder))
        if (folder / "results.csv").exists():
            artists |= draw_accuracies(ax, read_results(folder))
        else:
            ax.text(0.5, 0.5, f"{folder.name}\nnot run yet", transform=ax.transAxes, ha="center", va="center", color="0.4")
    for ax in axes[1]:
        ax.set_xlabel("iteration")
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy (%)")
    if artists:
        figure.legend(artists.values(), artists.keys(), loc="outside lower center", ncols=len(artists))
    return figure


if __name__ == "__main__":
    cfg = configure(globals())
    for grid, runs in find_runs(cfg.root_dir, cfg.suffix).items():
        save_figure(plot_grid(runs), Path(cfg.root_dir) / f"grid_{grid}{cfg.suffix}.png")
