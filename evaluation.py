"""What the scripts that run a model share: the device, checkpoints, sampling and scoring."""

import contextlib
import ctypes
import json
import platform
import re
import subprocess
from collections import Counter
from pathlib import Path

import torch

from configurator import fail
from data.dataset import read_meta
from model import GPT, GPTConfig

# The protocol of every evaluation (paper, section 3.3, and the published code).
NUM_SAMPLES = 10  # of each problem
TEMPERATURE = 0.01
TOP_K = 10

PROMPTS_PER_BATCH = 1000  # bounds the memory of large evaluations (operands beyond one digit)


def setup_device(device="auto", dtype="auto"):
    """Turns a request into (torch.device, dtype name, autocast context).

    device: "auto" (cuda, then mps, then cpu) or a name such as "cpu" or "cuda:1".
    dtype: "auto" (bfloat16 on CUDA, float16 on CUDA without it, else float32) or one of these names.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        fail(f"device '{device}' is not available here; --device=auto finds one that is")
    if device.type not in ("cuda", "mps", "cpu"):
        fail(f"device '{device}' cannot train or sample; use cuda, mps, cpu or auto")

    if dtype == "auto":
        bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if bfloat16 else "float16" if device.type == "cuda" else "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        fail(f"dtype '{dtype}' is not one of auto, float32, bfloat16, float16")
    if dtype == "float16" and device.type != "cuda":
        fail("dtype float16 needs a CUDA device; use float32 or bfloat16")

    if device.type == "cuda":
        torch.cuda.set_device(device)  # a CUDA graph captures the current device
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    if device.type == "cpu":
        keep_freed_memory()
    autocast = contextlib.nullcontext() if dtype == "float32" else torch.autocast(device.type, getattr(torch, dtype))
    return device, dtype, autocast


def machine(device):
    """What a number measured here depends on: the device, its threads, and the versions of the software."""
    driver = None
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        driver = output_of(query)
        name = torch.cuda.get_device_name(device)
    else:
        cpu = re.search(r"model name\s*: (.*)", output_of(["cat", "/proc/cpuinfo"]) or "")
        name = cpu[1] if cpu else platform.processor() or platform.machine()
    return {
        "device": str(device), "device_name": name, "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "driver": driver,
    }


def describe(info):
    """machine() and a dtype, or a run.json, in one phrase."""
    threads = f", {info['threads']} thread{'s' * (info['threads'] > 1)}" if info["device"] == "cpu" else ""
    return f"{info['device_name']}{threads}, {info['dtype']}, torch {info['torch']}"


def output_of(command, folder=None):
    """What a command prints, or None if it cannot be run."""
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def keep_freed_memory():
    """Has glibc keep freed memory instead of returning it to the kernel (elsewhere: does nothing).

    Activations are allocated and freed anew in every iteration. By default their pages go back and
    fault in again each time, filled with zeros: hundreds of faults, up to a third of an iteration.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 30)


def read_run_json(folder):
    """What run.json says of a run; {} if there is none or it is damaged: only reports depend on it."""
    try:
        info = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    needed = {"iter_num", "seconds", "device", "device_name", "threads", "dtype", "torch"}
    return info if isinstance(info, dict) and needed <= info.keys() else {}


def load_checkpoint(out_dir, *names):
    """The first of these checkpoints that the folder holds: (path, the dict that was saved)."""
    out_dir = Path(out_dir)
    if not out_dir.is_dir():
        fail(f"folder {out_dir} does not exist: --out_dir must name the folder of a trained model")
    path = next((out_dir / name for name in names if (out_dir / name).is_file()), None)
    if path is None:
        held = ", ".join(sorted(p.name for p in out_dir.glob("*.pt"))) or "no checkpoint at all"
        fail(f"{out_dir} holds no {' and no '.join(names)}; it holds {held}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # cannot run code
    except Exception as error:  # a damaged file can raise almost anything
        fail(f"{path} is damaged or not a checkpoint ({type(error).__name__})")
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= checkpoint.keys():
        fail(f"{path} is not a checkpoint of a model: it lacks 'model' and 'model_args'")
    return path, checkpoint


def load_weights(model, state_dict, path):
    """Loads weights into a model, nanoGPT's compiled ones included; names what does not fit."""
    try:
        model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in state_dict.items()})
    except (RuntimeError, AttributeError, TypeError) as error:
        details = str(error).splitlines()
        fail(f"{path} does not fit its model: {details[min(1, len(details) - 1)].strip()}")


def load_model(out_dir, names, device):
    """(model in eval mode on the device, vocabulary as a string, path) from the first checkpoint found.

    A checkpoint without a vocabulary, one of nanoGPT's, takes that of its dataset's folder.
    """
    path, checkpoint = load_checkpoint(out_dir, *names)
    try:
        model = GPT(GPTConfig(**checkpoint["model_args"]))
    except (TypeError, ValueError, RuntimeError) as error:
        fail(f"{path} describes no model that can be built: {error}")
    load_weights(model, checkpoint["model"], path)
    chars = checkpoint.get("chars")
    if chars is None:
        chars, _ = read_meta(checkpoint.get("config", {}).get("dataset", ""))
    if len(chars) != model.config.vocab_size:
        fail(f"{path} has a vocabulary of {len(chars)} characters for a model of {model.config.vocab_size}")
    return model.eval().to(device), chars, path


def sample(model, chars, prompts, num_samples, max_new_tokens, temperature, top_k, generator, stop=None):
    """num_samples continuations of each prompt, sampled in one batch.

    Returns a list of num_samples strings for each prompt, without the prompt; one that reaches the
    character `stop` ends with it. The prompts must be spelled by `chars` and not be empty.
    """
    stoi = {char: i for i, char in enumerate(chars)}
    width = max(len(prompt) for prompt in prompts)
    padded = [[stoi[char] for char in prompt] + [0] * (width - len(prompt)) for prompt in prompts]
    device = model.lm_head.weight.device
    idx = torch.tensor(padded, device=device).repeat_interleave(num_samples, dim=0)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=device).repeat_interleave(num_samples)
    stop = None if stop is None else stoi[stop]
    tokens, ends = model.generate(idx, max_new_tokens, temperature, top_k, starts, stop, generator)
    texts = [
        "".join(chars[i] for i in row[start:end])
        for row, start, end in zip(tokens.tolist(), starts.tolist(), ends.tolist())
    ]
    return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]


def answer(model, chars, task, problems, generator):
    """Answers to problems of a task by the study's protocol: a Counter of 10 answers for each problem."""
    answers = []
    for i in range(0, len(problems), PROMPTS_PER_BATCH):
        prompts = [problem.prompt for problem in problems[i : i + PROMPTS_PER_BATCH]]
        completions = sample(
            model, chars, prompts, NUM_SAMPLES, task.max_new_tokens, TEMPERATURE, TOP_K, generator, task.stop
        )
        answers += [Counter(map(task.read_answer, texts)) for texts in completions]
    return answers


def answer_by(cfg, task, best_ckpt, problems):
    """The answers of the model that an evaluation script was asked for (cfg: its settings)."""
    device, _, autocast = setup_device(cfg.device, cfg.dtype)
    model, chars, path = load_model(cfg.out_dir, [cfg.ckpt] if cfg.ckpt else [best_ckpt, "ckpt.pt"], device)
    unknown = sorted(set("".join(problem.prompt + problem.answer for problem in problems)) - set(chars))
    if unknown:
        fail(f"{path} was not trained on this task: its vocabulary lacks {''.join(unknown)!r}")
    print(f"{path}, {NUM_SAMPLES} samples of each problem")
    with autocast:
        return answer(model, chars, task, problems, torch.Generator(device).manual_seed(cfg.seed))


def tally(problems, answers, counts=lambda problem: True):
    """(correct, asked) samples over the problems that `counts` picks."""
    picked = [(problem, given) for problem, given in zip(problems, answers) if counts(problem)]
    return sum(given[problem.answer] for problem, given in picked), NUM_SAMPLES * len(picked)


def report(problems, answers):
    """Prints each problem's score and, if there are any, the wrong answers with their number."""
    width = max(len(problem.prompt + problem.answer) for problem in problems)
    for problem, given in zip(problems, answers):
        wrong = [f"{text or 'no answer'} ({n})" for text, n in given.most_common() if text != problem.answer]
        line = f"{problem.prompt + problem.answer:{width}}  {given[problem.answer]:2}/{NUM_SAMPLES}"
        line += "  held out" if problem.held_out else ""
        print(line + (f"  wrong: {', '.join(wrong)}" if wrong else ""))


def print_total(name, correct, asked):
    if asked:
        print(f"{name}: {correct} of {asked} ({100 * correct / asked:.2f}%)")
