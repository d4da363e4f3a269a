"""The figures of plot_experiment.py show what the runs have."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from made_up import MEMORY, RUNS, seeds

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


def test_the_map_shows_shares_with_their_intervals():
    figure = plot_experiment.plot_map(findings(RUNS))
    apart = figure.axes[0]
    lines = {container.get_label(): container.lines[0] for container in apart.containers}
    curves = {label: dict(zip(line.get_xdata().round().astype(int).tolist(), line.get_ydata()))
              for label, line in lines.items()}
    assert curves["all held-out arithmetic"] == {2: 0, 13: 1, 14: pytest.approx(1 / 3), 28: 0}
    assert apart.get_xscale() == "log" and figure.axes[3].get_xlabel() == "width n"
    assert len(figure.legends[0].get_texts()) == 2


def test_a_width_beyond_the_papers_is_in_the_map_and_capitals_alone_are_a_map():
    wide, both = seeds(MEMORY, "math_mini_14", [1], n_embd=128), seeds(MEMORY, "both_mini_14", [1], n_embd=15)
    assert plot_experiment.plot_map(findings(RUNS | wide)).axes[5].get_xlim()[1] > 128
    assert plot_experiment.plot_map(findings(both)).axes[0].texts[0].get_text() == "not run yet"


def test_the_matrix_tells_which_problem_fails_and_with_what():
    figure = plot_experiment.plot_held_out(RUNS)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:4] == [f"0%   says {answer} (1 run)" for answer in (13, 13, -1, 3)]  # n2
    assert texts[8:12] == ["100%", "100%", "33%   says -1 (2 runs)", "100%"]  # n14
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["n2 (1 run)", "n13 (1 run)", "n14 (3 runs)", "n28 (1 run)"]


def test_orders_and_pairs_are_drawn_as_far_as_they_are_run():
    found = findings(RUNS)
    orders, pairs = plot_experiment.plot_orders(found), plot_experiment.plot_pairs(found)
    assert np.array_equal(orders.axes[0].images[0].get_array(), [[0, 40], [0, 40]])
    assert [label.get_text() for label in pairs.axes[0].get_xticklabels()] == ["1,3", "5,7\n(the paper's)"]
    assert [text.get_text() for text in pairs.axes[0].texts] == ["0 of 1", "1 of 3"]
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
    pages = (ROOT / "RESULTS.md").read_text() + (ROOT / "docs" / "why.md").read_text()
    linked = re.findall(r"results/(\w+\.png)", pages)
    assert {name for name in drawn if not name.startswith("grid")} | of_models == set(linked)
    for name, image in drawn.items():
        ours = plt.imread(RESULTS / name)
        assert ours.shape == image.shape
        assert np.mean(np.abs(ours - image).max(axis=2) > 0.2) < 1e-3, f"{name} is not what the tables give"
