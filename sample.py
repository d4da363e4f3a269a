"""Samples continuations of a prompt from a trained model.

    python sample.py --start="<7-5" --num_samples=3    (the repository's n14)
    python sample.py --out_dir=math_mini_14 --ckpt=ckpt_best_math.pt --start="<7-5" --max_new_tokens=3
"""

from pathlib import Path

import study  # noqa: F401, first: from here on a Ctrl-C ends in one line
import torch

from study.device import setup_device
from study.run_folder import find_model, load_model
from study.scoring import sample
from study.settings import configure, fail

out_dir = "out"  # folder of the trained model; without one, the repository's n14
ckpt = ""  # checkpoint in out_dir; by default ckpt.pt
start = "\n"  # prompt; FILE:name takes the whole content of a file, line ends included
num_samples = 10  # samples
max_new_tokens = 50  # characters a sample
temperature = 0.8  # above 1 more random, below 1 less
top_k = 10  # sample from the top_k likeliest characters only
seed = 1337  # of the sampling
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # auto (on CUDA bfloat16, or float16 on a GPU without it, else float32), float32, bfloat16, float16


if __name__ == "__main__":
    cfg = configure(globals())
    prompt = cfg.start
    if prompt.startswith("FILE:"):
        try:
            prompt = Path(prompt.removeprefix("FILE:")).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            fail(f"cannot read the prompt {prompt.removeprefix('FILE:')}: {error}")
    if not prompt:
        fail("the prompt is empty; --start needs at least one character")
    device, _, autocast = setup_device(cfg.device, cfg.dtype)
    path = find_model(cfg.out_dir, [cfg.ckpt or "ckpt.pt"], "" if cfg.ckpt else "math_mini_14")
    model, chars, _ = load_model(path, device)
    unknown = sorted(set(prompt) - set(chars))
    if unknown:
        fail(f"the prompt has {', '.join(map(repr, unknown))}, outside the vocabulary of {path}: {chars!r}")

    generator = torch.Generator(device).manual_seed(cfg.seed)
    with autocast:
        [texts] = sample(
            model, chars, [prompt], cfg.num_samples, cfg.max_new_tokens, cfg.temperature, cfg.top_k, generator)
    for text in texts:
        print(prompt + text)
        print("---------------")
