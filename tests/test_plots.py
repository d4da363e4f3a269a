"""Check that the figures show the data of results.csv: axes, labels, series and red dots."""

import csv
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

import plot_all_models
import plot_results
from study.experiments.results import find_runs, read_run

pytestmark = pytest.mark.usefixtures("close_figures")

# The published runs have these columns: no held_out_*, no combined_acc.
HEADER = (
    "iter,add_correct,add_total,sub_correct,sub_total,math_acc,facts_correct,facts_total,facts_acc,"
    "train_loss,val_loss")
# (iteration, correct additions of 910, correct subtractions of 910)
MATH = [(0, 0, 0), (250, 455, 91), (500, 910, 910), (750, 910, 900), (1000, 910, 910)]


def math_rows():
    return [f"{it},{add},910,{sub},910,0,0,0,0,{3 - it / 500},{3 - it / 500}" for it, add, sub in MATH]


def facts_rows():
    return [f"{it},0,0,0,0,0,{it // 2},500,0,{2.5},{2.5}" for it in (0, 250, 500, 750, 1000)]


def write_results(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return folder


def curves(ax):
    return {
        line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.get_lines()}


def red_dots(ax):
    return [point for dots in ax.collections for point in dots.get_offsets().tolist()]


def legend(figure):
    [only] = figure.legends
    return [text.get_text() for text in only.get_texts()]


def test_a_run_is_drawn_with_accuracies_loss_and_red_dots(project, tmp_path):
    figure = plot_results.plot_run(write_results(tmp_path / "math_mini_14", math_rows()), log_x=False)
    ax, loss_ax = figure.axes
    iterations = [0, 250, 500, 750, 1000]
    assert curves(ax) == {
        "addition": (iterations, pytest.approx([0, 50, 100, 100, 100])),
        "subtraction": (iterations, pytest.approx([0, 10, 100, 100 * 900 / 910, 100])),
    }
    assert red_dots(ax) == [[500, 100], [1000, 100]]
    assert tuple(ax.collections[0].get_facecolor()[0][:3]) == (1, 0, 0)
    assert curves(loss_ax) == {"validation loss": (iterations, pytest.approx([3, 2.5, 2, 1.5, 1]))}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("iteration", "accuracy (%)")
    assert "validation loss" in loss_ax.get_ylabel() and ax.get_xscale() == "linear"
    assert ax.get_title() == "math_mini_14 (1,456 parameters)"
    assert legend(figure) == [
        "addition", "subtraction", "addition and subtraction at 100%", "validation loss"]


def test_the_iteration_axis_can_be_logarithmic(project, tmp_path):
    figure = plot_results.plot_run(write_results(tmp_path / "run", math_rows()), log_x=True)
    assert figure.axes[0].get_xscale() == "log" and figure.axes[0].get_title() == "run"


def test_a_facts_run_shows_only_facts(project, tmp_path):
    figure = plot_results.plot_run(write_results(tmp_path / "facts_mini_56", facts_rows()), log_x=False)
    assert legend(figure) == ["capitals", "validation loss"] and red_dots(figure.axes[0]) == []
    assert curves(figure.axes[0])["capitals"][1] == pytest.approx([0, 25, 50, 75, 100])
    assert figure.axes[0].get_title() == "facts_mini_56 (21,840 parameters)"


def test_a_new_run_is_plotted_into_its_folder(call, runs):
    folder = runs / "both_mini_14"
    result = call("plot_results.py", "--model_folder", folder)
    assert result.returncode == 0, result.stderr
    assert plt.imread(folder / "plot.png").std() > 0.05  # not an empty page
    figure = plot_results.plot_run(folder, False)
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(curves(figure.axes[0])) == {"addition", "subtraction", "capitals", "held out"}
    assert curves(figure.axes[0])["held out"][1] == [100 * int(row["held_out_correct"]) / 40 for row in rows]
    assert curves(figure.axes[1])["validation loss"][1] == [float(row["val_loss"]) for row in rows]
    assert figure.axes[0].get_title() == "both_mini_14 (2,142 parameters)"  # from its checkpoint


def test_the_grid_has_a_panel_for_each_model_and_one_legend(project, tmp_path):
    write_results(tmp_path / "both_mini_14", math_rows())
    write_results(tmp_path / "both_mini_28", facts_rows())
    write_results(tmp_path / "both_mini_mlt", math_rows())
    grids, runs = find_runs(tmp_path, "")
    figure = plot_all_models.plot_grid(grids["combined"], runs)
    assert [ax.get_title() for ax in figure.axes] == [
        "n14 (2,142 parameters)", "n28 (6,636 parameters)", "n56 (22,680 parameters)",
        "MLT (10,647,168 parameters)"]
    n14, n28, n56, mlt = figure.axes
    assert list(curves(n14)) == ["addition", "subtraction"] and list(curves(n28)) == ["capitals"]
    assert red_dots(n14) == red_dots(mlt) == [[500, 100], [1000, 100]]
    assert not curves(n56) and "not run yet" in n56.texts[0].get_text()
    assert sorted(legend(figure)) == [
        "addition", "addition and subtraction at 100%", "capitals", "subtraction"]
    assert n56.get_xlabel() == mlt.get_xlabel() == "iteration" and n14.get_ylabel() == "accuracy (%)"


def test_the_panel_of_an_unfinished_run_says_so(project, tmp_path):
    # run_experiment.py makes its runs in this folder.
    folder = write_results(tmp_path / "runs" / "math_mini_mlt", math_rows())
    info = {"config": {"max_iters": 30_000}, "num_params": 10_628_352, "iter_num": 1000,
            "seconds": {"training": 9.0}, "device": "cpu", "device_name": "Some CPU", "threads": 2,
            "dtype": "bfloat16", "torch": "9.9"}
    (folder / "run.json").write_text(json.dumps(info))
    grids, runs = find_runs(tmp_path, "")
    panel = plot_all_models.plot_grid(grids["math"], runs).axes[3]
    assert panel.get_title() == "MLT (10,628,352 parameters, at 1,000 of 30,000)"
    ax = plot_results.plot_run(folder, False).axes[0]
    assert ax.get_title() == "math_mini_mlt (10,628,352 parameters, at 1,000 of 30,000)"


@pytest.mark.parametrize("suffix", ["", "_wd"])
def test_missing_runs_are_named_when_grids_are_drawn(call, in_tmp, suffix):
    write_results(in_tmp / f"math_mini_14{suffix}", math_rows())
    write_results(in_tmp / f"facts_mini_mlt{suffix}", facts_rows())
    result = call("plot_all_models.py", "--suffix", suffix) if suffix else call("plot_all_models.py")
    assert result.returncode == 0
    assert sorted(path.name for path in Path().glob("*.png")) == [
        f"grid_{grid}{suffix}.png" for grid in ("combined", "facts", "math")]
    missing = result.stderr.splitlines()
    assert len(missing) == 10 and f"not run yet: math_mini_28{suffix} " in missing[0]
    for path in Path().glob("*.png"):
        image = plt.imread(path)
        assert min(image.shape[:2]) > 1200 and path.stat().st_size < 500_000


def test_a_truncated_last_line_is_skipped_with_a_note(call, project, in_tmp):
    folder = write_results(in_tmp / "run", math_rows())
    whole = (folder / "results.csv").read_text()
    for cut in (3, 20):  # within the last number, and with fields missing
        (folder / "results.csv").write_text(whole[:-cut])
        result = call("plot_results.py", "--model_folder=run")
        assert result.returncode == 0 and "last line" in result.stderr and "cut off" in result.stderr
        assert np.array_equal(read_run(folder).results["iter"], [0, 250, 500, 750])
