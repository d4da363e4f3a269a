"""Runs are selected by their settings, and findings are what the runs have."""

import json

import pytest
from made_up import MEMORY, PASSING, RUNS, WHOLE, a_run, made, seeds

from study.experiments import select
from study.experiments.cells import CRITERIA, compared, of_cell, rate, score
from study.experiments.findings import findings
from study.experiments.text import percent, text_of, text_of_mean, wrapped
from study.tasks import table_of


def meets(criterion, *runs):
    return [CRITERIA[criterion][1](run) for run in runs]


def shares(rate):
    return rate["right"], rate["total"]


def all_shares(rates):
    return {name: shares(rate) for name, rate in rates.items()}


@pytest.fixture(scope="module")
def found():
    return findings(RUNS | seeds(MEMORY, "math_mini_14", [1], n_embd=20))


# Selection.


def test_runs_are_selected_by_their_settings_whatever_they_are_called():
    runs = {f"run {i}": run for i, run in enumerate(RUNS.values())}
    assert list(select.varied(runs, "math_mini_14", "seed")) == [(1,), (2,), (10,), (1337,)]
    assert list(select.seeds_by("n_embd", runs, "math_mini_14")) == [2, 13, 14, 28]
    assert list(select.varied(runs, "math_mini_28")) == [] and len(select.seeds(runs, "math_mini_28")) == 1
    orders = list(select.varied(runs, "math_mini_14", "line_seed", "seed"))
    assert orders[4:] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert list(select.varied(runs, "math_mini_14", "held_out", seed=1)) == [("1,3",), ("5,7",)]
    assert list(select.varied(runs, "math_mini_14", "seed", dtype="bfloat16", fast=False)) == [(1,), (2,)]
    assert select.seeds(runs, "math_mini_20") == []  # no such config


@pytest.mark.parametrize("settings", [
    {"batch_size": 441}, {"learning_rate": 0.02}, {"max_iters": 500}, {"n_head": 2}, {"bias": True},
    {"fast": False}, {"data_seed": 3}, {"grad_clip": 0.0}, {"weight_decay": 0.01}, {"line_seed": 4},
    {"held_out": "1,2"}, {"held_out": "none"}, {"held_out": "2 pairs of seed 1"}, {"operations": "add"},
    {"max_operand": 12}, {"answer_seed": 1}, {"shuffles": 50},
])
def test_a_run_that_differs_in_any_setting_is_no_seed_of_the_papers_cell(settings):
    tabulated = settings | ({"held_out": table_of(settings).held_out} if "held_out" in settings else {})
    [run] = made(WHOLE, "math_mini_14", seed=1, **tabulated).values()
    runs = {"math_mini_14_seed_1": run}  # as it would be called without them
    assert select.seeds(runs, "math_mini_14") == []
    assert len(select.seeds(runs, "math_mini_14", **settings)) == 1
    assert findings(runs)["math"]["n14"]["runs"] == 0


def test_a_row_without_a_column_has_the_setting_of_its_config():
    [(name, run)] = seeds(WHOLE, "facts_mini_28", [3]).items()
    few = {key: run.info[key] for key in ("config", "n_embd", "seed", "step", "dtype", "device")}
    few["held_out"] = "none"
    runs = {name: run._replace(info=few)}
    assert len(select.seeds(runs, "facts_mini_28")) == 1
    assert list(select.seeds_by("n_embd", runs, "facts_mini_14")) == [28]
    assert select.seeds(runs, "math_mini_28") == []


def test_the_papers_seed_is_none_of_the_seeds():
    assert (1337,) in select.varied(RUNS, "math_mini_14", "seed")
    assert len(select.seeds(RUNS, "math_mini_14")) == 3


# What runs have.


def test_generalizing_is_having_all_held_out_samples_right_at_the_last_evaluation():
    assert meets("generalizes", WHOLE, PASSING, MEMORY) == [True, False, False]
    assert meets("at_best", WHOLE, PASSING, MEMORY) == [True, True, False]
    assert meets("at_some", WHOLE, PASSING, MEMORY) == [True, True, False]
    assert meets("at_best_of_trained", PASSING) == [True]
    assert meets("at_latest_best_of_trained", PASSING) == [False]
    assert meets("everything", WHOLE, PASSING) == [True, False]


def test_nothing_is_true_of_evaluations_or_samples_that_a_run_does_not_have():
    short = a_run((0, 0, 0, None, 0, 2.8), (500, 1000, 1000, None, 40, 0.8))
    assert meets("generalizes", short) == [True] and meets("always_late", short) == [None]
    cell = of_cell("short runs", [short, short])
    assert shares(cell["always_late"]) == (0, 0) and cell["late"]["share"] is None
    assert shares(of_cell("one of each", [short, WHOLE])["always_late"]) == (1, 1)
    assert meets("all_capitals", WHOLE) == [None] and shares(cell["all_capitals"]) == (0, 0)


def test_runs_that_end_early_have_findings_without_late_evaluations():
    short = a_run((0, 0, 0, None, 0, 2.8), (500, 1000, 1000, None, 40, 0.8))
    runs = {name: short._replace(info=run.info) for name, run in RUNS.items()}
    found = findings(runs)
    assert shares(found["math"]["n14"]["generalizes"]) == (3, 3)
    assert found["math"]["n14"]["late"]["share"] is found["steps"]["c_step"]["late"]["share"] is None
    lengths = [found["all"][name]["values"] for name in ("last_iter", "evaluations", "late_evaluations")]
    assert lengths == [[500, 500], [2, 2], [0, 0]]


def test_a_run_longer_than_the_papers_does_not_change_how_long_the_runs_are(found):
    longer = a_run(*((it, 980, 980, None, 0, 0.5) for it in range(0, 300_001, 2_500)))
    runs = RUNS | seeds(longer, "math_mini_28", [1], max_iters=300_000, eval_interval=2_500)
    ours, lengths = findings(runs)["all"], ("last_iter", "evaluations", "late_evaluations")
    assert [ours[name] for name in lengths] == [found["all"][name] for name in lengths]
    assert ours["other_seeds"] == len(RUNS)  # one of RUNS has the paper's seed; the long one counts


def test_a_rate_has_its_interval_and_a_difference_its_test():
    none, some, every = (rate("x", values) for values in ([], [True, None, False], [True] * 10))
    assert shares(some) == (1, 2) and none["interval"] is None
    assert every["interval"] == (pytest.approx(0.722, abs=1e-3), 1)
    difference = compared(rate("a", [False] * 10), every)
    assert difference["difference"] == -1 and difference["p"] < 1e-4 and difference["interval"][1] < -0.5
    assert compared(none, every)["p"] is None


# Findings.


def test_findings_are_plain_data(found):
    json.dumps({key: value for key, value in found.items() if key != "orders"})
    json.dumps([value for key, value in found["orders"].items() if key != "held_out_right"])


def test_each_claim_of_the_paper_has_its_finding(found):
    n14, n14_wd, n28 = (found["math"][name] for name in ("n14", "n14_wd", "n28"))
    names = ("at_best", "generalizes", "everything", "at_some", "always_late")
    assert [shares(n14[name]) for name in names] == [(3, 3), (1, 3), (1, 3), (3, 3), (1, 3)]
    assert [shares(n14[f"at_{name}best_of_trained"]) for name in ("", "latest_")] == [(3, 3), (1, 3)]
    assert n14["late"]["share"] == pytest.approx(2 / 3) and shares(n14_wd["generalizes"]) == (1, 1)
    assert [shares(n28[name]) for name in ("generalizes", "at_best", "at_some")] == [(0, 1)] * 3
    assert n14["score"]["value"] == pytest.approx(100 * (4 + 3 + 3) / 12) and n28["score"]["value"] == 0
    # Of seed 1 alone there is a run of each: it generalizes at n14, with weight decay and without.
    assert found["n28_against_n14"]["difference"] == -1 and found["n28_against_n14"]["seeds"] == 1
    assert found["weight_decay"]["n14"]["at_best"]["difference"] == 0
    assert found["weight_decay"]["n14"]["score"]["seeds"] == 1
    assert found["weight_decay"]["n56"]["score"]["difference"] is None
    smallest = found["smallest"]
    assert smallest["widths"] == ["n13", "n14"] and smallest["paper_seed"] == ["n14"]
    assert all_shares(smallest["at_last"]) == {"n13": (1, 1), "n14": (1, 3)} and smallest["runs_below"] == 1
    beyond = found["beyond"]
    assert [beyond[name] for name in ("runs", "most_add", "most_sub", "more_sub_than_paper")] == [1, 0, 6, 1]
    paper_seed = found["paper_seed"]["math"]
    assert paper_seed["n14"]["held_out"]["right"] == 40 and paper_seed["n14_wd"] is None
    assert found["all"]["other_seeds"] == len(RUNS) and found["all"]["paper_seed"] == 1


def test_orders_pairs_and_widths_have_their_findings(found):
    orders, pairs = found["orders"], found["pairs"]
    assert shares(orders["generalizes"]) == (2, 4) and orders["per_order"]["counts"] == {0: 1, 2: 1}
    assert orders["variance"]["generalizes"]["order"]["share"] == 1
    assert shares(pairs["cells"]["1,3"]["generalizes"]) == (0, 1)
    assert shares(pairs["paper"]["generalizes"]) == (1, 3)
    apart = pairs["apart"]["generalizes"]
    assert [apart[name] for name in ("lowest", "highest", "without_a_run", "p")] == [0, 0, 1, 1]
    n14 = found["by_width"]["math"][14]
    assert n14["last"]["trained"]["mean"] == 100 and n14["last"]["held_out"]["mean"] == pytest.approx(250 / 3)
    assert found["lacking"]["runs"] == 0 and found["lacking"]["of"]["values"] == [1960, 1960]
    lacks_one = a_run((30000, 980, 990, None, 20, 0.7))
    lacking = findings(seeds(lacks_one, "math_mini_14", [1], n_embd=20))["lacking"]
    assert (lacking["runs"], lacking["median"], lacking["most"]) == (1, 10, 10)


def test_steps_are_compared_by_what_made_the_runs_with_the_seeds_that_all_have(found):
    steps = found["steps"]
    assert steps["seeds"] == 2
    assert shares(steps["c_step"]["generalizes"]) == (1, 2)
    assert shares(steps["bfloat16"]["generalizes"]) == (0, 2)
    assert steps["against_pytorch"]["c_step"]["generalizes"]["difference"] == 0.5
    assert steps["c_step"]["lowest_loss"]["quartiles"] == pytest.approx((0.725, 0.75, 0.775))
    runs = {name: run for dtype in ("float32", "bfloat16")
            for name, run in seeds(WHOLE, "math_mini_14", range(9), dtype=dtype, fast=False).items()}
    runs |= seeds(MEMORY, "math_mini_14", range(9))
    assert findings(runs)["steps"]["against_pytorch"]["c_step"]["generalizes"]["interval"][1] < 0
    elsewhere = seeds(WHOLE, "math_mini_14", [0])  # as on a machine without a compiler
    elsewhere["math_mini_14_seed_0"].info.update(step="PyTorch", dtype="bfloat16")
    assert findings(runs | elsewhere)["steps"]["seeds"] == 8


def test_runs_on_another_text_or_in_another_precision_are_not_the_papers():
    others = seeds(WHOLE, "math_mini_14", [3], dataset="facts_char") | seeds(
        WHOLE, "math_mini_14", [4], dtype="bfloat16")
    assert findings(RUNS | others)["math"] == findings(RUNS)["math"]


def test_a_pair_counts_with_its_smaller_digit_first():
    runs = {name: run for pair in ("1,3", "3,1")
            for name, run in seeds(WHOLE, "math_mini_14", [1], held_out=pair).items()}
    assert findings(runs)["by_pair"]["n14"]["pairs"] == findings(runs)["pairs"]["pairs"] == 1


def test_a_score_of_two_runs_has_no_interval():
    assert [score("x", n * [[WHOLE], [MEMORY]])["interval"] is None for n in (1, 2)] == [True, False]


def test_a_pair_that_is_rarer_and_one_that_is_more_frequent_are_told_apart():
    runs = seeds(WHOLE, "math_mini_14", range(1, 41, 2)) | seeds(MEMORY, "math_mini_14", range(0, 40, 2))
    for pair, run in (("1,3", MEMORY), ("2,4", MEMORY), ("0,6", WHOLE)):
        runs |= seeds(run, "math_mini_14", range(20), held_out=pair)
    pairs = findings(runs)["pairs"]
    assert [pairs[name] for name in ("rarer", "more_frequent", "pairs", "runs")] == [2, 1, 3, 20]


def test_settings_are_compared_on_the_seeds_that_they_have_in_common():
    plain = seeds(WHOLE, "math_mini_14", range(1, 10)) | seeds(MEMORY, "math_mini_14", range(10, 30))
    decay = seeds(MEMORY, "math_mini_14_wd", range(1, 9)) | seeds(WHOLE, "math_mini_14_wd", [9, 77])
    change = findings(plain | decay)["weight_decay"]["n14"]
    assert change["score"]["difference"] == pytest.approx(-8 / 9) and change["score"]["seeds"] == 9
    assert (change["generalizes"]["more"], change["generalizes"]["fewer"]) == (0, 8)
    assert change["generalizes"]["p"] == pytest.approx(2 / 2**8) and change["generalizes"]["interval"][1] < 0


def test_an_order_of_the_lines_is_one_observation():
    runs = seeds(PASSING, "math_mini_14", range(1, 6))
    for line_seed, run in enumerate((WHOLE, WHOLE, MEMORY, WHOLE), 1):
        runs |= seeds(run, "math_mini_14", [1, 2], line_seed=line_seed)
    orders = findings(runs)["orders"]
    assert orders["score"]["value"] == 75 and orders["against_paper"]["difference"] == 0
    assert orders["against_paper"]["interval"] == (-0.5, 0.25)  # of four orders, not of eight runs


def test_widths_that_have_not_learned_everything_are_not_among_those_that_have():
    runs = seeds(MEMORY, "math_mini_14", [1], n_embd=13) | seeds(MEMORY, "math_mini_14", [1])
    smallest = findings(runs)["smallest"]
    assert smallest["widths"] == [] and all_shares(smallest["at_some"]) == {"n13": (0, 1), "n14": (0, 1)}


# How they are written.


def test_a_share_that_is_neither_none_nor_all_does_not_read_so():
    assert [percent(right, 200) for right in (0, 1, 2, 199, 200)] == ["0", "0.5", "1", "99.5", "100"]
    means = {0: "0", 0.04: "0.04", 99.97: "99.97", 99.994: "99.99", 100: "100"}
    assert {value: text_of_mean(value) for value in means} == means
    one = rate("one", [True] + [False] * 199)
    assert text_of(one) == "1 of 200 (0.5%, 0 to 3)"
    assert text_of(compared(rate("none", [False] * 60), one)).startswith("-0.5 points (-2.8 to ")


def test_what_there_are_no_runs_for_has_no_text():
    cell = of_cell("nothing", [])
    nothing = [cell["generalizes"], cell["late"], cell["lowest_loss"], cell["last"]["trained"], None, {},
               compared(cell["generalizes"], cell["generalizes"])]
    assert [text_of(finding) for finding in nothing] == [None] * 7


def test_paragraphs_and_lists_are_wrapped_and_tables_and_code_are_not():
    table, code = "| b |" * 40, "```\n" + "f" * 200 + "\n```"
    text = wrapped("\n\n".join(["a " * 80 + "a", table, "- c" + " d" * 80 + "\n- e", code]))
    assert table in text and code in text and "\n  d d" in text and "\n- e\n" in text
    assert [line for line in text.split("\n") if len(line) > 110] == [table, "f" * 200]
