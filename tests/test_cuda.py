"""Training and scoring on CUDA: what can be tested without a GPU, and at the end what needs one.

Without one, PyTorch's FakeTensorMode takes its place: tensors that say they are on cuda:0 and have
shapes but no values. It raises where tensors of two devices meet and where the host reads a value.
"""

import contextlib
import csv
import ctypes
import math
import os
import shutil
import signal
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHORT
from torch._inductor import config as inductor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import train_with_eval
from study import StudyError
from study.dataset import read_meta
from study.tasks import tasks_spelled_by
from study import scoring, update
from study.fast import stack
from study.batches import Batches, load_splits
from study.device import seed_everything, setup_device
from study.settings import configure
from study.state import TrainingState

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
DROPOUT = ("--dropout=0.3", "--n_embd=16", "--n_head=2", "--batch_size=64")
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_a_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="needs a C++ compiler")


@pytest.fixture
def settings(project, monkeypatch):
    """settings(name, *arguments) -> what train_with_eval.py is given by config/train_<name>.py."""

    def settings(name, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["train_with_eval.py", str(project / "config" / f"train_{name}.py"), *arguments])
            patch.setattr("signal.signal", lambda *_: None)  # Ctrl-C stays pytest's
            return configure(vars(train_with_eval))

    return settings


@pytest.fixture
def put_back(monkeypatch):
    """Sets what seed_everything sets for CUDA to the opposite, and puts it back after the test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    with inductor.patch(deterministic=False):
        yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)


@pytest.fixture
def fake_gpu(monkeypatch, put_back):
    """A FakeTensorMode, not entered yet, and stand-ins for what it cannot do without a GPU."""
    mode = FakeTensorMode()

    def swap_tensors(first, second):  # Module.to swaps fake parameters, but not while the mode has them noted
        mode.fake_tensor_converter.meta_converter.tensor_memo.clear()
        swap(first, second)

    swap = torch.utils.swap_tensors
    monkeypatch.setattr(torch.utils, "swap_tensors", swap_tensors)
    monkeypatch.setattr(torch.Tensor, "backward", fake_backward)
    with a_guard_for_cuda():
        yield mode


@contextlib.contextmanager
def a_guard_for_cuda():
    """Gives a PyTorch without CUDA what its operators ask for when they meet a tensor on cuda: a device guard.

    Where PyTorch has CUDA but the machine no GPU, FakeTensorMode replaces the guard by one that does
    nothing. Here it is the device meta's, which does nothing either.
    """
    kinds = torch._C._autograd.DeviceType
    library = next((Path(torch.__file__).parent / "lib").glob("libc10.*"))
    guards = (ctypes.c_void_p * 21).in_dll(ctypes.CDLL(str(library)), "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[int(kinds.CUDA)]
    guards[int(kinds.CUDA)] = before or guards[int(kinds.Meta)]
    yield
    guards[int(kinds.CUDA)] = before


def fake_backward(loss):
    """Gives every parameter that the loss depends on a gradient on its device; the autograd engine wants a real GPU."""
    nodes, seen = [loss.grad_fn], {None}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
            if hasattr(node, "variable"):
                before = node.variable.grad
                gradient = torch.empty_like(node.variable)
                node.variable.grad = gradient if before is None else before + gradient


def fake_grad_and_value(function):
    """torch.func.grad_and_value with gradients that have shapes alone, for the same reason."""
    return lambda weights, *arguments: ({name: torch.empty_like(weight) for name, weight in weights.items()}, function(weights, *arguments))


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class OnCuda(TorchDispatchMode):
    """Inside it every tensor of every operation must be on cuda:0, as in a CUDA graph; counts the operations.

    uploads=True: tensors may come from the CPU, but what an operation makes of one on cuda:0 is there too.
    """

    def __init__(self, uploads=False):
        super().__init__()
        self.uploads = uploads
        self.count = {}  # operation -> how often
        self.dtypes = {}  # matrix product -> dtypes of its factors

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = str(func.overloadpacket), kwargs or {}
        if name == "prim.device":  # a question, and one that PyTorch asks where it can bear no exception
            return func(*args, **kwargs)
        result = None if name == "aten._fused_adamw_" else func(*args, **kwargs)  # for that there is no fake version
        given, made = tensors_in((args, kwargs)), tensors_in(result)
        if not self.uploads or any(tensor.device == CUDA for tensor in given):
            for tensor in made if self.uploads else given + made:
                assert tensor.device == CUDA, f"{func} has a tensor on {tensor.device}"
        self.count[name] = self.count.get(name, 0) + 1
        if name in ("aten.mm", "aten.bmm"):
            self.dtypes[name] = self.dtypes.get(name, set()) | {tensor.dtype for tensor in given}
        return result

    def around(self, function):
        def inside(*arguments):
            with self:
                return function(*arguments)

        return inside


def windows_of(cfg):
    """(training windows on the CPU, size of the vocabulary)"""
    windows = load_splits(cfg.dataset, cfg.block_size, CPU)["train"]
    return windows, int(windows.max()) + 1


def no_scaler(device):
    return torch.amp.GradScaler(device.type, enabled=False)


def autocast_to(dtype, monkeypatch):
    """setup_device's autocast context of a GPU."""
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr("torch.cuda.set_device", lambda device: None)
        patch.setattr("torch.empty", lambda size, device: None)
        return setup_device("cuda", dtype)[2]


def same_state(first, second):
    """Whether two optimizers' states, or copies of them, are equal to the last bit."""
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(first, second))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["math_mini_14", "math_mini_mlt"])
def test_a_captured_update_runs_with_every_tensor_on_the_gpu(settings, fake_gpu, monkeypatch, name, dtype):
    cfg = settings(name)
    autocast, on_cuda = autocast_to(dtype, monkeypatch), OnCuda()
    windows, vocab_size = windows_of(cfg)
    with fake_gpu:
        windows = fake_gpu.from_tensor(windows).to(CUDA)
        model, optimizer = update.build(cfg, vocab_size, CUDA)
        assert model.transformer.wte.weight is model.lm_head.weight  # moving did not tear them apart
        assert all(group["capturable"] for group in optimizer.param_groups)  # else AdamW refuses to be captured
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(math.nan, device=CUDA)
        step = update.make_update(model, optimizer, no_scaler(CUDA), windows, cfg, autocast)
        train = update.make_captured_train(step, model, optimizer, (1, cfg.batch_size), CUDA, lambda step, *_: on_cuda.around(step))
        loss = train(Batches(len(windows), cfg, CUDA).draw(2), [1e-3, 2e-3])
        assert loss.device == CUDA and loss.shape == ()
        with pytest.raises(DataDependentOutputException):  # this is how a test fails in which the host waits
            float(loss)
    assert on_cuda.count["aten._fused_adamw_"] == 4  # two groups of parameters, two updates
    assert ("aten.native_dropout" in on_cuda.count) == (cfg.dropout > 0)
    assert on_cuda.dtypes["aten.mm"] == {getattr(torch, dtype)}
    assert all(value.device == CUDA for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_captured_stack_runs_with_every_tensor_on_the_gpu(settings, fake_gpu, monkeypatch, dtype):
    cfg = settings("math_mini_14", "--weight_decay=0.1")
    autocast, on_cuda = autocast_to(dtype, monkeypatch), OnCuda()
    windows, vocab_size = windows_of(cfg)
    monkeypatch.setattr(stack, "cuda_graph", lambda step, *_: on_cuda.around(step))
    monkeypatch.setattr(torch.func, "grad_and_value", fake_grad_and_value)
    with fake_gpu:
        windows = fake_gpu.from_tensor(windows).to(CUDA)
        states = [TrainingState(*update.build(cfg, vocab_size, CUDA), no_scaler(CUDA), Batches(len(windows), cfg, CUDA), CUDA) for _ in range(3)]
        train, hand_back = stack.make_stacked_train(states, [windows] * 3, cfg, CUDA, autocast, captures=True)
        losses = train(torch.stack([state.batches.draw(2) for state in states], dim=1), [1e-3, 2e-3])
        assert losses.device == CUDA and losses.shape == (3,)
        hand_back()
    assert on_cuda.count["aten._fused_adamw_"] == 4  # two groups of parameters, two updates, for all members at once
    # Every product is one of all members. Attention made of products is in float32, as a kernel of it is inside.
    assert on_cuda.dtypes == {"aten.bmm": {getattr(torch, dtype), torch.float32}}
    assert train.max_updates == update.BLOCK


@pytest.mark.parametrize("name", ["math_mini_14", "math_mini_mlt"])
def test_an_eager_update_runs_with_every_tensor_on_the_gpu(settings, fake_gpu, name):
    cfg = settings(name, "--gradient_accumulation_steps=2", "--batch_size=441")
    windows, vocab_size = windows_of(cfg)
    on_cuda = OnCuda()
    with fake_gpu:
        windows = fake_gpu.from_tensor(windows).to(CUDA)
        model, optimizer = update.build(cfg, vocab_size, CUDA)
        step = update.make_update(model, optimizer, no_scaler(CUDA), windows, cfg, contextlib.nullcontext())
        train = update.make_eager_train(on_cuda.around(step), optimizer)
        loss = train(Batches(len(windows), cfg, CUDA).draw(1), [1e-3])
        assert loss.device == CUDA and loss.shape == ()
    assert on_cuda.count["aten._fused_adamw_"] == 2 and on_cuda.count["aten.nll_loss_forward"] == 2


@pytest.mark.parametrize("name, dtype", [
    ("math_mini_14", "bfloat16"), ("both_mini_28", "float32"), ("math_mini_mlt", "float32"),
])
def test_an_evaluation_reads_the_gpu_in_one_place_only(settings, fake_gpu, monkeypatch, name, dtype):
    cfg = settings(name)
    autocast = autocast_to(dtype, monkeypatch)
    chars, meta = read_meta(cfg.dataset)
    waits, cpu_generator = [], torch.Generator

    def to_host(tensor):
        assert tensor.device == CUDA
        waits.append(tensor.dtype)
        if tensor.dtype == torch.float32:  # losses
            return np.full(tensor.shape, 2.5, dtype=np.float32)
        assert tensor.dtype == torch.int64 and tensor.dim() == 1  # characters: some end their samples, some do not
        return np.arange(len(tensor)) % len(chars)

    def generator(device):
        assert device == CUDA
        return cpu_generator()

    windows, vocab_size = windows_of(cfg)
    with fake_gpu:
        windows = fake_gpu.from_tensor(windows).to(CUDA)
        model, _ = update.build(cfg, vocab_size, CUDA)
        monkeypatch.setattr(scoring, "to_host", to_host)
        monkeypatch.setattr(torch, "Generator", generator)
        tasks = tasks_spelled_by(chars, meta["held_out"])
        with OnCuda(uploads=True):
            row = scoring.evaluate(model, {"train": windows, "val": windows}, chars, tasks, 0, cfg, autocast)
    assert row["train_loss"] == row["val_loss"] == 2.5 and row["add_total"] == 1000
    longest = 4 + 20 * ("both" in name)  # characters of an answer, and so waits of each task
    assert waits == [torch.float32] + [torch.int64] * longest


def test_a_state_saved_on_the_cpu_is_loaded_onto_the_gpu(settings, fake_gpu, monkeypatch):
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

    def fresh():
        model, optimizer = update.build(cfg, vocab_size, CUDA)
        batches = Batches(len(windows), cfg, CUDA)
        return TrainingState(model, optimizer, no_scaler(CUDA), batches, CUDA)

    def train(state):
        fake_windows = fake_gpu.from_tensor(windows).to(CUDA)
        step = update.make_update(state.model, state.optimizer, state.scaler, fake_windows, cfg, contextlib.nullcontext())
        update.make_eager_train(OnCuda().around(step), state.optimizer)(state.batches.draw(1), [1e-3])

    with fake_gpu:
        saved = fresh()
        train(saved)
        saved.rows, saved.iter_num = [{"iter": 0}], 1
        torch.rand(3)  # moves on the CPU's random state
        state = saved.state_dict()
        moved = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, state)  # as torch.load does
        assert all(tensor.device == CPU for tensor in tensors_in(moved))

        resumed = fresh()
        parameters = list(resumed.model.parameters())
        resumed.load_state_dict(moved)
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
    """Stands for a machine of two GPUs; returns what was done, in order, and whether they have bfloat16."""
    gpus = types.SimpleNamespace(done=[], bfloat16=True)

    def set_device(device):
        index = torch.cuda._utils._get_device_index(device)  # as the real one: ValueError without an index
        if index > 1:
            raise RuntimeError("CUDA error: invalid device ordinal")
        gpus.done.append(("set_device", index))

    def is_bf16_supported(including_emulation=True):
        gpus.done.append("is_bf16_supported")
        return gpus.bfloat16 or including_emulation

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", set_device)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr("torch.empty", lambda size, device: gpus.done.append(("tensor", torch.device(device).index)))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return gpus


@pytest.mark.parametrize("wanted, local_rank, index", [
    ("cuda", None, 0), ("auto", None, 0), ("cuda:0", None, 0), ("cuda:1", None, 1),
    ("cuda", "1", 1), ("auto", "1", 1), ("cuda:0", "1", 1), ("cuda", "0", 0),
])
def test_a_gpu_is_chosen_by_its_index_before_anything_is_put_on_it(two_gpus, monkeypatch, wanted, local_rank, index):
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    device, _, _ = setup_device(wanted, "float32")
    assert device == torch.device("cuda", index)
    assert two_gpus.done == [("set_device", index), ("tensor", index)]


def test_a_gpu_that_is_not_there_is_refused(two_gpus, capsys):
    with pytest.raises(StudyError, match="device 'cuda:2' is not available"):
        setup_device("cuda:2")


@pytest.mark.parametrize("has_bfloat16, wanted, dtype", [
    (True, "auto", "bfloat16"), (False, "auto", "float16"),  # PyTorch can emulate bfloat16 there, slowly
    (True, "float16", "float16"), (False, "float32", "float32"),
])
def test_a_gpu_computes_in_bfloat16_if_it_has_that(two_gpus, has_bfloat16, wanted, dtype):
    two_gpus.bfloat16 = has_bfloat16
    _, name, autocast = setup_device("cuda", wanted)
    assert name == dtype
    if dtype == "float32":
        assert isinstance(autocast, contextlib.nullcontext)
    else:
        assert (autocast.device, autocast.fast_dtype) == ("cuda", getattr(torch, dtype))
    assert two_gpus.done[0] == ("set_device", 0)  # whether there is bfloat16 is asked of the current GPU


@pytest.mark.parametrize("device, compile, cuda_graph, scaled, processes, compiles, captures", [
    ("cuda:0", "auto", "auto", False, 1, True, True),
    ("cuda:0", False, "auto", False, 1, False, True),  # a GPU without a compiler
    ("cuda:0", "auto", False, False, 1, True, False),
    ("cuda:0", True, True, False, 1, True, True),
    ("cuda:0", False, False, False, 1, False, False),
    ("cuda:0", "auto", "auto", True, 1, True, False),  # the host looks at the scale in every update
    ("cuda:0", False, True, True, 1, False, False),
    ("cuda:0", "auto", "auto", False, 2, False, False),  # the host has the gradients exchanged
    ("cuda:0", True, True, False, 2, True, False),
    ("cpu", "auto", "auto", False, 1, False, False),
    ("cpu", True, True, False, 1, True, False),
])
def test_compiling_and_capturing_are_chosen_each_for_itself(
        settings, fake_gpu, monkeypatch, device, compile, cuda_graph, scaled, processes, compiles, captures):
    cfg = settings("math_mini_14", "--fast=False", f"--compile={compile}", f"--cuda_graph={cuda_graph}")
    monkeypatch.setattr(update, "why_not_compiled", lambda: "")
    windows, vocab_size = windows_of(cfg)
    scaler, device, compiled, captured = types.SimpleNamespace(is_enabled=lambda: scaled), torch.device(device), [], []
    monkeypatch.setattr(torch, "compile", lambda what, *_, **__: compiled.append(what) or what)
    monkeypatch.setattr(update, "cuda_graph", lambda step, *_: captured.append(step) or step)
    with fake_gpu:
        model, optimizer = update.build(cfg, vocab_size, device)
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: processes > 1)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: processes)
        train, step_name, notes = update.make_train(
            model, optimizer, scaler, fake_gpu.from_tensor(windows), cfg, device, "float32", contextlib.nullcontext())
    assert (len(compiled), len(captured)) == (compiles, captures)
    assert ("compiled" in step_name, "CUDA graph" in step_name) == (compiles, captures) and not notes
    assert train.max_updates == (update.BLOCK if captures else 1)
    for group in optimizer.param_groups:  # compiled or captured it must be read from a tensor in every update
        lr = group["lr"]
        assert lr.device == device and lr.dtype == torch.float32 if compiles or captures else isinstance(lr, float)


@pytest.mark.parametrize("lacks, says", [("compiler", "no C compiler"), ("headers", "Python.h")])
def test_where_triton_cannot_build_a_gpu_trains_without_compiling_and_says_so(settings, fake_gpu, monkeypatch, tmp_path, lacks, says):
    cfg = settings("math_mini_14")
    windows, vocab_size = windows_of(cfg)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None if lacks == "compiler" else f"/usr/bin/{name}")
    monkeypatch.setattr("sysconfig.get_paths", lambda *_: {"include": str(tmp_path)})
    monkeypatch.setattr(update, "cuda_graph", lambda step, *_: step)
    with fake_gpu:
        model, optimizer = update.build(cfg, vocab_size, CUDA)
        _, step_name, [note] = update.make_train(
            model, optimizer, no_scaler(CUDA), fake_gpu.from_tensor(windows), cfg, CUDA, "float32", contextlib.nullcontext())
    assert step_name == "PyTorch, one CUDA graph an update" and says in note and note.endswith("the update is not compiled and takes longer")
    (tmp_path / "Python.h").touch()
    assert bool(update.why_not_compiled()) == (lacks == "compiler")


class Recording(TorchDispatchMode):
    """Stands for a CUDA graph: keeps operations with their tensors and does these again, without the Python code between."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for place, value in zip(tree_leaves(result), tree_leaves(again)):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():  # no view, not in place
                    place.copy_(value)


class Stream:
    """Stands for torch.cuda.Stream."""

    def __init__(self, device):
        assert device == CUDA
        self.waited_for = []

    def wait_stream(self, other):
        self.waited_for.append(other)


@pytest.fixture
def fake_graphs(monkeypatch):
    """Stand-ins for all that cuda_graph() takes from torch.cuda, with the CPU's random state as the GPU's."""
    main = Stream(CUDA)
    streams = types.SimpleNamespace(main=main, current=main)

    @contextlib.contextmanager
    def stream(side):
        streams.current = side
        yield
        streams.current = main

    def current_stream(device):
        assert device == CUDA
        return streams.current

    def get_rng_state(device):
        assert device == CUDA
        return torch.get_rng_state()

    def set_rng_state(state, device):
        assert device == CUDA
        torch.set_rng_state(state)

    for stand_in in (Stream, stream, current_stream, get_rng_state, set_rng_state):
        monkeypatch.setattr(torch.cuda, stand_in.__name__, stand_in)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", lambda recording: recording)
    return streams


@pytest.mark.parametrize("earlier", [0, 3])
def test_capturing_leaves_no_trace_and_launching_equals_eager_updates(settings, fake_graphs, earlier):
    cfg = settings("math_mini_14", "--batch_size=64", "--dropout=0.2")  # dropout shows the random state
    windows, vocab_size = windows_of(cfg)
    indices = Batches(len(windows), cfg, CPU).draw(earlier + 7)
    lrs = [1e-3 * (i + 1) for i in range(earlier + 7)]

    def start():
        model, optimizer = update.build(cfg, vocab_size, CPU)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(math.nan)
        step = update.make_update(model, optimizer, no_scaler(CPU), windows, cfg, contextlib.nullcontext())
        train = update.make_eager_train(step, optimizer)
        for i in range(earlier):
            train(indices[i : i + 1], lrs[i : i + 1])
        return model, optimizer, step, train

    def snapshot(model, optimizer):
        states = [{key: value.clone() for key, value in state.items()} for state in optimizer.state.values()]
        return [parameter.detach().clone() for parameter in model.parameters()], states, torch.get_rng_state()

    model, optimizer, step, _ = start()
    weights, states, random_state = snapshot(model, optimizer)
    calls = []

    def counted(batches):
        calls.append(fake_graphs.current)
        if len(calls) <= 3:  # warming up moves the weights far
            for group in optimizer.param_groups:
                group["lr"].fill_(1.0)
        return step(batches)

    train = update.make_captured_train(
        counted, model, optimizer, (1, cfg.batch_size), CPU, lambda *arguments: update.cuda_graph(*arguments[:3], CUDA))
    warm_up, [side] = calls[:3], set(calls[:3])  # PyTorch wants these on a stream of their own
    assert len(warm_up) == 3 and side is not fake_graphs.main and calls[3:] == [fake_graphs.main]
    assert side.waited_for == [fake_graphs.main] and fake_graphs.main.waited_for == [side]
    after = snapshot(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(weights, after[0])) and torch.equal(random_state, after[2])
    if earlier:
        assert same_state(states, after[1])
    else:  # AdamW made its state meanwhile
        assert states == [] and after[1] and not any(value.any() for state in after[1] for value in state.values())

    losses = [float(train(indices[i:j], lrs[i:j])) for i, j in ((earlier, earlier + 4), (earlier + 4, earlier + 7))]
    assert len(calls) == 4  # nothing but the graph ran
    captured = snapshot(model, optimizer)
    model, optimizer, _, train = start()
    expected = [float(train(indices[i : i + 1], lrs[i : i + 1])) for i in range(earlier, earlier + 7)]
    eager = snapshot(model, optimizer)
    assert losses == [expected[3], expected[6]]
    assert all(torch.equal(a, b) for a, b in zip(captured[0], eager[0])) and same_state(captured[1], eager[1])
    assert torch.equal(captured[2], eager[2])


@pytest.mark.parametrize("earlier", [0, 3])
def test_a_captured_stack_equals_its_eager_updates(settings, fake_graphs, monkeypatch, earlier):
    cfg = settings("math_mini_14", "--batch_size=64", "--weight_decay=0.1")
    windows, vocab_size = windows_of(cfg)
    monkeypatch.setattr(stack, "cuda_graph", lambda *arguments: update.cuda_graph(*arguments[:3], CUDA))

    def trained(captures):
        states = []
        for seed in (1, 2):
            cfg.seed = seed
            states.append(TrainingState(*update.build(cfg, vocab_size, CPU), no_scaler(CPU), Batches(len(windows), cfg, CPU), CPU))
        indices = torch.stack([state.batches.draw(earlier + 7) for state in states], dim=1)
        lrs = [1e-3 * (i + 1) for i in range(earlier + 7)]
        train, hand_back = stack.make_stacked_train(states, [windows] * 2, cfg, CPU, contextlib.nullcontext(), captures=False)
        for i in range(earlier):
            train(indices[i : i + 1], lrs[i : i + 1])
        hand_back()
        train, hand_back = stack.make_stacked_train(states, [windows] * 2, cfg, CPU, contextlib.nullcontext(), captures)
        for i in range(earlier, earlier + 7):
            losses = train(indices[i : i + 1], lrs[i : i + 1]).clone()
        hand_back()
        return losses, [p for state in states for p in state.model.parameters()], [m for state in states for m in state.optimizer.state.values()]

    (losses, weights, moments), (expected, eager, eager_moments) = trained(True), trained(False)
    assert torch.allclose(losses, expected, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights, eager))
    assert all(torch.equal(a["step"], b["step"]) and a["step"] == earlier + 7 for a, b in zip(moments, eager_moments))


def test_seeding_a_gpu_makes_it_compute_the_same_twice(put_back):
    seed_everything(1, CUDA)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()  # what only warns also computes as before
    assert inductor.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark and not torch.backends.cuda.cudnn_sdp_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32


def test_seeding_the_cpu_leaves_the_gpu_settings_alone(put_back):
    seed_everything(1, CPU)
    assert not torch.are_deterministic_algorithms_enabled() and not inductor.deterministic


# Rounding differs: float32 has 7 digits, and AdamW divides each gradient by its own size, so that the
# digits lost in a small one show in full. Here that comes to 1e-5 of the way that the weights have
# gone; a rate that is wrong by a percent, or a wrong update in 20, is ten times what is allowed.
TOLERANCE = 1e-3


@torch.no_grad()
def assert_close(ours, theirs, before):
    """Checks that weights which started from `before` went the same way."""
    for (name, weight), other, start in zip(ours.named_parameters(), theirs.parameters(), before.parameters(), strict=True):
        assert (weight - other).norm() < TOLERANCE * (other - start).norm(), name


def rates(updates):
    return [1e-3 * (1 + i % 7) for i in range(updates)]


@needs_a_compiler
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # PyTorch's own, on its way to the compiler
def test_compiled_updates_equal_eager_ones_and_are_compiled_once(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CI", "true")  # where inductor refuses a kernel of PyTorch's that it could have decomposed
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    trained, compiled = {}, []
    for compile in (False, True):
        cfg = settings("math_mini_14", "--batch_size=128", "--fast=False", f"--compile={compile}")
        windows, vocab_size = windows_of(cfg)
        model, optimizer = update.build(cfg, vocab_size, CPU)
        with inductor.patch(compile_threads=1):
            train, step_name, _ = update.make_train(
                model, optimizer, no_scaler(CPU), windows, cfg, CPU, "float32", contextlib.nullcontext())
            assert ("compiled" in step_name) == compile
            for indices, lr in zip(Batches(len(windows), cfg, CPU).draw(20), rates(20)):
                train(indices[None], [lr])
                compiled.append((counters["stats"]["unique_graphs"], counters["frames"]["total"]))
        trained[compile] = model
    assert counters["stats"]["calls_captured"] > 60  # the model's forward pass alone is about 30: gradient and clipping too
    assert compiled[19] == (0, 0) and compiled[20] == compiled[39] and compiled[20][0] >= 1
    assert_close(trained[True], trained[False], update.build(cfg, vocab_size, CPU)[0])
    code = "".join(path.read_text() for path in tmp_path.rglob("*.py"))  # what was compiled
    assert "torch.ops.aten.embedding_dense_backward" in code and "index_put" not in code  # which on CUDA would be a serial sum


def plain_loss(model, idx, targets):
    """nanoGPT's forward pass, module by module."""
    x = model.transformer.wte(idx) + model.transformer.wpe(torch.arange(idx.size(1), device=idx.device))
    for block in model.transformer.h:
        x = block(x)
    logits = model.lm_head(model.transformer.ln_f(x))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ["math_mini_14", "both_mini_28"])
def test_captured_training_on_a_gpu_equals_the_plain_loop(settings, put_back, name, compile):
    cfg = settings(name, f"--compile={compile}")
    device, dtype, autocast = setup_device("cuda", "float32")
    windows = load_splits(cfg.dataset, cfg.block_size, device)["train"]
    vocab_size = int(windows.max()) + 1
    starts = Batches(len(windows), cfg, device).draw(20)
    model, optimizer = update.build(cfg, vocab_size, device)
    train, step_name, _ = update.make_train(model, optimizer, no_scaler(device), windows, cfg, device, dtype, autocast)
    assert "CUDA graph" in step_name and ("compiled" in step_name) == compile
    lrs = rates(20)
    for part in (slice(0, 13), slice(13, 20)):
        loss = train(starts[part], lrs[part])

    plain, _ = update.build(cfg, vocab_size, device)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, foreach=False)
    for [rows], lr in zip(starts, lrs):
        optimizer.param_groups[0]["lr"] = lr
        batch = windows[rows]
        theirs = plain_loss(plain, batch[:, :-1], batch[:, 1:])
        theirs.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss) == pytest.approx(theirs.item(), rel=TOLERANCE)
    assert_close(model, plain, update.build(cfg, vocab_size, device)[0])


def saved(folder):
    """results.csv and the last weights of a run."""
    checkpoint = torch.load(Path(folder) / "ckpt_last.pt", weights_only=True, map_location="cpu")
    return (Path(folder) / "results.csv").read_bytes(), checkpoint["model"]


def same_runs(first, second):
    (rows, weights), (other_rows, others) = saved(first), saved(second)
    same_weights = weights.keys() == others.keys() and all(torch.equal(weights[key], others[key]) for key in weights)
    return rows == other_rows and same_weights


@pytest.mark.gpu
@needs_a_gpu
def test_the_same_command_twice_on_a_gpu_writes_the_same_bytes(script, in_tmp):
    for folder in ("first", "second"):
        result = script("train_with_eval.py", *SHORT, *DROPOUT, "--device=cuda", f"--out_dir={folder}")
        assert result.returncode == 0, result.stderr
    assert same_runs("first", "second")
    rows = list(csv.DictReader(saved("first")[0].decode().splitlines()))
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])


@pytest.mark.gpu
@needs_a_gpu
def test_a_run_on_a_gpu_that_was_killed_ends_as_if_never_stopped(script, start, in_tmp):
    long = ("--max_iters=600", "--eval_interval=20", "--log_interval=10", "--save_interval=0", "--device=cuda", *DROPOUT)
    assert script("train_with_eval.py", *long, "--out_dir=whole").returncode == 0
    process = start("train_with_eval.py", *long, "--out_dir=killed")
    for line in process.stdout:
        if line.startswith("iter 40:"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    result = script("train_with_eval.py", *long, "--out_dir=killed", "--init_from=resume")
    assert result.returncode == 0 and "resumed at iteration" in result.stdout, result.stderr
    assert same_runs("whole", "killed")


@pytest.mark.gpu
@needs_a_gpu
def test_a_model_trained_on_a_gpu_is_sampled_on_it(call, put_back, in_tmp):
    assert call("train_with_eval.py", *SHORT, "--device=cuda", "--compile=False", "--out_dir=run").returncode == 0
    ask = ("sample.py", "--out_dir=run", "--start=<7-5", "--num_samples=3", "--max_new_tokens=3", "--device=cuda")
    first, again = call(*ask), call(*ask)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("<7-5") == 3 and first.stdout == again.stdout
