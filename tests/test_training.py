"""Training is exact: the schedule, the same bytes twice, undisturbed by evaluations, stops, kills and full disks."""

import fcntl
import json
import os
import pty
import random
import resource
import signal
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
from study.processes import resume_command
from study.run_folder import BEST, find_checkpoint, load_model
from study.fast.shared import shared_loss
from study.update import build, get_lr, make_eager_step, make_update

# Both steps: the C step as the default, and PyTorch's with dropout, which draws from the random state that an
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
    """Whether two folders hold the same evaluations, best models and state."""
    names = {path.name for path in Path(first).glob("*.pt")}
    assert names == {path.name for path in Path(second).glob("*.pt")} and "ckpt_last.pt" in names
    assert Path(first, "results.csv").read_bytes() == Path(second, "results.csv").read_bytes()
    return all(same_weights(f"{first}/{name}", f"{second}/{name}") for name in names)


@pytest.mark.parametrize("it, lr", [
    (0, 1e-2 / 2001), (1000, 1e-2 * 1001 / 2001), (1999, 1e-2 * 2000 / 2001), (2000, 1e-2),
    (13_500, (1e-2 + 1e-4) / 2), (24_999, 1e-4), (25_000, 1e-4), (29_999, 1e-4),
])
def test_the_schedule_is_warm_up_then_cosine_then_constant(it, lr):
    cfg = SimpleNamespace(learning_rate=1e-2, min_lr=1e-4, warmup_iters=2000, lr_decay_iters=25_000)
    assert get_lr(it, cfg) == pytest.approx(lr, rel=1e-6)


@pytest.mark.parametrize("name, totals, checkpoints", [
    ("math_mini_14", (1000, 1000, 0, 40), {"ckpt.pt", "ckpt_best_math.pt", "ckpt_best_combined.pt", "ckpt_last.pt"}),
    ("facts_mini_14", (0, 0, 500, 0), {"ckpt.pt", "ckpt_best_facts.pt", "ckpt_best_combined.pt", "ckpt_last.pt"}),
    ("both_mini_14", (1000, 1000, 500, 40), {*BEST, "ckpt_last.pt"}),
])
def test_a_short_run_writes_its_results_and_checkpoints(runs, name, totals, checkpoints):
    rows = rows_of(runs / name)
    assert [row["iter"] for row in rows] == ["0", "20", "40"]
    for row in rows:
        assert tuple(int(row[f"{c}_total"]) for c in ("add", "sub", "facts", "held_out")) == totals
        correct = sum(int(row[f"{c}_correct"]) for c in ("add", "sub", "facts"))
        assert float(row["combined_acc"]) == correct / sum(totals[:3])
        assert row["train_loss"] == row["val_loss"]  # the same text, on purpose
    assert float(rows[2]["val_loss"]) < float(rows[0]["val_loss"]) - 0.01
    assert {path.name for path in (runs / name).glob("*.pt")} == checkpoints
    for path in (runs / name).glob("*.pt"):
        checkpoint = load(path)
        assert {"model", "model_args", "iter_num", "config", "chars", "held_out", "dtype"} <= checkpoint.keys()
        assert checkpoint["held_out"] == ("none" if name.startswith("facts") else "5,7") and checkpoint["dtype"] == "float32"
        if path.name != "ckpt_last.pt":
            assert {"train_loss", "val_loss", "math_acc", "facts_acc", "combined_acc", "best_val_loss"} <= checkpoint.keys()
            [row] = [row for row in rows if row["iter"] == str(checkpoint["iter_num"])]
            assert checkpoint["val_loss"] == float(row["val_loss"])
    assert load(runs / name / "ckpt.pt")["iter_num"] == 40 and load(runs / name / "ckpt_last.pt")["iter_num"] == 40
    first_best = max(rows, key=lambda row: float(row["combined_acc"]))  # the first of equals
    assert load(runs / name / "ckpt_best_combined.pt")["iter_num"] == int(first_best["iter"])


def test_the_loss_is_the_mean_over_all_windows_each_once(runs):
    model = load_model(find_checkpoint(runs / "math_mini_14", "ckpt_last.pt"), torch.device("cpu"))[0]
    windows = load_splits("as_math", 9, torch.device("cpu"))["train"]
    assert windows.shape == (1755, 10)
    with torch.no_grad():
        losses = [model(window[None, :-1], window[None, 1:])[1].item() for window in windows]
    assert sum(losses) / 1755 == pytest.approx(float(rows_of(runs / "math_mini_14")[-1]["val_loss"]), rel=1e-5)


def test_batches_depend_on_their_seed_alone():
    cpu = torch.device("cpu")
    cfg = SimpleNamespace(gradient_accumulation_steps=2, batch_size=6, seed=3, data_seed=-1)
    together = Batches(100, cfg, cpu).draw(5)
    one_by_one = Batches(100, cfg, cpu)
    torch.rand(7)  # somebody else's random state
    assert together.shape == (5, 2, 6) and torch.equal(together, torch.cat([one_by_one.draw(1) for _ in range(5)]))
    shares = [Batches(100, cfg, cpu, rank, 3).draw(5) for rank in range(3)]
    assert torch.equal(torch.stack(shares, dim=3).flatten(2), together)
    assert together.unique().numel() > 30 and together.min() >= 0 and together.max() < 100
    cfg.data_seed = 3
    assert torch.equal(Batches(100, cfg, cpu).draw(5), together)
    cfg.data_seed = 4
    assert not torch.equal(Batches(100, cfg, cpu).draw(5), together)


def test_another_data_seed_gives_other_batches_and_the_same_initial_weights(call, in_tmp):
    for seed in (1, 2):
        assert call("train_with_eval.py", *SHORT, f"--data_seed={seed}", f"--out_dir=seed_{seed}").returncode == 0
    first, second = rows_of("seed_1"), rows_of("seed_2")
    assert first[0] == second[0] and first[1]["val_loss"] != second[1]["val_loss"]


@pytest.mark.parametrize("decay, accumulated, shares", [(0.0, 1, False), (0.1, 1, False), (0.1, 3, False), (0.1, 3, True)])
def test_pytorchs_step_equals_the_plain_loop_fed_with_the_same_batches(project, request, decay, accumulated, shares):
    cfg = SimpleNamespace(seed=1337, data_seed=-1, batch_size=300 // accumulated, gradient_accumulation_steps=accumulated, grad_clip=1.0,
                          weight_decay=decay, learning_rate=1e-2, beta1=0.9, beta2=0.99, block_size=9, n_layer=2, n_head=2, n_embd=14,
                          mlp_expansion=2, dropout=0.0, bias=False)
    cpu = torch.device("cpu")
    windows = load_splits("as_math", 9, cpu)["train"]
    # In float64 rounding is too small to be amplified: what differs would be the mathematics.
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    model, optimizer = build(cfg, 17, cpu)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss_of = shared_loss if shares else None
    update = make_update(model, optimizer, scaler, windows, cfg, torch.autocast("cpu", enabled=False), loss_of)
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
def test_evaluations_do_not_disturb_the_training(call, in_tmp, step):
    for every in (7, 30):
        result = call("train_with_eval.py", "--max_iters=60", f"--eval_interval={every}", "--log_interval=11", *step,
                      "--dataset=both_math_and_facts", f"--out_dir=every_{every}")
        assert result.returncode == 0, result.stderr
    assert same_weights("every_7/ckpt_last.pt", "every_30/ckpt_last.pt")
    assert [row["iter"] for row in rows_of("every_7")][-2:] == ["56", "60"]  # the last iteration too


@both_steps
def test_killed_again_and_again_and_resumed_it_ends_as_if_never_stopped(start, call, in_tmp, step):
    long = ("--max_iters=150", "--eval_interval=10", "--log_interval=5", "--save_interval=0", *step)
    assert call("train_with_eval.py", *long, "--out_dir=whole").returncode == 0
    rng, kills, resume, evaluations = random.Random(0), 0, [], 0
    while True:
        process = start("train_with_eval.py", *long, "--out_dir=killed", *resume)
        lines = rng.randint(2, 7)  # of evaluations, until the kill
        for line in process.stdout:
            lines -= line.startswith("iter")
            if lines == 0 and kills < 2:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        process.communicate(timeout=PATIENCE)
        if process.returncode:  # a kill in the middle of a write leaves this
            Path("killed/.ckpt_last.pt.1.tmp").write_bytes(b"cut")
        count = len(Path("killed/results.csv").read_bytes().splitlines())
        assert count >= evaluations  # what was finished stays
        evaluations, resume = count, ["--init_from=resume"]
        if process.returncode == 0:
            break
    assert kills == 2 and same_run("whole", "killed")
    assert not list(Path("killed").glob("*.tmp"))


def test_a_run_killed_before_its_first_save_begins_again_and_loses_no_evaluation(start, call, in_tmp):
    often = ("--eval_interval=10", "--n_embd=6")
    process = start("train_with_eval.py", "--max_iters=100_000", *often, "--save_interval=1e9", "--out_dir=killed")
    for line in process.stdout:
        if line.startswith("iter 100: train loss"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert not Path("killed/ckpt_last.pt").exists()  # not at every evaluation
    before = Path("killed/results.csv").read_bytes().splitlines()
    assert len(before) > 11
    last = (len(before) - 2) * 10 + 10
    result = call("train_with_eval.py", f"--max_iters={last}", *often, "--out_dir=killed", "--init_from=resume")
    assert result.returncode == 0, result.stderr
    assert call("train_with_eval.py", f"--max_iters={last}", *often, "--out_dir=whole").returncode == 0
    assert same_run("whole", "killed")


@both_steps
@pytest.mark.parametrize("signum, status", [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_run_that_is_stopped_saves_where_it_is_and_says_how_to_go_on(start, call, in_tmp, signum, status, step):
    process = start("train_with_eval.py", "--max_iters=1_000_000", *step, "--overwrite", "True", "--out_dir=run", "--save_interval=1e9")
    for line in process.stdout:
        if line.startswith("iter 250:"):
            break
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    [line] = stderr.splitlines()
    stopped = load("run/ckpt_last.pt")["iter_num"]
    assert f"stopped at iteration {stopped};" in line and "--out_dir=run" in line and line.endswith("--init_from=resume")
    assert "--overwrite" not in line and "True" not in line and stopped >= 100
    more = (f"--max_iters={stopped + 20}", *step)
    assert call("train_with_eval.py", *more, "--out_dir=run", "--init_from=resume").returncode == 0
    assert call("train_with_eval.py", *more, "--out_dir=whole").returncode == 0
    assert same_run("whole", "run")


def test_the_command_that_goes_on_keeps_the_config_file(monkeypatch):
    for before, after in [
        ("t.py --overwrite config/a.py --seed 3", "t.py config/a.py --seed 3"), ("t.py --overwrite True config/a.py", "t.py config/a.py"),
        ("t.py config/a.py --init_from scratch --fast=False", "t.py config/a.py --fast=False"), ("t.py --overwrite=True a.py", "t.py a.py"),
    ]:
        monkeypatch.setattr(sys, "argv", before.split())
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert resume_command() == f"python {after} --init_from=resume"
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert resume_command() == f"OMP_NUM_THREADS=1 python {after} --init_from=resume"


def test_a_run_that_goes_on_with_another_number_of_threads_says_so(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--fast=False", "--out_dir=run").returncode == 0
    info = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(info | {"threads": 16}))
    more = ("--fast=False", "--out_dir=run", "--init_from=resume")
    result = call("train_with_eval.py", *more, "--max_iters=45")
    assert result.returncode == 0 and "made with OMP_NUM_THREADS=16 until here" in result.stderr
    assert call("train_with_eval.py", *more, "--max_iters=50").stderr == ""


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
    assert same_run("whole", "longer")
    info = json.loads(Path("longer/run.json").read_text())
    assert info["iter_num"] == 60 and [part["iter_num"] for part in info["earlier_parts"]] == [40]
    results = Path("longer/results.csv").read_bytes()
    assert refused(call("train_with_eval.py", *SHORT, "--out_dir=longer", "--init_from=resume"), "at iteration 60 already", "max_iters=40")
    assert Path("longer/results.csv").read_bytes() == results


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_made_longer_than_an_end_between_two_evaluations_equals_the_run_in_one_go(call, in_tmp, fast):
    every = ("--eval_interval=20", f"--fast={fast}", "--n_embd=4")
    assert call("train_with_eval.py", "--max_iters=80", *every, "--out_dir=whole").returncode == 0
    assert call("train_with_eval.py", "--max_iters=50", *every, "--out_dir=longer").returncode == 0
    assert [row["iter"] for row in rows_of("longer")] == ["0", "20", "40", "50"]
    assert load("longer/ckpt.pt")["iter_num"] == 50
    for max_iters, iters in ((50, "0 20 40 50"), (55, "0 20 40 55"), (80, "0 20 40 60 80")):
        resumed = call("train_with_eval.py", f"--max_iters={max_iters}", *every, "--out_dir=longer", "--init_from=resume")
        assert resumed.returncode == 0 and resumed.stderr == "", resumed.stderr
        assert [row["iter"] for row in rows_of("longer")] == iters.split()
    assert same_run("whole", "longer")


def test_a_folder_is_not_written_over_unless_asked(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    before = Path("run/results.csv").read_bytes()
    refused(call("train_with_eval.py", *SHORT, "--seed=1", "--out_dir=run"), "--init_from=resume", "--overwrite=True")
    assert Path("run/results.csv").read_bytes() == before
    assert call("train_with_eval.py", *SHORT, "--seed=1", "--out_dir=run", "--overwrite=True").returncode == 0
    assert Path("run/results.csv").read_bytes() != before


def test_two_runs_at_once_into_one_folder_are_refused(start, call, in_tmp):
    first = start("train_with_eval.py", "--max_iters=10_000_000", "--out_dir=run")
    for line in first.stdout:
        if line.startswith("iter 0"):
            break
    for way in ("--init_from=resume", "--overwrite=True"):
        refused(call("train_with_eval.py", "--out_dir=run", way), "another run", "run")
    assert first.poll() is None


def test_a_full_disk_leaves_the_checkpoint_before_whole(script, call, in_tmp):
    longer = ("--max_iters=60", "--eval_interval=20")
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0

    def small_disk():  # no file of this process can grow beyond 20 kB: ckpt.pt fits, ckpt_last.pt does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    before = Path("run/ckpt_last.pt").read_bytes()
    # The C step is compiled already, by the run before: what a compiler does on a full disk is not asked here.
    result = script("train_with_eval.py", *longer, "--out_dir=run", "--init_from=resume", preexec_fn=small_disk)
    refused(result, "ckpt_last.pt", "cannot write", "unchanged")
    assert Path("run/ckpt_last.pt").read_bytes() == before and not list(Path("run").glob(".*.tmp"))
    # With room again it goes on, and ends as if nothing had happened.
    assert call("train_with_eval.py", *longer, "--out_dir=run", "--init_from=resume").returncode == 0
    assert call("train_with_eval.py", *longer, "--out_dir=whole").returncode == 0
    assert same_run("whole", "run")
    # So does one that never had room for a ckpt_last.pt, though its last evaluation is there.
    refused(script("train_with_eval.py", *longer, "--out_dir=first", preexec_fn=small_disk), "ckpt_last.pt", "cannot write")
    info = json.loads(Path("first/run.json").read_text())
    assert (info["iter_num"], info["saved_iter_num"]) == (60, 0)
    assert call("train_with_eval.py", *longer, "--out_dir=first", "--init_from=resume").returncode == 0
    assert same_run("whole", "first")


def torchrun(project, *arguments):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", project / "train_with_eval.py"]
    return subprocess.run([*launch, "--device=cpu", *arguments], capture_output=True, text=True, timeout=PATIENCE)


def test_two_processes_train_as_one_and_resume_exactly(project, call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--fast=False", "--out_dir=one").returncode == 0
    two = torchrun(project, *SHORT, "--out_dir=two")
    assert two.returncode == 0, two.stderr
    assert json.loads(Path("two/run.json").read_text())["command"].startswith("torchrun --standalone --nproc_per_node=2 ")
    for one, two in zip(rows_of("one"), rows_of("two"), strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(two["val_loss"]), rel=1e-5)

    dropout = STEPS["pytorch"]
    for arguments in (["--max_iters=60", "--eval_interval=20", "--out_dir=whole"], [*SHORT, "--out_dir=parts"],
                      ["--max_iters=60", "--eval_interval=20", "--out_dir=parts", "--init_from=resume"]):
        result = torchrun(project, *dropout, *arguments)
        assert result.returncode == 0, result.stderr
    assert same_run("whole", "parts")
    refused(call("train_with_eval.py", *SHORT, *dropout, "--out_dir=parts", "--init_from=resume"), "2 processes")


def test_processes_that_cannot_share_a_batch_say_so_once(project, in_tmp):
    odd = torchrun(project, *SHORT, "--out_dir=odd", "--batch_size=881")
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


@both_steps
def test_elsewhere_there_is_a_line_an_evaluation(call, in_tmp, step):
    result = call("train_with_eval.py", *SHORT, *step, "--out_dir=run")
    assert result.stderr == ""
    first, *lines, last = result.stdout.splitlines()
    assert " parameters, data as_math" in first and last.startswith("run: complete at iteration 40")
    assert [line.split(": train loss")[0] for line in lines] == ["iter 0", "iter 20", "iter 40"]
    assert [" ms an iteration" in line for line in lines] == [False, True, True] and "best val_loss" in lines[1]


def test_bfloat16_trains_on_the_cpu(call, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--dtype=bfloat16", "--out_dir=run").returncode == 0
    assert float(rows_of("run")[-1]["val_loss"]) < float(rows_of("run")[0]["val_loss"])


def test_wandb_gets_every_row_of_a_run(call, in_tmp, monkeypatch):
    runs, logged = [], {}
    wandb = SimpleNamespace(init=lambda **run: runs.append(run), log=lambda row, step: logged.update({step: row}))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert call("train_with_eval.py", *SHORT, "--wandb_log=True", "--out_dir=run").returncode == 0
    [run] = runs
    assert (run["project"], run["name"], run["config"]["n_embd"]) == ("too-big-to-think", "run", 14)
    assert {str(step): str(row["val_loss"]) for step, row in logged.items()} == {row["iter"]: row["val_loss"] for row in rows_of("run")}
