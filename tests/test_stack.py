"""A member of a stack is the single run of its settings, whatever the other members are."""

import contextlib
import os
import signal
import types
from pathlib import Path

import pytest
import torch
from conftest import rows_of

import run_experiment
from study import update
from study.batches import Batches, load_splits
from study.experiments.results import read_tables
from study.experiments.runs import config_of, grid, runs_by_name
from study.fast import stack
from study.settings import STOP_SIGNALS, exit_on_signals
from study.state import TrainingState
from study.train_stack import train_stack

CPU = torch.device("cpu")
SHORT = {"batch_size": 64, "max_iters": 40, "eval_interval": 20, "log_interval": 10, "fast": False}


def member(dtype, **settings):
    """(settings, TrainingState, windows) of a run, its model in this precision."""
    cfg = types.SimpleNamespace(**config_of({"config": "math_mini_14"} | settings))
    windows = load_splits(cfg.dataset, cfg.block_size, CPU)["train"]
    model, _ = update.build(cfg, int(windows.max()) + 1, CPU)
    optimizer = update.build_optimizer(model.to(dtype), cfg)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return cfg, TrainingState(model, optimizer, scaler, Batches(len(windows), cfg, CPU), CPU), windows


def eager_stack(states, windows, cfg, autocast=contextlib.nullcontext()):
    """(Step of a stack, hand_back) without a trial."""
    weights, optimizer = stack.stack_up(states, cfg)
    stacked = stack.make_stacked_update(
        states[0].model, weights, optimizer, torch.stack(windows), cfg, autocast)
    step = update.make_eager_step(stacked, optimizer, "stack")
    return step, lambda: stack.hand_back(weights, optimizer, states)


def plain_step(state, windows, cfg, autocast=contextlib.nullcontext()):
    plain = update.make_update(state.model, state.optimizer, state.scaler, windows, cfg, autocast)
    return update.make_eager_step(plain, state.optimizer)


@pytest.mark.parametrize("settings", [
    {"weight_decay": 0.1, "batch_size": 64},
    {"n_embd": 6, "grad_clip": 0.1, "batch_size": 32, "gradient_accumulation_steps": 2},
])
def test_a_member_equals_its_single_run_over_a_hundred_updates(project, settings):
    members = [member(torch.float64, seed=seed, **settings) for seed in (1, 2, 3)]
    data = [windows if k < 2 else windows.flip(0).contiguous() for k, (*_, windows) in enumerate(members)]
    cfg = members[0][0]
    states = [state for _, state, _ in members]
    indices = torch.stack([state.batches.draw(100) for state in states], dim=1)
    lrs = [update.get_lr(20 * i, cfg) for i in range(100)]  # up to the peak

    step, hand_back = eager_stack(states, data, cfg)
    for i in range(100):
        losses = step.run(indices[i : i + 1], lrs[i : i + 1])
        if i == 49:  # a stack that is put together again in the middle goes on as before
            hand_back()
            step, hand_back = eager_stack(states, data, cfg)
    assert hand_back().tolist() == [True] * 3
    for k, (_, state, _) in enumerate(members):
        _, single, _ = member(torch.float64, seed=k + 1, **settings)
        single_step = plain_step(single, data[k], cfg)
        for i in range(100):
            loss = single_step.run(indices[i : i + 1, k], lrs[i : i + 1])
        assert float(losses[k]) == pytest.approx(float(loss), rel=1e-6)
        for ours, theirs in zip(state.model.parameters(), single.model.parameters()):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
            assert not torch.allclose(ours, theirs * 1.01, rtol=0, atol=1e-6)
        ours, theirs = (each.optimizer.state_dict()["state"] for each in (state, single))
        assert ours.keys() == theirs.keys()
        for i in ours:
            assert ours[i]["step"] == theirs[i]["step"] == 100
            for key in ("exp_avg", "exp_avg_sq"):
                assert torch.allclose(ours[i][key], theirs[i][key], rtol=1e-6, atol=1e-9)


def test_a_member_in_bfloat16_has_the_gradient_of_its_single_run_up_to_that_precision(project):
    bfloat16 = torch.autocast("cpu", dtype=torch.bfloat16)

    def gradient(state):  # of the first update, from AdamW's first moments
        return torch.cat([state.optimizer.state[p]["exp_avg"].flatten() for p in state.model.parameters()])

    members = [member(torch.float32, seed=seed) for seed in (1, 2)]
    states, (cfg, _, windows) = [state for _, state, _ in members], members[0]
    indices = torch.stack([state.batches.draw(1) for state in states], dim=1)
    step, hand_back = eager_stack(states, [windows] * 2, cfg, bfloat16)
    step.run(indices, [1e-3])
    hand_back()
    for k, state in enumerate(states):
        for autocast, least, most in [(bfloat16, 0, 0.01), (contextlib.nullcontext(), 1e-4, 0.01)]:
            _, single, _ = member(torch.float32, seed=k + 1)
            plain_step(single, windows, cfg, autocast).run(indices[:, k], [1e-3])
            assert least <= (gradient(state) - gradient(single)).norm() / gradient(single).norm() < most


def make_stack(root, seeds, resume=False, signals=(), ends=None, **settings):
    """Train a stack into the folders of root and return the iterations of which it told its progress.

    ends: the names of the runs that must come to the end.
    """
    settings = SHORT | {"init_from": "resume" if resume else "scratch"} | settings
    cfgs = [types.SimpleNamespace(**config_of(run) | settings | {"out_dir": str(root / name)})
            for name, run in runs_by_name(grid(config="math_mini_14", seed=seeds)).items()]
    iterations = []
    ended = train_stack(cfgs, CPU, "float32", contextlib.nullcontext(), signals, iterations.append)
    if ends is not None:
        assert [Path(cfg.out_dir).name for cfg in ended] == ends
    return iterations


def test_a_stack_fills_the_folders_of_its_runs_as_single_runs_do(project, in_tmp, call):
    assert make_stack(in_tmp, [1, 2])[-1] == 40
    for seed in (1, 2):
        settings = [f"--{key}={value}" for key, value in SHORT.items()]
        settings += [f"--seed={seed}", "--out_dir=single", "--overwrite"]
        config = project / "config/train_math_mini_14.py"
        assert call("train_with_eval.py", config, *settings).returncode == 0
        folder, single = in_tmp / f"math_mini_14_seed_{seed}", in_tmp / "single"
        assert {path.name for path in folder.iterdir()} == {path.name for path in single.iterdir()}
        ours, theirs = rows_of(folder), rows_of(single)
        assert [row["iter"] for row in ours] == [row["iter"] for row in theirs] == ["0", "20", "40"]
        assert ours[0] == theirs[0]  # the same initial weights and the same scoring
        losses = [[float(row["val_loss"]) for row in rows] for rows in (ours, theirs)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        a, b = (torch.load(path / "ckpt_last.pt", weights_only=True) for path in (folder, single))
        assert a.keys() == b.keys() and torch.equal(a["batch_order"], b["batch_order"])
        assert all(torch.allclose(a["model"][name], b["model"][name], atol=1e-3) for name in b["model"])
        sizes = [last["model"]["lm_head.weight"].untyped_storage().nbytes() for last in (a, b)]
        assert sizes[0] == sizes[1]  # not those of the whole stack


def test_a_stack_that_was_stopped_goes_on_as_if_it_had_not_been(project, in_tmp, call):
    make_stack(in_tmp / "whole", [1, 2])
    make_stack(in_tmp / "cut", [1, 2], max_iters=20)
    make_stack(in_tmp / "cut", [1, 2], resume=True)
    for name in ("math_mini_14_seed_1", "math_mini_14_seed_2"):
        whole, cut = (in_tmp / folder / name / "results.csv" for folder in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()
    # A signal stops it, and a member can go on as a single run.
    assert make_stack(in_tmp / "stopped", [1, 2], signals=[2], max_iters=20) == [0]
    settings = [f"--{key}={value}" for key, value in SHORT.items()]
    folder = in_tmp / "cut/math_mini_14_seed_2"
    single = call("train_with_eval.py", project / "config/train_math_mini_14.py", *settings, "--seed=2",
                  f"--out_dir={folder}", "--max_iters=60", "--init_from=resume")
    assert single.returncode == 0 and "PyTorch, a stack of 2" in single.stderr, single.stderr
    assert [row["iter"] for row in rows_of(folder)] == ["0", "20", "40", "60"]


def test_a_member_that_cannot_go_on_with_the_others_is_left_as_it_is_and_they_end(project, in_tmp, capfd):
    def change(seed, name, value):
        path = in_tmp / f"math_mini_14_seed_{seed}/ckpt_last.pt"
        last = torch.load(path, weights_only=True)
        last["model"][name][:] = value
        last["rows"] = last["rows"][:1]  # so that an evaluation is due
        torch.save(last, path)
        return path

    make_stack(in_tmp, range(1, 7), max_iters=20)
    make_stack(in_tmp, [4], resume=True, max_iters=40)  # at another iteration
    left = [change(2, "transformer.wte.weight", torch.nan)]
    left.append(change(5, "transformer.h.0.attn.c_attn.weight", 1e25))  # its loss is nan
    left.append(in_tmp / "math_mini_14_seed_6/ckpt_last.pt")
    left[-1].write_bytes(left[-1].read_bytes()[:-100])
    before = [path.read_bytes() for path in left]
    make_stack(in_tmp, range(1, 7), resume=True, ends=["math_mini_14_seed_1", "math_mini_14_seed_3"])
    err = capfd.readouterr().err
    assert "math_mini_14_seed_2 at iteration 20 are not finite; it is left" in err
    assert "the loss or a weight at iteration 20 is not finite" in err
    assert "math_mini_14_seed_6/ckpt_last.pt is damaged" in err
    assert [path.read_bytes() for path in left] == before
    assert [row["iter"] for row in rows_of(in_tmp / "math_mini_14_seed_3")] == ["0", "20", "40"]
    make_stack(in_tmp / "whole", [1, 3])
    for name in ("math_mini_14_seed_1", "math_mini_14_seed_3"):  # the others do not change them
        ours, theirs = ([float(row["val_loss"]) for row in rows_of(root / name)]
                        for root in (in_tmp, in_tmp / "whole"))
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_a_stack_is_as_large_as_memory_allows():
    # The most bytes that a member took in an update, measured on a CPU in float32, MLT's in bfloat16.
    took = {"math_mini_14_wd": 26e6, "both_mini_14": 50e6, "both_mini_28": 83e6, "both_mini_56_wd": 153e6,
            "math_mini_mlt_wd": 2247e6}
    for memory in (4e9, 40e9):
        size = {name: run_experiment.largest_stack(config_of({"config": name}), memory) for name in took}
        assert all(size[name] * took[name] <= memory for name in took)
    assert size["math_mini_14_wd"] == size["both_mini_56_wd"] == 100 and 1 < size["math_mini_mlt_wd"] < 10


def test_runs_that_scale_their_loss_train_alone(project, monkeypatch):
    # What auto is on an old GPU.
    monkeypatch.setattr(run_experiment, "setup_device", lambda device, dtype: (device, "float16", None))
    runs = runs_by_name(grid(config="math_mini_14", seed=[1, 2]))
    assert run_experiment.stacks_of(runs, dict.fromkeys(runs, 0), "cuda", 8e9) == []


def test_what_can_train_together_does(project, monkeypatch):
    monkeypatch.setattr(run_experiment, "LARGEST_STACK", 4)
    runs = runs_by_name(
        grid(config=["math_mini_14", "math_mini_28"], seed=range(1, 4))
        + grid(config="math_mini_14_wd", seed=1) + grid(config="math_mini_mlt", seed=[1, 2])
        + grid(config="facts_mini_14", seed=range(1, 7)))
    done = dict.fromkeys(runs, 0) | {"math_mini_28_seed_3": 250}
    assert run_experiment.stacks_of(runs, done, "cpu", 8e9) == [
        [f"math_mini_14_seed_{seed}" for seed in (1, 2, 3)],
        ["math_mini_28_seed_1", "math_mini_28_seed_2"],  # the third is further; _wd has another decay
        [f"facts_mini_14_seed_{seed}" for seed in (1, 2, 3, 4)],
        ["facts_mini_14_seed_5", "facts_mini_14_seed_6"],
    ]


def run_all(experiment, folder):
    """Make the runs of an experiment, stacks first, and check that none failed; return {run: its step}."""
    table = folder / "mine"
    assert run_experiment.run_all(experiment, folder, table, "cpu", 1, stack_memory=8e9) == []
    return {name: run.info["step"] for name, run in read_tables(table).items()}


def test_an_experiment_trains_its_stacks_and_then_what_is_left(project, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(project)
    experiment = runs_by_name(grid(config="math_mini_14", seed=[1, 2, 3], line_seed=[1, 2], **SHORT)
                       + grid(config="facts_mini_14", **SHORT))
    steps = run_all(experiment, tmp_path)
    out = capfd.readouterr().out
    assert "and 5 like it: 0 of 40" in out and out.count(": complete") == 7
    assert [step for name, step in steps.items() if name.startswith("math")] == ["PyTorch, a stack of 6"] * 6
    assert [step for name, step in steps.items() if name.startswith("facts")] == ["PyTorch"]


def test_runs_that_do_not_fit_into_memory_together_train_one_by_one(project, monkeypatch, tmp_path, capfd):
    def no_room(batches):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.chdir(project)
    monkeypatch.setattr(stack, "make_stacked_update", lambda *_: no_room)
    steps = run_all(runs_by_name(grid(config="math_mini_14", seed=[1, 2], **SHORT)), tmp_path)
    err = capfd.readouterr().err
    assert "2 runs like math_mini_14" in err and "do not fit into memory" in err
    assert list(steps.values()) == ["PyTorch"] * 2


@pytest.mark.parametrize("fault, reason", [
    ("the batches of another member", "loss"), ("a gradient not clipped", "gradient"),
    ("an exception", "no batching rule"),
])
def test_runs_whose_stack_is_wrong_train_one_by_one_and_the_experiment_says_why(
        project, monkeypatch, tmp_path, capfd, fault, reason):
    make_stacked_update = stack.make_stacked_update

    def make_wrong(*arguments):
        right = make_stacked_update(*arguments)

        def wrong(batches):
            if fault == "an exception":
                raise RuntimeError("there is no batching rule for it\nand a second line")
            return right(batches.flip(0) if fault == "the batches of another member" else batches)

        return wrong

    monkeypatch.chdir(project)
    monkeypatch.setattr(stack, "make_stacked_update", make_wrong)
    if fault == "a gradient not clipped":
        monkeypatch.setattr(stack, "clip_each", lambda weights, largest: None)
    steps = run_all(runs_by_name(grid(config="math_mini_14", seed=[1, 2], **SHORT, grad_clip=0.1)), tmp_path)
    [line] = capfd.readouterr().err.splitlines()
    assert "2 runs like math_mini_14" in line and "a stack of 2" in line and reason in line
    assert list(steps.values()) == ["PyTorch"] * 2


def test_after_the_stacks_a_first_signal_ends_the_program(project, monkeypatch):
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    try:
        exit_on_signals()  # as run_script() does
        run_experiment.train_stacks({}, {}, [], {}, "cpu", 8e9, None)
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 143
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
