"""What the experiments on why show: each analysis finds what was put into made-up runs, and draws it."""

import json
import math

import pytest
from conftest import ROOT
from made_up import a_run, made

from study.experiments.embeddings import embeddings_of
from study.experiments.floors import floors
from study.experiments.problems import share_seen
from study.experiments.results import columns, published_runs
from study.experiments.why import (
    EVERY_PAIR, KNOWN_PAIRS, SHARE_SEEDS, SHARE_WIDTHS, SHARES, SHUFFLES, edge, half, share_of_operation,
    slope_of, why,
)
from study.experiments.why_figures import figures_of_why
from study.experiments.why_optimizer import TENFOLD
from study.experiments.why_tables import sizes
from study.settings import run_config_file
from study.tasks import table_of

pytestmark = pytest.mark.usefixtures("close_figures")
N14 = "math_mini_14"


def a_table(share, bits=100.0):
    """A run of a random table of which it has a share at the end, and half of that before."""
    run = a_run(*((it, round(1000 * part), round(1000 * part), None, 0, 1.0)
                  for it, part in ((0, 0), (1000, share / 2), (2000, share))))
    rows = [row | {"held_out_total": 0, "held_out_correct": 0, "held_out_answers": ""} for row in run.rows]
    info = run.info | {"stored_bits": str(bits), "table_bits": "784.0"}
    return run._replace(rows=rows, results=columns(rows), info=info)


def a_rule(held_out, **info):
    """A run that has so many held-out samples right at the end."""
    right = 980 + held_out // 2
    return a_run((0, 0, 0, None, 0, 2.8), (2000, right, right, None, held_out, 0.9), **info)


def together(*parts):
    return {name: run for part in parts for name, run in part.items()}


@pytest.fixture(scope="module")
def found():
    seeds = (1, 2, 3)
    memory = {4: 0.1, 8: 0.5, 16: 1.0, 32: 1.0}
    rule = {4: 20, 8: 40, 16: 40, 28: 0, 32: 0}
    runs = together(*(
        made(a_table(share, bits=10 * n), N14, n_embd=n, seed=seed, answer_seed=seed)
        for n, share in memory.items() for seed in seeds
    ), *(made(a_rule(right), N14, n_embd=n, seed=seed) for n, right in rule.items() for seed in seeds), *(
        made(a_rule(20), "math_mini_28", seed=seed, learning_rate=0.03, min_lr=0.0003)
        for seed in range(1, 6)
    ), *(
        made(a_rule(right), N14, n_embd=n, seed=seed, shuffles=50)
        for n, right in ((16, 40), (28, 30), (32, 0)) for seed in seeds
    ))
    for pair in (f"{a},{b}" for a in range(9) for b in range(a + 1, 10)):
        runs |= made(a_rule(0 if {"0", "9"} & set(pair) else 40), N14, seed=1, held_out=pair)
    for count, right in ((1, 40), (2, 30), (5, 0)):
        for seed in seeds:
            runs |= made(a_rule(right), N14, n_embd=10, seed=seed,
                         held_out=table_of({"held_out": f"{count} pairs of seed {seed}"}).held_out)
    for most, n_mem in ((4, 6), (6, 9), (12, 18), (19, 27)):
        pairs = max(1, round(math.comb(most + 1, 2) / 45))
        for seed in seeds:
            drawn = {"held_out": f"{pairs} pairs of seed {seed}", "max_operand": most}
            table = {"max_operand": most, "held_out": table_of(drawn).held_out, "line_seed": seed,
                     "seed": seed, "block_size": 9 if most < 10 else 12}
            for n in (n_mem - 1, n_mem + 1, 2 * n_mem - 1, 2 * n_mem + 1):
                runs |= made(a_table(float(n > n_mem)), N14, n_embd=n, answer_seed=seed, **table)
                runs |= made(a_rule(40 if n < 2 * n_mem else 0), N14, n_embd=n, **table)
    return why(runs)


def test_capacity_is_what_a_width_holds_of_random_tables_beside_the_true_one(found):
    capacity = found["capacity"]
    assert {n: cell["table"]["mean"] for n, cell in capacity["by_width"].items()} == {
        "n4": 10, "n8": 50, "n16": 100, "n32": 100}
    assert {n: cell["held_out"]["mean"] for n, cell in capacity["by_width"].items()} == {
        "n4": 50, "n8": 100, "n16": 100, "n32": 0}
    assert [cell["bits"]["quartiles"][1] for cell in capacity["by_width"].values()] == [40, 80, 160, 320]
    assert capacity["by_width"]["n8"]["each"]["quartiles"][1] == pytest.approx(80 / 1456)
    assert capacity["n_mem"]["value"] == pytest.approx(8) == capacity["n_mem"]["interval"][0]
    assert capacity["n_gen"]["value"] == pytest.approx(math.sqrt(16 * 28))
    assert capacity["ratio"]["value"] == pytest.approx(math.sqrt(16 * 28) / 8)


def test_times_are_those_at_which_half_of_the_runs_have_nine_tenths(found):
    n8, n16 = (found["times"][n]["random"] for n in ("n8", "n16"))
    assert n16["median"] == 2000 and n8["median"] is None
    assert found["times"]["n8"]["held_out"]["median"] == 2000 and found["times"]["n8"]["random"]["right"] == 0


def test_the_peak_of_the_mean_held_out_score_is_found():
    early = a_run((0, 0, 0, None, 0, 2.8), (1000, 980, 980, None, 30, 0.9), (2000, 980, 980, None, 0, 0.8))
    runs = together(made(early, N14, n_embd=28, seed=1), made(a_rule(0), N14, n_embd=14, seed=1),
                    *(made(a_table(1.0), N14, n_embd=n, seed=1, answer_seed=1) for n in (14, 28)))
    times = why(runs)["times"]
    assert times["n28"]["peak"] == {"iteration": 1000, "percent": 75} and times["n28"]["curve"]["2000"] == 0
    assert times["n14"]["peak"]["percent"] == 0


def test_the_order_of_the_lines_takes_the_bits_of_a_permutation():
    runs = made(a_table(1.0), N14, seed=1, answer_seed=1)
    bits = math.log2(math.factorial(200))  # the made-up run has 200 lines
    assert why(runs)["capacity"]["order_each"]["value"] == pytest.approx(bits / 1456)


def test_a_learning_rate_is_compared_with_the_papers_on_the_same_seeds(found):
    cell = found["rates"]["n28"]["0_03"]
    assert cell["held_out"]["mean"] == 50 and cell["against"]["difference"] == pytest.approx(0.5)
    assert found["best_rate"] == cell
    assert cell["against"]["seeds"] == 3 and found["rates"]["n28"]["0_01"]["against"] is None


def test_changing_orders_are_compared_with_the_papers_order_on_the_same_seeds(found):
    cells = found["order"]["by_width"]
    assert list(cells) == ["n16", "n28", "n32"]
    assert cells["n28"]["against"]["difference"] == pytest.approx(0.75)
    assert cells["n28"]["changing"]["mean"] == 75 and cells["n28"]["paper"]["mean"] == 0


def test_changing_orders_are_compared_over_all_widths_by_seed(found):
    all_widths = found["order"]["all_widths"]
    assert all_widths["difference"] == pytest.approx(0.25) and all_widths["seeds"] == 3


def test_the_width_at_which_a_changing_order_loses_the_rule_is_compared_with_the_papers(found):
    order = found["order"]
    assert order["paper"]["value"] == pytest.approx(math.sqrt(16 * 28))
    assert order["changing"]["value"] == pytest.approx(28 ** (1 / 3) * 32 ** (2 / 3), rel=0.05)
    ratio = order["changing"]["value"] / order["paper"]["value"]
    assert order["ratio"]["value"] == pytest.approx(ratio) and order["ratio"]["interval"][0] > 1


def test_the_slope_is_one_where_the_end_moves_with_the_table(found):
    tables = found["tables"]
    assert list(tables["by_table"]) == ["both to 4", "both to 6", "both to 12", "both to 19"]
    assert [table["problems"] for table in tables["by_table"].values()] == [50, 98, 338, 800]
    for table in tables["by_table"].values():
        assert table["ratio"]["value"] == pytest.approx(2, rel=0.05)
    assert tables["slope"]["value"] == pytest.approx(1, abs=0.05) and tables["slope"]["tables"] == 4
    assert tables["ratios"]["values"] == pytest.approx([2, 2], abs=0.1)
    assert tables["problems"]["values"] == [50, 800]
    widest = tables["widest"]["both_12"]
    assert (widest["n"], widest["memory"]["mean"], widest["rule"]["mean"]) == ("n37", 100, 0)


def test_a_table_whose_score_stays_above_half_has_no_end():
    runs = {}
    for seed in (1, 2, 3):
        held_out = table_of({"held_out": f"1 pairs of seed {seed}"}).held_out
        for n in (8, 16):
            runs |= made(a_rule(40), N14, n_embd=n, seed=seed, line_seed=seed, held_out=held_out)
    tables = why(runs)["tables"]
    assert tables["by_table"]["both to 9"]["above_half"] == 16
    assert "| above 16 |" in sizes(tables["by_table"])


def test_a_slope_can_put_the_end_of_such_a_table_at_its_widest_width(found):
    found = dict(found["tables"]["by_table"])
    largest = found["both to 19"]
    rule = {n: 3 * [1.0] for n in largest["rule"]}  # at every width up to 55, where the random table has 27
    found["both to 19"] = largest | {"rule": rule, "above_half": max(rule), "n_gen": half("", rule, True)}
    assert slope_of(found)["tables"] == 3 and slope_of(found, censored=True)["tables"] == 4
    assert slope_of(found, censored=True)["value"] == pytest.approx(1, abs=0.05)


def test_pairs_at_the_edge_are_told_from_those_inside(found):
    [pairs] = found["pairs"].values()
    assert pairs["score"]["value"] == pytest.approx(100 * 27 / 44)  # 28 of 45 pairs are inside, 5,7 too
    pairs = {name: edges for name, edges in pairs.items() if name != "score"}
    assert {name: edge["pairs"] for name, edge in pairs.items()} == {
        "new": 34, "all": 45, "seen": 42, "sums": 34, "differences": 34}
    for edges in (pairs[name] for name in ("new", "all", "seen")):
        assert edges["difference"] == -1 and edges["p"] < 0.001
        assert (edges["at_edge"], edges["inside"]) == (0, 100)
    even = {f"{a},{b}": float((a + b) % 2) for a in range(10) for b in range(a + 1, 10)}
    assert edge("chance", even)["p"] > 0.2


def test_the_score_over_the_number_of_held_out_pairs_has_a_slope(found):
    shares = found["shares"]["by_width"]["n10"]
    assert {count: score["value"] for count, score in shares["by_count"].items()} == {
        "1": 100, "2": 75, "5": 0, "10": None, "15": None, "22": None}
    assert shares["runs"] == 9 and shares["trained"]["mean"] == 100
    assert [shares["seen"][count]["mean"] for count in ("1", "2", "5")] == [100, 100, 100]
    assert shares["slope"]["value"] == pytest.approx(-25) and shares["slope"]["interval"][1] < 0


def test_the_two_narrow_widths_are_compared_on_the_pairs_that_both_hold_out():
    runs = {}
    for n, right in ((10, 40), (14, 20)):
        for seed in (1, 2, 3):
            for count in SHARES if (n, seed) != (14, 3) else SHARES[:-1]:  # seed 3 is not whole
                drawn = table_of({"held_out": f"{count} pairs of seed {seed}"}).held_out
                runs |= made(a_rule(right), N14, n_embd=n, seed=seed, held_out=drawn)
    against = why(runs)["shares"]["n10_against_n14"]
    assert against["seeds"] == 2 and against["difference"] == pytest.approx(0.5)


def test_seeds_that_an_experiment_does_not_list_are_no_runs_of_it(found):
    drawn = table_of({"held_out": "1 pair of seed 25"}).held_out
    assert drawn == "5,7"  # so runs of the paper's pair look like one of its seeds
    runs = together(*(made(a_rule(0), N14, seed=seed, held_out=drawn) for seed in (24, 25)), *(
        made(a_rule(40), N14, seed=1, held_out=table_of({"held_out": f"{count} pairs of seed 1"}).held_out)
        for count in (1, 2)))
    assert why(runs)["shares"]["by_width"]["n14"]["runs"] == 2


def test_the_pairs_that_raised_a_question_are_those_that_were_run_before():
    before = {settings["held_out"] for settings in run_config_file(ROOT / "experiments/pairs.py")["runs"]}
    assert set(KNOWN_PAIRS) == before | {"5,7"}


def test_a_table_that_no_width_generalizes_on_has_no_width_that_loses_the_rule():
    runs = {}
    for n, right in ((4, 0), (8, 0), (16, 0), (28, 0)):
        for seed in (1, 2, 3):
            drawn = {"held_out": f"1 pair of seed {seed}", "operations": "add"}
            table = {"operations": "add", "held_out": table_of(drawn).held_out, "line_seed": seed}
            runs |= made(a_rule(20 if n == 8 and seed == 1 else right), N14, n_embd=n, seed=seed, **table)
            runs |= made(a_table(n / 28), N14, n_embd=n, seed=seed, answer_seed=seed, **table)
    table = why(runs)["tables"]["by_table"]["add to 9"]
    assert table["n_mem"]["value"] == pytest.approx(14, rel=0.05) and table["most"] == pytest.approx(100 / 6)
    assert table["n_gen"]["value"] is None and table["ratio"]["value"] is None


def test_a_table_with_more_pairs_held_out_than_can_be_drawn_is_no_table_of_the_experiment():
    runs = made(a_rule(0), N14, seed=1, line_seed=1, max_operand=1, held_out="0,0;0,1")
    assert why(runs)["tables"]["by_table"] == {}


def test_the_analyses_take_the_settings_that_the_experiments_have():
    runs_of = {name: run_config_file(ROOT / f"experiments/{name}.py")["runs"]
               for name in ("pairs", "all_pairs", "held_out_share", "changing_order", "long")}
    assert {run["held_out"] for run in runs_of["pairs"]} | {"5,7"} == set(KNOWN_PAIRS)
    assert {(run.get("n_embd", 14), run["seed"]) for run in runs_of["all_pairs"]} == {
        (n, seed) for n, most in EVERY_PAIR.items() for seed in range(1, most + 1)}
    assert {(run["held_out"], run["n_embd"], run["seed"]) for run in runs_of["held_out_share"]} == {
        (f"{count} pairs of seed {seed}", n, seed) for count in SHARES for n in SHARE_WIDTHS
        for seed in SHARE_SEEDS}
    assert {run["shuffles"] for run in runs_of["changing_order"]} == {SHUFFLES}
    assert all(TENFOLD.items() <= run.items() for run in runs_of["long"])


def test_sums_and_differences_of_a_pair_are_told_apart():
    rows = [{**a_rule(30).rows[-1], "held_out_answers": "1+3=4 3+1=4 1-3=-2 3-1=1"}]
    run = a_rule(30)._replace(rows=rows, results=columns(rows))
    assert [share_of_operation([run], "1,3", sign) for sign in "+-"] == [1, 0.5]


def test_a_draw_whose_curve_does_not_pass_the_half_counts_at_the_end_of_the_widths():
    cells = {8: [1.0, 1.0, 1.0], 16: [1.0, 1.0, 1.0], 32: [1.0, 0.0, 0.0]}
    finding = half("made up", cells, falling=True)
    assert 16 < finding["value"] < 32 and finding["interval"][1] == pytest.approx(32)


def test_the_slope_is_also_told_without_one_of_the_tables(found):
    assert found["tables"]["slope_without_one"]["values"] == pytest.approx([1, 1], abs=0.05)
    low, high = found["tables"]["intervals_without_one"]["values"]
    assert low <= 1 <= high
    assert {table["trained"]["mean"] for table in found["tables"]["by_table"].values()} == {100}


def test_tables_of_other_sizes_hold_out_different_pairs_whose_answers_other_lines_have():
    cells = {}
    for settings in run_config_file(ROOT / "experiments/table_size.py")["runs"]:
        if "answer_seed" not in settings:
            table = {key: settings[key] for key in ("operations", "max_operand")}
            held_out = table_of(table | {"held_out": settings["held_out"]}).held_out
            assert share_seen(held_out, **table) == 1
            cells.setdefault(tuple(table.values()), {}).setdefault(settings["seed"], held_out)
    for of_seed in cells.values():
        assert len(of_seed) == len(set(of_seed.values())) == 5


def test_all_of_it_is_drawn(found):
    figures = figures_of_why(found)
    assert list(figures) == ["capacity", "times", "tables", "rates", "changing_order", "held_out_share"]
    curves = {line.get_label(): line.get_ydata().tolist() for line in figures["capacity"].axes[0].get_lines()}
    assert curves["random table"] == [10, 50, 100, 100]
    legend = [text.get_text() for text in figures["tables"].axes[0].get_legend().get_texts()]
    assert legend == ["equal widths", "both to 4", "both to 6", "both to 12", "both to 19"]
    for figure in figures.values():
        figure.canvas.draw()


def test_the_findings_are_plain_data(found):
    json.dumps(found)


def test_without_runs_there_are_no_findings_and_no_figures():
    nothing = why({})
    assert figures_of_why(nothing) == {} and nothing["capacity"]["n_mem"]["value"] is None
    json.dumps(nothing)


def test_runs_of_the_paper_alone_are_no_experiment_on_why():
    runs = together(*(made(a_rule(40), N14, seed=seed) for seed in (1, 2, 1337)))
    assert figures_of_why(why(runs)) == {}


def test_what_the_page_says_in_words_is_what_the_published_tables_give():
    found = why(published_runs(ROOT / "results"))
    capacity, times, best = found["capacity"], found["times"], found["best_rate"]
    table, held_out = ({int(n[1:]): cell[what]["mean"] for n, cell in capacity["by_width"].items()}
                       for what in ("table", "held_out"))
    highest = sorted(held_out, key=held_out.get)[-5:]
    assert sorted(highest) == [10, 11, 12, 13, 14] and all(33 < table[n] < 68 for n in highest)
    assert all(held_out[n] < 8 for n in table if table[n] > 99) and table[24] > 99
    low, high = capacity["ratio"]["interval"]
    assert low < 1.5 < high and capacity["ratio"]["value"] > 1.4
    for n in (14, 16, 18, 20):
        held = times[f"n{n}"]["held_out"]["median"]
        assert held and held < (times[f"n{n}"]["random"]["median"] or 30_000)
    for n in (28, 32, 40, 56):
        of = times[f"n{n}"]
        assert of["random"]["median"] <= 3250 and of["random"]["median"] <= 1.7 * of["trained"]["median"]
        assert of["held_out"]["median"] is None and of["held_out"]["right"] <= of["held_out"]["total"] / 10
    assert times["n28"]["curve"]["4000"] < 5
    assert times["n14"]["random"]["median"] is times["n16"]["random"]["median"] is None
    peak = times["n28"]["peak"]
    assert peak["iteration"] == 1750 and 33 < peak["percent"] < 40 and times["n56"]["peak"]["percent"] > 20
    assert best["rate"] == 0.001 and 20 < best["held_out"]["mean"] < 25 and best["runs"] == 20
    assert best["against"]["interval"][0] > 0 and best["against"]["p"] < 0.05
    low, high = best["score"]["interval"]
    assert low < 25 < high
    arcs = {name: cell["circle"]["mean"] for name, cell in embeddings_of(ROOT / "results").items()}
    chance = embeddings_of(ROOT / "results")["n28 at 30,000"]["circle_chance"]["mean"]
    assert min(arcs["n14, all four right"], arcs["n14, fewer right"], arcs["n28 at 1,750"]) > 70
    assert arcs["n28 at 30,000"] < 40 and arcs["n28 at 30,000"] - chance < 15
    tables = found["tables"]
    low, high = tables["slope"]["interval"]
    assert 0.5 < low < 1 < high < 1.5 and all(1 < ratio < 1.5 for ratio in tables["ratios"]["values"])
    assert tables["by_table"]["both to 4"]["most"] < 50
    assert [name for name, table in tables["by_table"].items() if table["above_half"]] == [
        "add to 19", "both to 19"]
    assert tables["slope"]["tables"] == tables["censored"]["slope"]["tables"] - 2 == 5 == len(
        tables["by_table"]) - 3
    assert tables["censored"]["slope"]["interval"][0] > 1
    sums, both = tables["widest"]["add_19"], tables["widest"]["both_19"]
    assert sums["n"] == "n48" and sums["memory"]["mean"] > 95 and sums["rule"]["mean"] > 50
    assert sums["last_n"] == both["last_n"] == "n96"
    assert 0 < sums["last"]["mean"] - sums["peak"]["mean"] / 2 < 3  # just above half
    shares = found["shares"]
    means = {n: [score["value"] for score in cell["by_count"].values()]
             for n, cell in shares["by_width"].items()}
    assert [cell["runs"] for cell in shares["by_width"].values()] == 5 * [60]
    for n in ("n10", "n14", "n20"):
        assert shares["by_width"][n]["slope"]["interval"][1] < 0
    for n in ("n28", "n56"):
        low, high = shares["by_width"][n]["slope"]["interval"]
        assert low < 0 < high and max(means[n]) < 5
    assert all(means["n10"][i] > means["n14"][i] for i in range(1, 6))
    assert shares["n10_against_n14"]["interval"][0] > 0 and shares["n10_against_n14"]["p"] < 0.05
    order = found["order"]
    assert [cell["runs"] for cell in order["by_width"].values()] == 9 * [20]
    low, high = order["ratio"]["interval"]
    assert 0.9 < low < 1 < high < 1.15
    changes = {n: cell["against"] for n, cell in order["by_width"].items()}
    assert all(change["p"] > 0.05 for change in changes.values())
    assert order["all_widths"]["p"] < 0.01 and order["all_widths"]["interval"][0] > 0
    points = [100 * changes[f"n{n}"]["difference"] for n in (14, 16, 18, 20)]
    assert (round(min(points)), round(max(points))) == (11, 22)
    unknown = floors()["math"]["order_unknown"]["value"]
    below = {n: unknown - cell["lowest_loss"]["quartiles"][1] for n, cell in order["by_width"].items()}
    assert {n for n in below if below[n] > 0} == {"n40", "n56"} and max(below.values()) < 0.002
