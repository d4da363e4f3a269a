"""What the experiments on the optimizer show: what was put into made-up runs is found and drawn."""

import json

import pytest
from conftest import ROOT, cells_of_row
from made_up import a_run, made

import report
from study.experiments.findings import findings
from study.experiments.runs import config_of, run_name, runs_by_name
from study.experiments.why import why
from study.experiments.why_figures import figures_of_why
from study.experiments.why_tables import tables_of_why
from study.settings import run_config_file

pytestmark = pytest.mark.usefixtures("close_figures")


def listed(name):
    return run_config_file(ROOT / "experiments" / f"{name}.py")["runs"]


def a_rule(held_out, early=0):
    """A run with so many held-out samples right at the end, and `early` before."""
    return a_run((0, 0, 0, None, 0, 2.8), (1000, 980, 980, None, early, 1.0),
                 (2000, 980, 980, None, held_out, 0.9))


def by_settings(experiment, right):
    """{name: run} of an experiment's file; right(n, rate, weight decay) -> held-out samples."""
    runs = {}
    for settings in experiment:
        config = config_of(settings)
        held_out = right(config["n_embd"], config["learning_rate"], config["weight_decay"])
        runs |= made(a_rule(held_out, early=30), **settings)
    return runs


def seeds_of(config, held_out, seeds=range(1, 6), **settings):
    return {name: run for seed in seeds for name, run in made(a_rule(held_out), config, seed=seed,
                                                              **settings).items()}


# The paper's rate without weight decay and with 0.1, which experiments/seeds.py and map.py have.
PAPERS = {name: run for n, config in ((14, "math_mini_14"), (28, "math_mini_28"), (56, "math_mini_56"))
          for suffix in ("", "_wd") for name, run in seeds_of(config + suffix, 40 if n == 14 else 0).items()}
PAPERS |= seeds_of("math_mini_14", 20, n_embd=20)


def right(n, rate, decay):
    """n28 has half of it with weight decay 1, and all of it with weight decay 3 at 1e-3."""
    if n == 28:
        return 40 if (rate, decay) == (0.001, 3) else 20 if decay == 1 else 0
    return {14: 40, 20: 20, 56: 0}[n]


@pytest.fixture(scope="module")
def found():
    return why(PAPERS | by_settings(listed("optimizer"), right) | by_settings(
        listed("long"), lambda n, rate, decay: 40 if n == 56 and decay else 0))


# The files.


def test_the_runs_with_weight_decay_fill_the_grid_with_those_that_are_published():
    runs = {name: config_of(settings) for name, settings in runs_by_name(listed("optimizer")).items()}
    decayed = [(run["n_embd"], run["learning_rate"], run["weight_decay"], run["seed"])
               for run in runs.values() if run["weight_decay"]]
    rates = (1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 5e-2)
    grid = {(n, rate, decay, seed) for n in (14, 20, 28, 56) for rate in rates for decay in (0.1, 1, 3)
            for seed in range(1, 6)}
    published = {(n, 1e-2, 0.1, seed) for n in (14, 28, 56) for seed in range(1, 6)}
    assert len(decayed) == len(set(decayed)) and set(decayed) == grid - published
    assert published <= {(run["n_embd"], run["learning_rate"], run["weight_decay"], run["seed"])
                         for run in map(config_of, listed("seeds")) if run["dataset"] == "as_math"}
    assert [seed for *_, seed in decayed] == sorted(seed for *_, seed in decayed)  # cells fill evenly
    assert all(run["min_lr"] == run["learning_rate"] / 100 for run in runs.values())


def test_the_runs_without_weight_decay_come_first_and_keep_their_names():
    first = listed("optimizer")[:175]
    assert not any("weight_decay" in settings for settings in first)
    assert run_name(first[0]) == "math_mini_28_learning_rate_0.02_min_lr_0.0002_seed_1"
    assert run_name(first[-1]) == "math_mini_56_learning_rate_0.001_min_lr_1e-05_seed_5"


def test_the_long_runs_have_the_papers_schedule_ten_times_as_long():
    paper = config_of({"config": "math_mini_28"})
    runs = [config_of(settings) for settings in listed("long")]
    for run in runs:
        assert all(run[key] == 10 * paper[key] for key in ("max_iters", "warmup_iters", "lr_decay_iters"))
        assert run["max_iters"] // run["eval_interval"] == paper["max_iters"] // paper["eval_interval"]
    cells = {(run["n_embd"], run["weight_decay"], run["seed"]) for run in runs}
    assert cells == {(n, decay, seed) for n in (28, 56) for decay in (0, 0.1, 1) for seed in range(1, 6)}
    assert {run["learning_rate"] for run in runs} == {paper["learning_rate"]}


# The analyses.


def test_a_weight_decay_is_compared_with_none_at_the_same_rates_and_seeds(found):
    n28 = found["decays"]["n28"]
    assert list(found["decays"]) == ["n14", "n20", "n28", "n56"] and list(n28) == ["0", "0_1", "1", "3"]
    assert n28["1"]["against"]["difference"] == pytest.approx(0.5) and n28["1"]["against"]["seeds"] == 30
    assert n28["1"]["against"]["p"] < 0.01 and n28["0"]["against"] is None
    assert n28["0_1"]["against"]["difference"] == 0
    assert n28["3"]["against"]["difference"] == pytest.approx(1 / 6)
    assert n28["3"]["rates"]["0_001"]["score"]["value"] == 100 and n28["0"]["rates"]["0_001"]["runs"] == 20


def test_seeds_beyond_the_first_five_do_not_outweigh_the_other_rates():
    more = seeds_of("math_mini_28", 0, range(6, 51)) | seeds_of("math_mini_28_wd", 40, range(6, 51))
    n28 = why(PAPERS | by_settings(listed("optimizer"), lambda *_: 0) | more)["decays"]["n28"]
    assert n28["0_1"]["against"]["difference"] == 0 and n28["0_1"]["rates"]["0_01"]["runs"] == 50


def test_a_best_pair_is_chosen_by_the_first_seeds_and_judged_by_the_later_ones():
    def pair(held_out, seeds):
        return seeds_of("math_mini_28_wd", held_out, seeds, learning_rate=0.02, min_lr=0.0002)

    runs = pair(40, range(1, 6)) | pair(0, range(6, 21)) | PAPERS
    runs |= by_settings(listed("optimizer"), lambda *_: 0)
    best = {name: finding["value"] for name, finding in why(runs)["best_pairs_from_0_003"].items()}
    assert best["n28 (rate 0.02, weight decay 0.1)"] == 100
    assert best["n28 (rate 0.02, weight decay 0.1), seeds from 6 on"] == 0


def test_a_pair_with_later_seeds_alone_is_no_best_pair():
    runs = {name: run for rate in (0.02, 0.03) for name, run in seeds_of(
        "math_mini_28", 40, range(6, 12), weight_decay=1.0, learning_rate=rate, min_lr=rate / 100).items()}
    assert list(why(PAPERS | runs)["best_pairs"]) == ["n28 (rate 0.01, weight decay 0.1)"]


def test_the_best_pair_of_each_width_has_weight_decay(found):
    means = {pair: finding["value"] for pair, finding in found["best_pairs"].items()}
    assert means["n28 (rate 0.001, weight decay 3)"] == 100
    assert {pair.split()[0]: mean for pair, mean in means.items()} == {"n14": 100, "n20": 50, "n28": 100,
                                                                      "n56": 0}
    predicted = {pair.split()[0]: finding["value"]
                 for pair, finding in found["best_pairs_from_0_003"].items()}
    assert predicted == {"n28": 50, "n56": 0}


def test_a_cell_of_the_paper_alone_is_no_experiment_on_weight_decay():
    found = why(PAPERS)
    assert found["decays"] == found["best_pairs"] == found["longer"] == {}
    assert {"decays", "rates"}.isdisjoint(figures_of_why(found))


def test_long_runs_are_compared_with_the_usual_ones_of_the_same_seeds_and_weight_decay(found):
    n28, n56 = found["longer"]["n28"], found["longer"]["n56"]
    usual = {"0": 0, "0_1": 0, "1": -0.5}  # what n28 has over what it has after 30,000 iterations
    assert {key: cell["against"]["difference"] for key, cell in n28["by_decay"].items()} == usual
    assert [cell["score"]["value"] for cell in n56["by_decay"].values()] == [0, 100, 100]
    assert found["longer_scores"]["n56, weight decay 1,"]["value"] == 100
    assert [cell["most"] for cell in n56["by_decay"].values()] == [75, 100, 100]
    assert n56["against"]["difference"] == pytest.approx(2 / 3) and n56["against"]["seeds"] == 15
    assert n56["against"]["p"] < 0.05 and n56["by_decay"]["1"]["against"]["p"] > 0.05  # five pairs are few


# Tables, figures and the page.


def test_the_tables_have_a_row_for_each_width_and_weight_decay(found):
    tables = tables_of_why(found)
    assert cells_of_row(tables["decays"], "n28 | 0")[2:] == [
        "0 (20)", "0 (20)", "0", "0 (20)", "0 (20)", "0 (20)", "–"]
    assert cells_of_row(tables["decays"], "n28 | 3")[2:8] == ["100", "0", "0", "0", "0", "0"]
    assert cells_of_row(tables["decays"], "n28 | 1")[8].startswith("+50 points (each; ")
    assert len(tables["decays"].splitlines()) == 2 + 2 + 4 * 4
    assert cells_of_row(tables["longer"], "n56 | 0.1")[2:5] == ["5", "100%", "100"]
    assert cells_of_row(tables["longer"], "n56 | 0")[2:5] == ["5", "0%", "75"]
    assert cells_of_row(tables["longer"], "n56 | all of them")[2:5] == ["15", "–", "–"]


def test_a_pair_without_runs_is_a_dash_and_grey():
    some = seeds_of("math_mini_28", 20, [1], weight_decay=1.0) | seeds_of(
        "math_mini_28", 20, [1], weight_decay=1.0, learning_rate=0.02, min_lr=0.0002)
    found = why(PAPERS | some)
    table = tables_of_why(found)["decays"]
    assert cells_of_row(table, "n28 | 0.1")[2:4] == ["0", "–"]
    assert cells_of_row(table, "n28 | 1")[2:4] == ["50 (1)", "50 (1)"]
    [ax] = figures_of_why(found)["decays"].axes
    assert ax.images[0].get_array().mask.tolist() == [[False, True], [False, True], [False, False]]


def test_the_maps_show_the_means(found):
    figure = figures_of_why(found)["decays"]
    assert [ax.get_title().split(":")[0] for ax in figure.axes] == ["n14", "n20", "n28", "n56"]
    assert figure.axes[2].images[0].get_array().tolist() == [
        [0] * 6, [0] * 6, [50] * 6, [100, 0, 0, 0, 0, 0]]
    figure.canvas.draw()


def rates_of_widths(widths, seeds):
    return {name: run for n in widths for rate in (0.01, 0.02) for name, run in seeds_of(
        "math_mini_14", 20, seeds, n_embd=n, learning_rate=rate, min_lr=rate / 100).items()}


def test_rates_are_drawn_from_three_runs_on():
    figures = (figures_of_why(why(rates_of_widths([14], seeds))) for seeds in (range(1, 3), range(1, 4)))
    assert ["rates" in figure for figure in figures] == [False, True]


def test_every_width_is_drawn_however_many_there_are():
    figure = figures_of_why(why(rates_of_widths(range(10, 24, 2), range(1, 4))))["rates"]
    assert [text.get_text() for text in figure.legends[0].texts] == [f"n{n}" for n in range(10, 24, 2)]


def test_the_findings_are_plain_data(found):
    json.dumps(found)


@pytest.mark.parametrize("name, begun, heading", [
    ("optimizer", slice(175, 178), "## Does weight decay move the window?"),
    ("long", slice(18), "## Does a wide model find the rule in ten times as long?"),
])
def test_the_page_is_written_when_an_experiment_has_begun(name, begun, heading):
    runs = PAPERS | by_settings(listed(name)[begun], right)
    text = report.report(findings(runs), "results", ".", "why")
    section = text.split(heading)[1].split("\n## ")[0]
    assert "no runs yet" not in section and "{" not in section


def test_long_runs_change_nothing_in_the_results_but_how_many_runs_there_are():
    before = findings(PAPERS)
    after = findings(PAPERS | by_settings(listed("long"), right))
    assert after["all"]["other_seeds"] == before["all"]["other_seeds"] + 30
    after["all"]["machines"] = before["all"]["machines"]
    after["all"] |= {name: before["all"][name] for name in ("other_seeds", "most_params")}
    for page in ("results", "tables"):
        assert report.report(after, "results", ".", page) == report.report(before, "results", ".", page)
