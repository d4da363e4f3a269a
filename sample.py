"""Samples continuations of a prompt from a trained model.

    python sample.py --out_dir=math_mini_14 --ckpt=ckpt_best_math.pt --start="<7-5" --max_new_tokens=3
"""

from pathlib import Path

import torch

from configurator import configure, fail
from evaluation import load_model, sample, setup_device

out_dir = "out"  # folder of the trained model
ckpt = "ckpt.pt"  # checkpoint in out_dir
start = "\n"  # prompt; FILE:name takes the whole content of a file, line ends included
num_samples = 10  # samples
max_new_tokens = 50  # characters a sample
temperature = 0.8  # above 1 more random, below 1 less
top_k = 10  # sample from the top_k likeliest characters only
seed = 1337  # of the sampling
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # auto (bfloat16 on CUDA, else float32), float32, bfloat16, float16


if __name__ == "__main__":
    cfg = configure(globals())
    for key in ("num_samples", "max_new_tokens", "top_k"):
        if getattr(cfg, key) < 1:
            fail(f"{key}={getattr(cfg, key)} must be at least 1")
    if not cfg.temperature > 0:
        fail(f"temperature={cfg.temperature} must be above 0; 0.01 is close to always the likeliest character")

    prompt = cfg.start
    if prompt.startswith("FILE:"):
        try:
            prompt = Path(prompt.removeprefix("FILE:")).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fail(f"cannot read the prompt {prompt.removeprefix('FILE:')}: {error}")
    if not prompt:
        fail("the prompt is empty; --start needs at least one character")
    device, _, autocast = setup_device(cfg.device, cfg.dtype)
    model, chars, path = load_model(cfg.out_dir, [cfg.ckpt], device)
    unknown = sorted(set(prompt) - set(chars))
    if unknown:
        fail(f"the prompt has {', '.join(map(repr, unknown))}, outside the vocabulary of {path}: {chars!r}")

    generator = torch.Generator(device).manual_seed(cfg.seed)
    with autocast:
        [texts] = sample(
            model, chars, [prompt], cfg.num_samples, cfg.max_new_tokens, cfg.temperature, cfg.top_k, generator
        )
    for text in texts:
        print(prompt + text)
        print("---------------")
