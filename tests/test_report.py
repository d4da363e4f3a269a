"""RESULTS.md, the README's numbers and the figures are what the tables in results/ give."""

import re

import pytest
from conftest import ROOT, cells_of_row
from made_up import PASSING, RUNS, a_run, seeds

import report
from study.experiments.findings import findings
from study.experiments.results import NEEDED, published_runs, read_runs, right_and_total
from study.experiments.runs import write_tables
from study.experiments.tables import tables_of
from study.experiments.titles import titles

pytestmark = pytest.mark.usefixtures("close_figures")
RESULTS = ROOT / "results"
README = " ".join((ROOT / "README.md").read_text().split())
PART = a_run((0, 0, 0, None, 0, 2.8), (6000, 980, 970, None, 0, 0.6), max_iters="30000")


# The text.


def test_a_cell_has_the_papers_number_ours_and_that_of_the_seeds():
    table = tables_of(findings(RUNS))["table_2"]
    assert cells_of_row(table, "n14") == ["n14", "3", "100 / 100 / 100", "100 / 100 / 100", "4 / 4 / 4",
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
    text = report.report(findings(RUNS), "results", ".", "tables")
    assert cells_of_row(text, "14") == ["14", "100", "83.3", "3 of 3", "1 of 3", "3 of 3", *["–"] * 4]
    assert cells_of_row(text, "1,3")[1] == "0%" and cells_of_row(text, "1,3")[2].startswith("0 of 1")
    assert cells_of_row(text, "5,7 (the paper's)")[2:4] == ["1 of 3 (33%, 6 to 79)", "–"]
    assert cells_of_row(text, "whether a run generalizes")[1].startswith("100% (p = ")
    assert cells_of_row(text, "C step, float32")[-2:] == ["75%", "0.750 (0.725 to 0.775)"]


@pytest.mark.parametrize("page", report.PAGES)
def test_places_without_runs_say_so_and_the_others_are_filled(page):
    found = findings(seeds(PASSING, "math_mini_14", [1]))
    text = report.report(found, "results", ".", page)
    assert not re.search(r"\{[\w.]+", text) and ("no runs yet" in text or page == "figures")
    pictures = {f"results/{name}.png" for name, title in titles(found).items() if title}
    assert {path for path in re.findall(r"\((results/\w+\.png)\)", text) if "grid" not in path} <= pictures
    with pytest.raises(KeyError):
        report.fill("{math.n14.generalises}", found)


def test_a_claim_without_runs_has_no_number():
    text = report.report(findings(seeds(PASSING, "math_mini_14", [1])), "results", ".", "tables")
    assert cells_of_row(text, "both")[1:] == ["n14", "no", "–", "–", "–", "–"]


def test_runs_that_end_early_are_reported():
    short = a_run((0, 0, 0, None, 0, 2.8), (500, 1000, 1000, None, 40, 0.8))
    runs = {name: short._replace(info=run.info) for name, run in RUNS.items()}
    tables, results = (report.report(findings(runs), "results", ".", page) for page in ("tables", "results"))
    assert cells_of_row(tables, "n14")[-1] == "–" and cells_of_row(tables, "PyTorch, float32")[-2] == "–"
    assert "at iteration 500" in results and "30,000" not in results


def test_the_pages_are_what_the_published_tables_give(call, in_tmp, published):
    (in_tmp / "README.md").write_text((ROOT / "README.md").read_text())
    assert call("report.py").returncode == 0
    for path in ("README.md", *report.PAGES.values()):
        written = (in_tmp / path).read_text()
        assert written == (ROOT / path).read_text(), f"python report.py brings {path} up to date"
        for figure in re.findall(r"\]\((?:\.\./)?(results/.*?\.png)\)", written):
            assert (ROOT / figure).stat().st_size < 500_000


def test_the_pages_can_be_read_in_one_sitting():
    words = {path: len((ROOT / path).read_text().split()) for path in ("README.md", "RESULTS.md")}
    assert words["README.md"] <= 1500 and words["RESULTS.md"] <= 3000
    abstract = re.search(r"## Abstract\n(.*?)\*\*The claims", (ROOT / "RESULTS.md").read_text(), re.DOTALL)[1]
    assert len(abstract.split()) <= 180
    for path in (ROOT / "README.md", ROOT / "RESULTS.md", *(ROOT / "docs").glob("*.md")):
        long = [line for line in path.read_text().splitlines() if len(line) > 110]
        assert [line for line in long if not line.startswith(("|", "!["))] == [], path


def test_every_link_between_the_pages_leads_somewhere():
    pages = {path: path.read_text() for path in (ROOT / "README.md", ROOT / "RESULTS.md",
                                                 *(ROOT / "docs").glob("*.md"))
             if not path.stem.endswith("_template")}
    for path, text in pages.items():
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text):
            linked = (path.parent / target).resolve() if target else path
            assert linked.exists(), f"{path.name} links to {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", pages[linked], re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


def test_what_the_results_say_in_words_is_what_the_published_tables_give():
    found = findings(published_runs(RESULTS))
    math, facts, both = (found[task] for task in ("math", "facts", "both"))
    # the verdicts: larger models, capitals, both, weight decay, smallest
    assert math["n14"]["score"]["interval"][0] > 75 and 0.4 < share(math["n14"]["generalizes"]) < 0.6
    assert all(math[n]["score"]["interval"][1] < 12 for n in ("n28", "n56", "n56_wd"))
    assert math["n28"]["generalizes"]["right"] == math["n56"]["generalizes"]["right"] == 0
    assert found["most_capitals_n14"] < 1 / 3
    assert all(facts[n]["last"]["facts"]["mean"] > 97 for n in ("n28", "n56"))
    assert all(both[n]["generalizes"]["right"] == 0 for n in both)
    assert both["n14"]["last"]["trained"]["mean"] < 30
    verdicts = {n: change["verdict"] for n, change in found["weight_decay"].items()}
    assert verdicts == {"n14": "equivalent", "n28": "cannot tell", "n56": "equivalent"}
    assert found["weight_decay"]["n14"]["at_best"]["interval"][1] < 0
    assert found["smallest"]["widths"] == ["n10", "n11", "n12", "n13", "n14"]
    assert found["smallest"]["paper_seed"] == ["n13"]
    assert [found["paper_seed"]["math"][n]["held_out"]["right"] for n in ("n14", "n14_wd")] == [30, 30]
    # the window
    assert (found["window"]["low"], found["window"]["high"]) == (10, 16)
    scores = {n: cell["score"]["value"] for n, cell in found["by_width"]["math"].items()}
    assert all(scores[n] < 1 for n in scores if n <= 5) and scores[7] > 40
    assert set(sorted(scores, key=scores.get)[-4:]) == {11, 12, 13, 14}
    assert all(scores[n] < 8 for n in scores if n >= 24) and scores[22] > 20
    # equal fit
    fit = {n: (cell["first"]["mean"], cell["last"]["mean"]) for n, cell in found["at_fit"].items()}
    assert fit["n14"][0] > 75 and abs(fit["n14"][0] - fit["n14"][1]) < 2 and fit["n28"][0] < 10
    assert all(5 <= round(fit[n][0] - fit[n][1]) <= 11 for n in ("n16", "n18", "n20", "n22", "n24"))
    # pairs
    pairs, edges = found["pairs"], found["why"]["pairs"]["n14"]
    assert pairs["rarer"] == pairs["more_frequent"] == 0 and pairs["runs"] == 10
    none = pairs["apart"]["generalizes"]["without_a_run"]
    assert f"n14 scores {edges['score']['value']:.1f}% on average" in README
    assert f"with {none} of {pairs['pairs']} no run answers all four" in README
    assert all(edges[name]["interval"][1] < 0 and edges[name]["p"] < 0.05 for name in ("new", "seen"))
    assert found["why"]["pairs"]["n20"]["score"]["interval"][1] < edges["score"]["interval"][0] / 2
    problems = found["by_pair"]["n14"]["problems"]
    neighbours = [problems[f"{a}-{b}"] for a in range(10) for b in range(10) if abs(a - b) == 1]
    assert sum(problem["right"] for problem in neighbours) < 0.25 * sum(p["total"] for p in neighbours)
    # learning rates
    others = [cell for cell in found["why"]["rates"]["n28"].values() if cell["rate"] != 0.01]
    assert len(others) == 5 and all(cell["generalizes"]["right"] == 0 for cell in others)
    # the table's size
    low, high = found["why"]["tables"]["slope"]["interval"]
    assert 0.5 < low < 1 < high and found["why"]["order"]["ratio"]["interval"][1] < 1.15
    assert found["why"]["tables"]["censored"]["slope"]["interval"][0] > 1
    sums = found["why"]["tables"]["widest"]["add_19"]
    assert sums["memory"]["mean"] > 95 and f"still answers {sums['rule']['mean']:.0f}%" in README
    assert all(found["why"]["tables"]["by_table"][f"{name} to 19"]["above_half"] for name in ("add", "both"))


def share(rate):
    return rate["right"] / rate["total"]


def test_the_mlt_behaves_as_in_the_paper_as_far_as_it_has_come(published):
    runs = read_runs(published)
    for name in (f"{task}_mini_mlt{suffix}" for task in ("math", "facts", "both") for suffix in ("", "_wd")):
        right, total = right_and_total(runs[name].results, "trained")
        assert right == total
        assert right_and_total(runs[name].results, "held_out")[0] == 0
        assert name.startswith("math") or runs[name].results["facts_correct"][-1] == 500
    begun = [int(run.results["iter"][-1]) for name, run in runs.items() if name.endswith(("_mlt", "_mlt_wd"))]
    assert len(begun) == 6 and f"{min(begun):,} to {max(begun):,} of 30,000 iterations" in README


def test_pages_of_another_folder_link_to_the_figures_there(call, in_tmp, published):
    published.rename(in_tmp / "again")
    assert call("report.py", "--root_dir=again").returncode == 0
    text = (ROOT / "RESULTS.md").read_text()
    expected = text.replace("](results/", "](").replace("](results)", "](.)").replace("](./", "](../")
    written = (in_tmp / "again" / "RESULTS.md").read_text().replace("](./", "](")
    assert written == expected and "(capacity.png)" in expected and "(../docs/differences.md)" in expected
    assert not (in_tmp / "again" / "README.md").exists()


@pytest.mark.parametrize("picked", [
    r"facts_mini_14_seed_[12]", r"math_mini_14_held_out_2-[56]_seed_1", r"math_mini_14_seed_[12]",
    r"both_mini_16_seed_1",
])
def test_pages_of_some_runs_link_to_the_figures_that_are_drawn(call, in_tmp, picked):
    runs = {name: run for name, run in published_runs(RESULTS).items() if re.fullmatch(picked, name)}
    (in_tmp / "some" / "mine").mkdir(parents=True)
    write_tables(in_tmp / "some" / "mine", runs)
    assert call("plot_experiment.py", "--root_dir=some").returncode == 0
    assert call("report.py", "--root_dir=some", "--out_dir=pages").returncode == 0
    text = (in_tmp / "pages" / "docs" / "figures.md").read_text()
    linked = re.findall(r"\]\(../../some/(\w+\.png)\)", text)
    drawn = {path.name for path in (in_tmp / "some").glob("*.png")}
    assert drawn and {name for name in linked if not name.startswith("grid")} == drawn


def test_a_readme_without_the_table_of_the_claims_is_refused_and_left_unchanged(call, in_tmp, published):
    (in_tmp / "README.md").write_text("# Mine\n")
    result = call("report.py")
    assert result.returncode == 2 and "README.md" in result.stderr and len(result.stderr.splitlines()) == 1
    assert (in_tmp / "README.md").read_text() == "# Mine\n" and not (in_tmp / "RESULTS.md").exists()


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

