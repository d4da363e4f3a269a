"""Test that training is exact and repeatable, also with two processes, and what it writes and prints."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PATIENCE, SHORT, refused, rows_of

from study.batches import Batches, load_splits
from study.fast.shared import shared_loss
from study.run_folder import BEST, find_checkpoint, load_model
from study.update import build, get_lr, make_eager_step, make_update

# The default C step, and PyTorch's step with dropout: dropout draws from the random state, which an
# evaluation or a resumption could disturb.
STEPS = {
    "fast": ("--n_embd=6",),
    "pytorch": ("--dropout=0.3", "--n_embd=16", "--n_head=2", "--batch_size=64"),
}
both_steps = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)


def load(path):
    return torch.load(path, weights_only=True)


def same_weights(first, second):
    a, b = load(first)["model"], load(second)["model"]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_run(first, second):
    """Tell whether two folders contain the same evaluations, best models and state."""
    names = {path.name for path in Path(first).glob("*.pt")}
    assert names == {path.name for path in Path(second).glob("*.pt")} and "ckpt_last.pt" in names
    assert Path(first, "results.csv").read_bytes() == Path(second, "results.csv").read_bytes()
    return all(same_weights(f"{first}/{name}", f"{second}/{name}") for name in names)


@pytest.mark.parametrize("it, lr", [
    (0, 1e-2 / 2001), (1000, 1e-2 * 1001 / 2001), (1999, 1e-2 * 2000 / 2001), (2000, 1e-2),
    (13_500, (1e-2 + 1e-4) / 2), (24_999, 1e-4), (25_000, 1e-4), (29_999, 1e-4),
])
def test_the_learning_rate_warms_up_then_follows_a_cosine_then_stays_constant(it, lr):
    cfg = SimpleNamespace(learning_rate=1e-2, min_lr=1e-4, warmup_iters=2000, lr_decay_iters=25_000)
    assert get_lr(it, cfg) == pytest.approx(lr, rel=1e-6)


@pytest.mark.parametrize("name, totals, checkpoints", [
    ("math_mini_14", (1000, 1000, 0, 40),
     {"ckpt.pt", "ckpt_best_math.pt", "ckpt_best_combined.pt", "ckpt_last.pt"}),
    ("facts_mini_14", (0, 0, 500, 0),
     {"ckpt.pt", "ckpt_best_facts.pt", "ckpt_best_combined.pt", "ckpt_last.pt"}),
    ("both_mini_14", (1000, 1000, 500, 40), {*BEST, "ckpt_last.pt"}),
])
def test_a_short_run_writes_its_results_and_checkpoints(runs, name, totals, checkpoints):
    rows = rows_of(runs / name)
    assert [row["iter"] for row in rows] == ["0", "20", "40"]
    for row in rows:
        assert tuple(int(row[f"{c}_total"]) for c in ("add", "sub", "facts", "held_out")) == totals
        correct = sum(int(row[f"{c}_correct"]) for c in ("add", "sub", "facts"))
        assert float(row["combined_acc"]) == correct / sum(totals[:3])
        assert row["train_loss"] == row["val_loss"]  # both splits are the same text, on purpose
    assert float(rows[2]["val_loss"]) < float(rows[0]["val_loss"]) - 0.01
    assert {path.name for path in (runs / name).glob("*.pt")} == checkpoints
    for path in (runs / name).glob("*.pt"):
        checkpoint = load(path)
        content = {"model", "model_args", "iter_num", "config", "chars", "held_out", "dtype"}
        assert content <= checkpoint.keys()
        assert checkpoint["held_out"] == ("none" if name.startswith("facts") else "5,7")
        assert checkpoint["dtype"] == "float32"
        if path.name != "ckpt_last.pt":
            scores = {"train_loss", "val_loss", "math_acc", "facts_acc", "combined_acc", "best_val_loss"}
            assert scores <= checkpoint.keys()
            [row] = [row for row in rows if row["iter"] == str(checkpoint["iter_num"])]
            assert checkpoint["val_loss"] == float(row["val_loss"])
    assert load(runs / name / "ckpt.pt")["iter_num"] == 40
    assert load(runs / name / "ckpt_last.pt")["iter_num"] == 40
    first_best = max(rows, key=lambda row: float(row["combined_acc"]))  # the first one if several are equal
    assert load(runs / name / "ckpt_best_combined.pt")["iter_num"] == int(first_best["iter"])


def test_the_loss_is_the_mean_over_all_windows_with_each_counted_once(runs):
    model = load_model(find_checkpoint(runs / "math_mini_14", "ckpt_last.pt"), torch.device("cpu"))[0]
    windows = load_splits("as_math", 9, torch.device("cpu"))["train"]
    assert windows.shape == (1755, 10)
    with torch.no_grad():
        losses = [model(window[None, :-1], window[None, 1:])[1].item() for window in windows]
    val_loss = float(rows_of(runs / "math_mini_14")[-1]["val_loss"])
    assert sum(losses) / 1755 == pytest.approx(val_loss, rel=1e-5)


def test_batches_depend_only_on_their_seed():
    cpu = torch.device("cpu")
    cfg = SimpleNamespace(gradient_accumulation_steps=2, batch_size=6, seed=3, data_seed=-1)
    together = Batches(100, cfg, cpu).draw(5)
    one_by_one = Batches(100, cfg, cpu)
    torch.rand(7)  # changes the global random state
    assert together.shape == (5, 2, 6)
    assert torch.equal(together, torch.cat([one_by_one.draw(1) for _ in range(5)]))
    shares = [Batches(100, cfg, cpu, rank, 3).draw(5) for rank in range(3)]
    assert torch.equal(torch.stack(shares, dim=3).flatten(2), together)
    assert together.unique().numel() > 30 and together.max() < 100
    cfg.data_seed = 3
    assert torch.equal(Batches(100, cfg, cpu).draw(5), together)
    cfg.data_seed = 4
    assert not torch.equal(Batches(100, cfg, cpu).draw(5), together)


def test_another_data_seed_gives_other_batches_and_the_same_initial_weights(call, in_tmp):
    for seed in (1, 2):
        result = call("train_with_eval.py", *SHORT, f"--data_seed={seed}", f"--out_dir=seed_{seed}")
        assert result.returncode == 0
    first, second = rows_of("seed_1"), rows_of("seed_2")
    assert first[0] == second[0] and first[1]["val_loss"] != second[1]["val_loss"]


@pytest.mark.parametrize("decay, accumulated, shares", [
    (0.0, 1, False), (0.1, 1, False), (0.1, 3, False), (0.1, 3, True),
])
def test_the_pytorch_step_equals_a_plain_loop(project, request, decay, accumulated, shares):
    cfg = SimpleNamespace(seed=1337, data_seed=-1, batch_size=300 // accumulated,
                          gradient_accumulation_steps=accumulated, grad_clip=1.0, weight_decay=decay,
                          learning_rate=1e-2, beta1=0.9, beta2=0.99, block_size=9, n_layer=2, n_head=2,
                          n_embd=14, mlp_expansion=2, dropout=0.0, bias=False)
    cpu = torch.device("cpu")
    windows = load_splits("as_math", 9, cpu)["train"]
    # Rounding in float64 is too small to be amplified: any difference would be one of mathematics.
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    model, optimizer = build(cfg, 17, cpu)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss_of = shared_loss if shares else None
    autocast = torch.autocast("cpu", enabled=False)
    update = make_update(model, optimizer, scaler, windows, cfg, autocast, loss_of)
    indices, lrs = Batches(len(windows), cfg, cpu).draw(50), [1e-2 * (it + 1) / 2001 for it in range(50)]
    loss = make_eager_step(update, optimizer).run(indices, lrs)

    plain, _ = build(cfg, 17, cpu)
    groups = [{"params": [p for p in plain.parameters() if p.dim() > 1], "weight_decay": decay},
              {"params": [p for p in plain.parameters() if p.dim() == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), foreach=False)
    for rows, lr in zip(indices.flatten(1), lrs):
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = torch.stack([windows[row] for row in rows])
        _, theirs = plain(batch[:, :-1], batch[:, 1:])
        theirs.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss) == pytest.approx(theirs.item(), rel=1e-8)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters()):
        assert (ours - theirs).norm() < 1e-8 * theirs.norm(), name


@both_steps
def test_the_same_command_twice_writes_the_same_bytes(script, call, in_tmp, step):
    assert script("train_with_eval.py", *SHORT, *step, "--out_dir=first").returncode == 0
    assert call("train_with_eval.py", *SHORT, *step, "--out_dir=second").returncode == 0
    assert same_run("first", "second")
    assert call("train_with_eval.py", *SHORT, *step, "--out_dir=third", "--seed=1").returncode == 0
    assert Path("first/results.csv").read_bytes() != Path("third/results.csv").read_bytes()


@both_steps
def test_evaluations_do_not_change_the_training(call, in_tmp, step):
    for every in (7, 30):
        result = call("train_with_eval.py", "--max_iters=60", f"--eval_interval={every}", "--log_interval=11",
                      *step, "--dataset=both_math_and_facts", f"--out_dir=every_{every}")
        assert result.returncode == 0, result.stderr
    assert same_weights("every_7/ckpt_last.pt", "every_30/ckpt_last.pt")
    assert [row["iter"] for row in rows_of("every_7")][-2:] == ["56", "60"]  # and the last iteration


def torchrun(project, *arguments, script=None):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, script or project / "train_with_eval.py", "--device=cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


ONE_FAILS = """
import math, os
import train_with_eval
from study.settings import run_script

choose_step = train_with_eval.choose_step

def with_nan(*arguments):
    step, refused = choose_step(*arguments)
    return step._replace(run=lambda *batches: math.nan * step.run(*batches)), refused

if os.environ["RANK"] == "1":
    train_with_eval.choose_step = with_nan
run_script(train_with_eval.main, vars(train_with_eval))
"""


def test_a_loss_that_is_not_finite_in_one_of_two_processes_ends_in_one_line(project, in_tmp, monkeypatch):
    Path("one_fails.py").write_text(ONE_FAILS)
    monkeypatch.setenv("PYTHONPATH", str(project))
    result = torchrun(project, *SHORT, "--out_dir=run", script="one_fails.py")
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode and len(lines) == 1 and "not finite" in lines[0], result.stderr


def test_two_processes_train_like_one_and_resume_exactly(project, call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--fast=False", "--out_dir=one").returncode == 0
    two = torchrun(project, *SHORT, "--out_dir=two")
    assert two.returncode == 0, two.stderr
    command = json.loads(Path("two/run.json").read_text())["command"]
    assert command.startswith("torchrun --standalone --nproc_per_node=2 ")
    for one, two in zip(rows_of("one"), rows_of("two"), strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(two["val_loss"]), rel=1e-5)

    dropout = STEPS["pytorch"]
    longer = ("--max_iters=60", "--eval_interval=20")
    for arguments in ([*longer, "--out_dir=whole"], [*SHORT, "--out_dir=parts"],
                      [*longer, "--out_dir=parts", "--init_from=resume"]):
        result = torchrun(project, *dropout, *arguments)
        assert result.returncode == 0, result.stderr
    assert same_run("whole", "parts")
    resumed_alone = call("train_with_eval.py", *SHORT, *dropout, "--out_dir=parts", "--init_from=resume")
    refused(resumed_alone, "2 processes")


def test_processes_that_cannot_share_a_batch_report_it_once(project, in_tmp):
    odd = torchrun(project, *SHORT, "--out_dir=odd", "--batch_size=881")
    assert odd.returncode != 0
    assert odd.stderr.count("error: batch_size=881 is not divisible by the 2 processes") == 1
    assert not Path("odd").exists()


def test_a_terminal_shows_a_progress_bar_with_loss_and_accuracies(start, in_tmp):
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
    assert "40/40" in text and "loss=" in text and "add=" in text and "it/s" in text
    assert "iter 40: train loss" in text


@both_steps
def test_output_without_a_terminal_has_one_line_per_evaluation(call, in_tmp, step):
    result = call("train_with_eval.py", *SHORT, *step, "--out_dir=run")
    assert result.stderr == ""
    first, *lines, last = result.stdout.splitlines()
    assert " parameters, data as_math" in first and last.startswith("run: complete at iteration 40")
    assert [line.split(": train loss")[0] for line in lines] == ["iter 0", "iter 20", "iter 40"]
    assert [" ms an iteration" in line for line in lines] == [False, True, True]
    assert "best val_loss" in lines[1]


def test_bfloat16_trains_on_the_cpu(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--dtype=bfloat16", "--out_dir=run").returncode == 0
    assert float(rows_of("run")[-1]["val_loss"]) < float(rows_of("run")[0]["val_loss"])


def test_wandb_receives_every_row_of_a_run(call, in_tmp, monkeypatch):
    runs, logged, finished = [], {}, []

    def init(**run):
        runs.append(run)
        return SimpleNamespace(finish=lambda: finished.append(run))

    wandb = SimpleNamespace(init=init,
                            log=lambda row, step: logged.update({step: row}))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert call("train_with_eval.py", *SHORT, "--wandb_log=True", "--out_dir=run").returncode == 0
    [run] = runs
    assert finished == runs
    assert (run["project"], run["name"], run["config"]["n_embd"]) == ("too-big-to-think", "run", 14)
    logged_losses = {str(step): str(row["val_loss"]) for step, row in logged.items()}
    assert logged_losses == {row["iter"]: row["val_loss"] for row in rows_of("run")}


def test_wandb_that_cannot_start_ends_in_one_line_and_loses_no_evaluation(call, in_tmp, monkeypatch):
    def init(**_):
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    refused(call("train_with_eval.py", *SHORT, "--wandb_log=True", "--out_dir=run"),
            "api_key not configured", "wandb login")
    assert len(rows_of("run")) == 1
