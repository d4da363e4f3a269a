"""Captured, compiled and stacked steps make the plain step's updates; those that do not are refused.

No GPU is needed: see cpu_as_cuda in fake_gpu.py.
"""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from conftest import rows_of
from fake_gpu import cpu_as_cuda, settings, undo_seeding  # noqa: F401, fixtures
from fake_gpu import CPU, CUDA, Recording, everything_in, new_state, same, windows_of

import train_with_eval
from study import StudyError, steps, update
from study.fast import captured, compiled, stack

COMPILED, CAPTURED = "PyTorch, compiled", "PyTorch, one CUDA graph an update"
BOTH = "PyTorch, compiled, one CUDA graph an update"


def plain_step(state, windows, cfg):
    plain = update.make_update(
        state.model, state.optimizer, state.scaler, windows, cfg, contextlib.nullcontext())
    return update.make_eager_step(plain, state.optimizer)


def train(step, state, cfg, updates):
    """Make so many updates and return the last loss."""
    while updates:
        now = min(updates, step.max_updates)
        lrs = [update.get_lr(state.iter_num + i, cfg) for i in range(now)]
        loss = step.run(state.batches.draw(now), lrs)
        state.iter_num, updates = state.iter_num + now, updates - now
    return float(loss)


def begin(settings, *arguments, updates=0, seed=1):
    """(cfg, windows, TrainingState on CUDA after so many plain updates)"""
    cfg = settings("math_mini_14", "--batch_size=64", f"--seed={seed}", *arguments)
    windows, vocab_size = windows_of(cfg)
    state = new_state(cfg, windows, vocab_size, CUDA)
    if updates:
        train(plain_step(state, windows, cfg), state, cfg, updates)
    return cfg, windows, state


def begin_with_lr_in_tensor(settings, *arguments, updates):
    """What begin() returns, to train with learning rates that are rounded as for a graph."""
    cfg, windows, state = begin(settings, *arguments, updates=updates)
    update.hold_lr_in_tensor(state.optimizer, CUDA)
    return cfg, windows, state


def choose(cfg, windows, state, earlier=None):
    return steps.choose_step(state, windows, cfg, "float32", contextlib.nullcontext(), earlier)


@pytest.mark.parametrize("earlier", [0, 3])
def test_a_capture_changes_nothing_and_its_launches_equal_eager_updates(settings, cpu_as_cuda, earlier):
    # Dropout needs the random state; learning rates differ much from update to update.
    arguments = ("--dropout=0.2", "--warmup_iters=20", "--learning_rate=2e-2")
    cfg, windows, state = begin(settings, *arguments, updates=earlier)
    plain = update.make_update(
        state.model, state.optimizer, state.scaler, windows, cfg, contextlib.nullcontext())
    before, calls = everything_in(state), []

    def counted(batches):
        calls.append(cpu_as_cuda.current)
        if len(calls) <= 3:  # make the warm-up move the weights far
            for group in state.optimizer.param_groups:
                group["lr"].fill_(1.0)
        return plain(batches)

    parameters = list(state.model.parameters())
    step = captured.make_captured_step(counted, parameters, state.optimizer, (1, 64), CUDA, "captured")
    [side] = set(calls[:3])  # PyTorch wants the warm-up on a stream of its own
    assert side not in (cpu_as_cuda.main, cpu_as_cuda.capturing) and calls[3:] == [cpu_as_cuda.capturing]
    assert side.waited_for == [cpu_as_cuda.main] and cpu_as_cuda.main.waited_for == [side]
    after = everything_in(state)
    assert all(lr.shape == () and lr.dtype == torch.float32 for lr in after.pop("learning rates"))
    assert same(after, {key: value for key, value in before.items() if key != "learning rates"})

    losses = [train(step, state, cfg, updates) for updates in (4, 3)]
    ours = everything_in(state)
    assert len(calls) == 4  # the graph ran and nothing else
    _, _, eager = begin_with_lr_in_tensor(settings, *arguments, updates=earlier)
    eager_step = plain_step(eager, windows, cfg)
    assert losses == [train(eager_step, eager, cfg, updates) for updates in (4, 3)]
    assert same(ours, everything_in(eager))


@pytest.mark.parametrize("earlier", [0, 3])
def test_a_captured_stack_equals_its_eager_updates(settings, cpu_as_cuda, earlier):
    def trained(cuda_graph):
        arguments = ("--weight_decay=0.1", f"--cuda_graph={cuda_graph}")
        members = [begin(settings, *arguments, updates=earlier, seed=seed) for seed in (1, 2)]
        cfg, windows, _ = members[0]
        states = [state for _, _, state in members]
        step, hand_back, refused = steps.choose_stack_step(
            states, [windows] * 2, cfg, CUDA, "float32", contextlib.nullcontext())
        assert ("CUDA graph" in step.name) == (cuda_graph == "auto") and refused == {}
        for i in range(7):
            indices = torch.stack([state.batches.draw(1) for state in states], dim=1)
            losses = step.run(indices, [1e-3 * (i + 1)]).clone()
        assert hand_back().tolist() == [True, True]
        return losses, [everything_in(state) for state in states]

    (losses, ours), (expected, theirs) = trained("auto"), trained(False)
    assert torch.allclose(losses, expected, atol=1e-6)
    for our, their in zip(ours, theirs):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(our["weights"], their["weights"]))
        assert all(a["step"] == b["step"] == earlier + 7 for a, b in zip(our["moments"], their["moments"]))


@pytest.mark.parametrize("arguments, updates", [("", 0), ("", 5), ("--dropout=0.3", 0), ("--dropout=0.3", 5)])
def test_a_captured_step_passes_the_trial_which_changes_nothing(settings, cpu_as_cuda, arguments, updates):
    cfg, windows, state = begin(settings, "--compile=False", *arguments.split(), updates=updates)
    before = everything_in(state)
    step, refused = choose(cfg, windows, state)
    assert step.name == CAPTURED and refused == {}
    after = everything_in(state)
    before.pop("learning rates"), after.pop("learning rates")  # which the graph reads from tensors
    assert same(after, before)
    train(step, state, cfg, 7)
    ours = everything_in(state)  # with the random state now
    _, _, plain = begin_with_lr_in_tensor(settings, *arguments.split(), updates=updates)
    train(plain_step(plain, windows, cfg), plain, cfg, 7)
    assert same(ours, everything_in(plain))


class ForgetsLearningRate(Recording):
    def launch(self, func, args, kwargs):
        into_scalar = func is torch.ops.aten.copy_.default and args[0].dim() == 0
        return args[0] if into_scalar else func(*args, **kwargs)


class RepeatsBatch(Recording):
    def launch(self, func, args, kwargs):
        adds_one = func is torch.ops.aten.add_.Tensor and args[0].dtype == torch.int64
        return args[0] if adds_one else func(*args, **kwargs)


class DoublesGradient(Recording):
    def launch(self, func, args, kwargs):
        if func is torch.ops.aten._fused_adamw_.tensor_lr:
            args = (args[0], [2 * gradient for gradient in args[1]], *args[2:])
        return func(*args, **kwargs)


class ForgetsWeights(Recording):
    """Of two groups of parameters it updates only the first."""

    def launch(self, func, args, kwargs):
        fused = [operation for operation, *_ in self.operations if operation is func]
        self.launched = getattr(self, "launched", 0) + (func is torch.ops.aten._fused_adamw_.tensor_lr)
        skips = func is torch.ops.aten._fused_adamw_.tensor_lr and self.launched % len(fused) == 0
        return None if skips else func(*args, **kwargs)


class CannotReplay(Recording):
    def replay(self):
        raise torch.AcceleratorError("CUDA error: invalid argument\nCompile with TORCH_USE_CUDA_DSA")


def read_by_the_host(monkeypatch):
    """Make a capture fail as it does on a GPU where the host reads a value."""

    def fails(self, func, types, args=(), kwargs=None):
        raise RuntimeError("Cannot copy between CPU and CUDA tensors\nduring CUDA graph capture")

    monkeypatch.setattr(Recording, "__torch_dispatch__", fails)


def replay_wrong(graph):
    return lambda monkeypatch: monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)


@pytest.mark.parametrize("updates", [0, 5])
@pytest.mark.parametrize("fault, reason", [
    (read_by_the_host, "Cannot copy between CPU and CUDA tensors"),
    (replay_wrong(CannotReplay), "CUDA error: invalid argument"),
    (replay_wrong(ForgetsLearningRate), "is off by"),
    (replay_wrong(RepeatsBatch), "loss"),
    (replay_wrong(DoublesGradient), "is off by"),
    (replay_wrong(ForgetsWeights), "is off by"),
])
def test_a_capture_that_fails_or_is_wrong_is_refused_and_the_plain_step_trains(
        settings, cpu_as_cuda, monkeypatch, fault, reason, updates):
    monkeypatch.setattr(compiled, "compile_update", lambda update: update)
    cfg, windows, state = begin(settings, updates=updates)
    before = everything_in(state)
    with monkeypatch.context() as patch:
        fault(patch)
        step, refused = choose(cfg, windows, state)
    assert step.name == "PyTorch" and list(refused) == [BOTH, CAPTURED]
    assert all(reason in why and "\n" not in why for why in refused.values()), refused
    assert cpu_as_cuda.current is cpu_as_cuda.main
    assert same(everything_in(state), before)  # learning rates are numbers again
    train(step, state, cfg, 7)
    ours = everything_in(state)
    _, _, plain = begin(settings, updates=updates)
    train(plain_step(plain, windows, cfg), plain, cfg, 7)
    assert same(ours, everything_in(plain))


def compile_raises(monkeypatch, state):
    def no_triton(update):
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(compiled, "compile_update", no_triton)


def compiled_update_raises(monkeypatch, state):
    """torch.compile works when its function is first called, here with the gradients computed."""

    def compile_update(update):
        def fails(batches):
            state.model(0 * batches[0][:, None])[0].sum().backward()
            raise RuntimeError("CalledProcessError: no C compiler was found\n\nSet TORCHDYNAMO_VERBOSE=1")

        return fails

    monkeypatch.setattr(compiled, "compile_update", compile_update)


def change_gradients(factor, only=""):
    def fault(monkeypatch, state):
        def compile_update(update):
            def wrong(batches):
                hooks = [parameter.register_hook(lambda gradient: factor * gradient)
                         for name, parameter in state.model.named_parameters() if only in name]
                assert hooks
                try:
                    return update(batches)
                finally:
                    for hook in hooks:
                        hook.remove()

            return wrong

        monkeypatch.setattr(compiled, "compile_update", compile_update)

    return fault


@pytest.mark.parametrize("cuda_graph, first, next_name", [
    ("auto", BOTH, CAPTURED), (False, COMPILED, "PyTorch"),
])
@pytest.mark.parametrize("fault, reason", [
    (compile_raises, "No module named 'triton'"),
    (compiled_update_raises, "no C compiler was found"),
    (change_gradients(2), "is off by"),
    (change_gradients(-1, only="mlp.c_fc"), "update of transformer.h.0.mlp.c_fc.weight"),
    (change_gradients(0, only="ln_1"), "update of transformer.h.0.ln_1.weight"),
    (change_gradients(1.05), "is off by"),
])
def test_a_compiled_update_that_fails_or_is_wrong_is_refused_and_the_next_step_trains(
        settings, cpu_as_cuda, monkeypatch, fault, reason, cuda_graph, first, next_name):
    arguments = (f"--cuda_graph={cuda_graph}", "--grad_clip=0")  # which would hide a factor
    cfg, windows, state = begin(settings, *arguments, updates=5)
    before = everything_in(state)
    fault(monkeypatch, state)
    step, refused = choose(cfg, windows, state)
    assert step.name == next_name and list(refused) == [first]
    assert reason in refused[first] and "\n" not in refused[first], refused
    after = everything_in(state)
    if next_name == CAPTURED:
        before.pop("learning rates"), after.pop("learning rates")
    assert same(after, before)
    train(step, state, cfg, 7)
    ours = everything_in(state)
    like_before = begin_with_lr_in_tensor if next_name == CAPTURED else begin
    _, _, plain = like_before(settings, *arguments, updates=5)
    train(plain_step(plain, windows, cfg), plain, cfg, 7)
    assert same(ours, everything_in(plain))


def stacks_with_mixed_up_members(make_stacked_update):
    def make(*arguments):
        update = make_stacked_update(*arguments)
        return lambda batches: update(batches.flip(0))

    return make


def test_a_stack_is_refused_if_it_is_wrong_and_only_its_graph_if_that_is(settings, cpu_as_cuda, monkeypatch):
    members = [begin(settings, updates=5, seed=seed) for seed in (1, 2)]
    cfg, windows, _ = members[0]
    states = [state for _, _, state in members]
    before = [everything_in(state) for state in states]

    def choose_stack():
        return steps.choose_stack_step(states, [windows] * 2, cfg, CUDA, "float32", contextlib.nullcontext())

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "CUDAGraph", DoublesGradient)
        step, _, refused = choose_stack()
    [(name, reason)] = refused.items()
    assert step.name == "PyTorch, a stack of 2" and name == f"{step.name}, one CUDA graph an update"
    assert "is off by" in reason
    assert same([everything_in(state) for state in states], before)

    monkeypatch.setattr(stack, "make_stacked_update", stacks_with_mixed_up_members(stack.make_stacked_update))
    with pytest.raises(StudyError) as error:
        choose_stack()
    assert step.name in str(error.value) and name in str(error.value) and "loss" in str(error.value)
    assert same([everything_in(state) for state in states], before)


@pytest.fixture
def train_on_cuda(settings, cpu_as_cuda, monkeypatch, in_tmp):
    """train_on_cuda(folder, *arguments) -> (results.csv, run.json) of a short run on cpu_as_cuda."""
    cpu_generator, set_up = torch.Generator, (CUDA, "float32", contextlib.nullcontext())
    monkeypatch.setattr(train_with_eval, "setup_device", lambda *_: set_up)
    monkeypatch.setattr(torch, "Generator", lambda device=CPU: cpu_generator())

    def run(folder, *arguments):
        cfg = settings("math_mini_14", "--batch_size=64", "--max_iters=20", "--eval_interval=10",
                       "--warmup_iters=5", f"--out_dir={folder}", *arguments)
        assert train_with_eval.train(cfg).iter_num == 20
        return Path(folder, "results.csv").read_bytes(), json.loads(Path(folder, "run.json").read_text())

    return run


def test_a_run_whose_faster_steps_fail_ends_with_the_bytes_of_the_plain_step_and_says_why(
        train_on_cuda, monkeypatch, capsys):
    plain, info = train_on_cuda("plain", "--compile=False", "--cuda_graph=False")
    assert info["step"] == "PyTorch" and info["step_refused"] == {}
    compile_raises(monkeypatch, None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", ForgetsLearningRate)
    capsys.readouterr()
    results, info = train_on_cuda("refused")
    assert results == plain and info["step"] == "PyTorch"
    assert list(info["step_refused"]) == [BOTH, CAPTURED]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "triton" in lines[0] and "is off by" in lines[1]
    for line, (name, reason) in zip(lines, info["step_refused"].items()):
        assert name in line and reason in line
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    _, info = train_on_cuda("captured")
    assert info["step"] == CAPTURED and list(info["step_refused"]) == [BOTH]
    ours, theirs = ([float(row["val_loss"]) for row in rows_of(folder)] for folder in ("captured", "plain"))
    assert ours == pytest.approx(theirs, abs=1e-5)  # a graph has learning rates in float32
