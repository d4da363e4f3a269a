"""Test that a run resumes exactly after stops, kills and full disks, and shares its folder with no other."""

import json
import random
import resource
import signal
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, SHORT, refused, rows_of
from test_training import both_steps, load, same_run

from study.processes import resume_command
from study.run_folder import BUSY


@both_steps
def test_a_run_killed_and_resumed_repeatedly_ends_like_one_never_stopped(start, call, in_tmp, step):
    long = ("--max_iters=150", "--eval_interval=10", "--log_interval=5", "--save_interval=0", *step)
    assert call("train_with_eval.py", *long, "--out_dir=whole").returncode == 0
    rng, kills, resume, evaluations = random.Random(0), 0, [], 0
    while True:
        process = start("train_with_eval.py", *long, "--out_dir=killed", *resume)
        lines = rng.randint(2, 7)  # evaluations until the kill
        for line in process.stdout:
            lines -= line.startswith("iter")
            if lines == 0 and kills < 2:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        process.communicate(timeout=PATIENCE)
        if process.returncode:  # leave what a kill in the middle of a write leaves
            Path("killed/.ckpt_last.pt.1.tmp").write_bytes(b"cut")
        count = len(Path("killed/results.csv").read_bytes().splitlines())
        assert count >= evaluations  # finished evaluations stay
        evaluations, resume = count, ["--init_from=resume"]
        if process.returncode == 0:
            break
    assert kills == 2 and same_run("whole", "killed")
    assert not list(Path("killed").glob("*.tmp"))


def test_a_run_killed_before_its_first_save_starts_again_and_loses_no_evaluation(start, call, in_tmp):
    often = ("--eval_interval=10", "--n_embd=6")
    process = start("train_with_eval.py", "--max_iters=100_000", *often, "--save_interval=1e9",
                    "--out_dir=killed")
    for line in process.stdout:
        if line.startswith("iter 100: train loss"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert not Path("killed/ckpt_last.pt").exists()  # an evaluation alone does not save it
    before = Path("killed/results.csv").read_bytes().splitlines()
    assert len(before) > 11
    last = (len(before) - 2) * 10 + 10
    as_long = (f"--max_iters={last}", *often)
    result = call("train_with_eval.py", *as_long, "--out_dir=killed", "--init_from=resume")
    assert result.returncode == 0, result.stderr
    assert call("train_with_eval.py", *as_long, "--out_dir=whole").returncode == 0
    assert same_run("whole", "killed")


@both_steps
@pytest.mark.parametrize("signum, status", [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stopped_run_saves_its_state_and_prints_how_to_resume(start, call, in_tmp, signum, status, step):
    process = start("train_with_eval.py", "--max_iters=1_000_000", *step, "--overwrite", "True",
                    "--out_dir=run", "--save_interval=1e9")
    for line in process.stdout:
        if line.startswith("iter 250:"):
            break
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    [line] = stderr.splitlines()
    stopped = load("run/ckpt_last.pt")["iter_num"]
    assert f"stopped at iteration {stopped};" in line and "--out_dir=run" in line
    assert line.endswith("--init_from=resume")
    assert "--overwrite" not in line and "True" not in line and stopped >= 100
    longer = (f"--max_iters={stopped + 20}", *step)
    assert call("train_with_eval.py", *longer, "--out_dir=run", "--init_from=resume").returncode == 0
    assert call("train_with_eval.py", *longer, "--out_dir=whole").returncode == 0
    assert same_run("whole", "run")


def test_the_command_that_resumes_a_run_keeps_its_config_file(monkeypatch):
    for before, after in [
        ("t.py --overwrite config/a.py --seed 3", "t.py config/a.py --seed 3"),
        ("t.py --overwrite True config/a.py", "t.py config/a.py"),
        ("t.py config/a.py --init_from scratch --fast=False", "t.py config/a.py --fast=False"),
        ("t.py --overwrite=True a.py", "t.py a.py"),
    ]:
        monkeypatch.setattr(sys, "argv", before.split())
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert resume_command() == f"python {after} --init_from=resume"
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert resume_command() == f"OMP_NUM_THREADS=1 python {after} --init_from=resume"


def test_a_run_resumed_with_another_number_of_threads_reports_it(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--fast=False", "--out_dir=run").returncode == 0
    info = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(info | {"threads": 16}))
    resume = ("--fast=False", "--out_dir=run", "--init_from=resume")
    result = call("train_with_eval.py", *resume, "--max_iters=45")
    assert result.returncode == 0 and "made with OMP_NUM_THREADS=16 until here" in result.stderr
    assert call("train_with_eval.py", *resume, "--max_iters=50").stderr == ""


def test_resuming_repairs_a_truncated_results_file(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    whole = Path("run/results.csv").read_bytes()
    Path("run/results.csv").write_bytes(whole[:-20])
    result = call("train_with_eval.py", *SHORT, "--out_dir=run", "--init_from=resume")
    assert result.returncode == 0 and "complete at iteration 40" in result.stdout
    assert Path("run/results.csv").read_bytes() == whole


def test_a_finished_run_can_be_extended(call, in_tmp):
    longer, resume = ("--max_iters=60", "--eval_interval=20"), ("--out_dir=longer", "--init_from=resume")
    assert call("train_with_eval.py", *longer, "--out_dir=whole").returncode == 0
    assert call("train_with_eval.py", *SHORT, "--out_dir=longer").returncode == 0
    resumed = call("train_with_eval.py", *longer, *resume)
    assert resumed.returncode == 0 and "resumed at iteration 40" in resumed.stdout
    assert same_run("whole", "longer")
    info = json.loads(Path("longer/run.json").read_text())
    assert info["iter_num"] == 60 and [part["iter_num"] for part in info["earlier_parts"]] == [40]
    results = Path("longer/results.csv").read_bytes()
    assert refused(call("train_with_eval.py", *SHORT, *resume), "at iteration 60 already", "max_iters=40")
    assert Path("longer/results.csv").read_bytes() == results


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_that_ended_between_two_evaluations_and_is_extended_equals_an_unbroken_run(call, in_tmp, fast):
    every = ("--eval_interval=20", f"--fast={fast}", "--n_embd=4")
    assert call("train_with_eval.py", "--max_iters=80", *every, "--out_dir=whole").returncode == 0
    assert call("train_with_eval.py", "--max_iters=50", *every, "--out_dir=longer").returncode == 0
    assert [row["iter"] for row in rows_of("longer")] == ["0", "20", "40", "50"]
    assert load("longer/ckpt.pt")["iter_num"] == 50
    for max_iters, iters in ((50, "0 20 40 50"), (55, "0 20 40 55"), (80, "0 20 40 60 80")):
        longer = (f"--max_iters={max_iters}", *every)
        resumed = call("train_with_eval.py", *longer, "--out_dir=longer", "--init_from=resume")
        assert resumed.returncode == 0 and resumed.stderr == "", resumed.stderr
        assert [row["iter"] for row in rows_of("longer")] == iters.split()
    assert same_run("whole", "longer")


def test_a_run_overwrites_a_folder_only_with_overwrite(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    before = Path("run/results.csv").read_bytes()
    another = (*SHORT, "--seed=1", "--out_dir=run")
    refused(call("train_with_eval.py", *another), "--init_from=resume", "--overwrite=True")
    assert Path("run/results.csv").read_bytes() == before
    assert call("train_with_eval.py", *another, "--overwrite=True").returncode == 0
    assert Path("run/results.csv").read_bytes() != before


def test_a_second_run_in_a_folder_in_use_is_refused(start, call, in_tmp):
    first = start("train_with_eval.py", "--max_iters=10_000_000", "--out_dir=run")
    for line in first.stdout:
        if line.startswith("iter 0"):
            break
    for option in ("--init_from=resume", "--overwrite=True"):
        refused(call("train_with_eval.py", "--out_dir=run", option), "another run", "run", status=BUSY)
    assert first.poll() is None


def test_a_full_disk_leaves_the_previous_checkpoint_intact(script, call, in_tmp):
    longer = ("--max_iters=60", "--eval_interval=20")
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0

    def small_disk():  # limit files to 20 kB: ckpt.pt fits, ckpt_last.pt does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    before = Path("run/ckpt_last.pt").read_bytes()
    # The run above has compiled the C step: this test is not about a compiler on a full disk.
    result = script("train_with_eval.py", *longer, "--out_dir=run", "--init_from=resume",
                    preexec_fn=small_disk)
    refused(result, "ckpt_last.pt", "cannot write", "unchanged")
    assert Path("run/ckpt_last.pt").read_bytes() == before and not list(Path("run").glob(".*.tmp"))
    # Once there is room, the run resumes and ends as if nothing had happened.
    assert call("train_with_eval.py", *longer, "--out_dir=run", "--init_from=resume").returncode == 0
    assert call("train_with_eval.py", *longer, "--out_dir=whole").returncode == 0
    assert same_run("whole", "run")
    # So does a run that never had room for a ckpt_last.pt but completed its last evaluation.
    result = script("train_with_eval.py", *longer, "--out_dir=first", preexec_fn=small_disk)
    refused(result, "ckpt_last.pt", "cannot write")
    info = json.loads(Path("first/run.json").read_text())
    assert (info["iter_num"], info["saved_iter_num"]) == (60, 0)
    assert call("train_with_eval.py", *longer, "--out_dir=first", "--init_from=resume").returncode == 0
    assert same_run("whole", "first")
