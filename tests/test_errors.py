"""A mistake in a command gets one line that says what to do, and changes no file.

Each test has a folder with `run` and `facts`, short runs on arithmetic and on the capitals, and the
prepared datasets in `data`, which a row may damage first.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from conftest import ROOT, refused
from errors import (
    AS_MATH, BENCH, BOTH, CAPITALS, EXPERIMENT, FACTS, MATH, PLOT, REPORT, SAMPLE, SAMPLED, SCRIPTS, TRAIN,
    check_mistake, write)

from study.settings import defaults_of

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
without_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")


def circle(link):
    """Two configs that include each other, directly or through a link."""

    def written():
        Path("one.py").write_text("include('two.py')\n")
        Path("two.py").write_text(f"include('{'link' if link else 'one'}.py')\n")
        if link:
            Path("link.py").symlink_to("one.py")

    return written


EVERY_PAIR = ";".join(f"{a},{b}" for a in range(10) for b in range(a, 10))

# Script, its arguments, what is prepared, words that the line must have.
MISTAKES = [
    # Arguments
    (TRAIN, "--n_embed=14", None, ["n_embed", "n_embd"]),
    (TRAIN, "--learning-rate=1", None, ["learning-rate", "learning_rate"]),
    (TRAIN, "--max_iters=ten", None, ["max_iters", "whole number", "ten"]),
    (TRAIN, "--max_iters=1.5", None, ["max_iters", "whole number", "1.5"]),
    (TRAIN, "--learning_rate=fast", None, ["learning_rate", "number", "fast"]),
    (TRAIN, "--device=True", None, ["device", "a string", "auto"]),
    (TRAIN, "--overwrite=yes", None, ["overwrite", "True or False", "yes"]),
    (TRAIN, "--fast=auto", None, ["fast", "True or False", "auto"]),
    (TRAIN, "--max_iters", None, ["max_iters", "needs a value"]),
    (TRAIN, "--out_dir --max_iters=5", None, ["out_dir", "needs a value"]),
    (TRAIN, "max_iters=5", None, ["not a setting", "--max_iters=5"]),
    (TRAIN, "--init_from=resume --overwrite=True", None, ["init_from", "overwrite"]),
    (FACTS, "--held_out=3,4", None, ["unknown key 'held_out'"]),

    # Config files
    (TRAIN, "missing.py", None, ["missing.py", "does not exist"]),
    (SAMPLE, "surplus.py", None, ["surplus.py", "does not exist"]),
    (TRAIN, ".", None, ["'.' is a folder"]),
    (TRAIN, "raises.py", write("raises.py", b"n_embd = 14\nn_head = 1 / 0\n"),
     ["raises.py", "line 2", "ZeroDivisionError"]),
    (TRAIN, "syntax.py", write("syntax.py", b"n_embd = = 3\n"), ["syntax.py", "line 1", "SyntaxError"]),
    (TRAIN, "unknown.py", write("unknown.py", b"n_embdd = 14\n"), ["unknown.py", "n_embdd", "n_embd"]),
    (TRAIN, "wrong.py", write("wrong.py", b"n_embd = 'wide'\n"), ["wrong.py", "n_embd", "whole number"]),
    (TRAIN, "bool.py", write("bool.py", b"n_embd = True\n"), ["bool.py", "n_embd", "whole number"]),
    (TRAIN, "opens.py", write("opens.py", b"n_embd = int(open('nowhere.txt').read())\n"),
     ["opens.py", "line 1", "FileNotFoundError"]),
    (TRAIN, "binary.py", write("binary.py", b"\xff\xfe"), ["binary.py", "not text"]),
    (TRAIN, "base.py", write("base.py", b"include('nowhere.py')\n"), ["nowhere.py", "does not exist"]),
    (TRAIN, "loop.py", write("loop.py", b"include('loop.py')\n"), ["loop.py", "includes itself"]),
    *((TRAIN, "one.py", circle(link), ["one.py", "two.py", "includes itself"]) for link in (False, True)),
    (TRAIN, "exits.py", write("exits.py", b"import sys\nsys.exit(0)\n"), ["exits.py", "line 2", "Exit"]),
    (TRAIN, "big.py", write("big.py", b"learning_rate = 10**400\n"), ["big.py", "learning_rate", "a number"]),
    (TRAIN, "huge.py", write("huge.py", b"max_iters = 10**5000\n"), ["max_iters", "digits", "at most"]),

    # Values that nothing can work with
    *((script, "--n_embd=14 --n_head=4", None, ["n_embd=14", "n_head=4"]) for script in (TRAIN, BENCH)),
    (TRAIN, "--eval_interval=0", None, ["eval_interval=0", "at least 1"]),
    (TRAIN, "--batch_size=0", None, ["batch_size=0", "at least 1"]),
    (TRAIN, "--save_interval=-1", None, ["save_interval=-1.0", "at least 0"]),
    (TRAIN, "--grad_clip=-1", None, ["grad_clip=-1.0", "at least 0"]),
    (TRAIN, "--dropout=1.0", None, ["dropout=1.0", "below 1"]),
    (TRAIN, "--beta2=1", None, ["beta2=1.0", "below 1"]),
    (TRAIN, "--learning_rate=nan", None, ["learning_rate=nan"]),
    (TRAIN, "--weight_decay=inf", None, ["weight_decay=inf", "finite"]),
    (TRAIN, "--seed=-1", None, ["seed=-1", "at least 0"]),
    (TRAIN, "--seed=4294967296", None, ["seed=4294967296", "at most 4294967295"]),
    (TRAIN, "--data_seed=-2", None, ["data_seed=-2", "at least -1"]),
    (TRAIN, "--out_dir=", None, ["out_dir", "empty"]),
    (TRAIN, "--init_from=gpt2", None, ["gpt2", "scratch", "resume"]),
    (TRAIN, "--compile=maybe", None, ["maybe"]),
    (TRAIN, "--cuda_graph=maybe", None, ["cuda_graph", "maybe"]),
    (TRAIN, "--dtype=int8", None, ["int8", "bfloat16"]),
    (SAMPLE, SAMPLED + " --temperature=0", None, ["temperature=0.0", "at least 1e-06"]),
    (SAMPLE, SAMPLED + " --temperature=nan", None, ["temperature=nan", "at least 1e-06"]),
    (SAMPLE, SAMPLED + " --temperature=1e-40", None, ["temperature=1e-40", "at least 1e-06"]),
    (SAMPLE, SAMPLED + " --temperature=inf", None, ["temperature=inf", "finite"]),
    (SAMPLE, SAMPLED + " --num_samples=0", None, ["num_samples=0", "at least 1"]),
    (SAMPLE, SAMPLED + " --top_k=0", None, ["top_k=0", "at least 1"]),
    (MATH, "--out_dir=run --operation=division", None, ["division", "addition"]),
    (MATH, "--out_dir=run --max_operand=10000", None, ["max_operand=10000", "at most 199"]),
    (MATH, "--out_dir=run --max_operand=-1", None, ["max_operand=-1"]),
    (BENCH, "--blocks=0", None, ["blocks=0", "at least 1"]),
    (EXPERIMENT, "--jobs=-1", None, ["jobs=-1", "at least 0"]),
    (EXPERIMENT, "", None, ["no runs", "experiments/paper.py"]),
    (EXPERIMENT, "nowhere.py", None, ["nowhere.py", "does not exist"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = 3"), ["runs", "a list", "3"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = ['math_mini_14']"),
     ["math_mini_14", "not the settings of a run"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_1'}]"),
     ["config/train_math_mini_1.py"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'sed': 1}]"),
     ["'sed'", "no setting of a run on as_math", "seed"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'n_embd': 14.5}]"),
     ["n_embd", "a whole number", "14.5"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'n_head': 3}]"),
     ["n_embd=14", "divisible by n_head=3"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'max_iters': 0}]"),
     ["max_iters=0", "at least 1"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'max_iters': 'lots'}]"),
     ["max_iters", "whole number", "lots"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'out_dir': 'me'}]"),
     ["'out_dir'", "no setting of a run"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'dataset': 'nope'}]"),
     ["dataset='nope'", "data/nope/prepare.py"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'facts_mini_14', 'line_seed': 3}]"),
     ["'line_seed'", "no setting of a run on facts_char"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'held_out': '5,17'}]"),
     ["held_out='5,17'", "from 0 to 9"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'max_operand': 12}]"),
     ["max_operand=12", "--line_seed"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'operations': 'mul'}]"),
     ["operations='mul'", "add, sub, both"]),
    (MATH, "run", None, ["'run' is a folder", "--out_dir=run"]),
    (PLOT, "run", None, ["'run' is a folder", "--model_folder=run"]),
    (MATH, "-seed=1", None, ["not a setting", "--seed=1"]),
    (TRAIN, "n_embd=14", None, ["not a setting", "--n_embd=14"]),
    (MATH, "--out_dir=run --plot=grid", None, ["plot='grid'", ".png or .pdf"]),
    (MATH, "--out_dir=run --plot=nowhere/grid.png", None, ["plot='nowhere/grid.png'", "folder"]),
    (REPORT, "--root_dir=data", None, ["data holds no runs", "experiments/seeds.py"]),
    (REPORT, f"--root_dir={ROOT}/results --out_dir=run/run.json", None, ["cannot make", "run/run.json"]),
    (REPORT, f"--root_dir={ROOT}/results --out_dir=.", write("README.md", b"\xff"),
     ["cannot read README.md"]),
    (REPORT, f"--root_dir={ROOT}/results --out_dir=.", write("README.md", b"mine"),
     ["README.md has no table"]),
    (EXPERIMENT, "mine.py --root_dir=run/run.json", write("mine.py", b"runs = [{'config': 'math_mini_14'}]"),
     ["run/run.json", "cannot make"]),

    # Devices
    (TRAIN, "--device=warp", None, ["warp", "auto"]),
    (TRAIN, "--device=meta", None, ["meta"]),
    (TRAIN, "--device=cpu --dtype=float16", None, ["float16", "CUDA"]),
    (SAMPLE, SAMPLED + " --device=warp", None, ["warp"]),
    (EXPERIMENT, "--device=warp", None, ["warp"]),
    *(pytest.param(script, "--out_dir=run --device=cuda", None, ["cuda", "--device=auto"], marks=without_cuda)
      for script in (SAMPLE, MATH, CAPITALS, TRAIN)),
    pytest.param(TRAIN, "--wandb_log=True", None, ["wandb", "pip install wandb"], marks=without_wandb),

    # Preparing data
    (AS_MATH, f"--folder=made --held_out={EVERY_PAIR}", None, ["made", "empty"]),
    *((script, f"--folder=made --held_out={pairs}", None, ["held_out=", pairs, "3,4;1,8", "none"])
      for script in (AS_MATH, BOTH) for pairs in ("5;7", "12,3", "5,7;", "")),
    (AS_MATH, "--folder=made --line_seed=-2", None, ["line_seed=-2", "at least -1"]),
    (AS_MATH, "--folder=made --answer_seed=-2", None, ["answer_seed=-2", "at least -1"]),
    (AS_MATH, "--folder=made --shuffles=0", None, ["shuffles=0", "at least 1"]),
    (AS_MATH, f"--folder=made --answer_seed=1 --held_out={EVERY_PAIR}", None, ["made", "empty"]),
    *((script, f"--folder=made {setting}", None, words) for script in (AS_MATH, BOTH) for setting, words in (
        ("--operations=mul", ["operations='mul'", "add, sub, both"]),
        ("--max_operand=0", ["max_operand=0", "from 1 to 99"]),
        ("--max_operand=100 --line_seed=1", ["max_operand=100", "from 1 to 99"]),
        ("--max_operand=12", ["max_operand=12", "--line_seed"]),
        ("--max_operand=4", ["held_out='5,7'", "from 0 to 4"]),
        ("--max_operand=4 --held_out=3,4", ["held_out='3,4'", "'7'", "other pairs"]),
        ("--held_out=05,7", ["held_out='05,7'"]),
    )),
    (AS_MATH, "--folder=file/made", write("file", b"in the way"), ["file/made", "cannot make the folder"]),
    (AS_MATH, "--folder=file", write("file", b"in the way"), ["file", "cannot make the folder"]),
]


@pytest.mark.parametrize("script, arguments, prepare, words", MISTAKES)
def test_a_mistake_gets_one_line_and_changes_nothing(call, here, script, arguments, prepare, words):
    check_mistake(call, here, script, arguments, prepare, words)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_absurd_number_is_refused_at_once(call, here, script):
    for key, default in defaults_of(ROOT / script).items():
        if type(default) is int:
            refused(call(script, f"--{key}={'9' * 30}"), f"{key}={'9' * 30}", "at most")
            refused(call(script, f"--{key}={'9' * 5000}"), key, "whole number", "characters)")
        if type(default) is float:
            refused(call(script, f"--{key}=1e400"), key)
        if type(default) in (int, float):
            (here / "absurd.py").write_text(f"{key} = 10**400\n")
            refused(call(script, "absurd.py"), key)


@pytest.mark.parametrize("script, setting", [
    (TRAIN, "out_dir"), (TRAIN, "dataset"), ("sample.py", "out_dir"), ("data/as_math/prepare.py", "folder"),
    ("report.py", "root_dir"), ("run_experiment.py", "root_dir"),
])
def test_a_path_that_is_too_long_is_named_in_one_line(call, in_tmp, script, setting):
    experiment = [str(ROOT / "experiments" / "paper.py")] if script == "run_experiment.py" else []
    result = call(script, *experiment, f"--{setting}={300 * 'x'}")
    [line] = result.stderr.splitlines()
    assert result.returncode and line.startswith("error: ") and "xxxx" in line and "long" in line.lower()
