"""Draw the digits' embeddings of n14 and n28, and measure how they lie.

    python plot_embeddings.py          (trains what is missing, then writes into results/)

Trains n14 to the end, and n28 to its early peak of the held-out score and to the end. Writes embeddings.csv,
a row for each model (see study/experiments/embeddings.py), and embeddings.png.
"""

import sys
from pathlib import Path

import numpy as np

import train_with_eval
from study import ROOT
from study.dataset import read_meta
from study.experiments.embeddings import COLUMNS, digit_embeddings, groups_of, measures
from study.experiments.figures import TWO_COLUMNS, plt, save_figure
from study.experiments.runs import csv_bytes
from study.files import folder_to_write_into, write_files
from study.run_folder import read_run_json
from study.settings import configure, run_script

root_dir = "results"  # folder where embeddings.csv and embeddings.png are written
out_dir = "embeddings"  # folder of the trained models
seeds = 10  # the first ones, of each model
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps

MODELS = [("math_mini_14", 30_000), ("math_mini_28", 1_750), ("math_mini_28", 30_000)]  # config, iterations


def trained(config, iterations, seed, cfg):
    """TrainingState of a model at an iteration, trained or loaded."""
    folder = Path(cfg.out_dir) / f"{config}_seed_{seed}_at_{iterations}"
    init_from = "resume" if read_run_json(folder) else "scratch"
    return train_with_eval.train(configure(vars(train_with_eval), arguments=[
        f"{ROOT}/config/train_{config}.py", f"--seed={seed}", f"--max_iters={iterations}",
        f"--out_dir={folder}", f"--device={cfg.device}", f"--init_from={init_from}"]))


def principal_components(embeddings):
    """Centred embeddings (10, n) -> (their first two principal components (10, 2), share of the variance)."""
    u, s, _ = np.linalg.svd(embeddings, full_matrices=False)
    return u[:, :2] * s[:2], float((s[:2] ** 2).sum() / (s**2).sum())


def plot(groups):
    """The first model of each group: its digits in the plane of their first two principal components."""
    figure, axes = plt.subplots(1, len(groups), figsize=(TWO_COLUMNS, 2.1), squeeze=False,
                                layout="constrained")
    for ax, (name, [row, *_]) in zip(axes.flat, groups.items()):
        points, share = principal_components(row["embeddings"])
        ax.plot(*points.T, color="0.7", linewidth=0.8)
        for digit, (x, y) in enumerate(points):
            ax.text(x, y, digit, ha="center", va="center", fontsize=8)
        ax.set(title=f"{name} (seed {row['seed']})\nline {100 * row['line']:.0f}%, plane {100 * share:.0f}%",
               xticks=[], yticks=[])
        ax.margins(0.12)
    figure.supxlabel("digits' embeddings in the plane of their first two principal components", fontsize=7)
    return figure


def main(cfg):
    root, rows, chars = folder_to_write_into(cfg.root_dir), [], read_meta("as_math")[0]
    for config, iterations in MODELS:
        for seed in range(1, cfg.seeds + 1):
            state = trained(config, iterations, seed, cfg)
            if state.stopped_by:
                print("stopped; the same command continues", file=sys.stderr)
                sys.exit(128 + state.stopped_by)
            embeddings = digit_embeddings(state.model, chars)
            rows.append({"config": config, "seed": seed, "iter": iterations,
                         "held_out_correct": state.rows[-1]["held_out_correct"],
                         **measures(embeddings), "embeddings": embeddings})
    rounded = [{key: round(row[key], 4) if isinstance(row[key], float) else row[key] for key in COLUMNS}
               for row in rows]
    write_files({root / "embeddings.csv": csv_bytes(COLUMNS, rounded)})
    save_figure(plot(groups_of(rows)), root / "embeddings.png", dpi=300)


if __name__ == "__main__":
    run_script(main, globals())
