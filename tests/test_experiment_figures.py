"""The figures of plot_experiment.py show what the runs have."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from made_up import RUNS

import plot_experiment
from study.experiments.findings import findings

pytestmark = pytest.mark.usefixtures("close_figures")
RESULTS = ROOT / "results"


def test_the_seeds_are_drawn_as_median_and_quartiles_over_single_runs():
    figure = plot_experiment.plot_seeds("math", RUNS)
    n14, n28, n56 = figure.axes[:3]
    titles = [f"{cell}, no weight decay: {runs}" for cell, runs in (
        ("n14", "3 runs"), ("n28", "1 run"), ("n56", "0 runs"))]
    assert [ax.get_title() for ax in (n14, n28, n56)] == titles
    lines = {line.get_label(): line.get_ydata().tolist() for line in n14.get_lines()}
    drawn = {label: line for label, line in lines.items() if not label.startswith("_")}
    assert drawn == {"addition": [0, 100, 100], "subtraction": [0, 100, 99],
                     "held out": pytest.approx([0, 100, 250 / 3]),
                     "share of runs with all held out right": pytest.approx([0, 100, 100 / 3])}
    assert len(n14.get_lines()) == 2 * (3 + 1) + 2  # single runs and the median; the mean, the share
    assert len(n14.collections) == 2  # the bands
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "addition", "subtraction", "held out", "share of runs with all held out right"]
    assert "not run yet" in n56.texts[0].get_text()


def test_orders_are_drawn_as_far_as_they_are_run():
    orders = plot_experiment.plot_orders(findings(RUNS))
    assert np.array_equal(orders.axes[0].images[0].get_array(), [[0, 4], [0, 4]])
    assert plot_experiment.figures_of({}) == {}


def test_what_there_are_no_runs_for_is_not_drawn(call, in_tmp):
    (in_tmp / "empty").mkdir()
    result = call("plot_experiment.py", "--root_dir=empty")
    assert result.returncode == 2 and "experiments/seeds.py" in result.stderr


def test_the_published_figures_are_drawn_anew_by_their_commands(call, published):
    assert call("plot_experiment.py").returncode == 0
    for suffix in ("", "_wd"):
        assert call("plot_all_models.py", "--root_dir=results", f"--suffix={suffix}").returncode == 0
    drawn = {path.name: plt.imread(path) for path in published.glob("*.png")}
    of_models = {"embeddings.png"}  # plot_embeddings.py trains them
    assert drawn.keys() | of_models == {path.name for path in RESULTS.glob("*.png")}
    linked = re.findall(r"results/(\w+\.png)", (ROOT / "docs" / "figures.md").read_text())
    assert drawn.keys() | of_models == set(linked)
    for name, image in drawn.items():
        ours = plt.imread(RESULTS / name)
        assert ours.shape == image.shape
        assert np.mean(np.abs(ours - image).max(axis=2) > 0.2) < 1e-3, f"{name} is not what the tables give"
