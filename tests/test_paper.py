"""Check that a run records how it was made, and that runs become the paper's tables."""

import json
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SHORT, cells_of_row, rounds_as_published, rows_of

from study.fast import c_step
from study.experiments.results import best_evaluation, unfinished_note, read_runs
from study.experiments.tables import table

RESULTS = ROOT / "results"
COLUMNS = (
    "iter,add_correct,add_total,sub_correct,sub_total,facts_correct,facts_total,val_loss,"
    "held_out_correct,held_out_total")


def write_results(folder, rows):
    folder.mkdir(parents=True)
    (folder / "results.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")


def test_a_run_records_how_it_was_made(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    info = json.loads(Path("run/run.json").read_text())
    assert info["command"].endswith(" ".join(["train_with_eval.py", "--device=cpu", *SHORT, "--out_dir=run"]))
    assert info["config"]["max_iters"] == 40 and info["config"]["n_embd"] == 14 and info["num_params"] == 1456
    assert info["python"] == sys.version.split()[0] and info["device"] == "cpu" and info["threads"] >= 1
    assert set(info["seconds"]) == {"training", "evaluation", "saving"}
    assert all(s > 0 for s in info["seconds"].values())
    recorded = {"start_time", "commit", "device_name", "torch", "driver", "dtype", "step", "processes"}
    assert recorded <= info.keys()
    assert info["held_out"] == "5,7" and info["iter_num"] == 40 and info["earlier_parts"] == []
    resume = ("--out_dir=run", "--max_iters=60", "--init_from=resume")
    assert call("train_with_eval.py", *SHORT, *resume).returncode == 0
    info = json.loads(Path("run/run.json").read_text())
    assert info["iter_num"] == 60 and [part["iter_num"] for part in info["earlier_parts"]] == [40]


def test_a_cell_shows_the_papers_number_and_our_best_evaluation(tmp_path):
    write_results(tmp_path / "math_mini_14", [
        "0,0,1000,0,1000,0,0,2.8,0,40",
        "19750,990,1000,1000,1000,0,0,0.8,40,40",  # the most correct, and the earliest of ties
        "20000,1000,1000,990,1000,0,0,0.7,30,40",
        "20250,900,1000,900,1000,0,0,0.7,40,40",
        "20500,0,1000,0,1000,0,0,0.6,0,40",
    ])
    text = table("math", {"n14": "math_mini_14", "MLT": "math_mini_mlt"}, read_runs(tmp_path), "")
    assert text.startswith("**Table 2.")
    assert cells_of_row(text, "n14") == [
        "n14", "1.46k / 1,456", "100.0% / 99.0%", "100.0% / 100.0%", "40/40 / 40/40", "19,750",
        "1 of 3 (33%)"]
    assert cells_of_row(text, "MLT") == [
        "MLT", "10.63M / 10,628,352", *["98% / not run yet"] * 2, "0/40 / not run yet", *["not run yet"] * 2]


def test_the_joint_table_has_the_combined_score(tmp_path):
    write_results(tmp_path / "both_mini_14_wd", ["0,600,1000,500,1000,100,500,2.8,10,40"])
    text = table("combined", {"n14": "both_mini_14_wd"}, read_runs(tmp_path), "_wd")
    assert text.startswith("**Table 7.")
    assert cells_of_row(text, "n14")[2:7] == [
        "33.4% / 60.0%", "28.5% / 50.0%", "6.6% / 20.0%", "26.1% / 48.0%", "0/40 / 10/40"]


def test_a_table_names_held_out_pairs_and_a_run_names_its_machines(tmp_path):
    part = {"iter_num": 20_000, "device": "cpu", "device_name": "Some CPU", "threads": 1, "dtype": "float32",
            "torch": "9.9", "num_params": 1456, "held_out": "3,4;1,8", "seconds": {"training": 9.0}}
    stepped = part | {"step": "C step (cc, AVX2)", "threads": 2}
    resumed, other_pair = part | {"earlier_parts": [stepped]}, part | {"held_out": "5,7"}
    for n, info in ((14, resumed), (28, stepped), (56, other_pair)):
        write_results(tmp_path / f"math_mini_{n}", ["20000,600,1000,500,1000,0,0,2.8,80,80"])
        (tmp_path / f"math_mini_{n}" / "run.json").write_text(json.dumps(info))
    runs = read_runs(tmp_path)
    made_on = runs["math_mini_28"].info["made_on"]
    assert made_on == "Some CPU, 2 threads, float32, torch 9.9, C step (cc, AVX2)"
    assert runs["math_mini_14"].info["made_on"].endswith("AVX2); Some CPU, 1 thread, float32, torch 9.9")
    text = table("math", {f"n{n}": f"math_mini_{n}" for n in (14, 28, 56)}, read_runs(tmp_path), "")
    assert cells_of_row(text, "model")[4] == "(3,4;1,8 and 5,7)"
    assert cells_of_row(text, "model")[-1] == "ours: all of (3,4;1,8 and 5,7) right from 20,000 on"
    assert cells_of_row(text, "n28")[4] == "0/40 / 80/80" and cells_of_row(text, "n28")[-1] == "1 of 1 (100%)"


@pytest.mark.parametrize("suffix, titles", [
    ("", ["Table 2", "Table 3", "Table 4", "Section 3.2"]),
    ("_wd", ["Table 5", "Table 6", "Table 7"]),
])
def test_the_tables_of_the_published_runs_are_printed(call, suffix, titles):
    result = call("tabulate_all_models.py", f"--root_dir={RESULTS}", f"--suffix={suffix}")
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^\*\*([A-Z]\w+ [0-9.]*[0-9])", result.stdout, re.MULTILINE) == titles
    runs = read_runs(RESULTS)
    info = runs[f"math_mini_14{suffix}"].info
    row = cells_of_row(result.stdout.split("\n\n**")[0], "n14")
    assert row[2:5] == [
        f"100.0% / {int(info['best_add']) / 10}%",
        f"100.0% / {int(info['best_sub']) / 10}%",
        f"40/40 / {info['best_held_out']}/40",
    ]
    missing = {f"{task}_mini_mlt{suffix}" for task in ("math", "facts", "both")} - runs.keys()
    assert set(re.findall(r"^not run yet: (\w+)", result.stderr, re.MULTILINE)) == missing
    mlt_runs = [run for name, run in runs.items() if name.endswith(f"_mini_mlt{suffix}")]
    assert all(unfinished_note(run) in result.stdout for run in mlt_runs)


@rounds_as_published
@pytest.mark.skipif(c_step.find_compiler() is None, reason="needs a C compiler, as the published runs did")
@pytest.mark.parametrize("name", ["math_mini_14", "both_mini_28_wd"])
def test_a_new_run_begins_with_the_published_evaluations(call, in_tmp, name):
    assert call("train_with_eval.py", ROOT / "config" / f"train_{name}.py", "--max_iters=500").returncode == 0
    rows, published = rows_of(name), read_runs(RESULTS)[name].rows[:3]
    assert rows == [{column: row[column] for column in rows[0]} for row in published]


def test_a_published_model_can_be_sampled_and_scored(call, tmp_path, project):
    folder = RESULTS / "paper" / "math_mini_14"
    scored = call("eval_as_math.py", f"--out_dir={folder}")
    assert scored.returncode == 0, scored.stderr
    results = read_runs(RESULTS)["math_mini_14"].results
    best = results["add_correct"][best_evaluation(results)]
    added = re.search(r"^addition: (\d+) of 1000", scored.stdout, re.MULTILINE)
    # Another processor may round a close call differently.
    assert int(added[1]) == pytest.approx(best, abs=20)
    sampled = call("sample.py", f"--out_dir={folder}", "--ckpt=ckpt_best_math.pt", "--start=<7-5")
    assert sampled.returncode == 0
