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
from study.fast import stack
from study.batches import Batches, load_splits
from study.experiments.runs import config_of, grid, runs_by_name
from study.experiments.results import read_tables
from study.settings import STOP_SIGNALS, exit_on_signals
from study.state import TrainingState

CPU = torch.device("cpu")
SHORT = {"batch_size": 64, "max_iters": 40, "eval_interval": 20, "log_interval": 10, "fast": False}


def member(dtype, **settings):
    """(settings, TrainingState) of a run, its model in this precision."""
    cfg = types.SimpleNamespace(**config_of({"config": "math_mini_14"} | settings))
    windows = load_splits(cfg.dataset, cfg.block_size, CPU)["train"]
    model, _ = update.build(cfg, int(windows.max()) + 1, CPU)
    model.to(dtype)
    optimizer = model.configure_optimizer(cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2))
    return cfg, TrainingState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), Batches(len(windows), cfg, CPU), CPU), windows


@pytest.mark.parametrize("settings", [
    {"weight_decay": 0.1, "batch_size": 64}, {"n_embd": 6, "grad_clip": 0.1, "batch_size": 32, "gradient_accumulation_steps": 2},
])
def test_a_member_equals_its_single_run_over_a_hundred_updates(project, settings):
    members = [member(torch.float64, seed=seed, **settings) for seed in (1, 2, 3)]
    data = [windows if k < 2 else windows.flip(0).contiguous() for k, (*_, windows) in enumerate(members)]
    cfg = members[0][0]
    states = [state for _, state, _ in members]
    indices = torch.stack([state.batches.draw(100) for state in states], dim=1)
    lrs = [update.get_lr(20 * i, cfg) for i in range(100)]  # up to the peak

    train, hand_back = stack.make_stacked_train(states, data, cfg, CPU, contextlib.nullcontext(), captures=False)
    for i in range(100):
        losses = train(indices[i : i + 1], lrs[i : i + 1])
        if i == 49:  # a stack that is put together again in the middle goes on as if it had not been
            hand_back()
            train, hand_back = stack.make_stacked_train(states, data, cfg, CPU, contextlib.nullcontext(), captures=False)
    hand_back()
    for k, (_, state, _) in enumerate(members):
        _, alone, _ = member(torch.float64, seed=k + 1, **settings)
        step = update.make_update(alone.model, alone.optimizer, alone.scaler, data[k], cfg, contextlib.nullcontext())
        train_alone = update.make_eager_train(step, alone.optimizer)
        for i in range(100):
            loss = train_alone(indices[i : i + 1, k], lrs[i : i + 1])
        assert float(losses[k]) == pytest.approx(float(loss), rel=1e-6)
        for ours, theirs in zip(state.model.parameters(), alone.model.parameters()):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-6) and not torch.allclose(ours, theirs * 1.01, rtol=0, atol=1e-6)
        ours, theirs = (one.optimizer.state_dict()["state"] for one in (state, alone))
        assert ours.keys() == theirs.keys() and all(ours[i]["step"] == theirs[i]["step"] == 100 for i in ours)
        assert all(torch.allclose(ours[i][key], theirs[i][key], rtol=1e-6, atol=1e-9) for i in ours for key in ("exp_avg", "exp_avg_sq"))


def test_a_member_in_bfloat16_has_the_gradient_of_its_single_run_up_to_that_precision(project):
    bfloat16 = torch.autocast("cpu", dtype=torch.bfloat16)

    def gradient(state):  # of the update made, as the first moments have it
        return torch.cat([state.optimizer.state[weight]["exp_avg"].flatten() for weight in state.model.parameters()])

    members = [member(torch.float32, seed=seed) for seed in (1, 2)]
    states, (cfg, _, windows) = [state for _, state, _ in members], members[0]
    indices = torch.stack([state.batches.draw(1) for state in states], dim=1)
    train, hand_back = stack.make_stacked_train(states, [windows] * 2, cfg, CPU, bfloat16, captures=False)
    train(indices, [1e-3])
    hand_back()
    for k, state in enumerate(states):
        for autocast, least, most in [(bfloat16, 0, 0.01), (contextlib.nullcontext(), 1e-4, 0.01)]:
            _, alone, _ = member(torch.float32, seed=k + 1)
            step = update.make_update(alone.model, alone.optimizer, alone.scaler, windows, cfg, autocast)
            update.make_eager_train(step, alone.optimizer)(indices[:, k], [1e-3])
            assert least <= (gradient(state) - gradient(alone)).norm() / gradient(alone).norm() < most


def make_stack(root, seeds, resume=False, asked=(), ends=None, **settings):
    runs = runs_by_name(grid(config="math_mini_14", seed=seeds))
    cfgs = [types.SimpleNamespace(**config_of(run) | SHORT | {"out_dir": str(root / name), "init_from": "resume" if resume else "scratch"} | settings)
            for name, run in runs.items()]
    said = []
    ended = stack.train_stack(cfgs, CPU, "float32", contextlib.nullcontext(), asked, said.append)
    if ends is not None:
        assert [Path(cfg.out_dir).name for cfg in ended] == ends
    return said


def test_a_stack_fills_the_folders_of_its_runs_as_single_runs_do(project, in_tmp, call):
    assert make_stack(in_tmp, [1, 2])[-1] == 40
    for seed in (1, 2):
        settings = [f"--{key}={value}" for key, value in SHORT.items()]
        assert call("train_with_eval.py", project / "config/train_math_mini_14.py", *settings, f"--seed={seed}", "--out_dir=alone", "--overwrite").returncode == 0
        folder = in_tmp / f"math_mini_14_seed_{seed}"
        assert {path.name for path in folder.iterdir()} == {path.name for path in (in_tmp / "alone").iterdir()}
        ours, theirs = rows_of(folder), rows_of(in_tmp / "alone")
        assert [row["iter"] for row in ours] == [row["iter"] for row in theirs] == ["0", "20", "40"]
        assert ours[0] == theirs[0]  # the same initial weights, scored alike
        assert [float(row["val_loss"]) for row in ours] == pytest.approx([float(row["val_loss"]) for row in theirs], abs=1e-4)
        a, b = (torch.load(path / "ckpt_last.pt", weights_only=True) for path in (folder, in_tmp / "alone"))
        assert a.keys() == b.keys() and torch.equal(a["batch_order"], b["batch_order"])
        assert all(torch.allclose(a["model"][name], b["model"][name], atol=1e-3) for name in b["model"])
        assert a["model"]["lm_head.weight"].untyped_storage().nbytes() == b["model"]["lm_head.weight"].untyped_storage().nbytes()


def test_a_stack_that_is_stopped_goes_on_as_if_it_had_not_been(project, in_tmp, call):
    make_stack(in_tmp / "whole", [1, 2])
    make_stack(in_tmp / "cut", [1, 2], max_iters=20)
    make_stack(in_tmp / "cut", [1, 2], resume=True)
    for name in ("math_mini_14_seed_1", "math_mini_14_seed_2"):
        assert (in_tmp / "whole" / name / "results.csv").read_bytes() == (in_tmp / "cut" / name / "results.csv").read_bytes()
    # Asked to stop it does, and a member can go on alone.
    said = make_stack(in_tmp / "asked", [1, 2], asked=[2], max_iters=20)
    assert said == [0]
    settings = [f"--{key}={value}" for key, value in SHORT.items()]
    alone = call("train_with_eval.py", project / "config/train_math_mini_14.py", *settings, "--seed=2", f"--out_dir={in_tmp}/cut/math_mini_14_seed_2",
                 "--max_iters=60", "--init_from=resume")
    assert alone.returncode == 0 and "this run was made by PyTorch, a stack of 2 until here" in alone.stderr, alone.stderr
    assert [row["iter"] for row in rows_of(in_tmp / "cut/math_mini_14_seed_2")] == ["0", "20", "40", "60"]


def test_a_member_that_cannot_go_on_with_the_others_is_left_and_they_end(project, in_tmp, capfd):
    def changed(seed, name, value):
        path = in_tmp / f"math_mini_14_seed_{seed}/ckpt_last.pt"
        last = torch.load(path, weights_only=True)
        last["model"][name][:] = value
        last["rows"] = last["rows"][:1]  # so that an evaluation is due
        torch.save(last, path)
        return path

    make_stack(in_tmp, range(1, 7), max_iters=20)
    make_stack(in_tmp, [4], resume=True, max_iters=40)  # at another iteration
    left = [changed(2, "transformer.wte.weight", torch.nan), changed(5, "transformer.h.0.attn.c_attn.weight", 1e25)]  # has a loss of nan
    left.append(in_tmp / "math_mini_14_seed_6/ckpt_last.pt")
    left[-1].write_bytes(left[-1].read_bytes()[:-100])
    before = [path.read_bytes() for path in left]
    make_stack(in_tmp, range(1, 7), resume=True, ends=["math_mini_14_seed_1", "math_mini_14_seed_3"])
    err = capfd.readouterr().err
    assert "math_mini_14_seed_2 at iteration 20 are not finite; it is left" in err
    assert "loss and weights at iteration 20 are not finite" in err and "math_mini_14_seed_6/ckpt_last.pt is damaged" in err
    assert [path.read_bytes() for path in left] == before
    assert [row["iter"] for row in rows_of(in_tmp / "math_mini_14_seed_3")] == ["0", "20", "40"]
    make_stack(in_tmp / "whole", [1, 3])
    for name in ("math_mini_14_seed_1", "math_mini_14_seed_3"):  # not touched by what the others are
        ours, theirs = ([float(row["val_loss"]) for row in rows_of(root / name)] for root in (in_tmp, in_tmp / "whole"))
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_a_stack_is_as_large_as_memory_allows():
    # What a member took in an update at most, bytes: measured on a CPU in float32, MLT's in bfloat16.
    took = {"math_mini_14_wd": 26e6, "both_mini_14": 50e6, "both_mini_28": 83e6, "both_mini_56_wd": 153e6, "math_mini_mlt_wd": 2247e6}
    for memory in (4e9, 40e9):
        of = {config: run_experiment.largest_stack(config_of({"config": config}), memory) for config in took}
        assert all(of[config] * took[config] <= memory for config in took)
    assert of["math_mini_14_wd"] == of["both_mini_56_wd"] == 100 and 1 < of["math_mini_mlt_wd"] < 10


def test_runs_that_scale_their_loss_train_alone(project, monkeypatch):
    monkeypatch.setattr(run_experiment, "setup_device", lambda device, dtype: (device, "float16", None))  # what auto is on an old GPU
    runs = runs_by_name(grid(config="math_mini_14", seed=[1, 2]))
    assert run_experiment.stacks_of(runs, dict.fromkeys(runs, 0), "cuda", 8e9) == []


def test_what_can_train_together_does(project, monkeypatch):
    monkeypatch.setattr(run_experiment, "LARGEST_STACK", 4)
    runs = runs_by_name(
        grid(config=["math_mini_14", "math_mini_28"], seed=range(1, 4)) + grid(config="math_mini_14_wd", seed=1)
        + grid(config="math_mini_mlt", seed=[1, 2]) + grid(config="facts_mini_14", seed=range(1, 7)))
    done = dict.fromkeys(runs, 0) | {"math_mini_28_seed_3": 250}
    assert run_experiment.stacks_of(runs, done, "cpu", 8e9) == [
        [f"math_mini_14_seed_{seed}" for seed in (1, 2, 3)],
        ["math_mini_28_seed_1", "math_mini_28_seed_2"],  # the third is further, the decay of _wd another
        [f"facts_mini_14_seed_{seed}" for seed in (1, 2, 3, 4)], ["facts_mini_14_seed_5", "facts_mini_14_seed_6"],
    ]


def test_an_experiment_trains_its_stacks_and_then_what_is_left(project, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(project)
    experiment = runs_by_name(grid(config="math_mini_14", seed=[1, 2, 3], line_seed=[1, 2], **SHORT) + grid(config="facts_mini_14", **SHORT))
    assert run_experiment.run_all(experiment, tmp_path, tmp_path / "mine", "cpu", 1, {"OMP_NUM_THREADS": "1"}, stack_memory=8e9) == []
    out = capfd.readouterr().out
    assert "and 5 like it 0 of 40" in out and out.count(": complete") == 7
    steps = {name: run.info["step"] for name, run in read_tables(tmp_path / "mine").items()}
    assert [step for name, step in steps.items() if name.startswith("math")] == ["PyTorch, a stack of 6"] * 6
    assert [step for name, step in steps.items() if name.startswith("facts")] == ["PyTorch"]


def test_runs_that_do_not_fit_into_memory_together_train_one_by_one(project, monkeypatch, tmp_path, capfd):
    def no_room(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    no_room.max_updates = 1
    monkeypatch.chdir(project)
    monkeypatch.setattr(stack, "make_stacked_train", lambda states, *_, **__: (no_room, lambda: torch.ones(len(states), dtype=torch.bool)))
    experiment = runs_by_name(grid(config="math_mini_14", seed=[1, 2], **SHORT))
    assert run_experiment.run_all(experiment, tmp_path, tmp_path / "mine", "cpu", 1, {"OMP_NUM_THREADS": "1"}, stack_memory=8e9) == []
    assert "2 runs like math_mini_14" in (err := capfd.readouterr().err) and err.endswith("do not fit into memory together; they train one by one\n")
    assert [run.info["step"] for run in read_tables(tmp_path / "mine").values()] == ["PyTorch"] * 2


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
