"""Draw how n14 and n28 learn the sums: a GIF of the answers that they give while they train.

    python animate_answers.py          (trains both models, then writes results/answers.gif)

Trains both in a temporary folder each time, which takes less than two minutes on a CPU. The GIF shows the
most frequent answer to each sum at every evaluation up to iteration 10,000, then at every fourth.
"""

import sys
import tempfile
from pathlib import Path

from study import ROOT  # first: from here on Ctrl-C ends in one line
import train_with_eval
from eval_as_math import answer_table
from study.experiments.figures import ANSWERS_LEGEND, draw_table, plt, titled  # before matplotlib
from study.files import folder_to_write_into, write_files
from study.settings import configure, run_script

from matplotlib.animation import PillowWriter

root_dir = "results"  # folder where answers.gif is written
seed = 1337  # of both models
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps

MODELS = {"n14": "math_mini_14", "n28": "math_mini_28"}  # name -> config
FRAMES = [*range(0, 10_000, 250), *range(10_000, 30_001, 1_000)]  # iterations; models train to the last
FPS = 5  # frames a second
PAUSE = 3  # seconds more on the last frame


def tables_while_training(config, folder, cfg):
    """Train a model; return ({iteration: table of its sums, of answer_table()}, its number of parameters)."""
    tables = {}

    def keep(iter_num, task, answers):
        tables[iter_num] = answer_table(task.problems, answers, "add")

    state = train_with_eval.train(configure(vars(train_with_eval), arguments=[
        f"{ROOT}/config/train_{config}.py", f"--seed={cfg.seed}", f"--max_iters={FRAMES[-1]}",
        f"--out_dir={folder}/{config}", f"--device={cfg.device}"]), keep)
    if state.stopped_by:
        print("stopped", file=sys.stderr)
        sys.exit(128 + state.stopped_by)
    return tables, state.model.num_params()


def score(table, held_out):
    """Return "97 of 98": the correct answers to the trained sums, or to the held-out ones, of them all."""
    correct = [is_correct for _, is_correct, is_held_out in table.values() if is_held_out == held_out]
    return f"{sum(correct)} of {len(correct)}"


def draw_frame(figure, iter_num, tables):
    """Draw the tables {title: table} of an iteration side by side, over what the figure has."""
    figure.clear()
    margins = {"left": 0.06, "right": 0.99, "bottom": 0.24, "top": 0.89, "wspace": 0.14}
    axes = figure.subplots(1, len(tables), squeeze=False, gridspec_kw=margins)
    for ax, (title, table) in zip(axes.flat, tables.items()):
        scores = f"right: {score(table, False)} trained, {score(table, True)} held out"
        draw_table(ax, table, f"{title}\n{scores}")
    figure.text(0.5, 0.07, f"iteration {iter_num:,}", ha="center", fontsize=10)
    figure.supxlabel(f"a + b: {ANSWERS_LEGEND}", fontsize=7)


def write_animation(models, path):
    """Write {title: {iteration: table}} as a GIF to a path of PillowWriter, which does not write files whole.

    A page shows the GIF at half its size, which smooths the text. Smooth text would double the file.
    """
    with plt.rc_context({"text.antialiased": False}):
        figure = plt.figure(figsize=(5.2, 3.2))
        writer = PillowWriter(fps=FPS)
        writer.setup(figure, path, dpi=300)
        for iter_num in FRAMES:
            draw_frame(figure, iter_num, {title: tables[iter_num] for title, tables in models.items()})
            writer.grab_frame()
        for _ in range(PAUSE * FPS):  # Pillow joins equal frames to one that stays longer
            writer.grab_frame()
        writer.finish()


def main(cfg):
    models, path = {}, folder_to_write_into(cfg.root_dir) / "answers.gif"
    with tempfile.TemporaryDirectory() as folder:
        for name, config in MODELS.items():
            tables, num_params = tables_while_training(config, folder, cfg)
            models[titled(name, num_params)] = tables
        write_animation(models, Path(folder) / path.name)
        write_files({path: (Path(folder) / path.name).read_bytes()})
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main, globals())
