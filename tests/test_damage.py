"""A damaged file gets one line that says which one and what to do, and no file is changed.

Each test has a folder with `run` and `facts`, short runs on arithmetic and on the capitals, and the
prepared datasets in `data`, which a row damages first.
"""

import json
import math
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHORT, refused
from errors import (
    BENCH, BYTE_ORDER_MARK, CAPITALS, GRIDS, HEADER, MATH, PLOT, REPORT, ROW, SAMPLE, SAMPLED, TABLES, TRAIN,
    change, check_mistake, cut, remove, save, write)

from study.dataset import write_dataset
from study.tasks import ProblemTable, arithmetic_text


class Exploit:
    """Pickles as a call that makes the folder `exploited` when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("exploited",)


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
    return lambda: write_dataset("data/as_math", text, ProblemTable(held_out))


def only_the_best_model():
    for path in Path("run").iterdir():
        if path.name not in ("ckpt.pt", ".lock"):
            path.unlink()


def no_last_and_no_config():
    os.remove("run/ckpt_last.pt")
    info = json.loads(Path("run/run.json").read_text())
    del info["config"]
    Path("run/run.json").write_text(json.dumps(info))


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


def as_of_nanogpt(config):
    def without_vocabulary(checkpoint):
        return {key: value for key, value in checkpoint.items() if key != "chars"} | {"config": config}

    return save("run/ckpt.pt", without_vocabulary)


def with_a_weight_that_is_no_number(checkpoint):
    checkpoint["model"]["lm_head.weight"][0] = math.nan
    return checkpoint


RESUME = "--out_dir=run --init_from=resume"
AGAIN = "python data/as_math/prepare.py"
ONE = "--max_iters=1"
BAD_ROWS = [  # the second row of a results.csv
    *((b"250,0,910,0,910,0,0,2.8\n".replace(old, new), ["finite number"]) for old, new in (
        (b"250", b"nan"), (b"250", b"inf"), (b"250", b"-inf"), (b"250", b"many"), (b"250", b""),
        (b"250,0,", b"250,nan,"), (b"250,0,910", b"250,0,inf"), (b"2.8", b"nan"), (b"2.8", b"inf"),
        (b",2.8", b""))),
    (ROW, ["iteration 0 follows iteration 0", "sort"]),
    (ROW.replace(b"0,", b"-250,", 1), ["iteration -250 follows iteration 0", "sort"]),
]

# Script, its arguments, what is prepared, words that the line must have.
DAMAGES = [
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
      for content in (b"", b"not a pickle", pickle.dumps([1, 2]), pickle.dumps({"vocab_size": 3}),
      pickle.dumps(Exploit()))),
    (TRAIN, ONE, cut("data/as_math/meta.pkl", 100), ["meta.pkl", "damaged", AGAIN]),
    (TRAIN, ONE, change_meta(stoi={}), ["meta.pkl", "damaged", "disagree"]),
    (TRAIN, ONE, remove("data/as_math/meta.pkl"), ["not prepared", AGAIN]),
    (TRAIN, f"{ONE} --dataset=other", damage_a_dataset_without_prepare, ["val.bin", "--folder=data/other"]),

    # Folders of runs
    (TRAIN, "--out_dir=run", None, ["holds a run", "--init_from=resume", "--overwrite=True"]),
    (TRAIN, "--out_dir=run --seed=1", remove("run/ckpt_last.pt"),
     ["holds a run", "--init_from=resume", "--overwrite=True"]),
    (TRAIN, "--out_dir=run", only_the_best_model,
     ["run holds a run (ckpt.pt)", "cannot be resumed", "--overwrite=True"]),
    (TRAIN, "--out_dir=file/run", write("file", b"in the way"), ["file/run", "cannot write"]),
    (TRAIN, "--out_dir=file", write("file", b"in the way"), ["file", "cannot write"]),
    *((script, "--out_dir=nowhere", None,
     ["nowhere", "does not exist"]) for script in (SAMPLE, MATH, CAPITALS)),

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
    (TRAIN, RESUME, prepare_anew(arithmetic_text(line_seed=3), "5,7"),
     ["data/as_math", "no longer holds the text", "prepare that text again"]),
    (TRAIN, RESUME, only_best_as_last, ["ckpt_last.pt", "--overwrite=True"]),
    (TRAIN, RESUME, cut("run/ckpt_last.pt", 5000), ["ckpt_last.pt", "damaged"]),
    (TRAIN, RESUME, write("run/ckpt_last.pt", b""), ["ckpt_last.pt", "damaged"]),
    (TRAIN, RESUME, change("run/ckpt_last.pt", batch_order=torch.zeros(3, dtype=torch.uint8)),
     ["ckpt_last.pt", "does not fit"]),
    (TRAIN, RESUME, change("run/ckpt_last.pt", model={}), ["ckpt_last.pt", "does not fit"]),
    (TRAIN, RESUME, remove("run/ckpt_last.pt"),
     ["run holds a run at iteration 40", "without the ckpt_last.pt", "--overwrite=True"]),
    (TRAIN, RESUME + " --max_iters=90", remove("run/ckpt_last.pt"),
     ["at iteration 40 without the ckpt_last.pt"]),
    (TRAIN, RESUME + " --n_embd=16", remove("run/ckpt_last.pt"), ["n_embd=14", "16"]),
    (TRAIN, RESUME, no_last_and_no_config, ["without the ckpt_last.pt", "--overwrite=True"]),
    (TRAIN, RESUME, change("run/ckpt_last.pt", random_states=[{}, {}]), ["made by 2 processes"]),

    # Prompts
    (SAMPLE, "--out_dir=run --start=<7*5", None, ["'*'", "vocabulary"]),
    (SAMPLE, "--out_dir=run --start=", None, ["empty"]),
    (SAMPLE, "--out_dir=run --start=FILE:nowhere.txt", None, ["nowhere.txt", "No such file"]),
    (SAMPLE, "--out_dir=run --start=FILE:latin", write("latin", b"\xe9"), ["latin"]),
    *((SAMPLE, "--out_dir=run --start=FILE:nothing", write("nothing", content), ["empty"])
      for content in (b"", BYTE_ORDER_MARK)),
    (SAMPLE, "--out_dir=run --start=FILE:windows", write("windows", b"<7-5=\r\n"), [r"'\r'", "vocabulary"]),

    # Checkpoints
    (SAMPLE, SAMPLED + " --ckpt=ckpt_best_facts.pt", None, ["ckpt_best_facts.pt", "it holds ckpt.pt"]),
    (SAMPLE, SAMPLED, remove("run/ckpt.pt"), ["run holds no ckpt.pt", "it holds ckpt_best_combined.pt"]),
    (MATH, "--out_dir=run", no_checkpoint, ["ckpt_best_math.pt", "ckpt.pt", "no checkpoint at all"]),
    (SAMPLE, SAMPLED, cut("run/ckpt.pt", 5000), ["ckpt.pt", "damaged"]),
    *((SAMPLE, SAMPLED, write("run/ckpt.pt", content),
     ["ckpt.pt", "damaged"]) for content in (b"", b"not a checkpoint")),
    *((SAMPLE, SAMPLED, change("run/ckpt.pt", model_args=args), ["ckpt.pt", *words]) for args, words in (
        ({"n_embd": 28}, ["does not fit"]), ({"n_layer": 2}, ["does not fit"]), ({"vocab_size": 99},
      ["does not fit"]),
        ({"unheard_of": 1}, ["no model that can be built"]), ({"n_head": 4},
      ["no model that can be built"]))),
    (SAMPLE, SAMPLED, change("run/ckpt.pt", model=[1, 2]), ["ckpt.pt", "does not fit"]),
    (SAMPLE, SAMPLED, change("run/ckpt.pt", chars="abc"), ["ckpt.pt", "vocabulary of 3", "17"]),
    (SAMPLE, SAMPLED, change("run/ckpt.pt", chars=5), ["ckpt.pt", "damaged", "chars is 5"]),
    (SAMPLE, SAMPLED, as_of_nanogpt(5), ["ckpt.pt", "damaged", "config is 5"]),
    (SAMPLE, SAMPLED, change("run/ckpt.pt", dtype="float8"), ["ckpt.pt", "dtype", "float8", "bfloat16"]),
    (SAMPLE, SAMPLED, save("run/ckpt.pt", with_a_weight_that_is_no_number), ["ckpt.pt", "not finite"]),
    (SAMPLE, SAMPLED, save("run/ckpt.pt", lambda checkpoint: checkpoint["model"]), ["ckpt.pt", "model_args"]),
    (SAMPLE, SAMPLED, save("run/ckpt.pt", [1, 2]), ["ckpt.pt", "model_args"]),
    (SAMPLE, SAMPLED, save("run/ckpt.pt", {"model": Exploit(), "model_args": {}}),
     ["ckpt.pt", "posix.mkdir", "not loaded"]),
    (SAMPLE, SAMPLED, change("run/ckpt.pt", best_val_loss=np.float64(2.5)),
     ["ckpt.pt", "numpy", "scalar", "best_val_loss", "float"]),
    (SAMPLE, SAMPLED, as_of_nanogpt({"dataset": "shakespeare_char"}),
     ["ckpt.pt", "'shakespeare_char'", "meta.pkl", "data/"]),
    (SAMPLE, SAMPLED, as_of_nanogpt({}), ["ckpt.pt", "''", "meta.pkl", "data/"]),
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
    (PLOT, "--model_folder=bad --log_x", write("bad/results.csv", HEADER + ROW),
     ["after iteration 0", "logarithmic"]),
    *((script, arguments, write("math_mini_14/results.csv", HEADER + ROW + row),
       ["math_mini_14/results.csv, line 3", *words])
      for script, arguments in ((PLOT, "--model_folder=math_mini_14"), (GRIDS, ""), (TABLES, ""))
      for row, words in BAD_ROWS),
    (GRIDS, "", None, ["math_mini_14", "train_with_eval.py"]),
    (GRIDS, "--suffix=_wd", None, ["math_mini_14_wd", "train_with_eval.py"]),
    (GRIDS, "--root_dir=nowhere", None, ["nowhere", "does not exist"]),
    (GRIDS, "--suffix=wd", None, ["no configs", "--suffix=wd is not _wd"]),
    (TABLES, "--root_dir=nowhere", None, ["nowhere", "does not exist"]),
    (TABLES, "--root_dir=.", None, ["none of the runs"]),
    (REPORT, "--root_dir=.", a_cell_that_is_not_complete, ["holds no runs"]),
    (MATH, "--out_dir=run", a_vocabulary_without_an_end, ["was not trained on this task", "'>'"]),
    (TABLES, "--root_dir=.", write("seeds/runs.csv", b"run,n_embd\nmath_mini_14,14\n"),
     ["seeds", "damaged", "evaluations.csv.gz"]),
    (TABLES, "--root_dir=.", write("seeds/runs.csv", b'run,n_embd\n"' + b"math_mini_14,14\n" * 10_000),
     ["seeds", "damaged", "field larger than field limit"]),
]


@pytest.mark.parametrize("script, arguments, prepare, words", DAMAGES)
def test_a_damaged_file_gets_one_line_and_is_not_changed(call, here, script, arguments, prepare, words):
    check_mistake(call, here, script, arguments, prepare, words)


def test_a_bit_that_has_changed_in_a_checkpoint_is_noticed(call, here):
    path = here / "run/ckpt.pt"
    whole = path.read_bytes()
    weights = torch.load(path, weights_only=True)["model"]
    rng = random.Random(0)
    noticed = 0
    for _ in range(60):
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
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
    [line] = result.stderr.splitlines()
    assert line.startswith("note: ") and "line 3 of run/results.csv" in line
    results.write_bytes(whole[:-5])  # as a kill leaves it
    result = call(TRAIN, *SHORT, "--out_dir=run", "--init_from=resume")
    assert result.stderr == "" and results.read_bytes() == whole


@pytest.mark.parametrize("script", [GRIDS, TABLES])
def test_a_damaged_folder_that_the_user_has_not_named_is_left_out(call, here, script):
    rows = HEADER + ROW + ROW.replace(b"0,", b"250,", 1)
    (here / "run").rename(here / "math_mini_14")
    for folder in ("math_mini_28", "notes", "mine_seed_1"):
        write(f"{folder}/results.csv", rows)()
        write(f"{folder}/ckpt.pt", b"not a checkpoint")()
    write("other_program/results.csv", b"step,loss\n1,2\n")()
    write("mine_seed_2/results.csv", rows + b"500,nan\n")()
    result = call(script)
    assert result.returncode == 0
    left_out = [line for line in result.stderr.splitlines() if line.startswith("left out ")]
    folders = ("math_mini_28", "mine_seed_1", "mine_seed_2", "notes", "other_program")
    assert len(left_out) == len(folders)
    for folder, file in zip(folders, ("ckpt.pt", "ckpt.pt", "results.csv, line 4", "ckpt.pt", "results.csv")):
        assert any(f"{folder}/{file}" in line for line in left_out)
    refused(call(PLOT, "--model_folder=notes"), "notes/ckpt.pt", "damaged")


def test_a_byte_order_mark_is_accepted(call, here):
    write("marked/results.csv", BYTE_ORDER_MARK + HEADER + ROW)()
    assert call(PLOT, "--model_folder=marked").returncode == 0
    write("marked.txt", BYTE_ORDER_MARK + b"<7-5=")()
    marked = call(SAMPLE, "--out_dir=run", "--start=FILE:marked.txt")
    plain = call(SAMPLE, "--out_dir=run", "--start=<7-5=")
    assert marked.returncode == 0 and marked.stdout == plain.stdout


def test_a_prompt_file_keeps_its_line_ends(call, here):
    write_dataset("data/windows", "7-5=2\r\n" * 9)
    assert call(TRAIN, "--dataset=windows", ONE, "--out_dir=windows").returncode == 0
    write("prompt.txt", b"7-5=2\r\n7-5=")()
    result = call(SAMPLE, "--out_dir=windows", "--start=FILE:prompt.txt", "--num_samples=1")
    assert result.returncode == 0 and result.stdout.startswith("7-5=2\r\n7-5=")
