"""Stand-ins for a GPU, so that what runs on CUDA can be tested without one.

fake_cuda is PyTorch's FakeTensorMode: tensors that say they are on cuda:0 and have shapes but no values. It
raises where tensors of two devices meet and where the host reads a value. cpu_as_cuda computes: what is
asked for on cuda:0 is made on the CPU, and a CUDA graph replays the operations that it recorded.
"""

import contextlib
import ctypes
import types
from pathlib import Path

import pytest
import torch
from torch._inductor import config as inductor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import train_with_eval
from study.batches import Batches, load_splits
from study.device import setup_device
from study.settings import configure
from study.state import TrainingState, random_state
from study.update import build

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def settings(project, monkeypatch):
    """settings(name, *arguments) -> train_with_eval.py's settings with config/train_<name>.py."""

    def settings(name, *arguments):
        config = project / "config" / f"train_{name}.py"
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["train_with_eval.py", str(config), *arguments])
            patch.setattr("signal.signal", lambda *_: None)  # Ctrl-C stays pytest's
            return configure(vars(train_with_eval))

    return settings


@pytest.fixture
def undo_seeding(monkeypatch):
    """Set what seed_everything sets for CUDA to the opposite, and put it back after the test."""
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
def fake_cuda(monkeypatch, undo_seeding):
    """A FakeTensorMode, not entered yet, and stand-ins for what it cannot do without a GPU."""
    mode = FakeTensorMode()

    def swap_tensors(first, second):  # Module.to swaps fake parameters, which the mode must forget first
        mode.fake_tensor_converter.meta_converter.tensor_memo.clear()
        swap(first, second)

    swap = torch.utils.swap_tensors
    monkeypatch.setattr(torch.utils, "swap_tensors", swap_tensors)
    monkeypatch.setattr(torch.Tensor, "backward", fake_backward)
    with device_guard_for_cuda():
        yield mode


@contextlib.contextmanager
def device_guard_for_cuda():
    """Give a PyTorch without CUDA the device guard that its operators need for tensors on cuda.

    If PyTorch has CUDA but the machine has no GPU, FakeTensorMode replaces the guard with one that does
    nothing. Here it is the guard of the device meta, which does nothing either.
    """
    kinds = torch._C._autograd.DeviceType
    library = next((Path(torch.__file__).parent / "lib").glob("libc10.*"))
    name = "_ZN3c104impl26device_guard_impl_registryE"
    guards = (ctypes.c_void_p * 21).in_dll(ctypes.CDLL(str(library)), name)
    before = guards[int(kinds.CUDA)]
    guards[int(kinds.CUDA)] = before or guards[int(kinds.Meta)]
    yield
    guards[int(kinds.CUDA)] = before


def fake_backward(loss):
    """Give every parameter that the loss depends on a gradient on its device.

    The autograd engine wants a real GPU.
    """
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
    """torch.func.grad_and_value with gradients that have only shapes, for the same reason."""

    def gradients_and_value(weights, *arguments):
        gradients = {name: torch.empty_like(weight) for name, weight in weights.items()}
        return gradients, function(weights, *arguments)

    return gradients_and_value


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class OnCuda(TorchDispatchMode):
    """Inside it every tensor of every operation must be on cuda:0, as in a CUDA graph; counts operations.

    uploads=True: tensors may come from the CPU, but results of an operation with a tensor on cuda:0 must be
    there too.
    """

    def __init__(self, uploads=False):
        super().__init__()
        self.uploads = uploads
        self.count = {}  # operation -> how often
        self.dtypes = {}  # matrix product -> dtypes of its factors

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = str(func.overloadpacket), kwargs or {}
        if name == "prim.device":  # a query, and PyTorch makes it where it cannot handle an exception
            return func(*args, **kwargs)
        # The fused optimizer has no fake version.
        result = None if name == "aten._fused_adamw_" else func(*args, **kwargs)
        given, made = tensors_in((args, kwargs)), tensors_in(result)
        if not self.uploads or any(tensor.device == CUDA for tensor in given):
            for tensor in made if self.uploads else given + made:
                assert tensor.device == CUDA, f"{func} has a tensor on {tensor.device}"
        self.count[name] = self.count.get(name, 0) + 1
        if name in ("aten.mm", "aten.bmm"):
            self.dtypes[name] = self.dtypes.get(name, set()) | {tensor.dtype for tensor in given}
        return result

    def wrap(self, function):
        def inside(*arguments):
            with self:
                return function(*arguments)

        return inside


class CudaIsCpu(TorchFunctionMode):
    """Inside it whatever PyTorch is to make on cuda:0, or move there, is on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def to_cpu(leaf):
            return CPU if isinstance(leaf, torch.device) and leaf == CUDA else leaf

        args, kwargs = tree_map(to_cpu, (args, kwargs or {}))
        return func(*args, **kwargs)


class Recording(TorchDispatchMode):
    """Stands in for a CUDA graph: records operations and their tensors, replays them without Python."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def launch(self, func, args, kwargs):
        """Replay one operation; tests of a wrong graph change it."""
        return func(*args, **kwargs)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.operations:
            again = self.launch(func, args, kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again)):
                # Views and results in place are there already.
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Stream:
    """Stands in for torch.cuda.Stream."""

    def __init__(self, device=CUDA):
        assert device == CUDA
        self.waited_for = []

    def wait_stream(self, other):
        self.waited_for.append(other)


@pytest.fixture
def cpu_as_cuda(monkeypatch, undo_seeding):
    """A CUDA device that computes on the CPU, with the CPU's random state; yields its streams."""
    streams = types.SimpleNamespace(main=Stream(), capturing=Stream())
    streams.current = streams.main

    @contextlib.contextmanager
    def stream(new):
        before, streams.current = streams.current, new
        try:
            yield
        finally:
            streams.current = before

    @contextlib.contextmanager
    def graph(recording):
        before, streams.current = streams.current, streams.capturing
        try:
            with recording:
                yield
        except Exception:  # as on a GPU: a second error, and the stream of the capture stays current
            raise torch.AcceleratorError("CUDA error: operation failed due to a previous error\nCompile with")
        streams.current = before

    def current_stream(device):
        assert device == CUDA
        return streams.current

    def get_rng_state(device):
        assert device == CUDA
        return torch.get_rng_state()

    def set_rng_state(state, device):
        assert device == CUDA
        torch.set_rng_state(state)

    for stand_in in (Stream, stream, graph, current_stream, get_rng_state, set_rng_state):
        monkeypatch.setattr(torch.cuda, stand_in.__name__, stand_in)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "the CPU as a GPU")
    with CudaIsCpu():
        yield streams


def windows_of(cfg):
    """(training windows on the CPU, size of the vocabulary)"""
    windows = load_splits(cfg.dataset, cfg.block_size, CPU)["train"]
    return windows, int(windows.max()) + 1


def no_scaler(device):
    return torch.amp.GradScaler(device.type, enabled=False)


def new_state(cfg, windows, vocab_size, device):
    """The TrainingState of a run before its first update."""
    model, optimizer = build(cfg, vocab_size, device)
    return TrainingState(model, optimizer, no_scaler(device), Batches(len(windows), cfg, device), device)


def autocast_of_gpu(dtype, monkeypatch):
    """setup_device's autocast context on a GPU."""
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr("torch.cuda.set_device", lambda device: None)
        patch.setattr("torch.empty", lambda size, device: None)
        return setup_device("cuda", dtype)[2]


def everything_in(state):
    """Copies of all in a TrainingState that an update or a trial may change, for same()."""
    return {
        "weights": [parameter.detach().clone() for parameter in state.model.parameters()],
        "gradients": [parameter.grad for parameter in state.model.parameters()],
        "moments": [{key: value.clone() for key, value in state.optimizer.state[parameter].items()}
                    for parameter in state.model.parameters()],
        "learning rates": [group["lr"] for group in state.optimizer.param_groups],
        "random states": random_state(state.device), "batch order": state.batches.generator.get_state(),
        "threads": torch.get_num_threads(), "loss scale": state.scaler.state_dict(),
    }


# Rounding differs: float32 has 7 digits, and AdamW divides each gradient by its own size, so that the
# digits lost in a small one show in full. Here that is 1e-5 of the distance that the weights moved. A
# learning rate that is wrong by a percent, or one wrong update in 20, is ten times the tolerance.
TOLERANCE = 1e-3


@torch.no_grad()
def assert_close(ours, theirs, before):
    """Check that weights which started from `before` moved the same way."""
    names = [name for name, _ in ours.named_parameters()]
    models = (model.parameters() for model in (ours, theirs, before))
    for name, our, their, start in zip(names, *models, strict=True):
        assert (our - their).norm() < TOLERANCE * (their - start).norm(), name


def rates(updates):
    """Learning rates that differ from update to update."""
    return [1e-3 * (1 + i % 7) for i in range(updates)]


def same(first, second):
    """Whether two nested containers are equal, tensors to the last bit, numbers and tensors not mixed."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    return type(first) is type(second) and first == second
