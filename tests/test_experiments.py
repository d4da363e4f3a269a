"""An experiment's runs are made complete by one command, whatever interrupts it, and become two tables."""

import csv
import gzip
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE, ROOT, refused

import run_experiment
from study import StudyError
from study.experiments.results import NEEDED, Run, read_runs, read_tables, scores_of
from study.experiments.runs import OPTIONAL, RUN_COLUMNS, config_of, grid, runs_by_name, write_tables
from study.run_folder import lock_folder
from study.settings import run_config_file
from study.tasks import arithmetic, table_of

EXPERIMENTS = sorted(ROOT.glob("experiments/*.py"))


def runs_of(path):
    return runs_by_name(run_config_file(Path(path))["runs"])


def tables(folder):
    """(rows of runs.csv, rows of evaluations.csv.gz), each a {column: text}."""
    with open(folder / "runs.csv", newline="") as runs:
        with gzip.open(folder / "evaluations.csv.gz", "rt", newline="") as evaluations:
            return list(csv.DictReader(runs)), list(csv.DictReader(evaluations))


def test_a_grid_is_every_combination_and_its_first_axis_varies_slowest():
    assert grid(seed=range(1, 3), config=["a", "b"], fast=False) == [
        {"seed": 1, "config": "a", "fast": False}, {"seed": 1, "config": "b", "fast": False},
        {"seed": 2, "config": "a", "fast": False}, {"seed": 2, "config": "b", "fast": False}]


def test_experiments_share_the_names_of_equal_runs():
    for settings, name in (
        ({"config": "math_mini_14", "n_embd": 28, "seed": 3}, "math_mini_28_seed_3"),
        ({"seed": 3, "config": "math_mini_14_wd", "n_embd": 28}, "math_mini_28_wd_seed_3"),
        ({"config": "math_mini_14", "held_out": "3,4;1,8"}, "math_mini_14_held_out_3-4-1-8"),
        ({"config": "math_mini_mlt", "n_embd": 192}, "math_mini_mlt_n_embd_192"),
    ):
        assert list(runs_by_name([settings])) == [name]
    for width in (28, 56):  # such a name says the truth: the configs differ in the width alone
        for task in ("math", "facts", "both"):
            for suffix in ("", "_wd"):
                small, large = ({"config": f"{task}_mini_{n}{suffix}"} for n in (14, width))
                assert config_of(small | {"n_embd": width}) == config_of(large)
    listed = [run for path in EXPERIMENTS for run in runs_of(path).items()]
    configs = {name: config_of(settings) for name, settings in listed}
    assert all(config_of(settings) == configs[name] for name, settings in listed)


def test_the_experiments_are_the_ones_of_the_study():
    expected = {"map": 25 * 20 + 2 * 12 * 3, "mlt": 6, "orders": 100, "pairs": 100, "paper": 18 + 13,
                "seeds": 2 * 200 + 12 * 10, "steps": 60, "capacity": 75 + 25,
                "table_size": 8 * 11 * 5 * 2 + 15,
                "changing_order": 180, "all_pairs": 44 * 15, "held_out_share": 300, "long": 30,
                "optimizer": 175 + 4 * 6 * 3 * 5 - 3 * 5 + 50}
    assert expected == {name: len(runs_of(ROOT / f"experiments/{name}.py")) for name in expected}
    paper = runs_of(ROOT / "experiments/paper.py")
    configs = {path.stem.removeprefix("train_") for path in ROOT.glob("config/*.py")}
    assert {name for name in paper if not re.fullmatch(r"math_mini_1?[0-9]", name)} < configs
    widths = [config_of(settings)["n_embd"] for settings in paper.values()]
    assert widths == sorted(widths, reverse=True)  # short ones fill the gaps at the end
    pairs = {settings["held_out"] for settings in runs_of(ROOT / "experiments/pairs.py").values()}
    assert len(pairs) == 10 and "5,7" not in pairs


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiments_file_assigns_nothing_but_settings(call, path):
    assert refused(call("run_experiment.py", path, "--jobs=-1"), "jobs=-1")  # so the file was taken


def test_runs_are_made_complete_resumed_skipped_and_tabulated(project, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(project)

    def run(max_iters, **changed):
        experiment = {"one": {"config": "math_mini_14", "seed": 1, "line_seed": 3, "max_iters": max_iters},
                      "two": {"config": "facts_mini_14", "max_iters": max_iters}}
        options = {"device": "cpu", "jobs": 2} | changed
        return run_experiment.run_all(experiment, tmp_path, tmp_path / "mine", **options)

    assert run(3) == []
    assert "0 of 2 runs complete" in capfd.readouterr().out
    log = (tmp_path / "runs/one/train.log").read_text()
    assert "data as_math_line_seed_3" in log
    rows, evaluations = tables(tmp_path / "mine")
    assert [row["run"] for row in rows] == ["one", "two"]
    columns = [column for column in RUN_COLUMNS if column not in OPTIONAL]
    assert list(rows[0])[: len(columns)] == columns and not OPTIONAL.keys() & rows[0].keys()
    assert [(row["run"], row["iter"]) for row in evaluations] == [
        ("one", "0"), ("one", "3"), ("two", "0"), ("two", "3")]
    before = {path: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    assert run(3) == []  # all complete: nothing starts, and the tables stay as they are
    assert "2 of 2 runs complete" in capfd.readouterr().out
    assert (tmp_path / "runs/one/train.log").read_text() == log
    assert {path: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before

    # Made longer without the tables, one goes on where it stopped; the other fails and stops nothing.
    (tmp_path / "mine/runs.csv").unlink()
    (tmp_path / "runs/two/ckpt_last.pt").write_bytes(b"damaged")
    assert run(5, jobs=1) == ["two"]
    assert "two failed" in capfd.readouterr().out
    assert "damaged" in (tmp_path / "runs/two/train.log").read_text()
    assert "resumed at iteration 3" in (tmp_path / "runs/one/train.log").read_text()
    info = json.loads((tmp_path / "runs/one/run.json").read_text())
    assert info["iter_num"] == 5 and [part["iter_num"] for part in info["earlier_parts"]] == [3]
    assert [row["run"] for row in tables(tmp_path / "mine")[0]] == ["one"]


def test_a_run_on_another_text_than_its_configs_says_so(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    settings = {"config": "math_mini_14", "max_iters": 3}
    experiment = {"one": settings, "two": settings | {"dataset": "both_math_and_facts"}}
    assert run_experiment.run_all(experiment, tmp_path, tmp_path / "mine", "cpu", 2) == []
    assert [row["dataset"] for row in tables(tmp_path / "mine")[0]] == ["", "both_math_and_facts"]


def test_where_a_run_cannot_be_forked_it_is_the_same(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)

    def run(folder):
        experiment = {"one": {"config": "math_mini_14", "max_iters": 3}}
        failed = run_experiment.run_all(experiment, folder, folder / "mine", "cpu", 1)
        log = (folder / "runs/one/train.log").read_text()
        assert failed == [], log
        return (folder / "runs/one/results.csv").read_bytes(), log

    forked = run(tmp_path / "forked")
    spawn = multiprocessing.get_context("spawn")  # as on a GPU and on macOS
    monkeypatch.syspath_prepend(project)  # a new interpreter imports from there, with the data prepared there
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: spawn)
    rows, log = run(tmp_path / "spawned")
    assert rows == forked[0] and len(log.splitlines()) == len(forked[1].splitlines()) > 3


def test_a_run_without_its_last_checkpoint_is_not_complete(project, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(project)

    def run():
        experiment = {"one": {"config": "math_mini_14", "max_iters": 3}}
        return run_experiment.run_all(experiment, tmp_path, tmp_path / "mine", "cpu", 1)

    assert run() == []
    folder = tmp_path / "runs/one"
    before = (folder / "ckpt_last.pt").read_bytes()
    info = json.loads((folder / "run.json").read_text())
    (tmp_path / "mine/runs.csv").unlink()
    (folder / "ckpt_last.pt").unlink()  # as if it had been killed before its only save
    (folder / "run.json").write_text(json.dumps(info | {"saved_iter_num": 0}))
    assert run() == [] and "0 of 1 runs complete" in capfd.readouterr().out
    assert torch_equal(folder / "ckpt_last.pt", before)


def test_a_checkpoint_that_the_tables_need_and_that_is_gone_is_named(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    options = made_without_its_table(tmp_path, answer_seed=1)
    (tmp_path / "runs/one/ckpt_last.pt").unlink()  # as if to save space
    with pytest.raises(StudyError, match="there is no .*ckpt_last.pt, .* delete .*runs/one"):
        run_experiment.run_all(*options)
    shutil.rmtree(tmp_path / "runs/one")
    assert run_experiment.run_all(*options) == []


def made_without_its_table(tmp_path, **settings):
    """Make a short run complete, delete its tables, and return the arguments of run_all()."""
    experiment = {"one": {"config": "math_mini_14", "max_iters": 3, **settings}}
    options = experiment, tmp_path, tmp_path / "mine", "cpu", 1
    assert run_experiment.run_all(*options) == []
    shutil.rmtree(tmp_path / "mine")
    return options


def torch_equal(path, before):
    """Whether two checkpoints, a file and the bytes of one, have the same weights at the same iteration."""
    a, b = (torch.load(source, weights_only=True) for source in (path, io.BytesIO(before)))
    same = all(torch.equal(a["model"][name], b["model"][name]) for name in b["model"])
    return same and a["iter_num"] == b["iter_num"]


def test_runs_of_before_and_after_a_task_was_added_share_a_table(tmp_path):
    def run(name, **row):
        return Run(dict.fromkeys(RUN_COLUMNS, "0") | {"run": name}, [row], {})

    old = dict.fromkeys(NEEDED, "1")
    new = old | {"mul_correct": "7", "mul_total": "10"}
    write_tables(tmp_path, {"old": run("old", **old), "new": run("new", **new)})
    _, evaluations = tables(tmp_path)
    shown = [[row[key] for key in ("run", "mul_correct", "mul_total", "val_loss")] for row in evaluations]
    assert shown == [["old", "0", "0", "1"], ["new", "7", "10", "1"]]
    (tmp_path / "evaluations.csv.gz").write_bytes(gzip.compress(b"run,iter\nold,0\n"))
    with pytest.raises(StudyError):
        read_tables(tmp_path)


@pytest.mark.parametrize("folder", sorted(path.parent for path in ROOT.glob("results/*/runs.csv")),
                         ids=lambda folder: folder.name)
def test_a_published_table_that_is_read_and_written_stays_as_it_is(folder, tmp_path):
    write_tables(tmp_path, read_tables(folder))
    for name in ("runs.csv", "evaluations.csv.gz"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_tables_hold_what_the_runs_folders_hold(script, in_tmp, project):
    Path("mine.py").write_text("from study.experiments import grid\n"
                               "runs = grid(config='both_mini_14', n_embd=[3, 4], max_iters=500)\n")
    result = script("run_experiment.py", in_tmp / "mine.py", f"--root_dir={in_tmp}", "--jobs=2")
    assert result.returncode == 0, result.stderr
    _, evaluations = tables(in_tmp / "mine")
    for name in ("both_mini_3_max_iters_500", "both_mini_4_max_iters_500"):
        with open(in_tmp / "runs" / name / "results.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        mine = [row for row in evaluations if row["run"] == name]
        assert [{column: row[column] for column in rows[0]} for row in mine] == rows
    folders = read_runs(in_tmp / "runs")
    for name, run in read_runs(in_tmp).items():  # the same run, from the tables and from its folder
        scores = scores_of(folders[name].results)
        assert {column: float(run.info[column]) for column in scores_of(run.results)} == scores
        assert run.results["held_out_answers"] == folders[name].results["held_out_answers"]
        assert set(run.results["held_out_answers"][-1]) == {"5+7", "7+5", "5-7", "7-5"}
        for column in ("num_params", "held_out", "max_iters", "made_on"):
            assert run.info[column] == str(folders[name].info[column])


@pytest.mark.parametrize("signum, status", [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stopped_experiment_goes_on_where_it_was(start, script, in_tmp, project, signum, status):
    Path("mine.py").write_text("runs = [{'config': 'math_mini_14', 'max_iters': 4000}]\n")
    process = start("run_experiment.py", in_tmp / "mine.py", f"--root_dir={in_tmp}", "--jobs=1",
                    start_new_session=True)
    results = in_tmp / "runs/math_mini_14_max_iters_4000/results.csv"
    while not (results.exists() and results.read_text().count("\n") > 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    for _ in range(3):  # to all processes, as a terminal does; and from an impatient user
        os.killpg(process.pid, signum)
        time.sleep(0.02)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == status and stderr == "stopped; the same command continues\n"
    assert list((in_tmp / "mine").iterdir()) == []  # no run is complete
    info = json.loads(results.with_name("run.json").read_text())
    assert 0 < info["iter_num"] == info["saved_iter_num"] < 4000
    assert f"stopped at iteration {info['iter_num']}" in results.with_name("train.log").read_text()
    command = ("run_experiment.py", in_tmp / "mine.py", f"--root_dir={in_tmp}", "--jobs=1")
    again = script(*command)
    assert again.returncode == 0 and "0 of 1 runs complete" in again.stdout, again.stderr
    assert "resumed at iteration" in results.with_name("train.log").read_text()
    assert script(*command).stdout == "1 of 1 runs complete, 1 at a time\n"


def test_a_killed_experiment_ends_its_runs_and_the_same_command_goes_on(start, script, in_tmp):
    Path("mine.py").write_text("runs = [{'config': 'math_mini_14', 'n_embd': 2, 'max_iters': 20_000}]\n")
    command = ("run_experiment.py", in_tmp / "mine.py", f"--root_dir={in_tmp}", "--jobs=1")
    folder = in_tmp / "runs/math_mini_2_max_iters_20000"
    process = start(*command)
    while not ((folder / "results.csv").exists() and (folder / "results.csv").read_text().count("\n") > 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + PATIENCE
    while not run_experiment.is_free(folder):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert 0 < json.loads((folder / "run.json").read_text())["saved_iter_num"] < 20_000
    assert "stopped at iteration" in (folder / "train.log").read_text()
    again = script(*command)
    assert again.returncode == 0, again.stderr
    assert [row["iter"] for row in tables(in_tmp / "mine")[1]] == [str(it) for it in range(0, 20_001, 250)]
    assert "resumed at iteration" in (folder / "train.log").read_text()


def test_a_run_that_another_process_trains_is_waited_for(start, in_tmp):
    Path("mine.py").write_text("from study.experiments import grid\n"
                               "runs = grid(config='math_mini_14', n_embd=[2, 3], max_iters=3)\n")
    folder = in_tmp / "runs/math_mini_2_max_iters_3"
    folder.mkdir(parents=True)
    lock = lock_folder(folder)
    process = start("run_experiment.py", in_tmp / "mine.py", f"--root_dir={in_tmp}", "--jobs=1")
    for line in process.stdout:
        if line == "math_mini_3_max_iters_3: complete\n":
            break
    assert not (folder / "run.json").exists() and process.poll() is None
    lock.close()
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "math_mini_2_max_iters_3: complete" in stdout, stderr
    assert len(tables(in_tmp / "mine")[0]) == 2


def test_a_run_that_another_process_begins_first_is_waited_for(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    folder = tmp_path / "runs/one"
    folder.mkdir(parents=True)
    lock, is_free, seen_free = lock_folder(folder), run_experiment.is_free, []

    def seen(folder):  # free, taken when the run starts, and free again when that has failed
        if seen_free:
            lock.close()
        seen_free.append(True if not seen_free else is_free(folder))
        return seen_free[-1]

    monkeypatch.setattr(run_experiment, "is_free", seen)
    experiment = {"one": {"config": "math_mini_14", "n_embd": 2, "max_iters": 3}}
    assert run_experiment.run_all(experiment, tmp_path, tmp_path / "mine", "cpu", 1) == []
    assert "another run is writing" in (folder / "train.log").read_text()


def test_a_run_that_another_process_completes_first_is_taken(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    options = made_without_its_table(tmp_path, n_embd=2)
    run_json, hidden, start = tmp_path / "runs/one/run.json", tmp_path / "hidden", run_experiment.start

    def start_too_late(*arguments):
        run_json.rename(hidden)
        process = start(*arguments)
        hidden.rename(run_json)
        return process

    monkeypatch.setattr(run_experiment, "start", start_too_late)
    monkeypatch.setattr(run_experiment, "made_before", lambda *_: ({}, {"one": 0}, set()))
    assert run_experiment.run_all(*options) == []
    assert "holds a run" in (run_json.parent / "train.log").read_text()
    assert read_tables(tmp_path / "mine").keys() == {"one"}


def test_a_folder_that_no_run_can_write_into_ends_in_one_line(script, in_tmp):
    Path("mine.py").write_text("runs = [{'config': 'math_mini_14', 'max_iters': 3}]\n")
    Path("runs").write_text("no folder")
    result = script("run_experiment.py", in_tmp / "mine.py", f"--root_dir={in_tmp}")
    refused(result, "cannot write into", "runs/math_mini_14_max_iters_3")


def test_an_experiment_whose_output_is_closed_stops_its_runs_and_says_so(start, in_tmp):
    Path("mine.py").write_text("runs = [{'config': 'math_mini_14', 'max_iters': 1_000_000}]\n")
    process = start("run_experiment.py", in_tmp / "mine.py", f"--root_dir={in_tmp}")
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 1 and stderr == "stopped; the same command continues\n"


def test_a_run_that_another_experiment_published_is_not_made_again(project, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(project)
    experiment = runs_by_name([{"config": "math_mini_14", "n_embd": 2, "max_iters": 3}])
    options = {"root": tmp_path, "device": "cpu", "jobs": 1}
    assert run_experiment.run_all(experiment, table=tmp_path / "a", **options) == []
    shutil.rmtree(tmp_path / "runs")
    assert run_experiment.run_all(experiment, table=tmp_path / "b", **options) == []
    assert not (tmp_path / "runs").exists()
    for name in ("runs.csv", "evaluations.csv.gz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_no_longer_listed_stays_in_the_tables(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    options = tmp_path, tmp_path / "mine", "cpu", 1
    two, one = (runs_by_name(grid(config="math_mini_14", n_embd=n, max_iters=3)) for n in ([2, 3], [3]))
    assert run_experiment.run_all(two, *options) == []
    shutil.rmtree(tmp_path / "runs")
    assert run_experiment.run_all(one, *options) == []
    assert read_tables(tmp_path / "mine").keys() == two.keys()


@pytest.mark.parametrize("folder", sorted(path.parent for path in ROOT.glob("results/*/runs.csv")),
                         ids=lambda folder: folder.name)
def test_a_published_table_holds_complete_runs_of_its_experiment(folder):
    experiment = runs_of(ROOT / "experiments" / f"{folder.name}.py")
    runs = read_tables(folder)
    assert runs and list(runs) == [name for name in experiment if name in runs]
    for name, run in runs.items():
        config = config_of(experiment[name]) | experiment[name]
        # Another experiment may give another config: math_mini_28 is math_mini_14 with n_embd=28.
        other = {"config": run.info["config"], "n_embd": config["n_embd"]}
        assert config_of(experiment[name] | other) == config_of(experiment[name])
        for column in ("n_embd", "weight_decay", "seed", "max_iters", "line_seed"):
            assert run.info[column] == str(config.get(column, -1)), (name, column)
        table = table_of(experiment[name])
        if config["dataset"] == "facts_char":
            table = table._replace(held_out="none")
        assert run.info["held_out"] == table.held_out
        assert run.results["iter"].tolist() == [
            *range(0, config["max_iters"], config["eval_interval"]), config["max_iters"]]
        scores = scores_of(run.results)
        assert {column: float(run.info.get(column, 0)) for column in scores} == scores
        held_out = sum(problem.held_out for problem in arithmetic(table).problems)
        assert {len(said) for said in run.results["held_out_answers"]} == {held_out}
    assert all(path.stat().st_size < 5_000_000 for path in folder.iterdir())
