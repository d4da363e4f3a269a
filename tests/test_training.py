"""Training is exact: the schedule, the same bytes twice, undisturbed by evaluations, kills and full disks."""

import csv
import fcntl
import importlib.util
import os
import pty
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from conftest import SHORT, refused
from torch.nn import functional as F

import train_with_eval as train
from configurator import configure
from evaluation import setup_device

COLUMNS = ("iter,add_correct,add_total,sub_correct,sub_total,math_acc,facts_correct,facts_total,facts_acc,"
           "train_loss,val_loss,held_out_correct,held_out_total,combined_acc").split(",")
# Dropout draws from the random state that an evaluation or a resumption could disturb.
DROPOUT = ("--dropout=0.3", "--n_embd=16", "--n_head=2", "--batch_size=64")


def load(path):
    return torch.load(path, weights_only=True)


def same_weights(first, second):
    a, b = load(first)["model"], load(second)["model"]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows_of(folder):
    with open(Path(folder) / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


class Settings:
    learning_rate, min_lr, warmup_iters, lr_decay_iters = 1e-2, 1e-4, 2000, 25_000


@pytest.mark.parametrize("it, lr", [
    (0, 1e-2 / 2001), (1000, 1e-2 * 1001 / 2001), (1999, 1e-2 * 2000 / 2001), (2000, 1e-2),
    (13_500, (1e-2 + 1e-4) / 2), (24_999, 1e-4), (25_000, 1e-4), (29_999, 1e-4),
])
def test_the_schedule_is_warm_up_then_cosine_then_constant(it, lr):
    assert train.get_lr(it, Settings) == pytest.approx(lr, rel=1e-6)


@pytest.mark.parametrize("name, totals, checkpoints", [
    ("math_mini_14", (1000, 1000, 0, 40), {"ckpt.pt", "ckpt_best_math.pt", "ckpt_best_combined.pt", "ckpt_last.pt"}),
    ("facts_mini_14", (0, 0, 500, 0), {"ckpt.pt", "ckpt_best_facts.pt", "ckpt_best_combined.pt", "ckpt_last.pt"}),
    ("both_mini_14", (1000, 1000, 500, 40), {
        "ckpt.pt", "ckpt_best_math.pt", "ckpt_best_facts.pt", "ckpt_best_combined.pt", "ckpt_last.pt"}),
])
def test_a_short_run_writes_its_results_and_checkpoints(runs, name, totals, checkpoints):
    rows = rows_of(runs / name)
    assert list(rows[0]) == COLUMNS and [row["iter"] for row in rows] == ["0", "20", "40"]
    for row in rows:
        assert tuple(int(row[f"{c}_total"]) for c in ("add", "sub", "facts", "held_out")) == totals
        correct = sum(int(row[f"{c}_correct"]) for c in ("add", "sub", "facts"))
        assert float(row["combined_acc"]) == correct / sum(totals[:3])
        assert row["train_loss"] == row["val_loss"]  # the same text, on purpose
    assert float(rows[2]["val_loss"]) < float(rows[0]["val_loss"]) - 0.01
    assert {path.name for path in (runs / name).glob("*.pt")} == checkpoints
    for path in (runs / name).glob("*.pt"):
        checkpoint = load(path)
        assert {"model", "model_args", "iter_num", "train_loss", "val_loss", "math_acc", "facts_acc", "combined_acc",
                "config", "chars"} <= checkpoint.keys()
        [row] = [row for row in rows if row["iter"] == str(checkpoint["iter_num"])]
        assert checkpoint["val_loss"] == float(row["val_loss"])
    assert load(runs / name / "ckpt.pt")["iter_num"] == 40 and load(runs / name / "ckpt_last.pt")["iter_num"] == 40
    first_best = max(rows, key=lambda row: float(row["combined_acc"]))  # the first of equals
    assert load(runs / name / "ckpt_best_combined.pt")["iter_num"] == int(first_best["iter"])


def test_the_loss_is_the_mean_over_all_windows_each_once(runs):
    from evaluation import load_model

    model, _, _ = load_model(runs / "math_mini_14", ["ckpt_last.pt"], torch.device("cpu"))
    windows = train.load_splits("as_math", 9, torch.device("cpu"))["train"]
    assert windows.shape == (1755, 10)
    with torch.no_grad():
        losses = [model(window[None, :-1], window[None, 1:])[1].item() for window in windows]
    assert sum(losses) / 1755 == pytest.approx(float(rows_of(runs / "math_mini_14")[-1]["val_loss"]), rel=1e-5)


def settings_of(monkeypatch, *arguments):
    """The settings that train_with_eval.py has with these arguments."""
    monkeypatch.setattr("sys.argv", ["train_with_eval.py", *map(str, arguments)])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Ctrl-C stays pytest's
    return configure(vars(train))


def plain_loss(model, idx, targets):
    """nanoGPT's forward pass, module by module."""
    x = model.transformer.wte(idx) + model.transformer.wpe(torch.arange(idx.size(1), device=idx.device))
    for block in model.transformer.h:
        x = block(x)
    logits = model.lm_head(model.transformer.ln_f(x))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_a_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")


@pytest.mark.parametrize("config, device, compile, how, updates", [
    ("math_mini_14", "cpu", False, "eager_steps", 200),
    ("both_mini_28", "cpu", False, "eager_steps", 50),
    ("math_mini_14", "cpu", False, "captured_steps", 200),  # the code for CUDA, with the capture left out
    pytest.param("math_mini_14", "cpu", True, "eager_steps", 200, marks=needs_a_compiler),
    pytest.param("math_mini_14", "cuda", False, "captured_steps", 200, marks=needs_cuda),
    pytest.param("both_mini_28", "cuda", True, "captured_steps", 200, marks=needs_cuda),
])
def test_training_equals_the_plain_loop_fed_with_the_same_batches(project, request, monkeypatch, config, device, compile, how, updates):
    cfg = settings_of(monkeypatch, project / "config" / f"train_{config}.py", f"--compile={compile}")
    device, _, autocast = setup_device(device, "float32")
    windows = train.load_splits(cfg.dataset, cfg.block_size, device)["train"]
    vocab_size = int(windows.max()) + 1
    shape = (updates, 1, cfg.batch_size)
    starts = torch.randint(len(windows), shape, generator=torch.Generator().manual_seed(0)).to(device)

    # In float64 rounding is too small to be amplified: what differs would be the mathematics.
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    model, optimizer = train.build_model(cfg, vocab_size, device)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    made = torch.compile(model) if compile else model
    steps = getattr(train, how)(made, optimizer, scaler, windows, cfg, autocast)
    for i in range(0, updates, 50):
        loss = steps(starts[i : i + 50], i)

    plain, _ = train.build_model(cfg, vocab_size, device)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, foreach=False)
    for it, [rows] in enumerate(starts):
        optimizer.param_groups[0]["lr"] = 1e-2 * (it + 1) / 2001
        batch = torch.stack([windows[row] for row in rows])
        theirs = plain_loss(plain, batch[:, :-1], batch[:, 1:])
        theirs.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss) == pytest.approx(theirs.item(), rel=1e-8)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters()):
        assert (ours - theirs).norm() < 1e-8 * theirs.norm(), name


def test_the_same_command_twice_writes_the_same_bytes(script, in_tmp):
    for folder in ("first", "second"):
        assert script("train_with_eval.py", *SHORT, *DROPOUT, f"--out_dir={folder}").returncode == 0
    assert Path("first/results.csv").read_bytes() == Path("second/results.csv").read_bytes()
    assert same_weights("first/ckpt_last.pt", "second/ckpt_last.pt")
    assert script("train_with_eval.py", *SHORT, *DROPOUT, "--out_dir=third", "--seed=1").returncode == 0
    assert Path("first/results.csv").read_bytes() != Path("third/results.csv").read_bytes()


def test_evaluations_do_not_disturb_the_training(call, in_tmp):
    for every in (7, 30):
        result = call("train_with_eval.py", "--max_iters=60", f"--eval_interval={every}", "--log_interval=11", *DROPOUT,
                      "--dataset=both_math_and_facts", f"--out_dir=every_{every}")
        assert result.returncode == 0, result.stderr
    assert same_weights("every_7/ckpt_last.pt", "every_30/ckpt_last.pt")
    assert [row["iter"] for row in rows_of("every_7")][-2:] == ["56", "60"]  # the last iteration too


def test_accumulated_batches_equal_one_large_batch(call, in_tmp):
    for name, shape in (("one", ["--batch_size=96"]), ("four", ["--batch_size=24", "--gradient_accumulation_steps=4"])):
        assert call("train_with_eval.py", *SHORT, *shape, f"--out_dir={name}").returncode == 0
    one, four = rows_of("one")[-1], rows_of("four")[-1]
    assert float(one["val_loss"]) == pytest.approx(float(four["val_loss"]), rel=1e-4)


def test_killed_again_and_again_and_resumed_it_ends_as_if_never_stopped(start, call, in_tmp):
    long = ("--max_iters=300", "--eval_interval=10", "--dataset=both_math_and_facts", "--block_size=24", *DROPOUT)
    assert call("train_with_eval.py", *long, "--out_dir=whole").returncode == 0
    rng, kills, resume = random.Random(0), 0, []
    while True:
        process = start("train_with_eval.py", *long, "--out_dir=killed", *resume)
        for line in process.stdout:  # wait until it is training
            if line.startswith("iter"):
                break
        time.sleep(rng.uniform(0.0, 0.6))
        if process.poll() is None and kills < 4:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        resume = ["--init_from=resume"]
        if process.returncode == 0:
            break
    assert kills == 4
    assert Path("whole/results.csv").read_bytes() == Path("killed/results.csv").read_bytes()
    for name in ("ckpt.pt", "ckpt_best_math.pt", "ckpt_best_facts.pt", "ckpt_best_combined.pt", "ckpt_last.pt"):
        assert same_weights(f"whole/{name}", f"killed/{name}"), name
    assert not list(Path("killed").glob("*.tmp"))


def test_a_run_killed_before_its_first_checkpoint_resumes_at_0(call, runs, in_tmp):
    Path("early").mkdir()
    Path("early/.lock").touch()
    Path("early/results.csv").write_text(",".join(COLUMNS) + "\n")
    result = call("train_with_eval.py", *SHORT, "--out_dir=early", "--init_from=resume")
    assert result.returncode == 0, result.stderr
    assert Path("early/results.csv").read_bytes() == (runs / "math_mini_14" / "results.csv").read_bytes()


def test_resuming_repairs_a_results_file_that_was_cut(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    whole = Path("run/results.csv").read_bytes()
    Path("run/results.csv").write_bytes(whole[:-20])
    result = call("train_with_eval.py", *SHORT, "--out_dir=run", "--init_from=resume")
    assert result.returncode == 0 and "complete at iteration 40" in result.stdout
    assert Path("run/results.csv").read_bytes() == whole


def test_a_run_can_be_made_longer(call, in_tmp):
    assert call("train_with_eval.py", "--max_iters=60", "--eval_interval=20", "--out_dir=whole").returncode == 0
    assert call("train_with_eval.py", *SHORT, "--out_dir=longer").returncode == 0
    resumed = call("train_with_eval.py", "--max_iters=60", "--eval_interval=20", "--out_dir=longer", "--init_from=resume")
    assert resumed.returncode == 0 and "resumed at iteration 40" in resumed.stdout
    assert Path("whole/results.csv").read_bytes() == Path("longer/results.csv").read_bytes()


@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_says_how_to_go_on(start, in_tmp, signum, status):
    process = start("train_with_eval.py", "--max_iters=1_000_000", "--out_dir=run", "--overwrite=True")
    for line in process.stdout:
        if line.startswith("iter 100"):
            break
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == status
    [line] = stderr.splitlines()
    assert "stopped at iteration" in line and "--out_dir=run --init_from=resume" in line and "--overwrite" not in line
    assert load("run/ckpt_last.pt")["iter_num"] == 0


def test_a_folder_that_holds_a_run_is_refused_with_both_ways_out(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    before = Path("run/results.csv").read_bytes()
    refused(call("train_with_eval.py", *SHORT, "--seed=1", "--out_dir=run"), "--init_from=resume", "--overwrite=True")
    assert Path("run/results.csv").read_bytes() == before
    assert call("train_with_eval.py", *SHORT, "--seed=1", "--out_dir=run", "--overwrite=True").returncode == 0
    assert Path("run/results.csv").read_bytes() != before


def test_a_run_resumes_with_its_own_settings_only(call, in_tmp, runs):
    refused(call("train_with_eval.py", "--out_dir=nothing", "--init_from=resume"), "no run to resume", "nothing")
    assert not Path("nothing").exists()
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    refused(call("train_with_eval.py", "--out_dir=run", "--init_from=resume", "--n_embd=28"), "n_embd=14", "28")
    last = Path("run/ckpt_last.pt").read_bytes()
    Path("run/ckpt_last.pt").write_bytes(Path("run/ckpt.pt").read_bytes())
    refused(call("train_with_eval.py", "--out_dir=run", "--init_from=resume"), "ckpt_last.pt", "--overwrite=True")
    Path("run/ckpt_last.pt").write_bytes(last[:5000])
    refused(call("train_with_eval.py", "--out_dir=run", "--init_from=resume"), "ckpt_last.pt", "damaged")
    Path("run/ckpt_last.pt").unlink()
    refused(call("train_with_eval.py", "--out_dir=run", "--init_from=resume"), "ckpt_last.pt", "--overwrite=True")


def test_two_runs_at_once_into_one_folder_are_refused(start, script, in_tmp):
    first = start("train_with_eval.py", "--max_iters=1_000_000", "--out_dir=run")
    for line in first.stdout:
        if line.startswith("iter 0"):
            break
    for way in ("--init_from=resume", "--overwrite=True"):
        refused(script("train_with_eval.py", "--out_dir=run", way), "another run", "run")
    assert first.poll() is None


def test_a_loss_that_is_not_finite_stops_the_run_and_harms_nothing(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    checkpoint, results = load("run/ckpt_last.pt"), Path("run/results.csv").read_bytes()
    checkpoint["config"]["learning_rate"] = 1e30
    torch.save(checkpoint, "run/ckpt_last.pt")
    before = {path: path.read_bytes() for path in Path("run").glob("*.pt")}
    result = call("train_with_eval.py", "--max_iters=80", "--eval_interval=20", "--learning_rate=1e30",
                  "--out_dir=run", "--init_from=resume")
    refused(result, "not finite", "--learning_rate", status=1)
    assert before == {path: path.read_bytes() for path in Path("run").glob("*.pt")}
    assert Path("run/results.csv").read_bytes() == results


def test_a_full_disk_leaves_the_checkpoint_before_whole(script, call, in_tmp):
    longer = ("--max_iters=60", "--eval_interval=20")
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0

    def small_disk():  # no file of this process can grow beyond 20 kB: ckpt.pt fits, ckpt_last.pt does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    before = Path("run/ckpt_last.pt").read_bytes()
    result = script("train_with_eval.py", *longer, "--out_dir=run", "--init_from=resume", preexec_fn=small_disk)
    refused(result, "ckpt_last.pt", "cannot write", "unchanged")
    assert Path("run/ckpt_last.pt").read_bytes() == before and not list(Path("run").glob(".*.tmp"))
    # With room again it goes on, and ends as if nothing had happened.
    assert call("train_with_eval.py", *longer, "--out_dir=run", "--init_from=resume").returncode == 0
    assert call("train_with_eval.py", *longer, "--out_dir=whole").returncode == 0
    assert Path("run/results.csv").read_bytes() == Path("whole/results.csv").read_bytes()


def test_a_batch_that_does_not_fit_into_memory_gets_one_line(call, in_tmp):
    refused(call("train_with_eval.py", "--batch_size=1_000_000_000_000"), "memory", "--batch_size", status=1)
    assert load("out/ckpt_last.pt")["iter_num"] == 0


def test_a_folder_that_cannot_be_written_is_named(call, in_tmp):
    Path("file").write_text("in the way")
    refused(call("train_with_eval.py", "--out_dir=file/run"), "file/run", "cannot write")


def test_two_processes_train_as_one(project, call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--out_dir=one").returncode == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
              project / "train_with_eval.py"]
    two = subprocess.run([*launch, *SHORT, "--out_dir=two"], capture_output=True, text=True, timeout=120)
    assert two.returncode == 0, two.stderr
    for one, two in zip(rows_of("one"), rows_of("two"), strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(two["val_loss"]), rel=1e-5)
    odd = subprocess.run([*launch, *SHORT, "--out_dir=odd", "--batch_size=881"], capture_output=True, text=True, timeout=120)
    assert odd.returncode != 0 and odd.stderr.count("error: batch_size=881 is not divisible by the 2 processes") == 1
    assert not Path("odd").exists()


def test_a_terminal_gets_a_bar_with_loss_and_accuracies(start, in_tmp):
    terminal, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = start("train_with_eval.py", *SHORT, "--out_dir=run", stdout=other, stderr=other)
    os.close(other)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    process.wait()
    os.close(terminal)
    text = shown.decode()
    assert "40/40" in text and "loss=" in text and "add=" in text and "it/s" in text and "iter 40: train loss" in text


def test_elsewhere_there_are_plain_lines(script, in_tmp):
    result = script("train_with_eval.py", *SHORT, "--out_dir=run")
    assert result.stderr == ""
    for line in ("iter 10: loss", "iter 20: train loss", "new best val_loss", "complete at iteration 40"):
        assert line in result.stdout


def test_bfloat16_trains_on_the_cpu(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--dtype=bfloat16", "--out_dir=run").returncode == 0
    assert float(rows_of("run")[-1]["val_loss"]) < float(rows_of("run")[0]["val_loss"])


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_is_asked_for_only_when_wanted(call, in_tmp):
    refused(call("train_with_eval.py", *SHORT, "--wandb_log=True"), "wandb", "pip install wandb")
