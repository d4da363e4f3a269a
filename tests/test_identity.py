"""A result is the result of its settings: a run made with others is never taken for the one asked for."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, copy_project, refused, run_inside

import run_experiment
from study import StudyError, dataset
from study.device import commit_of
from study.experiments import runs as experiment_runs
from study.experiments.results import read_tables
from study.experiments.runs import (
    OPTIONAL, RUN_COLUMNS, SETTING_COLUMNS, config_of, expected_identity, is_same_run, runs_by_name,
    write_tables)
from study.identity import FREE, digest_of, digest_of_data, digest_of_text, identity_of
from study.settings import run_config_file, settings_of
from study.state import set_up

N14 = {"config": "math_mini_14"}
SETTINGS = sorted(settings_of(ROOT / "train_with_eval.py").keys() - FREE) + ["line_seed", "held_out"]


@pytest.fixture(scope="module")
def published():
    return read_tables(ROOT / "results" / "paper")


@pytest.fixture(scope="module")
def mine(tmp_path_factory, published):
    """A copy of the project to change, with a published run in results/ and an experiment of it."""
    mine = copy_project(tmp_path_factory.mktemp("mine"))
    (mine / "results/paper").mkdir(parents=True)
    write_tables(mine / "results/paper", {"math_mini_14": published["math_mini_14"]})
    (mine / "mine.py").write_text("runs = [{'config': 'math_mini_14'}]\n")
    return mine


def run_mine(mine):
    command = [sys.executable, "run_experiment.py", "mine.py", "--device=cpu"]
    return subprocess.run(command, cwd=mine, capture_output=True, text=True)


@pytest.fixture
def run_in(project, monkeypatch, tmp_path):
    """run_in(table, name, **settings) makes a run of n14 to iteration 3, with tables in tmp_path/<table>."""
    monkeypatch.chdir(project)

    def run(table, name="one", overwrite=False, **settings):
        return run_experiment.run_all(
            {name: N14 | {"max_iters": 3} | settings}, tmp_path, tmp_path / table, "cpu", jobs=1,
            overwrite=overwrite)

    return run


def changed(key):
    """A value of a setting other than that of n14."""
    if key in ("line_seed", "held_out", "dtype"):
        return {"line_seed": 3, "held_out": "1,2", "dtype": "bfloat16"}[key]
    value = config_of(N14)[key]
    if value == "auto" or isinstance(value, bool):
        return value is False
    return value + 1 if isinstance(value, int) else value / 2 + 0.25


@pytest.mark.parametrize("key", SETTINGS)
def test_any_other_setting_makes_a_published_run_another_one(published, key):
    made = published["math_mini_14"].info
    assert is_same_run("math_mini_14", expected_identity(N14), made, "runs.csv")
    asked = expected_identity(N14 | {key: changed(key)})
    with pytest.raises(StudyError) as error:
        is_same_run("math_mini_14", asked, made, "runs.csv")
    for fact in ("math_mini_14", "runs.csv", f"{key}={made[key]}", f"not {changed(key)}", "--overwrite=True",
                 "--root_dir"):
        assert fact in str(error.value)
    assert not is_same_run("math_mini_14", asked, made, "runs.csv", overwrite=True)


def test_what_changes_no_result_is_free(published):
    made = published["math_mini_14"].info
    for settings in ({"log_interval": 7}, {"save_interval": 9.0}, {"wandb_log": True}, {"data_seed": 1337},
                     {"weight_decay": 0}, {"dtype": "auto"}, {"dtype": "float32"}):
        assert is_same_run("math_mini_14", expected_identity(N14 | settings), made, "runs.csv")


def test_settings_have_the_types_that_the_command_line_gives_them():
    config = config_of(N14 | {"learning_rate": 1, "weight_decay": 0})
    assert [repr(config[key]) for key in ("learning_rate", "weight_decay")] == ["1.0", "0.0"]


@pytest.mark.parametrize("path, before, after, key", [
    ("config/train_math_mini_14.py", "1e-2, 1e-4", "2e-2, 1e-4", "learning_rate"),
    ("train_with_eval.py", "beta1 = 0.9 ", "beta1 = 0.8 ", "beta1"),
    ("data/as_math/prepare.py", "line_seed = -1 ", "line_seed = 3 ", "line_seed"),
    ("study/tasks.py", "1-4 7-7", "7-7 1-4", "data"),
    ("study/tasks.py", 'f"<{a}', 'f";{a}', "data"),  # the same ids of another character
])
def test_what_is_edited_in_a_file_is_noticed(mine, path, before, after, key):
    source = (mine / path).read_text()
    assert before in source
    try:
        (mine / path).write_text(source.replace(before, after, 1))
        assert refused(run_mine(mine), "math_mini_14", f"with {key}=", "--overwrite=True")
    finally:
        (mine / path).write_text(source)


def test_what_is_not_edited_is_complete(mine):
    assert run_mine(mine).stdout.startswith("1 of 1 runs complete")


def test_a_text_has_the_digest_of_the_dataset_that_is_made_of_it(project):
    for config in ("math_mini_14", "facts_mini_14", "both_mini_14"):
        settings = config_of({"config": config})
        resolved = set_up(SimpleNamespace(**settings), experiment_runs.torch.device("cpu"), "float32")[3]
        digest = digest_of_text(dataset.text_of(settings["dataset"]), settings["block_size"])
        assert digest_of_data(resolved["chars"], resolved["data"]) == digest
    with pytest.raises(StudyError, match="block_size=9"):
        digest_of_text("123456789", 9)


def test_a_folder_and_the_tables_hold_the_digest_of_all_settings(run_in, tmp_path):
    assert run_in("mine", line_seed=3) == []
    info = json.loads((tmp_path / "runs/one/run.json").read_text())
    row = read_tables(tmp_path / "mine")["one"].info
    identity = expected_identity(N14 | {"max_iters": 3, "line_seed": 3})
    assert identity.pop("line_seed") == 3
    identity |= {"step": info["step"].split(" (")[0], "device": "cpu", "dtype": "float32"}
    assert identity_of(info) == identity and info["digest"] == row["digest"] == digest_of(identity)
    assert {key: str(value) for key, value in identity.items()} | {"step": info["step"]} == {
        key: row[key] for key in identity}


def test_a_run_of_other_settings_is_refused_and_made_anew_if_asked(run_in, tmp_path, capfd):
    assert run_in("first") == run_in("second") == run_in("other", name="other") == []
    other = (tmp_path / "other/runs.csv").read_bytes()
    with pytest.raises(StudyError, match="learning_rate=0.01, not 0.02"):
        run_in("first", learning_rate=0.02)
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "second")
    with pytest.raises(StudyError, match="runs/one was made with learning_rate=0.01, not 0.02"):
        run_in("first", learning_rate=0.02)
    assert run_in("first") == run_in("second") == []
    capfd.readouterr()
    assert run_in("first", learning_rate=0.02, overwrite=True) == []
    assert "0 of 1 runs complete" in capfd.readouterr().out
    rows = [read_tables(tmp_path / table)["one"].info for table in ("first", "second")]
    assert [row["learning_rate"] for row in rows] == ["0.02"] * 2 and rows[0] == rows[1]
    assert (tmp_path / "other/runs.csv").read_bytes() == other
    assert run_in("first", learning_rate=0.02) == run_in("first", learning_rate=0.02, overwrite=True) == []
    assert capfd.readouterr().out.count("1 of 1 runs complete") == 2


def test_a_run_stays_in_the_tables_until_the_one_that_replaces_it_is_complete(run_in, tmp_path, monkeypatch):
    assert run_in("first") == run_in("first", name="two") == []
    with monkeypatch.context() as broken:
        broken.setattr(run_experiment, "config_file", lambda settings: "no_such_config.py")
        assert run_in("first", overwrite=True, seed=1) == ["one"]
    assert {name: run.info["seed"] for name, run in read_tables(tmp_path / "first").items()} == {
        "one": "1337", "two": "1337"}
    assert run_in("first", overwrite=True, seed=1) == []  # goes on
    assert read_tables(tmp_path / "first")["one"].info["seed"] == "1"


def test_a_longer_run_is_not_taken_for_a_shorter_one(run_in, tmp_path):
    assert run_in("mine") == []
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(StudyError, match="max_iters=3, not 2"):
        run_in("mine", max_iters=2)
    assert run_in("mine", max_iters=4) == []
    assert [row["iter"] for row in read_tables(tmp_path / "mine")["one"].rows] == ["0", "4"]


def test_a_run_that_was_evaluated_otherwise_in_between_is_another_one(run_in, tmp_path):
    assert run_in("mine") == []
    shutil.rmtree(tmp_path / "mine")
    for max_iters, more in ((6, ["--eval_interval=2"]), (8, [])):
        resumed = run_inside("train_with_eval.py", "config/train_math_mini_14.py", f"--max_iters={max_iters}",
                             f"--out_dir={tmp_path}/runs/one", "--init_from=resume", *more)
        assert resumed.returncode == 0, resumed.stderr
    with pytest.raises(StudyError, match="eval_interval=2, not 250"):
        run_in("mine", max_iters=8)


def test_tables_and_folders_without_digests_are_not_taken_unseen(run_in, tmp_path):
    assert run_in("mine") == []
    run = read_tables(tmp_path / "mine")["one"]
    left_out = {"digest", *OPTIONAL}
    old = {column: run.info[column] for column in [*RUN_COLUMNS][:-3] if column not in left_out}
    write_tables(tmp_path / "mine", {"one": run._replace(info=old)})
    with pytest.raises(StudyError, match="not stated"):
        run_in("mine")
    shutil.rmtree(tmp_path / "mine")
    path = tmp_path / "runs/one/run.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in info.items() if key not in ("digest", "data")}))
    assert run_in("mine") == []  # resuming compares its settings and its text
    assert read_tables(tmp_path / "mine")["one"].info["digest"] == run.info["digest"]


@pytest.mark.parametrize("folder", sorted(path.parent for path in ROOT.glob("results/*/runs.csv")),
                         ids=lambda folder: folder.name)
def test_the_published_tables_hold_the_digests_of_their_experiments(folder):
    experiment = runs_by_name(run_config_file(ROOT / "experiments" / f"{folder.name}.py")["runs"])
    runs = read_tables(folder)
    for name, run in runs.items():
        expected = expected_identity(experiment[name])
        assert is_same_run(name, expected, run.info, folder)
        assert expected.pop("line_seed") == int(run.info["line_seed"])
        made = {"step": run.info["step"].split(" (")[0], "device": "cpu", "dtype": run.info["dtype"],
                "held_out": run.info["held_out"]}
        assert run.info["digest"] == digest_of(expected | made)
        assert {*expected, *SETTING_COLUMNS} - OPTIONAL.keys() <= run.info.keys()
    assert len({run.info["digest"] for run in runs.values()}) == len(runs)


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_commit_of_a_run_says_whether_its_code_was_changed_and_not_its_tables(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@b.c", *arguments], cwd=tmp_path,
                       check=True, capture_output=True)

    files = [tmp_path / name for name in ("model.py", "README.md", "results/runs.csv")]
    assert commit_of(tmp_path / "nowhere") is None
    git("init")
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_text("one")
    git("add", ".")
    git("commit", "-m", "one")
    clean = commit_of(tmp_path)
    assert len(clean) == 40
    for path in files[1:]:
        path.write_text("two")
    assert commit_of(tmp_path) == clean
    files[0].write_text("two")
    assert commit_of(tmp_path) == f"{clean}-dirty"
