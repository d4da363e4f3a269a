"""RESULTS.md, the README's numbers and the figures are what the tables in results/ give."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT, cells_of_row
from made_up import MEMORY, PASSING, RUNS, WHOLE, a_run, seeds

import plot_experiment
import report
from study.experiments.findings import findings
from study.experiments.results import NEEDED, all_right, published_runs, read_runs, right_and_total
from study.experiments.runs import write_tables
from study.experiments.tables import tables_of

pytestmark = pytest.mark.usefixtures("close_figures")
RESULTS = ROOT / "results"
PART = a_run((0, 0, 0, None, 0, 2.8), (6000, 980, 970, None, 0, 0.6), max_iters="30000")


# The text.


def test_a_cell_has_the_papers_number_ours_and_that_of_the_seeds():
    table = tables_of(findings(RUNS))["table_2"]
    assert cells_of_row(table, "n14") == ["n14", "3", "100 / 100 / 100", "100 / 100 / 100", "40 / 40 / 40",
                                          "3 of 3 (100%, 44 to 100)", "1 of 3 (33%, 6 to 79)", "67%"]
    assert cells_of_row(table, "n56")[1:] == ["0", *["98 / – / –"] * 2, "0 / – / –", *["–"] * 3]


def test_a_run_that_is_not_complete_says_so_in_its_cells_and_is_no_seed():
    complete = a_run((30000, 1000, 1000, None, 40, 0.7), max_iters="30000")
    found = findings(RUNS, {"math_mini_mlt": PART, "math_mini_28": complete, "math_mini_14_seed_3": PART})
    table = tables_of(found)["table_2"]
    at = "(at 6,000 of 30,000)"
    assert cells_of_row(table, "MLT")[1:4] == ["0", f"98 / 98 {at} / –", f"98 / 97 {at} / –"]
    assert cells_of_row(table, "n28")[1:3] == ["1", "98 / 100 / 98"] and cells_of_row(table, "n14")[1] == "3"
    assert found["mlt"] == {"complete": 0, "begun": 1}
    assert report.fill("{paper_seed.math.MLT.held_out}", found) == "0 of 40 (at 6,000 of 30,000)"


def test_tables_have_a_row_for_each_width_and_pair():
    text = report.report(findings(RUNS), "results")
    assert cells_of_row(text, "14") == ["14", "100", "83.3", "3 of 3", "1 of 3", "3 of 3", *["–"] * 4]
    assert cells_of_row(text, "1,3")[1].startswith("0 of 1")
    assert cells_of_row(text, "5,7 (the paper's)")[1:3] == ["1 of 3 (33%, 6 to 79)", "–"]
    assert cells_of_row(text, "whether a run generalizes")[1].startswith("100% (p = ")
    assert cells_of_row(text, "C step, float32")[5:] == ["75%", "0.750 (0.725 to 0.775)"]


def test_places_without_runs_say_so_and_the_others_are_filled():
    text = report.report(findings(seeds(PASSING, "math_mini_14", [1])), "results")
    assert "no runs yet" in text and not re.search(r"\{[\w.]+", text)
    assert re.findall(r"\((results/\w+\.png)\)", text) == [
        f"results/{name}.png" for name in ("seeds_math", "map", "held_out")]
    assert cells_of_row(text, "both")[1:] == ["n14", "no", "–", "–", "–", "–"]
    with pytest.raises(KeyError):
        report.fill("{math.n15.generalizes}", findings({}))


def test_runs_that_end_early_are_reported():
    short = a_run((0, 0, 0, None, 0, 2.8), (500, 1000, 1000, None, 40, 0.8))
    runs = {name: short._replace(info=run.info) for name, run in RUNS.items()}
    text = report.report(findings(runs), "results")
    assert cells_of_row(text, "n14")[-1] == "–" and cells_of_row(text, "PyTorch, float32")[5] == "–"
    assert "at iteration 500," in text and "30,000 iterations" not in text


def test_results_md_is_what_the_published_tables_give(call, in_tmp, published):
    (in_tmp / "README.md").write_text((ROOT / "README.md").read_text())
    assert call("report.py", "--readme=README.md").returncode == 0
    assert (in_tmp / "README.md").read_text() == (ROOT / "README.md").read_text()
    written = (in_tmp / "RESULTS.md").read_text()
    assert written == (ROOT / "RESULTS.md").read_text(), "python report.py brings RESULTS.md up to date"
    for figure in re.findall(r"\]\((results/.*?\.png)\)", written):
        assert (ROOT / figure).stat().st_size < 500_000
    lines = ((ROOT / "docs" / "results_template.md").read_text() + written).splitlines()
    assert [line for line in lines if len(line) > 110 and not line.startswith("|")] == []


def test_the_numbers_of_the_readme_are_those_of_the_published_tables():
    found, readme = findings(published_runs(RESULTS)), " ".join((ROOT / "README.md").read_text().split())
    math, both, steps, pairs = (found[name] for name in ("math", "both", "steps", "pairs"))
    n14, wd = math["n14"], math["n14_wd"]
    for pattern, numbers in (
        (r"a run's (\d+) evaluations", found["all"]["evaluations"]["values"][:1]),
        (r"Of (\d+) runs of n14, (\d+) generalize", [n14["runs"], n14["generalizes"]["right"]]),
        (r"At their best evaluation (\d+) answer", [n14["at_best"]["right"]]),
        (r"by the trained problems alone it is (\d+)", [n14["at_best_of_trained"]["right"]]),
        (r"Of n28 and n56, (\d+) runs each, none generalizes", [math["n28"]["runs"]]),
        (r"Of (\d+) runs of n14, (\d+) have all held-out", [wd["runs"], wd["at_best"]["right"]]),
        (r"fewer than without; (\d+) generalize", [wd["generalizes"]["right"]]),
        (r"no difference that (\d+) seeds show: (\d+) generalize with the C step",
         [steps["seeds"], steps["c_step"]["generalizes"]["right"]]),
        (r"(\d+) with PyTorch in float32 and (\d+) with PyTorch in bfloat16",
         [steps[name]["generalizes"]["right"] for name in ("pytorch", "bfloat16")]),
    ):
        assert [int(number) for number in re.search(pattern, readme).groups()] == numbers, pattern
    # what it says in words
    assert math["n28"]["runs"] == math["n56"]["runs"] and math["n28"]["generalizes"]["right"] == 0
    assert [math[f"{panel}_wd"]["generalizes"]["right"] for panel in ("n28", "n56")] == [1, 0]
    assert both["small_any"]["generalizes"]["right"] == 0 and found["most_held_out_both"] == 20
    assert found["most_capitals_n14"] < 1 / 3 and math["n56"]["generalizes"]["right"] == 0
    assert sorted(cell["generalizes"]["right"] for cell in pairs["cells"].values())[:4] == [0] * 4
    assert max(cell["generalizes"]["right"] for cell in pairs["cells"].values()) == 7 and pairs["tests"] == 10
    low, high = found["weight_decay"]["generalizes"]["interval"]
    assert low < 0 < high and found["weight_decay"]["at_best"]["interval"][1] < 0
    by_width = {n: cell["generalizes"] for n, cell in found["by_width"]["math"].items()}
    assert all(0.25 <= by_width[n]["right"] / by_width[n]["total"] <= 0.5 for n in by_width if 10 <= n <= 16)
    assert all(by_width[n]["right"] <= 1 for n in by_width if not 10 <= n <= 16)
    assert all(by_width[n]["right"] == 0 for n in by_width if n >= 24)
    for test in (test for of_step in steps["against_pytorch"].values() for test in of_step.values()):
        assert test["interval"][0] <= 0 <= test["interval"][1]


def test_the_numbers_of_the_mlt_in_the_readme_are_those_of_its_runs(published):
    runs, readme = read_runs(published), " ".join((ROOT / "README.md").read_text().split())
    names = ("math_mini_mlt_wd", "facts_mini_mlt", "both_mini_mlt")
    alone, facts, both = (runs[name].results for name in names)

    def numbers(pattern):
        return [float(number.replace(",", "")) for number in re.search(pattern, readme).groups()]

    last_two = numbers(r"its last two evaluations \(iterations ([\d,]+) and ([\d,]+) of")
    assert last_two == alone["iter"][-2:].tolist()
    for at in (-2, -1):
        assert all_right(alone, "trained", at) and right_and_total(alone, "held_out", at)[0] == 0
    known = numbers(r"capitals alone, at iteration ([\d,]+), it knows (\d+) of the 50")
    assert known == [facts["iter"][-1], facts["facts_correct"][-1] / 10]
    known = numbers(r"tasks, at iteration ([\d,]+), it knows (\d+) of the 50 capitals and answers (\d+)%")
    right, total = right_and_total(both, "trained")
    assert known == [both["iter"][-1], both["facts_correct"][-1] / 10, round(100 * right / total)]
    assert both["held_out_correct"][-1] == 0


def test_a_report_of_another_folder_links_to_the_figures_there(call, in_tmp, published):
    published.rename(in_tmp / "again")
    assert call("report.py", "--root_dir=again", "--path=RESULTS_again.md").returncode == 0
    expected = (ROOT / "RESULTS.md").read_text().replace("](results", "](again")
    assert (in_tmp / "RESULTS_again.md").read_text() == expected and "(again/map.png)" in expected


@pytest.mark.parametrize("picked", [
    r"facts_mini_14_seed_[12]", r"math_mini_14_held_out_2-[56]_seed_1", r"math_mini_14_seed_[12]",
    r"both_mini_16_seed_1",
])
def test_a_report_of_some_runs_links_to_the_figures_that_are_drawn(call, in_tmp, picked):
    runs = {name: run for name, run in published_runs(RESULTS).items() if re.fullmatch(picked, name)}
    (in_tmp / "some" / "mine").mkdir(parents=True)
    write_tables(in_tmp / "some" / "mine", runs)
    assert call("plot_experiment.py", "--root_dir=some").returncode == 0
    assert call("report.py", "--root_dir=some", "--path=some.md").returncode == 0
    linked = re.findall(r"\]\((some/.*?\.png)\)", (in_tmp / "some.md").read_text())
    assert linked and set(linked) == {f"some/{path.name}" for path in (in_tmp / "some").glob("*.png")}


# The runs that the text and the figures share.


def test_the_tables_come_before_a_folder_of_the_same_run(tmp_path):
    (tmp_path / "paper").symlink_to(RESULTS / "paper")
    folder = tmp_path / "math_mini_14"
    folder.mkdir()
    (folder / "results.csv").write_text(",".join(NEEDED) + "\n" + ",".join("0" for _ in NEEDED) + "\n")
    assert len(read_runs(tmp_path)["math_mini_14"].rows) == 121  # as in figures and RESULTS.md


def test_of_two_folders_of_a_run_the_one_that_is_further_counts(tmp_path):
    (tmp_path / "runs").mkdir()
    for name, further in (("both_mini_mlt", tmp_path / "runs"), ("math_mini_mlt", tmp_path)):
        for folder in (tmp_path, tmp_path / "runs"):
            (folder / name).mkdir()
            iterations = range(0, 1000 if folder == further else 500, 250)
            rows = [[str(it), *"0" * (len(NEEDED) - 1)] for it in iterations]
            (folder / name / "results.csv").write_text("\n".join(map(",".join, [NEEDED, *rows])) + "\n")
    rows = {name: len(run.rows) for name, run in read_runs(tmp_path).items()}
    assert rows == {"both_mini_mlt": 4, "math_mini_mlt": 4}




def test_the_page_on_why_is_what_the_published_tables_give(call, in_tmp, published):
    (in_tmp / "docs").mkdir()
    assert call("report.py", "--page=why").returncode == 0
    written = (in_tmp / "docs" / "why.md").read_text()
    assert written == (ROOT / "docs" / "why.md").read_text(), "python report.py --page=why updates it"
    for figure in re.findall(r"\]\(\.\./(results/.*?\.png)\)", written):
        assert (ROOT / figure).stat().st_size < 500_000
    lines = ((ROOT / "docs" / "why_template.md").read_text() + written).splitlines()
    assert [line for line in lines if len(line) > 110 and not line.startswith("|")] == []


def test_the_readme_belongs_to_the_page_of_results(call, in_tmp, published):
    result = call("report.py", "--page=why", "--readme=README.md")
    assert result.returncode == 2 and "--page" in result.stderr and len(result.stderr.splitlines()) == 1
