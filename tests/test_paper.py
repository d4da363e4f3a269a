"""The paper's runs are made complete by one command, say how they were made, and become the README's tables."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, SHORT

import run_paper
import tabulate_all_models
from study.results import best_evaluation, read_results
from study.settings import run_config_file

RESULTS = ROOT / "results"
COLUMNS = "iter,add_correct,add_total,sub_correct,sub_total,facts_correct,facts_total,val_loss,held_out_correct,held_out_total"


def write_results(folder, rows):
    folder.mkdir(parents=True)
    (folder / "results.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")


def cells(table, first):
    [row] = [line for line in table.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_paper_is_24_runs_and_13_of_the_search():
    runs = run_paper.paper_runs(mlt=True)
    assert len(runs) == 24 + 13 and len(run_paper.paper_runs(mlt=False)) == 18 + 13
    assert all((ROOT / config_file).exists() for config_file, _ in runs.values())
    assert runs["both_mini_28_wd"] == ("config/train_both_mini_28_wd.py", {})
    assert runs["math_mini_7"] == ("config/train_math_mini_14.py", {"n_embd": 7})
    work = [run_paper.work_of(ROOT / config_file, settings) for config_file, settings in runs.values()]
    assert work[:2] == [max(work)] * 2 and work[-1] == min(work)


def test_runs_are_made_complete_resumed_and_skipped(project, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(project)
    runs = {"one": ("config/train_math_mini_14.py", {"seed": 1}), "two": ("config/train_facts_mini_14.py", {})}
    cfg = SimpleNamespace(device="cpu", max_iters=3)
    assert run_paper.run_all(runs, tmp_path, cfg, jobs=2, threads={"OMP_NUM_THREADS": "1"}) == []
    assert "2 runs, 0 of them complete" in capfd.readouterr().out
    for name in runs:
        assert run_paper.progress(tmp_path / name)[0] == 3 and (tmp_path / name / "plot.png").exists()
    log = (tmp_path / "one" / "train.log").read_text()
    assert run_paper.run_all(runs, tmp_path, cfg, jobs=2, threads={}) == []  # all complete: nothing starts
    assert "2 of them complete" in capfd.readouterr().out and (tmp_path / "one" / "train.log").read_text() == log

    # One goes on where it stopped; the other fails, which is said and holds up nothing.
    (tmp_path / "two" / "ckpt_last.pt").write_bytes(b"damaged")
    cfg.max_iters = 5
    assert run_paper.run_all(runs, tmp_path, cfg, jobs=1, threads={}) == ["two"]
    assert "two failed" in capfd.readouterr().out and "damaged" in (tmp_path / "two" / "train.log").read_text()
    assert "resumed at iteration 3" in (tmp_path / "one" / "train.log").read_text()
    parts = json.loads((tmp_path / "one" / "run.json").read_text())
    assert parts["iter_num"] == 5 and [part["iter_num"] for part in parts["earlier_parts"]] == [3]


def test_a_run_says_how_it_was_made(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    info = json.loads(Path("run/run.json").read_text())
    assert info["command"].endswith(" ".join(["train_with_eval.py", "--device=cpu", *SHORT, "--out_dir=run"]))
    assert info["config"]["max_iters"] == 40 and info["config"]["n_embd"] == 14 and info["num_params"] == 1456
    assert info["python"] == sys.version.split()[0] and info["device"] == "cpu" and info["threads"] >= 1
    assert set(info["seconds"]) == {"training", "evaluation", "saving"} and all(s > 0 for s in info["seconds"].values())
    assert {"start_time", "commit", "device_name", "torch", "driver", "dtype", "step", "processes"} <= info.keys()
    assert info["held_out"] == "5,7" and info["iter_num"] == 40 and info["earlier_parts"] == []
    assert call("train_with_eval.py", *SHORT, "--out_dir=run", "--max_iters=60", "--init_from=resume").returncode == 0
    info = json.loads(Path("run/run.json").read_text())
    assert info["iter_num"] == 60 and [part["iter_num"] for part in info["earlier_parts"]] == [40]


def test_a_cell_holds_the_papers_number_and_that_of_our_best_evaluation(tmp_path):
    write_results(tmp_path / "math_mini_14", [
        "0,0,1000,0,1000,0,0,2.8,0,40",
        "19750,990,1000,1000,1000,0,0,0.8,40,40",  # the most right, and the earliest of equals
        "20000,1000,1000,990,1000,0,0,0.7,30,40",
        "20250,900,1000,900,1000,0,0,0.7,40,40",
        "20500,0,1000,0,1000,0,0,0.6,0,40",
    ])
    runs = {"n14": tmp_path / "math_mini_14", "MLT": tmp_path / "math_mini_mlt"}
    table = tabulate_all_models.table("math", runs, "")
    assert table.startswith("**Table 2.")
    assert cells(table, "n14") == [
        "n14", "1.46k / 1,456", "100.0% / 99.0%", "100.0% / 100.0%", "40/40 / 40/40", "19,750", "33% (1 of 3)"]
    assert cells(table, "MLT") == ["MLT", "10.63M / 10,628,352", *["98% / not run yet"] * 2, "0/40 / not run yet", *["not run yet"] * 2]


def test_the_joint_table_has_the_combined_score(tmp_path):
    write_results(tmp_path / "both_mini_14_wd", ["0,600,1000,500,1000,100,500,2.8,10,40"])
    table = tabulate_all_models.table("combined", {"n14": tmp_path / "both_mini_14_wd"}, "_wd")
    assert table.startswith("**Table 7.")
    assert cells(table, "n14")[2:7] == ["33.4% / 60.0%", "28.5% / 50.0%", "6.6% / 20.0%", "26.1% / 48.0%", "0/40 / 10/40"]


def test_a_table_names_the_pairs_that_its_runs_hold_out_and_the_machines_that_made_them(tmp_path):
    row = "20000,600,1000,500,1000,0,0,2.8,80,80"
    made = {"iter_num": 20_000, "seconds": {"training": 9.0}, "device": "cpu", "device_name": "Some CPU", "threads": 1,
            "dtype": "float32", "torch": "9.9", "num_params": 1456, "held_out": "3,4;1,8"}
    runs = {f"n{n}": tmp_path / f"math_mini_{n}" for n in (14, 28, 56)}
    for folder in runs.values():
        write_results(folder, [row])
    stepped = made | {"step": "C step (cc, AVX2)", "threads": 2}
    (runs["n14"] / "run.json").write_text(json.dumps(made | {"earlier_parts": [stepped]}))
    (runs["n28"] / "run.json").write_text(json.dumps(stepped))
    table = tabulate_all_models.table("math", runs, "")
    assert cells(table, "model")[4] == "(3,4;1,8 and 5,7)"
    assert cells(table, "model")[-1] == "ours: all of (3,4;1,8 and 5,7) right from 20,000 on"
    assert cells(table, "n28")[4] == "0/40 / 80/80" and cells(table, "n28")[-1] == "100% (1 of 1)"
    assert table.splitlines()[-1] == (
        "Made on: math_mini_14, math_mini_28: Some CPU, 2 threads, float32, torch 9.9, C step (cc, AVX2); "
        "math_mini_14: Some CPU, 1 thread, float32, torch 9.9.")


@pytest.mark.parametrize("suffix", ["", "_wd"])
def test_the_readmes_tables_are_what_the_published_runs_give(call, suffix):
    result = call("tabulate_all_models.py", f"--root_dir={RESULTS}", f"--suffix={suffix}")
    assert result.returncode == 0, result.stderr
    readme = (ROOT / "README.md").read_text()
    tables = ["**" + table.strip() for table in ("\n" + result.stdout).split("\n**")[1:]]
    assert len(tables) == (4 if not suffix else 3)
    for table in tables:
        assert table in readme, f"the README lacks:\n{table}"


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/run.json")), ids=lambda path: path.name)
def test_a_published_run_is_complete_and_of_its_config(folder):
    info = json.loads((folder / "run.json").read_text())
    lines = (folder / "results.csv").read_text().splitlines()
    assert info["iter_num"] == 30_000 and len(lines) == 122 and lines[-1].startswith("30000,")
    config_file, settings = run_paper.paper_runs(mlt=True)[folder.name]
    stated = run_config_file(ROOT / config_file) | settings
    assert {key: info["config"][key] for key in stated} == stated and info["config"]["seed"] == 1337
    assert info["held_out"] == ("none" if folder.name.startswith("facts") else "5,7")
    assert (folder / "plot.png").exists()


def test_a_published_model_is_sampled_and_scored_without_training(call, tmp_path, project):
    scored = call("eval_as_math.py", f"--out_dir={RESULTS / 'math_mini_14'}")
    assert scored.returncode == 0, scored.stderr
    results = read_results(RESULTS / "math_mini_14")
    best = results["add_correct"][best_evaluation(results)]
    added = re.search(r"^addition: (\d+) of 1000", scored.stdout, re.MULTILINE)
    assert int(added[1]) == pytest.approx(best, abs=20)  # another processor may round a close call otherwise
    assert call("sample.py", f"--out_dir={RESULTS / 'math_mini_14'}", "--ckpt=ckpt_best_math.pt", "--start=<7-5").returncode == 0
