"""Plot a run's accuracies and validation loss over its iterations into <model_folder>/plot.png.

    python plot_results.py --model_folder math_mini_14
    python plot_results.py --model_folder math_mini_mlt_gk --log_x    (paper, figure 7)
"""

from pathlib import Path

from study import StudyError
from study.experiments.figures import COLUMN, draw_accuracies, label_iterations, plt, save_figure, titled
from study.experiments.results import read_run, unfinished_note
from study.settings import run_script

model_folder = "out"  # folder of the run, or any folder with a results.csv
log_x = False  # logarithmic iteration axis
format = "png"  # or pdf, for print


def plot_run(folder, log_x):
    """Return a figure of one run: accuracies on the left axis, validation loss on the right one."""
    run = read_run(folder)
    results = run.results
    if log_x and results["iter"].max() <= 0:
        raise StudyError(f"{folder} has no evaluation after iteration 0, and a logarithmic axis needs one")
    figure, ax = plt.subplots(figsize=(COLUMN, 2.2))
    artists = draw_accuracies(ax, results)
    title = titled(Path(folder).resolve().name, run.info["num_params"], unfinished_note(run))
    ax.set(ylabel="accuracy (%)", title=title)
    if log_x:
        ax.set_xscale("log", nonpositive="mask")  # leaves iteration 0 out
    label_iterations(ax)
    loss_ax = ax.twinx()
    label = "validation loss"
    [artists[label]] = loss_ax.plot(
        results["iter"], results["val_loss"], color="0.45", linewidth=0.8, linestyle="--", label=label
    )
    loss_ax.set_ylabel("validation loss (nats per char)")
    loss_ax.set_ylim(bottom=0)
    figure.legend(artists.values(), artists.keys(), loc="upper center", bbox_to_anchor=(0.5, -0.04), ncols=2)
    return figure


def main(cfg):
    save_figure(plot_run(cfg.model_folder, cfg.log_x), Path(cfg.model_folder) / f"plot.{cfg.format}")


if __name__ == "__main__":
    run_script(main, globals())
