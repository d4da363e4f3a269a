"""Compiles c_step.c for a model, once, and trains with it: PyTorch's updates many times faster on a CPU."""

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

SOURCE = Path(__file__).with_suffix(".c")
# No contraction and nothing of -ffast-math, which would let each compiler round its own way. The two
# -fno- flags give up errno and traps only, and not a bit of a result.
FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]
NATIVE = [["-march=native"], ["-mcpu=native"], []]  # all of this processor's vectors; what a compiler knows of these
# The parameters in the order of Params in c_step.c.
PARAMETERS = ["wte", "wpe", "h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj",
              "h.0.ln_1", "h.0.ln_2", "ln_f"]


def applies_to(config):
    """Whether c_step.c computes this GPTConfig."""
    return config.n_layer == 1 and config.n_head == 1 and not config.bias and config.dropout == 0 and config.block_size <= 256


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


def compile_step(config, dtype, compiler, native, folder, anew=False):
    """Path of the shared library for a GPTConfig and torch.float32 or float64, compiled anew or unless `folder` holds it.

    Raises subprocess.CalledProcessError, with what the compiler said, or OSError.
    """
    real = {torch.float32: "float", torch.float64: "double"}[dtype]
    constants = {"C": config.n_embd, "H": config.n_embd * config.mlp_expansion, "V": config.vocab_size, "T": config.block_size}
    command = [*compiler, *FLAGS, *native, f"-Dreal={real}", *(f"-D{name}={value}" for name, value in constants.items())]
    key = [SOURCE.read_text(), *command, output_of([*compiler, "--version"]) or "", platform.machine()]
    if native:
        key += [line for line in cpu_info().splitlines() if line.startswith(("model name", "flags", "Features"))]
    library = folder / f"step-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.so"
    if anew or not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as building:  # another process may be at it too
            built = Path(building) / library.name
            subprocess.run([*command, str(SOURCE), "-o", str(built), "-lm"], check=True, capture_output=True, text=True)
            built.replace(library)
    return library


def load_step(config, dtype=torch.float32):
    """(step, step_name): the function train() of c_step.c, compiled and loaded, and a phrase that says with what.

    Where that is not possible, (None, why not).
    """
    compiler = find_compiler()
    if compiler is None:
        return None, f"CC={os.environ['CC']} is no program" if os.environ.get("CC") else "no C compiler was found (cc, gcc or clang)"
    folder, said = cache_folder(), ""
    try:
        for native in NATIVE:
            try:
                path = compile_step(config, dtype, compiler, native, folder)
                try:
                    library = ctypes.CDLL(str(path))
                except OSError:  # damaged
                    library = ctypes.CDLL(str(compile_step(config, dtype, compiler, native, folder, anew=True)))
                break
            except subprocess.CalledProcessError as error:
                said = next((line for line in error.stderr.splitlines() if "error" in line), "it failed")
            except OSError as error:
                said = str(error)
        else:
            return None, f"{shlex.join(compiler)} could not compile study/fast/c_step.c: {said}"
    finally:
        if folder.name != "too-big-to-think":
            shutil.rmtree(folder, ignore_errors=True)  # what is loaded stays loaded
    library.vector_unit.restype = ctypes.c_char_p
    unit = library.vector_unit().decode()
    if not unit:
        return None, "this processor has no fused multiply-add"
    library.train.restype = ctypes.c_double
    return library.train, f"C step ({Path(compiler[0]).name}, {unit})"


def sorted_windows(windows):
    """The distinct windows of a split, as c_step.c wants them.

    windows: int64 tensor (n, T + 1). Returns int32 arrays: the distinct ones, sorted (m, T + 1); with
    how many tokens each begins like the one before (m,); and which of them each window is (n,).
    """
    distinct, which = np.unique(windows.numpy(), axis=0, return_inverse=True)
    alike = np.cumprod(distinct[1:] == distinct[:-1], axis=1).sum(axis=1)
    prefix = np.concatenate([[0], alike])
    return (np.ascontiguousarray(array, dtype=np.int32) for array in (distinct, prefix, which.reshape(-1)))


def make_fast_train(model, optimizer, windows, cfg, step):
    """Returns train(indices, lrs), which makes len(indices) updates (see update.py).

    step: from load_step. The weights and AdamW's state are the model's and the optimizer's before and
    after each call, so checkpoints do not tell which step was taken.
    """
    parameters = [model.get_parameter(f"transformer.{name}.weight") for name in PARAMETERS]
    distinct, prefix, which = sorted_windows(windows)
    which = torch.from_numpy(which)
    gradient = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
    options = [ctypes.c_double(x) for x in (cfg.beta1, cfg.beta2, cfg.weight_decay, cfg.grad_clip)]

    def address(array):
        return ctypes.c_void_p(array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data)

    @torch.no_grad()
    def train(indices, lrs):
        for p in parameters:  # what AdamW's first step does
            if not optimizer.state[p]:
                optimizer.state[p].update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        moments = ([optimizer.state[p][key] for p in parameters] for key in ("exp_avg", "exp_avg_sq"))
        tensors = [parameters, *moments]
        weights, m, v = flat = [torch.cat([t.flatten() for t in group]) for group in tensors]
        batches = which[indices].flatten(1).contiguous()
        lrs = np.asarray(lrs, dtype=np.float64)
        done = int(optimizer.state[parameters[0]]["step"])
        loss = step(
            address(weights), address(gradient), address(m), address(v), len(batches), batches.size(1), address(batches),
            address(lrs), done, len(distinct), address(distinct), address(prefix), *options)
        if loss == -1:
            raise MemoryError("in the C step")
        for group, values in zip(tensors, flat):
            for tensor, part in zip(group, values.split([t.numel() for t in group])):
                tensor.copy_(part.view(tensor.shape))
        for p, part in zip(parameters, gradient.split([p.numel() for p in parameters])):
            p.grad = part.view(p.shape)  # the last update's, before clipping: what tests compare with autograd's
            optimizer.state[p]["step"] += len(batches)
        return loss

    return train
