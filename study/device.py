"""The device: which one, in which precision, seeded how, and what it is called in reports."""

import contextlib
import ctypes
import os
import platform
import re
import subprocess

import torch

from study import StudyError


def setup_device(device="auto", dtype="auto"):
    """Turns a request into (torch.device, dtype name, autocast context).

    device: "auto" (cuda, then mps, then cpu) or a name such as "cpu" or "cuda:1"; under torchrun each
    process takes the GPU of its LOCAL_RANK. dtype: "auto" (bfloat16 on CUDA, float16 on a GPU without
    it, else float32) or one of these names; float32 is that, never TF32.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(device)
        if device.type == "cuda":
            if "LOCAL_RANK" in os.environ or device.index is None:
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)  # first of all: what comes before it would be put on GPU 0
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, AttributeError):  # the last: a build without CUDA
        raise StudyError(f"device '{device}' is not available here; --device=auto finds one that is", of_all=False)
    if device.type not in ("cuda", "mps", "cpu"):
        raise StudyError(f"device '{device}' cannot train or sample; use cuda, mps, cpu or auto")

    if dtype == "auto":
        bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if bfloat16 else "float16" if device.type == "cuda" else "float32"
    if dtype == "float16" and device.type != "cuda":
        raise StudyError("dtype float16 needs a CUDA device; use float32 or bfloat16")
    if device.type == "cpu":
        keep_freed_memory()
    autocast = contextlib.nullcontext() if dtype == "float32" else torch.autocast(device.type, getattr(torch, dtype))
    return device, dtype, autocast


def seed_everything(seed, device):
    """Seeds torch's generators and has CUDA use deterministic kernels only."""
    torch.manual_seed(seed)  # the CPU and every CUDA device
    if device.type == "cuda":  # the CPU's kernels are deterministic as they are
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)  # torch.compile's choices among kernels too
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.enable_cudnn_sdp(False)  # an attention whose gradient need not be the same twice
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads any


def to_host(tensor):
    """A tensor as a numpy array: here, and nowhere else, an evaluation reads from the device, for which the host waits."""
    return tensor.cpu().numpy()


def keep_freed_memory():
    """Has glibc keep freed memory instead of returning it to the kernel (elsewhere: does nothing).

    PyTorch allocates and frees activations anew in every iteration. By default their pages go back and
    fault in again each time, filled with zeros: hundreds of faults, up to a third of an iteration.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25)  # an older glibc refuses more


def output_of(command, folder=None):
    """What a command prints, or None if it cannot be run."""
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpu_info():
    """What the system says of its first processor (Linux), or its name."""
    try:
        with open("/proc/cpuinfo") as file:
            return file.read().split("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()


def machine(device):
    """What a number measured here depends on: the device, its threads, and the versions of the software."""
    driver = None
    if device.type == "cuda":
        driver = output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index}"])
        name = torch.cuda.get_device_name(device)
    else:
        cpu = re.search(r"model name\s*: (.*)", cpu_info())
        name = cpu[1] if cpu else platform.processor() or platform.machine()
    return {
        "device": str(device), "device_name": name, "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "driver": driver,
    }


def describe(info):
    """machine() with a dtype and a step, or a run.json, in one phrase."""
    threads = f", {info['threads']} thread{'s' * (info['threads'] > 1)}" if info["device"] == "cpu" else ""
    step = f", {info['step']}" if info.get("step") else ""
    return f"{info['device_name']}{threads}, {info['dtype']}, torch {info['torch']}{step}"
