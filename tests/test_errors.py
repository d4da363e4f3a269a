"""Whatever is wrong with a command or a file is said in one line, and nothing is written or changed by it.

Each test has a folder with `run` and `facts`, short runs on arithmetic and on the capitals, and the
prepared datasets in `data`, which a row may damage first.
"""

import importlib.util
import json
import os
import pickle
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHORT, refused

import study.dataset
from study.dataset import write_dataset
from study.tasks import arithmetic_text

TRAIN, SAMPLE, MATH, CAPITALS, BENCH, EXPERIMENT = (
    "train_with_eval.py", "sample.py", "eval_as_math.py", "eval_capitals.py", "bench.py", "run_experiment.py")
PLOT, GRIDS, TABLES, REPORT = "plot_results.py", "plot_all_models.py", "tabulate_all_models.py", "report.py"
AS_MATH, FACTS, BOTH = (f"data/{name}/prepare.py" for name in ("as_math", "facts_char", "both_math_and_facts"))

HEADER = b"iter,add_correct,add_total,sub_correct,sub_total,facts_correct,facts_total,val_loss\n"
ROW = b"0,0,910,0,910,0,0,2.8\n"

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
without_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")


class Exploit:
    """Pickles as a call that makes the folder `exploited` when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("exploited",)


# What a row prepares.


def write(path, content):
    def written():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(content)

    return written


def cut(path, length):
    return lambda: os.truncate(path, length)


def remove(path):
    return lambda: os.remove(path)


def last_token_99():
    path = Path("data/as_math/train.bin")
    path.write_bytes(path.read_bytes()[:-2] + b"\x63\x00")


def change_meta(**changes):
    def changed():
        path = Path("data/as_math/meta.pkl")
        path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | changes))

    return changed


def damage_a_dataset_without_prepare():
    shutil.copytree("data/as_math", "data/other", ignore=shutil.ignore_patterns("prepare.py"))
    os.truncate("data/other/val.bin", 10)


def prepare_anew(text, held_out):
    return lambda: write_dataset("data/as_math", text, held_out)


def change(path, **changes):
    """Of a checkpoint, or with model_args={...} some of these."""

    def changed():
        checkpoint = torch.load(path, weights_only=True)
        args = checkpoint["model_args"] | changes.get("model_args", {})
        torch.save(checkpoint | changes | {"model_args": args}, path)

    return changed


def save(path, content):
    """content: of the whole file, or a function of the checkpoint that it holds."""
    return lambda: torch.save(content(torch.load(path, weights_only=True)) if callable(content) else content, path)


def only_the_best_model():
    for path in Path("run").iterdir():
        if path.name not in ("ckpt.pt", ".lock"):
            path.unlink()


def no_last_and_no_config():
    os.remove("run/ckpt_last.pt")
    info = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps({key: value for key, value in info.items() if key != "config"}))


def only_best_as_last():
    shutil.copy("run/ckpt.pt", "run/ckpt_last.pt")


def no_checkpoint():
    for path in Path("run").glob("*.pt"):
        path.unlink()


def a_cell_that_is_not_complete():
    shutil.copytree("run", "math_mini_14_seed_1")


def a_vocabulary_without_an_end():
    for path in Path("run").glob("*.pt"):
        checkpoint = torch.load(path, weights_only=True)
        torch.save(checkpoint | {"chars": checkpoint["chars"].replace(">", "?")}, path)


EVERY_PAIR = ";".join(f"{a},{b}" for a in range(10) for b in range(a, 10))
RESUME = "--out_dir=run --init_from=resume"
AGAIN = "python data/as_math/prepare.py"
ONE = "--max_iters=1"
SAMPLED = "--out_dir=run --start=<7-5"

# Script, its arguments, what is prepared, words that the line must say.
REFUSED = [
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
    (TRAIN, "max_iters=5", None, ["no setting", "--max_iters=5"]),
    (TRAIN, "--init_from=resume --overwrite=True", None, ["init_from", "overwrite"]),
    (FACTS, "--held_out=3,4", None, ["unknown key 'held_out'"]),

    # Config files
    (TRAIN, "missing.py", None, ["missing.py", "does not exist"]),
    (SAMPLE, "surplus.py", None, ["surplus.py", "does not exist"]),
    (TRAIN, ".", None, ["\'.\' is a folder and no config file"]),
    (TRAIN, "raises.py", write("raises.py", b"n_embd = 14\nn_head = 1 / 0\n"), ["raises.py", "line 2", "ZeroDivisionError"]),
    (TRAIN, "syntax.py", write("syntax.py", b"n_embd = = 3\n"), ["syntax.py", "line 1", "SyntaxError"]),
    (TRAIN, "unknown.py", write("unknown.py", b"n_embdd = 14\n"), ["unknown.py", "n_embdd", "n_embd"]),
    (TRAIN, "wrong.py", write("wrong.py", b"n_embd = 'wide'\n"), ["wrong.py", "n_embd", "whole number"]),
    (TRAIN, "bool.py", write("bool.py", b"n_embd = True\n"), ["bool.py", "n_embd", "whole number"]),
    (TRAIN, "opens.py", write("opens.py", b"n_embd = int(open('nowhere.txt').read())\n"), ["opens.py", "line 1", "FileNotFoundError"]),
    (TRAIN, "binary.py", write("binary.py", b"\xff\xfe"), ["binary.py", "not text"]),
    (TRAIN, "base.py", write("base.py", b"include('nowhere.py')\n"), ["nowhere.py", "does not exist"]),

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
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = ['math_mini_14']"), ["math_mini_14", "not the settings of a run"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_1'}]"), ["config/train_math_mini_1.py"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'sed': 1}]"), ["'sed'", "no setting of a run on as_math", "seed"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'n_embd': 14.5}]"), ["n_embd", "a whole number", "14.5"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'n_head': 3}]"), ["n_embd=14", "divisible by n_head=3"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'max_iters': 0}]"), ["max_iters=0", "at least 1"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'max_iters': 'lots'}]"), ["max_iters", "whole number", "lots"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'out_dir': 'me'}]"), ["'out_dir'", "no setting of a run"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'dataset': 'nope'}]"), ["dataset='nope'", "data/nope/prepare.py"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'facts_mini_14', 'line_seed': 3}]"), ["'line_seed'", "no setting of a run on facts_char"]),
    (EXPERIMENT, "mine.py", write("mine.py", b"runs = [{'config': 'math_mini_14', 'held_out': '5,17'}]"), ["held_out='5,17'", "pairs of digits"]),
    (MATH, "run", None, ["'run' is a folder", "--out_dir=run"]),
    (PLOT, "run", None, ["'run' is a folder", "--model_folder=run"]),
    (MATH, "-seed=1", None, ["no setting", "--seed=1"]),
    (TRAIN, "n_embd=14", None, ["no setting", "--n_embd=14"]),
    (MATH, "--out_dir=run --plot=grid", None, ["plot='grid'", ".png or .pdf"]),
    (MATH, "--out_dir=run --plot=nowhere/grid.png", None, ["plot='nowhere/grid.png'", "folder"]),
    (REPORT, "--root_dir=data", None, ["data holds no runs", "experiments/seeds.py"]),
    (REPORT, f"--root_dir={ROOT}/results --readme=nowhere.md", None, ["cannot read nowhere.md"]),
    (REPORT, f"--root_dir={ROOT}/results --readme=mine.md", write("mine.md", b"mine"), ["mine.md has no table"]),
    (EXPERIMENT, "mine.py --root_dir=run/run.json", write("mine.py", b"runs = [{'config': 'math_mini_14'}]"), ["run/run.json", "cannot make"]),

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
    (AS_MATH, "--folder=file/made", write("file", b"in the way"), ["file/made", "cannot make the folder"]),
    (AS_MATH, "--folder=file", write("file", b"in the way"), ["file", "cannot make the folder"]),

    # Damaged data
    (TRAIN, f"{ONE} --dataset=shakespeare", None, ["shakespeare", "as_math", "facts_char"]),
    (TRAIN, f"{ONE} --dataset=", None, ["no dataset ''", "as_math"]),
    (BENCH, "--dataset=shakespeare", None, ["shakespeare", "as_math", "facts_char"]),
    (TRAIN, f"{ONE} --block_size=1764", None, ["1764", "block_size"]),
    (TRAIN, ONE, cut("data/as_math/train.bin", 1000), ["train.bin", "500 tokens", "1764", AGAIN]),
    (TRAIN, ONE, cut("data/as_math/train.bin", 1001), ["train.bin", "odd", AGAIN]),
    (TRAIN, ONE, last_token_99, ["train.bin", "99", "17", AGAIN]),
    (TRAIN, ONE, remove("data/as_math/train.bin"), ["train.bin", AGAIN]),
    (TRAIN, ONE, remove("data/as_math/val.bin"), ["val.bin", AGAIN]),
    *((TRAIN, ONE, write("data/as_math/meta.pkl", content), ["meta.pkl", "damaged", AGAIN])
      for content in (b"", b"not a pickle", pickle.dumps([1, 2]), pickle.dumps({"vocab_size": 3}), pickle.dumps(Exploit()))),
    (TRAIN, ONE, cut("data/as_math/meta.pkl", 100), ["meta.pkl", "damaged", AGAIN]),
    (TRAIN, ONE, change_meta(stoi={}), ["meta.pkl", "damaged", "disagree"]),
    (TRAIN, ONE, remove("data/as_math/meta.pkl"), ["not prepared", AGAIN]),
    (TRAIN, f"{ONE} --dataset=other", damage_a_dataset_without_prepare, ["val.bin", "--folder=data/other"]),

    # Folders of runs
    (TRAIN, "--out_dir=run", None, ["holds a run", "--init_from=resume", "--overwrite=True"]),
    (TRAIN, "--out_dir=run --seed=1", remove("run/ckpt_last.pt"), ["holds a run", "--init_from=resume", "--overwrite=True"]),
    (TRAIN, "--out_dir=run", only_the_best_model, ["run holds a run (ckpt.pt)", "cannot go on", "--overwrite=True"]),
    (TRAIN, "--out_dir=file/run", write("file", b"in the way"), ["file/run", "cannot write"]),
    (TRAIN, "--out_dir=file", write("file", b"in the way"), ["file", "cannot write"]),
    *((script, "--out_dir=nowhere", None, ["nowhere", "does not exist"]) for script in (SAMPLE, MATH, CAPITALS)),

    # Resuming
    (TRAIN, "--out_dir=nothing --init_from=resume", None, ["no run to resume", "nothing"]),
    (TRAIN, "--out_dir=data --init_from=resume", None, ["no run to resume", "data"]),
    (TRAIN, f"{RESUME} --n_embd=28", None, ["n_embd=14", "28"]),
    (TRAIN, f"{RESUME} --seed=1", None, ["seed=1337", "not 1:"]),
    (TRAIN, f"{RESUME} --data_seed=1", None, ["data_seed=-1", "not 1:"]),
    (TRAIN, f"{RESUME} --batch_size=100", None, ["batch_size=882", "100"]),
    (TRAIN, f"{RESUME} --dataset=facts_char", None, ["dataset=as_math", "facts_char"]),
    (TRAIN, f"{RESUME} --fast=False", None, ["fast=True", "False"]),
    (TRAIN, f"{RESUME} --dtype=bfloat16", None, ["dtype", "float32", "bfloat16"]),
    (TRAIN, RESUME, prepare_anew(arithmetic_text(held_out="3,4"), "3,4"), ["held_out", "5,7", "3,4"]),
    (TRAIN, RESUME, prepare_anew(arithmetic_text() + "!", "5,7"), ["chars", "!"]),
    (TRAIN, RESUME, prepare_anew(arithmetic_text(line_seed=3), "5,7"), ["data/as_math", "another text", "prepare it as it was"]),
    (TRAIN, RESUME, only_best_as_last, ["ckpt_last.pt", "--overwrite=True"]),
    (TRAIN, RESUME, cut("run/ckpt_last.pt", 5000), ["ckpt_last.pt", "damaged"]),
    (TRAIN, RESUME, write("run/ckpt_last.pt", b""), ["ckpt_last.pt", "damaged"]),
    (TRAIN, RESUME, change("run/ckpt_last.pt", batch_order=torch.zeros(3, dtype=torch.uint8)), ["ckpt_last.pt", "does not fit"]),
    (TRAIN, RESUME, change("run/ckpt_last.pt", model={}), ["ckpt_last.pt", "does not fit"]),
    (TRAIN, RESUME, remove("run/ckpt_last.pt"), ["run holds a run at iteration 40", "without the ckpt_last.pt", "--overwrite=True"]),
    (TRAIN, RESUME + " --max_iters=90", remove("run/ckpt_last.pt"), ["at iteration 40 without the ckpt_last.pt"]),
    (TRAIN, RESUME + " --n_embd=16", remove("run/ckpt_last.pt"), ["n_embd=14", "16"]),
    (TRAIN, RESUME, no_last_and_no_config, ["without the ckpt_last.pt", "--overwrite=True"]),
    (TRAIN, RESUME, change("run/ckpt_last.pt", random_states=[{}, {}]), ["made by 2 processes"]),

    # Prompts
    (SAMPLE, "--out_dir=run --start=<7*5", None, ["'*'", "vocabulary"]),
    (SAMPLE, "--out_dir=run --start=", None, ["empty"]),
    (SAMPLE, "--out_dir=run --start=FILE:nowhere.txt", None, ["nowhere.txt", "No such file"]),
    (SAMPLE, "--out_dir=run --start=FILE:latin", write("latin", b"\xe9"), ["latin"]),
    (SAMPLE, "--out_dir=run --start=FILE:nothing", write("nothing", b""), ["empty"]),

    # Checkpoints
    (SAMPLE, SAMPLED + " --ckpt=ckpt_best_facts.pt", None, ["ckpt_best_facts.pt", "it holds ckpt.pt"]),
    (SAMPLE, SAMPLED, remove("run/ckpt.pt"), ["run holds no ckpt.pt", "it holds ckpt_best_combined.pt"]),
    (MATH, "--out_dir=run", no_checkpoint, ["ckpt_best_math.pt", "ckpt.pt", "no checkpoint at all"]),
    (SAMPLE, SAMPLED, cut("run/ckpt.pt", 5000), ["ckpt.pt", "damaged"]),
    *((SAMPLE, SAMPLED, write("run/ckpt.pt", content), ["ckpt.pt", "damaged"]) for content in (b"", b"not a checkpoint")),
    *((SAMPLE, SAMPLED, change("run/ckpt.pt", model_args=args), ["ckpt.pt", *words]) for args, words in (
        ({"n_embd": 28}, ["does not fit"]), ({"n_layer": 2}, ["does not fit"]), ({"vocab_size": 99}, ["does not fit"]),
        ({"unheard_of": 1}, ["no model that can be built"]), ({"n_head": 4}, ["no model that can be built"]))),
    (SAMPLE, SAMPLED, change("run/ckpt.pt", model=[1, 2]), ["ckpt.pt", "does not fit"]),
    (SAMPLE, SAMPLED, change("run/ckpt.pt", chars="abc"), ["ckpt.pt", "vocabulary of 3", "17"]),
    (SAMPLE, SAMPLED, save("run/ckpt.pt", lambda checkpoint: checkpoint["model"]), ["ckpt.pt", "model_args"]),
    (SAMPLE, SAMPLED, save("run/ckpt.pt", [1, 2]), ["ckpt.pt", "model_args"]),
    (SAMPLE, SAMPLED, save("run/ckpt.pt", {"model": Exploit(), "model_args": {}}), ["ckpt.pt", "damaged"]),
    (CAPITALS, "--out_dir=run", None, ["not trained on this task", "vocabulary"]),
    (MATH, "--out_dir=facts", None, ["not trained on this task", "vocabulary"]),

    # Results
    (PLOT, "--model_folder=nowhere", None, ["nowhere/results.csv"]),
    (PLOT, "--model_folder=bad", write("bad/results.csv", b""), ["results.csv", "empty"]),
    (PLOT, "--model_folder=bad", write("bad/results.csv", HEADER), ["no evaluation yet"]),
    (PLOT, "--model_folder=bad", write("bad/results.csv", b"a,b,c\n1,2,3\n"), ["lacks the columns iter"]),
    (PLOT, "--model_folder=bad", write("bad/results.csv", HEADER + ROW + b"250,1,2\n" + ROW), ["line 3"]),
    (PLOT, "--model_folder=bad", write("bad/results.csv", HEADER + ROW.replace(b"910", b"many")), ["line 2"]),
    (PLOT, "--model_folder=bad", write("bad/results.csv", b"\xff\xfe\x00"), ["results.csv", "not text"]),
    (PLOT, "--model_folder=bad --log_x", write("bad/results.csv", HEADER + ROW), ["after iteration 0", "logarithmic"]),
    (GRIDS, "", None, ["math_mini_14", "train_with_eval.py"]),
    (GRIDS, "--suffix=_wd", None, ["math_mini_14_wd", "train_with_eval.py"]),
    (GRIDS, "--root_dir=nowhere", None, ["nowhere", "does not exist"]),
    (GRIDS, "--suffix=wd", None, ["no configs", "--suffix=wd is not _wd"]),
    (TABLES, "--root_dir=nowhere", None, ["nowhere", "does not exist"]),
    (TABLES, "--root_dir=.", None, ["none of the runs"]),
    (REPORT, "--root_dir=.", a_cell_that_is_not_complete, ["holds no runs"]),
    (MATH, "--out_dir=run", a_vocabulary_without_an_end, ["was not trained on this task", "'>'"]),
    (TABLES, "--root_dir=.", write("seeds/runs.csv", b"run,n_embd\nmath_mini_14,14\n"), ["seeds", "damaged", "evaluations.csv.gz"]),
]


@pytest.fixture
def here(in_tmp, project, runs, monkeypatch):
    """The test's folder, with what this file's docstring says."""
    shutil.copytree(project / "data", "data")
    monkeypatch.setattr(study.dataset, "DATA_DIR", in_tmp / "data")
    for source, name in (("math_mini_14", "run"), ("facts_mini_14", "facts")):
        shutil.copytree(runs / source, name)
    return in_tmp


def everything_in(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("script, arguments, prepare, words", REFUSED)
def test_a_mistake_gets_one_line_and_changes_nothing(call, here, script, arguments, prepare, words):
    if prepare:
        prepare()
    before = everything_in(here)
    refused(call(script, *arguments.split()), *words)
    assert everything_in(here) == before


def results_of(folder):
    return [line.split(",")[0] for line in Path(folder, "results.csv").read_text().splitlines()[1:]]


@pytest.mark.parametrize("log_interval", [10, 100])  # noticed in training, or at an evaluation
@pytest.mark.parametrize("fast", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run_and_harms_nothing(call, here, fast, log_interval):
    arguments = (f"--fast={fast}", "--eval_interval=20", f"--log_interval={log_interval}", "--learning_rate=1e30")
    new = call("train_with_eval.py", "--max_iters=40", "--warmup_iters=0", "--out_dir=new", *arguments)
    refused(new, "not finite", "--learning_rate", status=1)
    assert results_of("new") == ["0"] and torch.load("new/ckpt.pt", weights_only=True)["iter_num"] == 0

    assert call("train_with_eval.py", *SHORT, f"--fast={fast}", "--out_dir=good").returncode == 0
    config = torch.load("good/ckpt_last.pt", weights_only=True)["config"]
    change("good/ckpt_last.pt", config=config | {"learning_rate": 1e30})()
    before = {path: path.read_bytes() for path in [*Path("good").glob("*.pt"), Path("good/results.csv")]}
    resumed = call("train_with_eval.py", "--max_iters=80", "--init_from=resume", "--out_dir=good", *arguments)
    refused(resumed, "not finite", "--learning_rate", status=1)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("script, arguments", [
    (TRAIN, ["--batch_size=1_000_000_000_000", "--fast=True"]),
    (TRAIN, ["--batch_size=1_000_000_000_000", "--fast=False"]),
    (TRAIN, ["--n_embd=2_000_000"]),
    (SAMPLE, ["--out_dir=run", "--start=<7-5", "--num_samples=1_000_000_000_000"]),
])
def test_what_does_not_fit_into_memory_gets_one_line(call, here, script, arguments):
    refused(call(script, *arguments), "out of memory", "less at once", status=1)


def test_a_first_batch_that_does_not_fit_leaves_the_first_evaluation(call, here):
    assert call("train_with_eval.py", "--batch_size=1_000_000_000_000", "--out_dir=new").returncode == 1
    assert results_of("new") == ["0"] and torch.load("new/ckpt.pt", weights_only=True)["iter_num"] == 0


def test_a_bit_that_has_changed_in_a_checkpoint_is_noticed(call, here):
    path = here / "run/ckpt.pt"
    whole = path.read_bytes()
    weights = torch.load(path, weights_only=True)["model"]
    rng = random.Random(0)
    noticed = 0
    for _ in range(60):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        result = call("sample.py", "--out_dir=run", "--num_samples=1", "--max_new_tokens=1")
        if result.returncode:
            noticed += refused(result, "ckpt.pt", "damaged")
        else:  # it was in a gap between the tensors, or in a name or a date that nothing reads
            loaded = torch.load(path, weights_only=True)["model"]
            assert all(torch.equal(weights[name], loaded[name]) for name in weights)
    assert noticed > 20


def test_results_that_contradict_the_checkpoint_are_reported(call, here):
    results = here / "run/results.csv"
    whole = results.read_bytes()
    results.write_bytes(whole.replace(b"20,", b"21,", 1))
    result = call(TRAIN, *SHORT, "--out_dir=run", "--init_from=resume")
    assert result.returncode == 0 and results.read_bytes() == whole
    assert result.stderr == "note: line 3 of run/results.csv is not what the checkpoint says; it is written anew\n"
    results.write_bytes(whole[:-5])  # as a kill leaves it
    assert call(TRAIN, *SHORT, "--out_dir=run", "--init_from=resume").stderr == "" and results.read_bytes() == whole


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc to see what is being imported")
@pytest.mark.parametrize("name", [TRAIN, SAMPLE, BENCH, EXPERIMENT, GRIDS, MATH])
def test_ctrl_c_while_torch_is_imported_ends_in_one_line(start, name):
    # A shell has what it starts in the background ignore Ctrl-C, and these tests may be that.
    process = start(name, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (stdout, stderr) in (("", "stopped\n"), ("", "")) and process.returncode in (-signal.SIGINT, 130)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("command", [[SAMPLE, "--out_dir=run"], [MATH, "--out_dir=run"], [TABLES, "--root_dir=."], [SAMPLE, "--help"], [AS_MATH, "--folder=x"]])
def test_output_into_a_full_device_ends_in_one_line(script, here, command):
    (here / "run").rename(here / "math_mini_14")
    (here / "run").symlink_to("math_mini_14")
    with open("/dev/full", "w") as full:
        result = script(*command, stdout=full)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("not run yet")]
    assert result.returncode == 1 and lines == ["error: cannot write the output: No space left on device"]
