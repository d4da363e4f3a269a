"""Sample continuations of a prompt from a trained model.

    python sample.py --start="<7-5" --num_samples=3    (the repository's n14)
    python sample.py --out_dir=math_mini_14 --ckpt=ckpt_best_math.pt --start="<7-5" --max_new_tokens=3
"""

from pathlib import Path

from study import StudyError  # first: from here on Ctrl-C ends in one line
import torch

from study.files import why_unreadable
from study.scoring import open_model, sample
from study.settings import run_script

out_dir = "out"  # folder of the trained model; without one, the repository's n14
ckpt = ""  # checkpoint in out_dir; by default ckpt.pt
start = "\n"  # prompt; FILE:name reads it from a file, with its line ends as they are
num_samples = 10  # samples
max_new_tokens = 50  # characters per sample
temperature = 0.8  # above 1 more random, below 1 less
top_k = 10  # sample only from the top_k most likely characters
seed = 1337  # of the sampling
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # auto (what the model was trained in), float32, bfloat16, float16


def main(cfg):
    prompt = cfg.start
    if prompt.startswith("FILE:"):
        path = Path(prompt.removeprefix("FILE:"))
        try:
            prompt = path.read_bytes().decode("utf-8-sig")  # read_text() would change the line ends
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(f"cannot read the prompt {path}: {why_unreadable(error)}")
    if not prompt:
        raise StudyError("the prompt is empty; --start needs at least one character")
    trained = open_model(cfg, "ckpt.pt", "math_mini_14")
    unknown = sorted(set(prompt) - set(trained.chars))
    if unknown:
        raise StudyError(f"the prompt has {', '.join(map(repr, unknown))}, outside the vocabulary of "
                         f"{trained.path}: {trained.chars!r}")

    generator = torch.Generator(trained.model.lm_head.weight.device).manual_seed(cfg.seed)
    with trained.autocast:
        [texts] = sample(trained.model, trained.chars, [prompt], cfg.num_samples, cfg.max_new_tokens,
                         cfg.temperature, cfg.top_k, generator)
    for text in texts:
        print(prompt + text)
        print("---------------")


if __name__ == "__main__":
    run_script(main, globals())
