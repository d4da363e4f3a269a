"""The C step: c_step.c, compiled once for each shape of model; on a CPU several times as fast as PyTorch."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from study.device import cpu_info, output_of
from study.update import BLOCK, Step

SOURCE = Path(__file__).with_suffix(".c")
# No contraction and nothing of -ffast-math, which would let each compiler round its own way. The two
# -fno- flags give up errno and traps only, and not a bit of a result.
FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC",
         "-shared"]
NATIVE = [["-march=native"], ["-mcpu=native"], []]  # all vectors of this processor
# The parameters in the order of Params in c_step.c.
PARAMETERS = ["wte", "wpe", "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj",
              "h.0.ln_1", "h.0.ln_2", "ln_f"]


def applies_to(config):
    """Whether c_step.c computes this GPTConfig."""
    plain = config.n_layer == 1 and config.n_head == 1 and not config.bias and config.dropout == 0
    return plain and config.block_size <= 256


def find_compiler():
    """The command of a C compiler as a list, or None: CC of the environment, else cc, gcc or clang."""
    try:
        command = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # an open quotation
        return None
    if command:
        return command if shutil.which(command[0]) else None
    return next(([name] for name in ("cc", "gcc", "clang") if shutil.which(name)), None)


def cache_folder():
    """The user's folder for compiled steps; a new private one where others could write into that."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "too-big-to-think"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # the last: a user without a home
        pass
    return Path(tempfile.mkdtemp(prefix="too-big-to-think-"))


def compile_step(config, dtype, compiler, native, folder, again=False):
    """Path of the shared library for a GPTConfig and torch.float32 or float64.

    It is compiled if `folder` does not hold it, or again. Raises subprocess.CalledProcessError, with the
    compiler's messages, or OSError.
    """
    real = {torch.float32: "float", torch.float64: "double"}[dtype]
    constants = {"real": real, "C": config.n_embd, "H": config.n_embd * config.mlp_expansion,
                 "V": config.vocab_size, "T": config.block_size}
    command = [*compiler, *FLAGS, *native, *(f"-D{name}={value}" for name, value in constants.items())]
    key = [SOURCE.read_text(), *command, output_of([*compiler, "--version"]) or "", platform.machine()]
    if native:
        vectors = ("model name", "flags", "Features")
        key += [line for line in cpu_info().splitlines() if line.startswith(vectors)]
    library = folder / f"step-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.so"
    if again or not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as building:  # another process may compile it too
            built = Path(building) / library.name
            command += [str(SOURCE), "-o", str(built), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True)
            built.replace(library)
    return library


def load(config, dtype=torch.float32):
    """(the function train() of c_step.c, the step's name), compiled and loaded for a GPTConfig.

    Raises RuntimeError that says why it cannot be had.
    """
    compiler = find_compiler()
    if compiler is None:
        raise RuntimeError(f"CC={os.environ['CC']} names no program" if os.environ.get("CC") else
                           "no C compiler was found (cc, gcc or clang)")
    folder = cache_folder()
    try:
        library = load_library(config, dtype, compiler, folder)
    finally:
        if folder.name != "too-big-to-think":
            shutil.rmtree(folder, ignore_errors=True)  # what is loaded stays loaded
    library.vector_unit.restype = ctypes.c_char_p
    unit = library.vector_unit().decode()
    if not unit:
        raise RuntimeError("this processor has no fused multiply-add")
    library.train.restype = ctypes.c_double
    return library.train, f"C step ({Path(compiler[0]).name}, {unit})"


def load_library(config, dtype, compiler, folder):
    """The shared library with the best of NATIVE that the compiler knows; raises RuntimeError."""
    for native in NATIVE:
        try:
            path = compile_step(config, dtype, compiler, native, folder)
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # damaged
                return ctypes.CDLL(str(compile_step(config, dtype, compiler, native, folder, again=True)))
        except subprocess.CalledProcessError as error:
            reason = next((line for line in error.stderr.splitlines() if "error" in line), "it failed")
        except OSError as error:
            reason = str(error)
    raise RuntimeError(f"{shlex.join(compiler)} could not compile study/fast/c_step.c: {reason}")


def sorted_windows(windows):
    """The distinct windows of a split, sorted, as c_step.c wants them.

    windows: int64 tensor (n, T + 1). Returns int32 arrays: the distinct windows (m, T + 1); how many tokens
    each shares with the start of the one before (m,); which of them each window is (n,).
    """
    distinct, which = np.unique(windows.numpy(), axis=0, return_inverse=True)
    shared = np.cumprod(distinct[1:] == distinct[:-1], axis=1).sum(axis=1)
    prefix = np.concatenate([[0], shared])
    return (np.ascontiguousarray(array, dtype=np.int32) for array in (distinct, prefix, which.reshape(-1)))


def address(array):
    return ctypes.c_void_p(array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data)


def make_c_step(model, optimizer, windows, cfg):
    """The Step that computes its updates in C.

    Weights and AdamW's state are the model's and the optimizer's before and after each call, so checkpoints
    are those of any other step. Raises RuntimeError that says why it cannot be had.
    """
    parameters = [model.get_parameter(f"transformer.{name}.weight") for name in PARAMETERS]
    train, name = load(model.config, parameters[0].dtype)
    distinct, prefix, which = sorted_windows(windows)
    which = torch.from_numpy(which)
    gradient = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
    options = [ctypes.c_double(x) for x in (cfg.beta1, cfg.beta2, cfg.weight_decay, cfg.grad_clip)]
    torch.set_num_threads(1)  # evaluations of models this small gain nothing from more

    @torch.no_grad()
    def run(indices, lrs):
        moments = ([optimizer.state[p][key] for p in parameters] for key in ("exp_avg", "exp_avg_sq"))
        tensors = [parameters, *moments]
        weights, m, v = flat = [torch.cat([t.flatten() for t in group]) for group in tensors]
        batches = which[indices].flatten(1).contiguous()
        lrs = np.asarray(lrs, dtype=np.float64)
        done = int(optimizer.state[parameters[0]]["step"])
        loss = train(
            address(weights), address(gradient), address(m), address(v), len(batches), batches.size(1),
            address(batches), address(lrs), done, len(distinct), address(distinct), address(prefix), *options)
        if loss == -1:
            raise MemoryError("in the C step")
        for group, values in zip(tensors, flat):
            for tensor, part in zip(group, values.split([t.numel() for t in group])):
                tensor.copy_(part.view(tensor.shape))
        for p, part in zip(parameters, gradient.split([p.numel() for p in parameters])):
            p.grad = part.view(p.shape)  # before clipping; tests compare it with autograd's
            optimizer.state[p]["step"] += len(batches)
        return loss

    return Step(name, run, BLOCK)
