"""What needs a CUDA device: the fast steps are taken and are right, and runs repeat, resume and sample."""

import csv
import json
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import SHORT
from fake_gpu import settings, undo_seeding  # noqa: F401, fixtures
from fake_gpu import TOLERANCE, assert_close, everything_in, new_state, rates, same

from study import steps, update
from study.batches import load_splits
from study.device import setup_device
from study.fast import compiled

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CAPTURED = "PyTorch, one CUDA graph an update"
BOTH = "PyTorch, compiled, one CUDA graph an update"
DROPOUT = ("--dropout=0.3", "--n_embd=16", "--n_head=2", "--batch_size=64")


def begin(cfg, dtype_setting):
    """(windows, TrainingState before the first update, dtype, autocast) on the GPU"""
    device, dtype, autocast = setup_device("cuda", dtype_setting)
    windows = load_splits(cfg.dataset, cfg.block_size, device)["train"]
    return windows, new_state(cfg, windows, int(windows.max()) + 1, device), dtype, autocast


def without_lrs(state):
    """A captured step keeps learning rates in tensors."""
    return {key: value for key, value in everything_in(state).items() if key != "learning rates"}


@pytest.mark.parametrize("compile", ["auto", False])
@pytest.mark.parametrize("name, dtype", [
    ("math_mini_14", "float32"), ("math_mini_14", "bfloat16"), ("both_mini_28", "float32"),
    ("both_mini_28", "bfloat16"), ("math_mini_mlt", "bfloat16"),  # the last with dropout
])
def test_the_fastest_step_passes_the_trial_which_changes_nothing(
        settings, undo_seeding, name, dtype, compile):
    cfg = settings(name, f"--compile={compile}")
    windows, state, dtype, autocast = begin(cfg, dtype)
    before = without_lrs(state)
    step, refused = steps.choose_step(state, windows, cfg, dtype, autocast)
    assert refused == {} and step.name == (BOTH if compile else CAPTURED)
    assert same(without_lrs(state), before)
    first, *_, last = [float(step.run(state.batches.draw(1), [1e-3])) for _ in range(20)]
    assert 0 < last < first


def plain_loss(model, idx, targets):
    """nanoGPT's forward pass, module by module."""
    x = model.transformer.wte(idx) + model.transformer.wpe(torch.arange(idx.size(1), device=idx.device))
    for block in model.transformer.h:
        x = block(x)
    logits = model.lm_head(model.transformer.ln_f(x))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain_loop(cfg, windows, indices, lrs):
    """(model, last loss) of a training loop written without study/update.py, in float32."""
    model, _ = update.build(cfg, int(windows.max()) + 1, windows.device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0, foreach=False)
    for [rows], lr in zip(indices, lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        batch = windows[rows]
        loss = plain_loss(model, batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model, loss.item()


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ["math_mini_14", "both_mini_28"])
def test_captured_training_equals_the_plain_loop(settings, undo_seeding, name, compile):
    cfg = settings(name, f"--compile={compile}")
    windows, state, dtype, autocast = begin(cfg, "float32")
    indices, lrs = state.batches.draw(20), rates(20)
    step, _ = steps.choose_step(state, windows, cfg, dtype, autocast)
    assert step.name == (BOTH if compile else CAPTURED)
    for part in (slice(0, 13), slice(13, 20)):
        loss = step.run(indices[part], lrs[part])
    plain, expected = plain_loop(cfg, windows, indices, lrs)
    assert float(loss) == pytest.approx(expected, rel=TOLERANCE)
    assert_close(state.model, plain, update.build(cfg, int(windows.max()) + 1, windows.device)[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["math_mini_14", "both_mini_28"])
def test_a_captured_stack_passes_the_trial_and_its_members_equal_the_plain_loop(
        settings, undo_seeding, name, dtype):
    cfgs = [settings(name, f"--seed={seed}") for seed in (1, 2, 3)]
    windows, _, dtype, autocast = begin(cfgs[0], dtype)
    states = [begin(cfg, dtype)[1] for cfg in cfgs]
    before = [everything_in(state) for state in states]
    step, hand_back, refused = steps.choose_stack_step(
        states, [windows] * 3, cfgs[0], states[0].device, dtype, autocast)
    assert refused == {} and "a stack of 3" in step.name and "CUDA graph" in step.name
    assert same([everything_in(state) for state in states], before)

    drawn, lrs = [state.batches.draw(20) for state in states], rates(20)
    losses = step.run(torch.stack(drawn, dim=1), lrs)
    assert hand_back().all()
    for cfg, state, indices, loss in zip(cfgs, states, drawn, losses, strict=True):
        plain, expected = plain_loop(cfg, windows, indices, lrs)
        assert float(loss) == pytest.approx(expected, rel=TOLERANCE if dtype == "float32" else 0.05)
        if dtype == "float32":
            assert_close(state.model, plain, update.build(cfg, int(windows.max()) + 1, windows.device)[0])


@pytest.mark.parametrize("fails", ["compiled", "both"])
def test_after_a_capture_that_failed_the_next_step_trains(settings, undo_seeding, monkeypatch, fails):
    """With dropout, since a capture uses the random generator too."""
    cfg = settings("math_mini_14", *DROPOUT)
    windows, state, dtype, autocast = begin(cfg, "float32")
    before, make_update = everything_in(state), steps.make_update

    def read_by_host(update):
        def reads(batches):
            loss = update(batches)
            float(loss)  # which no graph can hold
            return loss

        return reads

    monkeypatch.setattr(compiled, "compile_update", read_by_host)
    if fails == "both":
        monkeypatch.setattr(steps, "make_update", lambda *arguments: read_by_host(make_update(*arguments)))
    step, refused = steps.choose_step(state, windows, cfg, dtype, autocast)
    assert step.name == (CAPTURED if fails == "compiled" else "PyTorch")
    assert list(refused) == ([BOTH] if fails == "compiled" else [BOTH, CAPTURED])
    assert all("captur" in reason for reason in refused.values()), refused
    assert torch.cuda.current_stream(state.device) == torch.cuda.default_stream(state.device)
    if fails == "both":
        assert same(everything_in(state), before)
    losses = [float(step.run(state.batches.draw(1), [1e-3])) for _ in range(50)]
    assert losses[-1] < losses[0]


def saved(folder):
    """results.csv and the last weights of a run."""
    checkpoint = torch.load(Path(folder) / "ckpt_last.pt", weights_only=True, map_location="cpu")
    return (Path(folder) / "results.csv").read_bytes(), checkpoint["model"]


def same_runs(first, second):
    (rows, weights), (other_rows, others) = saved(first), saved(second)
    return rows == other_rows and same(dict(weights), dict(others))


def test_the_same_command_twice_writes_the_same_bytes(script, in_tmp):
    for folder in ("first", "second"):
        result = script("train_with_eval.py", *SHORT, *DROPOUT, "--device=cuda", f"--out_dir={folder}")
        assert result.returncode == 0, result.stderr
        info = json.loads(Path(folder, "run.json").read_text())
        assert info["step"] == BOTH and info["step_refused"] == {}
    assert same_runs("first", "second")
    rows = list(csv.DictReader(saved("first")[0].decode().splitlines()))
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])


def test_a_run_that_was_killed_ends_as_if_never_stopped(script, start, in_tmp):
    often = ("--eval_interval=20", "--log_interval=10", "--save_interval=0")
    train = ("train_with_eval.py", "--max_iters=600", *often, *DROPOUT, "--device=cuda")
    assert script(*train, "--out_dir=whole").returncode == 0
    process = start(*train, "--out_dir=killed")
    for line in process.stdout:
        if line.startswith("iter 40:"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    result = script(*train, "--out_dir=killed", "--init_from=resume")
    assert result.returncode == 0 and "resumed at iteration" in result.stdout, result.stderr
    assert same_runs("whole", "killed")


def test_a_model_trained_on_a_gpu_is_sampled_there(call, undo_seeding, in_tmp):
    train = ("train_with_eval.py", *SHORT, "--device=cuda", "--compile=False", "--out_dir=run")
    assert call(*train).returncode == 0
    prompt = ("--start=<7-5", "--num_samples=3", "--max_new_tokens=3")
    first, again = (call("sample.py", "--out_dir=run", *prompt, "--device=cuda") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("<7-5") == 3 and first.stdout == again.stdout
