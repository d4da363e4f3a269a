"""Training and scoring on CUDA, as far as tensors without values show it; no GPU is needed."""

import contextlib
import os
import types

import numpy as np
import pytest
import torch
from fake_gpu import fake_cuda, settings, undo_seeding  # noqa: F401, fixtures
from fake_gpu import CPU, CUDA, OnCuda, autocast_of_gpu, fake_grad_and_value, new_state, no_scaler, tensors_in
from fake_gpu import windows_of
from torch._inductor import config as inductor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._pytree import tree_map

from study import StudyError, scoring, steps, update
from study.batches import Batches
from study.dataset import read_meta
from study.device import seed_everything, setup_device
from study.fast import captured, stack
from study.tasks import table_of, tasks_spelled_by


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["math_mini_14", "math_mini_mlt"])
def test_a_captured_update_has_every_tensor_on_the_gpu(settings, fake_cuda, monkeypatch, name, dtype):
    cfg = settings(name)
    autocast, on_cuda = autocast_of_gpu(dtype, monkeypatch), OnCuda()
    windows, vocab_size = windows_of(cfg)
    monkeypatch.setattr(captured, "capture", lambda function, *_: on_cuda.wrap(function))
    with fake_cuda:
        windows = fake_cuda.from_tensor(windows).to(CUDA)
        model, optimizer = update.build(cfg, vocab_size, CUDA)
        assert model.transformer.wte.weight is model.lm_head.weight  # still tied after the move
        assert all(group["capturable"] for group in optimizer.param_groups)  # else AdamW refuses a capture
        plain = update.make_update(model, optimizer, no_scaler(CUDA), windows, cfg, autocast)
        step = captured.make_captured_step(
            plain, list(model.parameters()), optimizer, (1, cfg.batch_size), CUDA, "captured")
        loss = step.run(Batches(len(windows), cfg, CUDA).draw(2), [1e-3, 2e-3])
        assert loss.device == CUDA and loss.shape == ()
        with pytest.raises(DataDependentOutputException):  # a test in which the host waits fails like this
            float(loss)
    assert on_cuda.count["aten._fused_adamw_"] == 4  # two groups of parameters, two updates
    assert ("aten.native_dropout" in on_cuda.count) == (cfg.dropout > 0)
    assert on_cuda.dtypes["aten.mm"] == {getattr(torch, dtype)}
    assert all(value.device == CUDA for state in optimizer.state.values() for value in state.values())
    assert step.max_updates == update.BLOCK


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_captured_stack_has_every_tensor_on_the_gpu(settings, fake_cuda, monkeypatch, dtype):
    cfg = settings("math_mini_14", "--weight_decay=0.1")
    autocast, on_cuda = autocast_of_gpu(dtype, monkeypatch), OnCuda()
    windows, vocab_size = windows_of(cfg)
    monkeypatch.setattr(captured, "capture", lambda function, *_: on_cuda.wrap(function))
    monkeypatch.setattr(torch.func, "grad_and_value", fake_grad_and_value)
    with fake_cuda:
        windows = fake_cuda.from_tensor(windows).to(CUDA)
        states = [new_state(cfg, windows, vocab_size, CUDA) for _ in range(3)]
        weights, optimizer = stack.stack_up(states, cfg)
        stacked = stack.make_stacked_update(
            states[0].model, weights, optimizer, torch.stack([windows] * 3), cfg, autocast)
        step = captured.make_captured_step(
            stacked, list(weights.values()), optimizer, (3, 1, cfg.batch_size), CUDA, "captured")
        indices = torch.stack([state.batches.draw(2) for state in states], dim=1)
        losses = step.run(indices, [1e-3, 2e-3])
        assert losses.device == CUDA and losses.shape == (3,)
        assert stack.hand_back(weights, optimizer, states).device == CUDA
    assert on_cuda.count["aten._fused_adamw_"] == 4  # two groups of parameters, two updates
    # Every product is one of all members. Attention made of products is in float32, as inside its own kernel.
    assert on_cuda.dtypes == {"aten.bmm": {getattr(torch, dtype), torch.float32}}
    assert step.max_updates == update.BLOCK


@pytest.mark.parametrize("name", ["math_mini_14", "math_mini_mlt"])
def test_an_eager_update_has_every_tensor_on_the_gpu(settings, fake_cuda, name):
    cfg = settings(name, "--gradient_accumulation_steps=2", "--batch_size=441")
    windows, vocab_size = windows_of(cfg)
    on_cuda = OnCuda()
    with fake_cuda:
        windows = fake_cuda.from_tensor(windows).to(CUDA)
        model, optimizer = update.build(cfg, vocab_size, CUDA)
        plain = update.make_update(model, optimizer, no_scaler(CUDA), windows, cfg, contextlib.nullcontext())
        step = update.make_eager_step(on_cuda.wrap(plain), optimizer)
        loss = step.run(Batches(len(windows), cfg, CUDA).draw(1), [1e-3])
        assert loss.device == CUDA and loss.shape == ()
    assert on_cuda.count["aten._fused_adamw_"] == 2 and on_cuda.count["aten.nll_loss_forward"] == 2


@pytest.mark.parametrize("name, dtype", [
    ("math_mini_14", "bfloat16"), ("both_mini_28", "float32"), ("math_mini_mlt", "float32"),
])
def test_an_evaluation_reads_from_the_gpu_in_one_function_only(settings, fake_cuda, monkeypatch, name, dtype):
    cfg = settings(name)
    autocast = autocast_of_gpu(dtype, monkeypatch)
    chars, meta = read_meta(cfg.dataset)
    waits, cpu_generator = [], torch.Generator

    def to_host(tensor):
        assert tensor.device == CUDA
        waits.append(tensor.dtype)
        if tensor.dtype == torch.float32:  # losses
            return np.full(tensor.shape, 2.5, dtype=np.float32)
        assert tensor.dtype == torch.int64 and tensor.dim() == 1  # characters; some of them end a sample
        return np.arange(len(tensor)) % len(chars)

    def generator(device):
        assert device == CUDA
        return cpu_generator()

    windows, vocab_size = windows_of(cfg)
    with fake_cuda:
        windows = fake_cuda.from_tensor(windows).to(CUDA)
        model, _ = update.build(cfg, vocab_size, CUDA)
        monkeypatch.setattr(scoring, "to_host", to_host)
        monkeypatch.setattr(torch, "Generator", generator)
        tasks = tasks_spelled_by(chars, table_of(meta))
        with OnCuda(uploads=True):
            splits = {"train": windows, "val": windows}
            row = scoring.evaluate(model, splits, chars, tasks, 0, cfg, autocast)
    assert row["train_loss"] == row["val_loss"] == 2.5 and row["add_total"] == 1000
    longest = 4 + 20 * ("both" in name)  # characters of the longest answers, and so reads
    assert waits == [torch.float32] + [torch.int64] * longest


def test_a_state_saved_on_the_cpu_is_loaded_onto_the_gpu(settings, fake_cuda, monkeypatch):
    cfg = settings("math_mini_14")
    windows, vocab_size = windows_of(cfg)
    generator_state, was_set = torch.arange(16, dtype=torch.uint8), []

    def get_rng_state(device):
        assert device == CUDA  # with its index
        return generator_state

    def set_rng_state(state, device):
        assert device == CUDA
        was_set.append(state)

    monkeypatch.setattr("torch.cuda.get_rng_state", get_rng_state)
    monkeypatch.setattr("torch.cuda.set_rng_state", set_rng_state)

    def train(state):
        on_gpu = fake_cuda.from_tensor(windows).to(CUDA)
        plain = update.make_update(
            state.model, state.optimizer, state.scaler, on_gpu, cfg, contextlib.nullcontext())
        update.make_eager_step(OnCuda().wrap(plain), state.optimizer).run(state.batches.draw(1), [1e-3])

    with fake_cuda:
        saved = new_state(cfg, windows, vocab_size, CUDA)
        train(saved)
        saved.rows, saved.iter_num = [{"iter": 0}], 1
        torch.rand(3)  # moves on the CPU's random state
        state = saved.state_dict()  # which torch.load reads onto the CPU
        on_cpu = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, state)
        assert all(tensor.device == CPU for tensor in tensors_in(on_cpu))

        resumed = new_state(cfg, windows, vocab_size, CUDA)
        parameters = list(resumed.model.parameters())
        resumed.load_state_dict(on_cpu)
        assert all(a is b for a, b in zip(parameters, resumed.model.parameters(), strict=True))
        assert all(parameter.device == CUDA for parameter in parameters)
        assert len(resumed.optimizer.state) == len(parameters)
        assert all(group["capturable"] for group in resumed.optimizer.param_groups)
        for values in resumed.optimizer.state.values():
            assert values.keys() == {"step", "exp_avg", "exp_avg_sq"}
            assert all(value.device == CUDA and value.dtype == torch.float32 for value in values.values())
        train(resumed)
    [state] = was_set
    assert torch.equal(state, generator_state)
    assert resumed.rows == [{"iter": 0}] and resumed.iter_num == 1


@pytest.fixture
def two_gpus(monkeypatch):
    """Stands in for a machine with two GPUs; lists the calls, in order, and sets if they have bfloat16."""
    gpus = types.SimpleNamespace(calls=[], bfloat16=True)

    def set_device(device):
        index = torch.cuda._utils._get_device_index(device)  # like the real one: ValueError without an index
        if index > 1:
            raise RuntimeError("CUDA error: invalid device ordinal")
        gpus.calls.append(("set_device", index))

    def is_bf16_supported(including_emulation=True):
        gpus.calls.append("is_bf16_supported")
        return gpus.bfloat16 or including_emulation

    def empty(size, device):
        gpus.calls.append(("tensor", torch.device(device).index))

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", set_device)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr("torch.empty", empty)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return gpus


@pytest.mark.parametrize("device_setting, local_rank, index", [
    ("cuda", None, 0), ("auto", None, 0), ("cuda:0", None, 0), ("cuda:1", None, 1),
    ("cuda", "1", 1), ("auto", "1", 1), ("cuda:0", "1", 1), ("cuda", "0", 0),
])
def test_a_gpu_is_chosen_by_index_before_anything_is_put_on_it(
        two_gpus, monkeypatch, device_setting, local_rank, index):
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    device, _, _ = setup_device(device_setting, "float32")
    assert device == torch.device("cuda", index)
    assert two_gpus.calls == [("set_device", index), ("tensor", index)]


def test_a_gpu_that_does_not_exist_is_refused(two_gpus):
    with pytest.raises(StudyError, match="device 'cuda:2' is not available"):
        setup_device("cuda:2")


@pytest.mark.parametrize("has_bfloat16, dtype_setting, dtype", [
    (True, "auto", "bfloat16"), (False, "auto", "float16"),  # PyTorch can emulate bfloat16 there, slowly
    (True, "float16", "float16"), (False, "float32", "float32"),
])
def test_a_gpu_computes_in_bfloat16_if_it_can(two_gpus, has_bfloat16, dtype_setting, dtype):
    two_gpus.bfloat16 = has_bfloat16
    _, name, autocast = setup_device("cuda", dtype_setting)
    assert name == dtype
    if dtype == "float32":
        assert isinstance(autocast, contextlib.nullcontext)
    else:
        assert (autocast.device, autocast.fast_dtype) == ("cuda", getattr(torch, dtype))
    assert two_gpus.calls[0] == ("set_device", 0)  # PyTorch looks for bfloat16 on the current GPU


def test_seeding_a_gpu_makes_it_deterministic(undo_seeding):
    seed_everything(1, CUDA)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()  # which would only warn
    assert inductor.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark and not torch.backends.cuda.cudnn_sdp_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32


def test_seeding_the_cpu_leaves_the_gpu_settings_as_they_are(undo_seeding):
    seed_everything(1, CPU)
    assert not torch.are_deterministic_algorithms_enabled() and not inductor.deterministic


COMPILED, CAPTURED = "PyTorch, compiled", "PyTorch, one CUDA graph an update"
BOTH = "PyTorch, compiled, one CUDA graph an update"
C_STEP, SHARED, MASKS = "C step", "PyTorch, contexts shared", "PyTorch, 16-bit masks"


@pytest.mark.parametrize("device, compile, cuda_graph, scales, processes, names", [
    ("cuda:0", "auto", "auto", False, 1, [BOTH, CAPTURED]),
    ("cuda:0", True, True, False, 1, [BOTH, CAPTURED]),
    ("cuda:0", False, "auto", False, 1, [CAPTURED]),
    ("cuda:0", "auto", False, False, 1, [COMPILED]),
    ("cuda:0", False, False, False, 1, []),
    ("cuda:0", "auto", "auto", True, 1, [COMPILED]),  # the host reads the scale in every update
    ("cuda:0", False, True, True, 1, []),
    ("cuda:0", "auto", "auto", False, 2, []),  # the host has the gradients exchanged
    ("cuda:0", True, True, False, 2, [COMPILED]),
    ("cpu", "auto", "auto", False, 1, []),
    ("cpu", True, True, False, 1, [COMPILED]),
])
def test_compiling_and_capturing_depend_on_settings_processes_and_loss_scale(
        settings, fake_cuda, monkeypatch, device, compile, cuda_graph, scales, processes, names):
    cfg = settings("math_mini_14", "--fast=False", f"--compile={compile}", f"--cuda_graph={cuda_graph}")
    windows, vocab_size = windows_of(cfg)
    device, compiled, graphs = torch.device(device), [], []
    monkeypatch.setattr(torch, "compile", lambda function, *_, **__: compiled.append(function) or function)
    monkeypatch.setattr(captured, "capture", lambda function, *_: graphs.append(function) or function)
    with fake_cuda:
        state = new_state(cfg, windows, vocab_size, device)
        state.scaler = types.SimpleNamespace(is_enabled=lambda: scales)
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: processes > 1)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: processes)
        offered = steps.fast_steps(
            state, windows, cfg, "float32", contextlib.nullcontext(), lambda batches: None)
        assert [name for name, _ in offered] == names
        for name, make in offered:
            compiled.clear(), graphs.clear()
            step = make()
            assert step.name == name and step.max_updates == (update.BLOCK if "graph" in name else 1)
            assert (len(compiled), len(graphs)) == ("compiled" in name, "graph" in name)
            for group in state.optimizer.param_groups:  # a number would be a constant of what is made
                assert group["lr"].device == device and group["lr"].dtype == torch.float32


@pytest.mark.parametrize("arguments, dtype, processes, names", [
    ("", "float32", 1, [C_STEP]),
    ("--compile=True", "float32", 1, [C_STEP, COMPILED]),
    ("--fast=False", "float32", 1, []),
    ("", "bfloat16", 1, []),
    ("", "float32", 2, []),
    ("--n_head=2", "float32", 1, []),
    ("--bias=True", "float32", 1, []),
    ("--dropout=0.1", "float32", 1, [MASKS]),
    ("--dropout=0.1", "bfloat16", 1, [MASKS]),
    ("--dropout=0.1", "float32", 2, []),
    ("--dropout=0.1 --fast=False", "float32", 1, []),
    ("--n_layer=2", "float32", 1, [SHARED]),
    ("--n_layer=2", "bfloat16", 1, [SHARED]),
    ("--n_layer=2 --compile=True", "float32", 1, [COMPILED]),
    ("--n_layer=2 --dropout=0.1", "float32", 1, [MASKS]),
    ("--n_layer=2 --dropout=0.1 --compile=True", "float32", 1, [COMPILED]),
    ("--n_layer=2 --fast=False", "float32", 1, []),
    ("--n_layer=2", "float32", 2, []),
])
def test_on_a_cpu_each_fast_step_is_offered_to_the_models_it_fits(
        settings, monkeypatch, arguments, dtype, processes, names):
    cfg = settings("math_mini_14", *arguments.split())
    windows, vocab_size = windows_of(cfg)
    state = new_state(cfg, windows, vocab_size, CPU)
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: processes > 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: processes)
    offered = steps.fast_steps(state, windows, cfg, dtype, contextlib.nullcontext(), lambda batches: None)
    assert [name for name, _ in offered] == names
