"""What changes with the width, and what single problems are like: the findings, their tables and figures."""

import json
import math
from collections import Counter

import pytest
from conftest import ROOT, cells_of_row
from made_up import MEMORY, PASSING, RUNS, WHOLE, a_run, made, seeds

from study.dataset import text_of
from study.experiments import width_figures
from study.experiments.cells import rate
from study.experiments.figures import jittered
from study.experiments.findings import findings
from study.experiments.floors import floors, windows_of, windows_of_any_order
from study.experiments.problems import by_pair, problems_of
from study.experiments.results import columns, published_runs
from study.experiments.runs import DATA_DEFAULTS
from study.experiments.tables import tables_of
from study.experiments.titles import FIGURES, drawn
from study.experiments.widths import at_fit, window

pytestmark = pytest.mark.usefixtures("close_figures")
N14 = "math_mini_14"


@pytest.fixture(scope="module")
def published_findings():
    return findings(published_runs(ROOT / "results"))


def without(pair, right, **settings):
    """A run without a pair that has the problems right, and answers the others with 1 more."""
    answers = {problem: int(answer) + (problem not in right) for problem, answer in problems_of(pair).items()}
    rows = [row | {"held_out_answers": " ".join(f"{key}={value}" for key, value in answers.items())}
            for row in MEMORY.rows]
    run = MEMORY._replace(rows=rows, results=columns(rows))
    return made(run, N14, held_out=pair, **settings)


def has_the_papers_text(info):
    return all(info.get(key, "") in (str(value), "none", "") for key, value in DATA_DEFAULTS.items())


# The lowest possible losses.


def test_no_model_has_a_lower_loss_than_one_that_knows_the_text_by_heart(published_findings):
    found = published_findings["floors"]
    assert found["math"]["by_heart"]["value"] == pytest.approx(0.531, abs=1e-3)
    assert found["math"]["order_unknown"]["value"] == pytest.approx(0.767, abs=1e-3)
    runs = [run for run in published_runs(ROOT / "results").values()
            if run.info["dtype"] == "float32" and has_the_papers_text(run.info)]
    for task, of_task in found.items():
        losses = [run.results["val_loss"].min() for run in runs if run.info["config"].startswith(task)]
        assert of_task["by_heart"]["value"] < min(losses) < 1.1 * of_task["by_heart"]["value"]


def test_the_lowest_loss_is_the_mean_conditional_entropy_of_the_next_character():
    windows = windows_of(text_of("as_math"), 9)
    assert len(windows) == 1755 and {len(window) for window in windows} == {10}
    nats = []
    for position in range(1, 10):
        seen, longer = (Counter(window[:end] for window in windows) for end in (position, position + 1))
        nats += [math.log(seen[window[:position]] / longer[window[:position + 1]]) for window in windows]
    assert floors()["math"]["by_heart"]["value"] == pytest.approx(sum(nats) / len(nats))


def test_a_text_of_any_order_has_every_line_after_every_line():
    assert Counter(windows_of_any_order("ab\ncd\n", 3)) == Counter([
        "ab\na", "b\nab", "\nab\n", "ab\nc", "b\ncd", "\ncd\n",
        "cd\na", "d\nab", "\nab\n", "cd\nc", "d\ncd", "\ncd\n"])
    with pytest.raises(ValueError):
        windows_of_any_order("ab\ncd\n", 4)


# The window, and the score at equal fit.


def test_the_window_is_the_widths_around_n14_with_enough_runs_that_generalize():
    shares = {7: 1, 8: 4, 9: 0, 10: 1, 13: 2, 14: 4, 16: 1, 18: 0, 20: 3}
    rates = {n: rate("generalizes", [i < right for i in range(4)]) for n, right in shares.items()}
    assert window(rates) == {"low": 10, "high": 16, "share": 0.25}
    assert window({n: rates[n] for n in (13, 14)}) == {"low": 13, "high": 14, "share": 0.25}
    assert window({n: rates[n] for n in (9, 10, 18)}) is window({14: rates[9]}) is None


def test_at_equal_fit_the_held_out_score_is_that_of_the_first_evaluation_with_98_percent():
    late = a_run((0, 0, 0, None, 0, 2.8), (250, 970, 970, None, 40, 0.9), (500, 980, 980, None, 30, 0.8),
                 (750, 1000, 1000, None, 40, 0.7), (1000, 980, 980, None, 0, 0.6))
    never = a_run((0, 0, 0, None, 0, 2.8), (1000, 900, 900, None, 40, 0.6))
    found = at_fit({14: [late, MEMORY, never], 16: [never]})
    assert list(found) == ["n14"] and found["n14"]["first"]["values"] == [75, 0]
    assert found["n14"]["last"]["values"] == [0, 0]
    assert (found["n14"]["fitted"]["right"], found["n14"]["fitted"]["total"]) == (2, 3)


def test_the_held_out_score_at_equal_fit_falls_with_the_width(published_findings):
    first = {n: cell["first"]["mean"] for n, cell in published_findings["at_fit"].items()}
    for n, about in (("n14", 82), ("n16", 75), ("n18", 62), ("n20", 38), ("n22", 31), ("n24", 14), ("n28", 8),
                     ("n32", 0), ("n56", 1)):
        assert first[n] == pytest.approx(about, abs=1)
    assert cells_of_row(tables_of(published_findings)["at_fit"], "n14")[1] == "99 of 100"


# Single problems.


def test_each_held_out_problem_has_its_rate_and_its_usual_errors():
    runs = RUNS | seeds(MEMORY, N14, [1], n_embd=20) | seeds(PASSING, N14, [2], n_embd=20)
    found = findings(runs)["held_out"]
    assert list(found) == ["n2", "n13", "n14", "n20", "n28"]
    cell = found["n14"]["5-7"]
    assert (cell["right"], cell["total"], cell["wrong"], cell["wrong_runs"]) == (1, 3, ["-1"], 2)
    table = tables_of(findings(runs))["held_out"]
    assert cells_of_row(table, "n14") == ["n14", "3 of 3", "3 of 3", "1 of 3, -1 (2)", "3 of 3"]
    assert cells_of_row(table, "n20") == ["n20", "1 of 2, 13 (1)", "1 of 2, 13 (1)", "0 of 2, -1 (2)",
                                         "1 of 2, 3 (1)"]


def test_pairs_have_their_problems_apart():
    runs = seeds(WHOLE, N14, [1, 2]) | seeds(MEMORY, N14, [1], n_embd=20)
    runs |= without("1,3", {"1+3"}, seed=1) | without("1,3", {"1+3", "3+1", "1-3"}, seed=2)
    found = by_pair(runs)
    assert list(found) == ["n14"] and found["n14"]["pairs"] == 2  # n20 has the paper's pair alone
    cells = {problem: cell["right"] for problem, cell in found["n14"]["problems"].items()}
    assert cells["1+3"] == 2 and cells["3+1"] == cells["1-3"] == 1 and cells["3-1"] == 0 and cells["5-7"] == 2
    json.dumps(found)
    assert list(by_pair(runs | without("0,9", set(), seed=1, n_embd=20))) == ["n14", "n20"]
    assert by_pair(seeds(WHOLE, N14, [1])) == {}


# The figures.


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


def test_the_map_shows_shares_with_their_intervals_and_the_lowest_possible_losses():
    many = seeds(WHOLE, N14, range(20, 30), n_embd=12)
    figure = width_figures.plot_map(findings(RUNS | many))
    lines = {container.get_label(): container.lines for container in figure.axes[0].containers}
    curves = {label: dict(zip(line.get_xdata().round().astype(int).tolist(), line.get_ydata()))
              for label, (line, *_) in lines.items()}
    assert curves["all held-out arithmetic"] == {2: 0, 12: 1, 13: 1, 14: pytest.approx(1 / 3), 28: 0}
    [bars] = lines["all held-out arithmetic"][2]
    heights = [abs(high - low) for (_, low), (_, high) in bars.get_segments()]
    assert [height > 0 for height in heights] == [False, True, False, False, False]  # few runs have none
    assert figure.axes[0].get_xscale() == "log" and figure.axes[3].get_xlabel() == "width n"
    assert len(figure.legends[0].get_texts()) == 2
    assert [text.split()[-1] for text in texts_of(figure.axes[3])] == ["0.531", "0.767"]


def test_a_width_beyond_the_papers_is_in_the_map_and_capitals_alone_are_a_map():
    wide, both = seeds(MEMORY, N14, [1], n_embd=128), seeds(MEMORY, "both_mini_14", [1], n_embd=15)
    assert width_figures.plot_map(findings(RUNS | wide)).axes[5].get_xlim()[1] > 128
    assert width_figures.plot_map(findings(both)).axes[0].texts[0].get_text() == "not run yet"


@pytest.mark.parametrize("wide", [False, True])
def test_the_headline_shows_the_window(published_findings, wide):
    figure = width_figures.plot_accuracy(published_findings, wide)
    [ax] = figure.axes
    curves = {line.get_label(): dict(zip(line.get_xdata(), line.get_ydata())) for line in ax.get_lines()}
    cell, table = (published_findings["by_width"]["math"][14]["last"],
                   published_findings["why"]["capacity"]["by_width"]["n14"]["table"])
    assert [curves[label][14] for label in ("trained", "held out", "random table")] == [
        cell["trained"]["mean"], cell["held_out"]["mean"], table["mean"]]
    [shade] = ax.patches
    assert 9 < shade.get_x() < 10 and 16 < shade.get_x() + shade.get_width() < 18
    assert any("n10 to n16" in text and "25%" in text for text in texts_of(ax))
    note = figure.get_supxlabel() if wide else figure.legends[0].get_title().get_text()
    assert "single runs, 5 to 100 a width" in note and bool(figure.legends) != wide


@pytest.mark.parametrize("widths", [[13, 14], [14, 28, 56], range(40, 57, 8)])
def test_few_widths_and_no_random_tables_have_a_headline(widths):
    runs = {name: run for n in widths for name, run in seeds(WHOLE, N14, [1], n_embd=n).items()}
    for wide in (False, True):
        figure = width_figures.plot_accuracy(findings(runs), wide)
        figure.canvas.draw()
        note = figure.get_supxlabel() if wide else figure.legends[0].get_title().get_text()
        assert "single runs, 1 a width" in note
        inside = figure.axes[0].get_window_extent()
        texts = [text for text in figure.axes[0].texts if not text.get_text().startswith("n")]
        assert len(texts) == (2 if wide else 0) and inside.width > figure.bbox.width / 2
        for text in texts:
            extent = text.get_window_extent()
            assert inside.x0 <= extent.x0 and extent.x1 <= inside.x1


def test_widths_that_learn_next_to_nothing_are_not_in_the_headline():
    small = seeds(MEMORY, N14, [1], n_embd=2) | seeds(MEMORY, N14, [1], n_embd=3)
    assert not {"accuracy", "accuracy_wide"} & set(drawn(findings(small), FIGURES))


def test_dots_of_a_width_lie_side_by_side():
    x = jittered(14, 100)
    assert len(set(x.round(6))) == 100 and 13.6 < x.min() < x.max() < 14.4


def test_the_heat_map_shows_the_rate_of_each_held_out_problem():
    [ax] = width_figures.plot_held_out(findings(RUNS)["held_out"]).axes
    assert texts_of(ax)[:4] == ["0"] * 4 and texts_of(ax)[8:12] == ["100", "100", "33", "100"]  # n2, n14
    assert [label.get_text() for label in ax.get_yticklabels()] == ["n2", "n13", "n14", "n28"]


def test_the_map_of_pairs_has_sums_above_the_diagonal_and_differences_below():
    runs = seeds(WHOLE, N14, [1]) | without("1,3", {"1+3"}, seed=1) | without("1,3", {"1+3"}, seed=2)
    n20 = seeds(MEMORY, N14, [1], n_embd=20) | without("0,9", {"0+9", "9+0"}, seed=1, n_embd=20)
    figure = width_figures.plot_pairs(by_pair(runs | n20))
    cells = [{text.get_position()[::-1]: text.get_text() for text in ax.texts} for ax in figure.axes]
    assert cells[0] == {(1, 3): "50", (3, 1): "0", (5, 7): "100", (7, 5): "100"}
    assert cells[1] == {(0, 9): "100", (9, 0): "0", (5, 7): "0", (7, 5): "0"}
    assert "1 to 2" in figure.axes[0].get_title() and "grey" in figure.get_supxlabel()
    assert len(width_figures.plot_pairs(by_pair(runs)).axes) == 1
