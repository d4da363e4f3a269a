"""Choose the device and its precision, seed it, and describe it for reports."""

import contextlib
import ctypes
import os
import platform
import re
import subprocess

import torch

from study import StudyError


def setup_device(device, dtype="auto"):
    """Return (torch.device, dtype name, autocast context) for the settings `device` and `dtype`.

    device: "auto" (cuda, then mps, then cpu) or a name such as "cpu" or "cuda:1"; under torchrun each
    process takes the GPU of its LOCAL_RANK. dtype: "auto" (bfloat16 on CUDA, float16 on a GPU without
    it, else float32) or one of these names; float32 never means TF32.
    """
    if device == "auto":
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else device
    try:
        device = torch.device(device)
        if device.type == "cpu":
            device = torch.device("cpu")  # there is no cpu:1
        if device.type == "cuda":
            if "LOCAL_RANK" in os.environ or device.index is None:
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)  # before anything is allocated, which would go to GPU 0
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, AttributeError):  # AttributeError: a build without CUDA
        raise StudyError(f"device '{device}' is not available here; --device=auto finds one that is",
                         of_all=False)
    if device.type not in ("cuda", "mps", "cpu"):
        raise StudyError(f"device '{device}' cannot train or sample; use cuda, mps, cpu or auto")

    if dtype == "auto":
        bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if bfloat16 else "float16" if device.type == "cuda" else "float32"
    if dtype == "float16" and device.type != "cuda":
        raise StudyError("dtype float16 needs a CUDA device; use float32 or bfloat16")
    if device.type == "cpu":
        keep_freed_memory()
    if dtype == "float32":
        return device, dtype, contextlib.nullcontext()
    return device, dtype, torch.autocast(device.type, getattr(torch, dtype))


def seed_everything(seed, device):
    """Seed torch's generators and restrict CUDA to deterministic kernels."""
    torch.manual_seed(seed)  # the CPU and every CUDA device
    if device.type == "cuda":  # the CPU's kernels are deterministic anyway
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)  # also when torch.compile chooses among kernels
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.enable_cudnn_sdp(False)  # its gradient of attention may differ between runs
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads it, so save the time


def to_host(tensor):
    """Copy a tensor to a numpy array, which waits for the device."""
    return tensor.cpu().numpy()


def keep_freed_memory():
    """Make glibc keep freed memory instead of returning it to the kernel; do nothing without glibc.

    PyTorch allocates and frees all activations in every iteration. By default their pages go back to the
    kernel and fault in again as zeros: hundreds of page faults, up to a third of an iteration.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25)  # the limit of an older glibc


def output_of(command, folder=None):
    """Return what a command prints, or None if it fails."""
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return result.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def commit_of(repository):
    """Return the commit of a folder's code, with -dirty if tracked files have changed; None without git.

    Tables and pages do not count: experiments and report.py write them.
    """
    commit = output_of(["git", "rev-parse", "HEAD"], repository)
    changed = output_of(["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results",
                         ":!*.md"], repository)
    return commit and commit + ("-dirty" if changed else "")


def cpu_info():
    """Return the first processor's entry in /proc/cpuinfo, or "" where there is no such file."""
    try:
        with open("/proc/cpuinfo") as file:
            return file.read().split("\n\n")[0]
    except OSError:
        return ""


def multiplies_bfloat16():
    """Return whether the processor has instructions for matrix products in bfloat16."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 has none
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def machine(device):
    """Return what results depend on besides settings: the device, its threads, the software's versions."""
    driver = None
    if device.type == "cuda":
        query = ["--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index}"]
        driver = output_of(["nvidia-smi", *query])
        name = torch.cuda.get_device_name(device)
    else:
        cpu = re.search(r"model name\s*: (.*)", cpu_info())
        name = cpu[1] if cpu else platform.processor() or platform.machine()
    return {
        "device": str(device), "device_name": name, "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "driver": driver,
    }


def describe(info):
    """Return a phrase for a run.json, or for machine() with a dtype and a step."""
    threads = ""
    if info["device"] == "cpu":
        threads = ", 1 thread" if info["threads"] == 1 else f", {info['threads']} threads"
    step = f", {info['step']}" if info.get("step") else ""
    return f"{info['device_name']}{threads}, {info['dtype']}, torch {info['torch']}{step}"
