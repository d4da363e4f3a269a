"""What the tests of errors share: the scripts, and functions that damage a file when a test calls them."""

import os
from pathlib import Path

import torch
from conftest import DATASETS, ROOT, refused

SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.py"), *ROOT.glob("data/*/prepare.py")]
                 if "__main__" in path.read_text())
TRAIN, SAMPLE, MATH, CAPITALS, BENCH, EXPERIMENT = (
    "train_with_eval.py", "sample.py", "eval_as_math.py", "eval_capitals.py", "bench.py", "run_experiment.py")
PLOT, GRIDS, TABLES, REPORT = "plot_results.py", "plot_all_models.py", "tabulate_all_models.py", "report.py"
AS_MATH, FACTS, BOTH = (f"data/{name}/prepare.py" for name in DATASETS)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HEADER = b"iter,add_correct,add_total,sub_correct,sub_total,facts_correct,facts_total,val_loss\n"
ROW = b"0,0,910,0,910,0,0,2.8\n"
SAMPLED = "--out_dir=run --start=<7-5"


def write(path, content):
    def written():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(content)

    return written


def cut(path, length):
    return lambda: os.truncate(path, length)


def remove(path):
    return lambda: os.remove(path)


def change(path, **changes):
    """Replace items of a checkpoint; of its model_args only those that model_args={...} names."""

    def changed():
        checkpoint = torch.load(path, weights_only=True)
        args = checkpoint["model_args"] | changes.get("model_args", {})
        torch.save(checkpoint | changes | {"model_args": args}, path)

    return changed


def save(path, content):
    """content: what to save as a checkpoint, or a function of the checkpoint that is there."""
    return lambda: torch.save(
        content(torch.load(path, weights_only=True)) if callable(content) else content, path)


def everything_in(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def check_mistake(call, here, script, arguments, prepare, words):
    """Check that a command is refused in one line that has all of `words`, and changes no file."""
    if prepare:
        prepare()
    before = everything_in(here)
    refused(call(script, *arguments.split()), *words)
    assert everything_in(here) == before
