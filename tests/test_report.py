"""RESULTS.md and its figures say what the tables in results/ hold."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT, cells_of_row

import plot_experiment
import report
from study.experiments.runs import write_tables
from study.experiments.results import NEEDED, Run, all_right, columns, published_runs, read_runs, right_and_total

pytestmark = pytest.mark.usefixtures("close_figures")
RESULTS = ROOT / "results"
SAID = {20: "5+7=12 7+5=12 5-7=-1 7-5=1", 40: "5+7=12 7+5=12 5-7=-2 7-5=2", 30: "5+7=12 7+5=12 5-7=-1 7-5=2", 0: "5+7=13 7+5=13 5-7=-1 7-5=3"}


def a_run(*evaluations, **info):
    """A Run of evaluations (iteration, sums right of 1000, differences, capitals of 500 or None, held-out samples, loss)."""
    rows = [
        {"iter": it, "add_correct": add, "add_total": 1000, "sub_correct": sub, "sub_total": 1000, "facts_correct": facts or 0,
         "facts_total": 0 if facts is None else 500, "val_loss": loss, "held_out_correct": held_out, "held_out_total": 40,
         "held_out_answers": SAID[held_out]}
        for it, add, sub, facts, held_out, loss in evaluations
    ]
    made = {"num_params": "1456", "held_out": "5,7", "max_iters": "30000", "made_on": "Some CPU", "beyond_add": "", "beyond_sub": "",
            "step": "C step (cc, AVX2)", "dtype": "float32"}
    return Run(made | info, rows, columns(rows))


def by_pytorch(run, dtype):
    return run._replace(info=run.info | {"step": "PyTorch", "dtype": dtype})


WHOLE = a_run((0, 0, 0, None, 0, 2.8), (20000, 1000, 1000, None, 40, 0.8), (30000, 1000, 1000, None, 40, 0.7), beyond_add="0", beyond_sub="180")
PASSING = a_run((0, 0, 0, None, 0, 2.8), (20000, 1000, 1000, None, 40, 0.9), (30000, 1000, 990, None, 30, 0.8))
MEMORY = a_run((0, 0, 0, None, 0, 2.8), (20000, 980, 980, None, 0, 0.6), (30000, 980, 980, None, 0, 0.5))
RUNS = {
    "math_mini_14": PASSING,
    "math_mini_14_seed_1": WHOLE, "math_mini_14_seed_2": PASSING, "math_mini_14_seed_10": PASSING, "math_mini_14_wd_seed_1": WHOLE,
    "math_mini_28_seed_1": MEMORY, "math_mini_13_seed_1": WHOLE, "math_mini_2_seed_1": MEMORY,
    **{f"math_mini_14_line_seed_{line}_seed_{seed}": WHOLE if line == 2 else MEMORY for line in (1, 2) for seed in (1, 2)},
    "math_mini_14_held_out_1-3_seed_1": MEMORY,
    **{f"math_mini_14_dtype_{dtype}_fast_False_seed_{seed}": by_pytorch(PASSING, dtype) for dtype in ("float32", "bfloat16") for seed in (1, 2)},
}


def test_a_cell_has_the_papers_number_ours_and_that_of_the_seeds():
    cells = cells_of_row(report.paper_table(RUNS, {}, "math", "math", ""), "n14")
    assert cells == ["n14", "3", "100 / 100 / 100", "100 / 100 / 100", "40 / 40 / 40", "3 of 3 (100%, 44 to 100)", "1 of 3 (33%, 6 to 79)", "67%"]
    assert cells_of_row(report.paper_table(RUNS, {}, "math", "math", ""), "n56")[1:3] == ["0", "98 / – / –"]


def test_a_run_that_is_not_complete_says_so_in_its_cells_and_is_no_seed():
    part = a_run((0, 0, 0, None, 0, 2.8), (6000, 980, 970, None, 0, 0.6))
    text = report.report(RUNS, {"math_mini_mlt": part, "math_mini_28": WHOLE, "math_mini_14_seed_3": part})
    assert cells_of_row(text, "MLT")[1:4] == ["0", "98 / 98 (at 6,000 of 30,000) / –", "98 / 97 (at 6,000 of 30,000) / –"]
    assert cells_of_row(text, "n28")[1:3] == ["1", "98 / 100 / 98"]
    assert "Held-out samples that the MLT has right at its best evaluation, with the paper's seed: 0 of 40 with dropout (at 6,000 of 30,000)." in text
    assert "has six runs, of which 0 are complete and 1 have begun" in text and "3 of 3 (100%, 44 to 100)" in text


def test_the_tables_come_before_a_folder_of_the_same_run(tmp_path):
    (tmp_path / "paper").symlink_to(RESULTS / "paper")
    folder = tmp_path / "math_mini_14"
    folder.mkdir()
    (folder / "results.csv").write_text(",".join(NEEDED) + "\n" + ",".join("0" for _ in NEEDED) + "\n")
    assert len(read_runs(tmp_path)["math_mini_14"].rows) == 121  # so figures, tables and RESULTS.md tell of the same run


def test_of_two_folders_of_a_run_the_one_that_is_further_counts(tmp_path):
    (tmp_path / "runs").mkdir()
    for name, further in (("both_mini_mlt", tmp_path / "runs"), ("math_mini_mlt", tmp_path)):
        for folder in (tmp_path, tmp_path / "runs"):
            (folder / name).mkdir()
            rows = [[str(it), *"0" * (len(NEEDED) - 1)] for it in range(0, 1000 if folder == further else 500, 250)]
            (folder / name / "results.csv").write_text("\n".join(map(",".join, [NEEDED, *rows])) + "\n")
    assert {name: len(run.rows) for name, run in read_runs(tmp_path).items()} == {"both_mini_mlt": 4, "math_mini_mlt": 4}


def test_generalizing_is_having_all_held_out_samples_right_at_the_last_evaluation():
    assert [report.generalizes(run) for run in (WHOLE, PASSING, MEMORY)] == [True, False, False]
    assert [report.at_best(run) for run in (WHOLE, PASSING, MEMORY)] == [True, True, False]


def test_each_claim_of_the_paper_is_answered_with_rates():
    text = report.report(RUNS | {"math_mini_20_seed_1": MEMORY}, {})
    for sentence in (
        "all of the runs of n14 have all 40 held-out samples right: 3 of 3 (100%, 44 to 100); with weight decay 0.1, all: 1 of 1",
        "At the last evaluation some have: 1 of 3 (33%, 6 to 79); with weight decay 0.1, all: 1 of 1",
        "At their best evaluations the paper's two runs have 40 of 40; ours with the same seed: 40, and not run yet with weight decay 0.1.",
        "At the evaluation with the most trained problems right\n3 of 3 (100%, 44 to 100) have all 40; with weight decay 0.1, 1 of 1 (100%, 21 to 100). "
        "Many evaluations are equal in that; at the latest of them, not the earliest, it is 1 of 3 (33%, 6 to 79) and 1 of 1".replace("\n", " "),
        "They come and go: 3 of 3 (100%, 44 to 100) have all 40 at one of the 121 at least, 1 of 3 (33%, 6 to 79) at each of the 41 from iteration 20,000 on;",
        "of the runs of n28 and n56, with weight decay 0.1 and without, 0 of 1 (0%, 0 to 79) have all 40 at the last evaluation, 0 of 1 (0%, 0 to 79) at the best one and",
        "From n14 to n28 the share of runs that generalize changes by -33 points (-79 to +51; Fisher's exact test p = 1). "
        "Of the widths between them do: n20 0 of 1 (0%, 0 to 79).",
        "changes by +0 points (-79 to +56; Fisher's exact test p = 1) at the best evaluation, by +67 points",
        "n13 has been seen to, if one evaluation of its 121 is enough. Runs that have all 200 problems right",
        "n13 1 of 1 (100%, 21 to 100); n14 3 of 3 (100%, 44 to 100). With the paper's seed, of n1 to n14: n14. "
        "At the last evaluation: n13 1 of 1 (100%, 21 to 100); n14 1 of 3 (33%, 6 to 79). Of the 1 runs of smaller widths, n2 to n2, none.",
        "All 200 problems, the trained ones included, 1 of 3 (33%, 6 to 79) have then; with weight decay 0.1, 1 of 1 (100%, 21 to 100).",
        "the 2 runs of n14 that generalize, with weight decay 0.1 and without, have 0% of the additions right and 6% of the subtractions",
        "at most 0.00% and 6.00%. The paper has 0% and 4.75%; 2 of the runs have more of the subtractions.",
        "2 of 4 (50%, 15 to 85) generalize",
        "At the last evaluation the share of runs with all 40 goes from 0% to 0% among the other pairs; 0 of 1 have such a run,\n"
        "and of all their runs 0 of 1 have. Were they all alike, shares this far apart would come with p = 1 (permutation test",
        "With the paper's pair runs generalize more often than with none of the others, and more rarely than with none (p < 0.05, each by itself; 0 of them with Bonferroni's correction for 1 tests);",
        "How many of an order's 2 runs do:\n0 of 2 in 1 orders, 2 of 2 in 1 orders.",
        "These runs show no effect of the order on whether a run generalizes, and no effect of the order on how",
    ):
        assert sentence in text
    assert cells_of_row(text, "whether a run generalizes")[1].startswith("100% (p = ")
    assert cells_of_row(text, "1,3")[1].startswith("0 of 1") and cells_of_row(text, "5,7 (the paper's)")[1].startswith("1 of 3")
    assert cells_of_row(text, "C step, float32")[1:3] == ["1 of 2 (50%, 9 to 91)", "+50 points (-27 to +91; Fisher's exact test p = 1)"]
    assert cells_of_row(text, "C step, float32")[5:] == ["75%", "0.750 (0.725 to 0.775)"]  # of seeds 1 and 2, which all have
    assert cells_of_row(text, "PyTorch, bfloat16")[1].startswith("0 of 2") and cells_of_row(text, "PyTorch, float32")[2] == "–"
    assert "Each interval of the differences holds 0" in text
    assert "agree on whether a seed generalizes for\n1 of the 2; by chance it would be 1.0." in text and "[a section below](#does-the-step-matter) asks" in text
    assert cells_of_row(text, "14")[1:7] == ["100", "83.3", "3 of 3", "1 of 3", "3 of 3", "–"]
    assert "From n14 on" not in text and "the 1 runs that do not have all trained problems at the end lack 10 of 1,960 samples at the median, 10 at most" in (
        report.capacity(RUNS | {"math_mini_20_seed_1": a_run((30000, 980, 990, None, 20, 0.7))}))


def test_steps_are_compared_by_what_made_the_runs_not_by_their_names():
    runs = {f"math_mini_14_dtype_{dtype}_fast_False_seed_{seed}": by_pytorch(WHOLE, dtype) for dtype in ("float32", "bfloat16") for seed in range(9)}
    c_steps = {f"math_mini_14_seed_{seed}": MEMORY for seed in range(9)}
    assert "the step or the precision matters" in report.steps(runs | c_steps)
    elsewhere = {"math_mini_14_seed_0": by_pytorch(WHOLE, "bfloat16")}  # as on a machine without a compiler
    assert "with the 8 seeds that all three have" in report.steps(runs | c_steps | elsewhere)


def test_a_pair_that_is_rarer_and_one_that_is_more_frequent_are_told_apart():
    runs = {f"math_mini_14_seed_{seed}": WHOLE if seed % 2 else MEMORY for seed in range(40)}
    runs |= {f"math_mini_14_held_out_{pair}_seed_{seed}": run for seed in range(20) for pair, run in (("1-3", MEMORY), ("2-4", MEMORY), ("0-6", WHOLE))}
    assert "more often than with 2 of the others, and more rarely than with 1 (p < 0.05, each by itself; 3 of them with Bonferroni's correction for 3 tests);" in report.pairs(runs)


@pytest.mark.parametrize("larger, verdict", [(MEMORY, "cannot tell"), (WHOLE, "can tell")])
def test_whether_the_capitals_keep_models_from_generalizing_is_asked_of_those_that_can(larger, verdict):
    both = a_run((30000, 980, 980, 500, 0, 0.4))
    text = report.report({"math_mini_14_seed_1": WHOLE} | {f"{task}_mini_28_seed_{seed}": run for seed in range(9) for task, run in (("math", larger), ("both", both))}, {})
    assert "of the runs, with weight decay 0.1 and without, 0 of 9 (0%, 0 to 30) have all 40 at the last evaluation" in text
    assert f"whether the capitals keep a model from it, these sizes {verdict}." in text


def test_widths_that_have_not_learned_everything_are_said_to_have_not():
    assert report.smallest({"math_mini_13_seed_1": MEMORY, "math_mini_14_seed_1": MEMORY}) == [
        "no run of n13 to n14 has all 200 problems right at any of its evaluations."]


def test_a_report_of_one_cell_alone_says_what_is_not_run():
    text = report.report({"math_mini_14_seed_1": PASSING, "math_mini_14_line_seed_1_seed_1": WHOLE}, {})
    assert text.count("Here: no seeds yet.") == 3 and "the widths below 14 are not run yet" in text
    assert "beyond single digits (section 5.1).** Here: not run yet." in text
    assert "ours with the same seed: not run yet, and" in text and "Of the widths between them" not in text


def test_a_share_that_is_neither_none_nor_all_does_not_read_so():
    assert report.rate(1, 200) == "1 of 200 (0.5%, 0 to 3)" and report.rate(199, 200) == "199 of 200 (99.5%, 97 to 100)"
    assert report.rate(0, 200) == "0 of 200 (0%, 0 to 2)" and report.rate(200, 200) == "200 of 200 (100%, 98 to 100)"
    assert report.mean_accuracy([MEMORY] * 3, "trained") == "100" and report.mean_accuracy([MEMORY] * 3, "held_out") == "0"
    nearly = a_run((30000, 980, 979, None, 0, 0.5))
    assert report.mean_accuracy([MEMORY] * 9 + [nearly], "trained") == "99.99"
    assert report.compared([MEMORY] * 60, [WHOLE] + [MEMORY] * 199, report.generalizes).startswith("-0.5 points (-3 to ")


@pytest.mark.parametrize("right, total, words", [
    (0, 3, "none"), (3, 3, "all"), (60, 100, "most"), (55, 100, "some"), (39, 100, "fewer than half"),
])
def test_words_go_no_further_than_the_interval(right, total, words):
    assert report.in_words(right, total) == words


def test_a_report_without_runs_says_so():
    text = report.report({"math_mini_14": PASSING}, {})
    assert "no seeds yet" in text and "orders.png" not in text and "Is (5,7) easy?" not in text


@pytest.fixture
def published(in_tmp):
    """A folder `results` with what the project's own has, but for the runs that are being made in it."""
    (in_tmp / "results").mkdir()
    for folder in RESULTS.iterdir():
        if folder.is_dir() and folder.name != "runs":
            (in_tmp / "results" / folder.name).symlink_to(folder)
    return in_tmp / "results"


def test_results_md_is_what_the_published_tables_give(call, in_tmp, published):
    (in_tmp / "README.md").write_text((ROOT / "README.md").read_text())
    assert call("report.py", "--readme=README.md").returncode == 0
    assert (in_tmp / "README.md").read_text() == (ROOT / "README.md").read_text()
    written = (in_tmp / "RESULTS.md").read_text()
    assert written == (ROOT / "RESULTS.md").read_text(), "python report.py brings RESULTS.md up to date"
    for figure in re.findall(r"\]\((results/.*?\.png)\)", written):
        assert (ROOT / figure).stat().st_size < 500_000


def test_what_the_readme_says_of_the_mlt_is_what_its_runs_have(published):
    runs, said = read_runs(published), " ".join((ROOT / "README.md").read_text().split())
    first, last = re.search(r"at its last two evaluations \(iterations ([\d,]+) and ([\d,]+) of 30,000\)", said).groups()
    alone, both = runs["math_mini_mlt_wd"].results, runs["both_mini_mlt"].results
    assert alone["iter"][-2:].tolist() == [float(it.replace(",", "")) for it in (first, last)]
    assert all(all_right(alone, "trained", at) and right_and_total(alone, "held_out", at)[0] == 0 for at in (-2, -1))
    it, capitals = re.search(r"trained on the capitals alone, at iteration ([\d,]+), it knows (\d+) of the 50;", said).groups()
    facts = runs["facts_mini_mlt"].results
    assert (facts["iter"][-1], facts["facts_correct"][-1]) == (int(it.replace(",", "")), 10 * int(capitals))
    it, capitals, percent = re.search(r"on both tasks, at iteration ([\d,]+), it knows (\d+) of the 50 capitals and answers (\d+)% of the trained", said).groups()
    right, total = right_and_total(both, "trained")
    assert (both["iter"][-1], both["facts_correct"][-1], both["held_out_correct"][-1]) == (int(it.replace(",", "")), 10 * int(capitals), 0)
    assert round(100 * right / total) == int(percent)


def test_a_report_of_another_folder_links_to_the_figures_there(call, in_tmp, published):
    published.rename(in_tmp / "again")
    assert call("report.py", "--root_dir=again", "--path=RESULTS_again.md").returncode == 0
    expected = (ROOT / "RESULTS.md").read_text().replace("](results", "](again")
    assert (in_tmp / "RESULTS_again.md").read_text() == expected and "(again/map.png)" in expected


@pytest.mark.parametrize("picked, figures", [
    (r"facts_mini_14_seed_[12]", {"seeds_facts.png"}),
    (r"math_mini_14_held_out_2-[56]_seed_1", {"pairs.png"}),
    (r"math_mini_14_seed_[12]", {"map.png", "held_out.png", "seeds_math.png"}),
    (r"both_mini_16_seed_1", set()),
])
def test_a_report_of_some_runs_links_to_figures_that_are_drawn(call, in_tmp, picked, figures):
    runs = {name: run for name, run in published_runs(RESULTS).items() if re.fullmatch(picked, name)}
    (in_tmp / "some" / "mine").mkdir(parents=True)
    write_tables(in_tmp / "some" / "mine", runs)
    assert call("plot_experiment.py", "--root_dir=some").returncode == 0
    assert call("report.py", "--root_dir=some", "--path=some.md").returncode == 0
    linked = re.findall(r"\]\((some/.*?\.png)\)", (in_tmp / "some.md").read_text())
    assert set(linked) == {f"some/{figure}" for figure in figures} and all((in_tmp / figure).exists() for figure in linked)


def test_the_seeds_are_drawn_as_median_and_quartiles_over_single_runs():
    figure = plot_experiment.plot_seeds("math", RUNS)
    n14, n28, n56 = figure.axes[:3]
    assert [ax.get_title() for ax in (n14, n28, n56)] == ["n14, no weight decay: 3 runs", "n28, no weight decay: 1 run", "n56, no weight decay: 0 runs"]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in n14.get_lines() if not line.get_label().startswith("_")}
    assert drawn == {"addition": [0, 100, 100], "subtraction": [0, 100, 99], "held out": pytest.approx([0, 100, 250 / 3]),
                     "share of runs with all held out right": pytest.approx([0, 100, 100 / 3])}
    assert len(n14.get_lines()) == 2 * (3 + 1) + 2 and len(n14.collections) == 2  # single runs and the median, the mean, the share; the bands
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "addition", "subtraction", "held out", "share of runs with all held out right"]
    assert "not run yet" in n56.texts[0].get_text()


def test_the_map_shows_shares_with_their_intervals():
    figure = plot_experiment.plot_map(RUNS)
    apart = figure.axes[0]
    curves = {container.get_label(): dict(zip(container.lines[0].get_xdata().round().astype(int).tolist(), container.lines[0].get_ydata())) for container in apart.containers}
    assert curves["all held-out arithmetic"] == {2: 0, 13: 1, 14: pytest.approx(1 / 3), 28: 0}
    assert apart.get_xscale() == "log" and figure.axes[3].get_xlabel() == "width n" and len(figure.legends[0].get_texts()) == 2


def test_a_width_beyond_the_papers_is_in_the_map_and_capitals_alone_are_a_map():
    assert plot_experiment.plot_map(RUNS | {"math_mini_128_seed_1": MEMORY}).axes[5].get_xlim()[1] > 128
    assert plot_experiment.plot_map({"both_mini_15_seed_1": MEMORY}).axes[0].texts[0].get_text() == "not run yet"


def test_the_matrix_tells_which_problem_fails_and_with_what():
    figure = plot_experiment.plot_held_out(RUNS)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:4] == ["0%   says 13 (1 run)", "0%   says 13 (1 run)", "0%   says -1 (1 run)", "0%   says 3 (1 run)"]  # n2
    assert texts[8:12] == ["100%", "100%", "33%   says -1 (2 runs)", "100%"]  # n14
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["n2 (1 run)", "n13 (1 run)", "n14 (3 runs)", "n28 (1 run)"]


def test_orders_and_pairs_are_drawn_as_far_as_they_are_run():
    orders, pairs = plot_experiment.plot_orders(RUNS), plot_experiment.plot_pairs(RUNS)
    assert np.array_equal(orders.axes[0].images[0].get_array(), [[0, 40], [0, 40]])
    assert [label.get_text() for label in pairs.axes[0].get_xticklabels()] == ["1,3", "5,7\n(the paper's)"]
    assert [text.get_text() for text in pairs.axes[0].texts] == ["0 of 1", "1 of 3"]
    assert plot_experiment.plot_orders({}) is None and plot_experiment.plot_pairs({}) is None


def test_what_there_are_no_runs_for_is_not_drawn(call, in_tmp):
    (in_tmp / "empty").mkdir()
    result = call("plot_experiment.py", "--root_dir=empty")
    assert result.returncode == 2 and "experiments/seeds.py" in result.stderr


def test_the_published_figures_are_drawn_anew_by_their_commands(call, published):
    for command in (["plot_experiment.py"], ["plot_all_models.py", "--root_dir=results"], ["plot_all_models.py", "--root_dir=results", "--suffix=_wd"]):
        assert call(*command).returncode == 0
    drawn = {path.name: plt.imread(path) for path in published.glob("*.png")}
    assert drawn.keys() == {path.name for path in RESULTS.glob("*.png")}
    assert {name for name in drawn if not name.startswith("grid")} == set(re.findall(r"results/(\w+\.png)", (ROOT / "RESULTS.md").read_text()))
    for name, image in drawn.items():
        ours = plt.imread(RESULTS / name)
        assert ours.shape == image.shape and np.mean(np.abs(ours - image).max(axis=2) > 0.2) < 1e-3, f"{name} is not what the tables give"
