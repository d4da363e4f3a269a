"""The datasets are the paper's (section 3.1), or the same with other lines left out and in another order."""

import csv
import errno
import hashlib
import os
import pickle
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATASETS, ROOT

import study.dataset
from study import StudyError
from study.dataset import read_tokens, write_dataset
from study.tasks import (
    ProblemTable, arithmetic, arithmetic_text, capitals, capitals_text, tasks_spelled_by)


def text_of(folder, split="train"):
    """(text, meta.pkl) of the dataset in a folder."""
    meta = pickle.loads((folder / "meta.pkl").read_bytes())
    ids = np.fromfile(folder / f"{split}.bin", dtype=np.uint16)
    return "".join(meta["itos"][i] for i in ids), meta


def prepared(call, name, *arguments):
    """(text, meta.pkl) that a prepare.py writes with these arguments."""
    result = call(f"data/{name}/prepare.py", "--folder=made/here", *arguments)
    assert result.returncode == 0 and result.stderr == ""
    return text_of(Path("made/here"))


@pytest.mark.parametrize("dataset, characters, vocabulary", [
    ("as_math", 1764, 17), ("facts_char", 1547, 51), ("both_math_and_facts", 3311, 66),
])
def test_a_dataset_has_the_papers_size_and_its_sorted_characters_as_vocabulary(
        project, dataset, characters, vocabulary):
    folder = project / "data" / dataset
    text, meta = text_of(folder)
    assert len(text) == characters
    assert meta["vocab_size"] == vocabulary == len(set(text))
    assert [meta["itos"][i] for i in range(vocabulary)] == sorted(set(text))
    assert meta["stoi"] == {char: i for i, char in meta["itos"].items()}
    assert text == text_of(folder, "val")[0] == (folder / "train.txt").read_text()


def test_without_options_the_arithmetic_is_the_papers_text_to_the_byte(project):
    content = (project / "data" / "as_math" / "train.txt").read_bytes()
    digest = "027df0cd21c838283f9d990a5984975bb968edd4f794170f2197a9dc60a3b926"
    assert hashlib.sha256(content).hexdigest() == digest


@pytest.mark.parametrize("dataset", ["as_math", "both_math_and_facts"])
def test_the_defaults_are_the_papers_table_in_one_order(project, call, dataset):
    prepared(call, dataset, "--line_seed=-1", "--held_out=5,7", "--operations=both", "--max_operand=9",
             "--answer_seed=-1", "--shuffles=1")
    for name in ("train.bin", "val.bin", "train.txt", "meta.pkl"):
        assert Path("made/here", name).read_bytes() == (project / "data" / dataset / name).read_bytes()


def all_lines():
    pairs = [(a, b) for a in range(10) for b in range(10)]
    return {f"<{a}+{b}={a + b}>" for a, b in pairs} | {f"<{a}-{b}={a - b}>" for a, b in pairs}


def test_the_arithmetic_lines_are_all_problems_but_the_four_held_out_ones_mixed(project):
    text, meta = text_of(project / "data" / "as_math")
    lines = text.splitlines()
    expected = all_lines() - {"<5+7=12>", "<7+5=12>", "<5-7=-2>", "<7-5=2>"}
    assert len(lines) == 196 and {line.rstrip() for line in lines} == expected
    assert all(len(line) == 8 for line in lines) and meta["held_out"] == "5,7"
    assert lines != sorted(lines) and lines[:98] != [line for line in lines if "+" in line]


@pytest.mark.parametrize("dataset", ["as_math", "both_math_and_facts"])
@pytest.mark.parametrize("seed", ["--line_seed=-1", "--line_seed=3"])
@pytest.mark.parametrize("held_out, left_out", [
    ("3,4", "<3+4=7> <4+3=7> <3-4=-1> <4-3=1>"),
    ("3,4;1,8", "<3+4=7> <4+3=7> <3-4=-1> <4-3=1> <1+8=9> <8+1=9> <1-8=-7> <8-1=7>"),
    ("6,6", "<6+6=12> <6-6=0>"),
    ("none", ""),
])
def test_exactly_the_given_pairs_are_left_out(call, dataset, seed, held_out, left_out):
    text, meta = prepared(call, dataset, seed, f"--held_out={held_out}")
    lines = [line for line in text.splitlines() if line.startswith("<")]
    assert len(lines) == 200 - len(left_out.split())
    assert {line.rstrip() for line in lines} == all_lines() - set(left_out.split())
    assert meta["held_out"] == held_out
    arithmetic_end = 9 * len(lines)
    assert text[arithmetic_end:] == (capitals_text() if dataset == "both_math_and_facts" else "")


def test_each_line_seed_gives_another_order_that_is_always_the_same(call):
    texts = {seed: prepared(call, "as_math", f"--line_seed={seed}")[0] for seed in (-1, 0, 3, 4294967295)}
    assert texts[-1] == arithmetic_text() and len(set(texts.values())) == 4
    assert len({"".join(sorted(text)) for text in texts.values()}) == 1
    assert prepared(call, "as_math", "--line_seed=3")[0] == texts[3]
    digest = "1395f58f38a551aa6572d5e7348a8a60278b7bb47cbc27194918971b4232e99c"
    assert hashlib.sha256(texts[3].encode()).hexdigest() == digest


@pytest.mark.parametrize("seed", [-1, 3])
def test_texts_of_one_seed_with_other_pairs_held_out_differ_in_their_lines_alone(seed):
    whole = arithmetic_text(seed, held_out="none").splitlines()
    for held_out, signs in (("5,7", "5+7 7+5 5-7 7-5"), ("3,4;1,8", "3+4 4+3 3-4 4-3 1+8 8+1 1-8 8-1")):
        left = [line for line in whole if line[1:4] not in signs.split()]
        assert arithmetic_text(seed, held_out=held_out).splitlines() == left


@pytest.mark.parametrize("held_out, samples", [("3,4", 40), ("3,4;1,8", 80), ("none", 0)])
def test_a_dataset_in_another_folder_is_trained_on_and_scored_with_its_held_out_pairs(
        call, in_tmp, monkeypatch, held_out, samples):
    monkeypatch.setattr(study.dataset, "DATA_DIR", in_tmp / "data")
    assert call("data/as_math/prepare.py", f"--held_out={held_out}", "--folder=data/other").returncode == 0
    result = call("train_with_eval.py", "--dataset=other", "--max_iters=20", "--eval_interval=20",
                  "--out_dir=run")
    assert result.returncode == 0, result.stderr
    with open("run/results.csv", newline="") as file:
        assert [row["held_out_total"] for row in csv.DictReader(file)] == [str(samples)] * 2
    checkpoints = list(Path("run").glob("*.pt"))
    assert len(checkpoints) == 4
    assert {torch.load(path, weights_only=True)["held_out"] for path in checkpoints} == {held_out}

    lines = call("eval_as_math.py", "--out_dir=run").stdout.splitlines()
    marked = [re.match(r"<(\S+)=\S+ +(\d+)/10  held out", line) for line in lines if "/10  held out" in line]
    pairs = set() if held_out == "none" else {tuple(sorted(pair.split(","))) for pair in held_out.split(";")}
    assert len(marked) == 4 * len(pairs)
    assert {tuple(sorted(re.findall("[0-9]", match[1]))) for match in marked} == pairs
    total = [line for line in lines if line.startswith("held out")]
    if samples:
        right = sum(int(match[2]) for match in marked)
        assert len(total) == 1 and total[0].startswith(f"held out ({held_out}): {right} of {samples} (")
    else:
        assert total == []


def test_the_facts_are_the_50_statements_in_order(project):
    lines = text_of(project / "data" / "facts_char")[0].split("\n")
    assert len(lines) == 51 and lines[-1] == ""
    assert lines[0] == "Capital of France is Paris "
    assert lines[1] == "Capital of the USA is Washington DC "
    assert lines[6] == "Capital of the UK is London "
    assert lines[13] == "Capital of Mexico is Mexico City "
    assert lines[49] == "Capital of Zambia is Lusaka "
    assert max(map(len, lines)) == 40  # the space before the line end included


def test_the_joint_dataset_is_the_arithmetic_then_the_facts(project):
    math, facts, both = ((project / "data" / name / "train.txt").read_bytes() for name in DATASETS)
    assert both == math + facts


def test_preparing_twice_from_any_directory_gives_the_same_bytes(project, tmp_path):
    for dataset in DATASETS:
        folder = project / "data" / dataset
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        prepare = subprocess.run(
            [sys.executable, folder / "prepare.py"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        text, meta = text_of(folder)
        size = f"{len(text):,}"
        for number in (f"{size} characters", f"vocabulary: {meta['vocab_size']}", f"tokens: {size}"):
            assert number in prepare.stdout


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    write_dataset(tmp_path, "old text")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls, fsync = [], os.fsync

    def full_disk(fd):
        calls.append(fd)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full_disk)
    capsys.readouterr()
    with pytest.raises(StudyError, match="No space left on device"):
        write_dataset(tmp_path, "something new")
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_the_prompts_are_the_whole_grid_with_the_held_out_pairs_marked():
    problems = arithmetic().problems
    assert [sum(p.group == group for p in problems) for group in ("add", "sub")] == [100, 100]
    held_out = {p.prompt + p.answer for p in problems if p.held_out}
    assert held_out == {"<5+7=12", "<7+5=12", "<5-7=-2", "<7-5=2"}
    beyond = [p for p in arithmetic(max_operand=19).problems if p.beyond]
    assert [sum(p.group == group for p in beyond) for group in ("add", "sub")] == [300, 300]
    assert len({p.prompt for p in capitals().problems}) == 50
    assert capitals().problems[1][:2] == ("Capital of the USA is ", "Washington DC")


def test_a_task_that_the_vocabulary_cannot_spell_is_left_out():
    assert [t.name for t in tasks_spelled_by(set(arithmetic_text()))] == ["math"]
    assert [t.name for t in tasks_spelled_by(set(capitals_text()))] == ["facts"]
    assert [t.name for t in tasks_spelled_by(set(arithmetic_text() + capitals_text()))] == ["math", "facts"]
    assert tasks_spelled_by("abc") == []


def test_exactly_the_problems_that_the_text_leaves_out_are_marked_as_held_out():
    [task] = tasks_spelled_by(set(arithmetic_text()), ProblemTable("3,4;1,8"))
    lines = {line.rstrip(" >") for line in arithmetic_text(held_out="3,4;1,8").splitlines()}
    problems = {p.prompt + p.answer: p.held_out for p in task.problems}
    assert problems.keys() - lines == {problem for problem, held_out in problems.items() if held_out}
    assert sum(p.held_out for p in task.problems) == 8


def test_ids_are_int64_for_the_embedding(project):
    assert read_tokens("as_math", "val", 9).dtype == np.int64


@pytest.mark.parametrize("completion, answer", [
    ("12>", "12"), ("12", "12"), ("-2> ", "-2"), ("0>", "0"), ("-0>", "0"), ("012>", "12"), ("1234", "1234"),
    ("12\n<", "12"), ("1-2>", "1"),
    ("", ""), (">12", ""), (" 12", ""), ("--2>", ""), ("-", ""), ("+2>", ""), ("=12>", ""), ("a1", ""),
])
def test_an_arithmetic_answer_is_the_signed_integer_right_after_the_equals_sign(completion, answer):
    assert arithmetic().read_answer(completion) == answer


@pytest.mark.parametrize("completion, answer", [
    ("Paris \n", "Paris"), ("Paris", "Paris"), (" Paris  \nCapital of", "Paris"),
    ("Washington DC \n", "Washington DC"), ("Paris is\n", "Paris is"), ("\nParis", ""), ("", ""),
    ("paris \n", "paris"),
])
def test_a_capital_is_the_text_up_to_the_first_line_end(completion, answer):
    assert capitals().read_answer(completion) == answer


def test_two_processes_can_write_the_same_files_at_once(tmp_path):
    code = ("import sys; from pathlib import Path; from study.files import write_files\n"
            "for _ in range(100): write_files({Path(sys.argv[1], name): b'text' for name in ('a', 'b')})")
    command = [sys.executable, "-c", code, tmp_path]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == [b"", b""]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"text", "b": b"text"}


def test_a_row_that_the_disk_takes_only_half_of_is_an_error(tmp_path):
    code = "import sys; from study.files import append_to_file; append_to_file(sys.argv[1], '10 letters')"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))  # noqa: E731
    command = [sys.executable, "-c", code, tmp_path / "rows"]
    result = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=limit)
    assert result.returncode == 1 and "StudyError: cannot write" in result.stderr.splitlines()[-1]
