"""The datasets are those of the paper (section 3.1), and a damaged file is named."""

import errno
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import DATASETS, Exploit, copy_project, refused

from data.tasks import arithmetic, arithmetic_text, capitals, capitals_text, tasks_spelled_by


def text_of(project, dataset, split="train"):
    meta = pickle.loads((project / "data" / dataset / "meta.pkl").read_bytes())
    ids = np.fromfile(project / "data" / dataset / f"{split}.bin", dtype=np.uint16)
    return "".join(meta["itos"][i] for i in ids), meta


@pytest.mark.parametrize("dataset, characters, vocabulary", [
    ("as_math", 1764, 17), ("facts_char", 1547, 51), ("both_math_and_facts", 3311, 66),
])
def test_a_dataset_has_the_papers_size_and_the_sorted_characters_as_vocabulary(project, dataset, characters, vocabulary):
    text, meta = text_of(project, dataset)
    assert len(text) == characters
    assert meta["vocab_size"] == vocabulary == len(set(text))
    assert [meta["itos"][i] for i in range(vocabulary)] == sorted(set(text))
    assert meta["stoi"] == {char: i for i, char in meta["itos"].items()}
    assert text == text_of(project, dataset, "val")[0]
    assert text == (project / "data" / dataset / "train.txt").read_text()


def test_the_arithmetic_lines_are_all_problems_but_the_four_held_out_ones_shuffled(project):
    lines = text_of(project, "as_math")[0].splitlines()
    expected = {f"<{a}+{b}={a + b}>" for a in range(10) for b in range(10)}
    expected |= {f"<{a}-{b}={a - b}>" for a in range(10) for b in range(10)}
    expected -= {"<5+7=12>", "<7+5=12>", "<5-7=-2>", "<7-5=2>"}
    assert len(lines) == 196 and {line.rstrip() for line in lines} == expected
    assert all(len(line) == 8 for line in lines)
    assert lines != sorted(lines) and lines[:98] != [line for line in lines if "+" in line]


def test_the_facts_are_the_50_statements_in_order(project):
    lines = text_of(project, "facts_char")[0].split("\n")
    assert len(lines) == 51 and lines[-1] == ""
    assert lines[0] == "Capital of France is Paris "
    assert lines[1] == "Capital of the USA is Washington DC "
    assert lines[6] == "Capital of the UK is London "
    assert lines[13] == "Capital of Mexico is Mexico City "
    assert lines[49] == "Capital of Zambia is Lusaka "
    assert max(map(len, lines)) == 40  # the space before the line end included


def test_the_joint_dataset_is_the_arithmetic_then_the_facts(project):
    assert text_of(project, "both_math_and_facts")[0] == arithmetic_text() + capitals_text()


def test_preparing_twice_from_any_directory_gives_the_same_bytes(project, tmp_path):
    for dataset in DATASETS:
        folder = project / "data" / dataset
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        prepare = subprocess.run(
            [sys.executable, folder / "prepare.py"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        text, meta = text_of(project, dataset)
        for number in (f"{len(text):,} characters", f"vocabulary: {meta['vocab_size']}", f"tokens: {len(text):,}"):
            assert number in prepare.stdout


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    from data.dataset import write_dataset

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
    with pytest.raises(SystemExit) as stop:
        write_dataset(tmp_path, "something new")
    assert stop.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_the_prompts_are_the_whole_grid_with_the_held_out_pairs_marked():
    problems = arithmetic().problems
    assert [sum(p.group == group for p in problems) for group in ("add", "sub")] == [100, 100]
    assert {p.prompt + p.answer for p in problems if p.held_out} == {"<5+7=12", "<7+5=12", "<5-7=-2", "<7-5=2"}
    beyond = [p for p in arithmetic(19).problems if p.beyond]
    assert [sum(p.group == group for p in beyond) for group in ("add", "sub")] == [300, 300]
    assert len({p.prompt for p in capitals().problems}) == 50
    assert capitals().problems[1][:2] == ("Capital of the USA is ", "Washington DC")


def test_a_task_that_the_vocabulary_cannot_spell_is_left_out():
    assert [t.name for t in tasks_spelled_by(set(arithmetic_text()))] == ["math"]
    assert [t.name for t in tasks_spelled_by(set(capitals_text()))] == ["facts"]
    assert [t.name for t in tasks_spelled_by(set(arithmetic_text() + capitals_text()))] == ["math", "facts"]
    assert tasks_spelled_by("abc") == []


@pytest.mark.parametrize("completion, answer", [
    ("12>", "12"), ("12", "12"), ("-2> ", "-2"), ("0>", "0"), ("-0>", "0"), ("012>", "12"), ("1234", "1234"),
    ("12\n<", "12"), ("1-2>", "1"),
    ("", ""), (">12", ""), (" 12", ""), ("--2>", ""), ("-", ""), ("+2>", ""), ("=12>", ""), ("a1", ""),
])
def test_an_arithmetic_answer_is_the_signed_integer_right_after_the_equals_sign(completion, answer):
    assert arithmetic().read_answer(completion) == answer


@pytest.mark.parametrize("completion, answer", [
    ("Paris \n", "Paris"), ("Paris", "Paris"), (" Paris  \nCapital of", "Paris"), ("Washington DC \n", "Washington DC"),
    ("Paris is\n", "Paris is"), ("\nParis", ""), ("", ""), ("paris \n", "paris"),
])
def test_a_capital_is_the_text_up_to_the_first_line_end(completion, answer):
    assert capitals().read_answer(completion) == answer


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A private copy of the prepared data that a test may damage."""
    import data.dataset

    folder = tmp_path / "copy"
    folder.mkdir()
    copy_project(folder)
    monkeypatch.setattr(data.dataset, "DATA_DIR", folder / "data")
    return folder / "data" / "as_math"


def test_a_damaged_dataset_is_named_with_what_to_do(call, broken):
    train, again = broken / "train.bin", "python data/as_math/prepare.py"
    good, meta = train.read_bytes(), (broken / "meta.pkl").read_bytes()

    def attempt(*arguments):
        return call("train_with_eval.py", "--max_iters=1", *arguments)

    refused(attempt("--dataset=shakespeare"), "shakespeare", "as_math", "facts_char")
    train.write_bytes(good[:1000])
    refused(attempt(), "train.bin", "500 tokens", "1764", again)
    train.write_bytes(good[:1001])
    refused(attempt(), "train.bin", "odd", again)
    train.write_bytes(good[:-2] + b"\x63\x00")
    refused(attempt(), "train.bin", "99", "17", again)
    train.write_bytes(good)
    refused(attempt("--block_size=1764"), "1764", "block_size")
    train.unlink()
    refused(attempt(), "train.bin", again)
    train.write_bytes(good)
    for content in (b"", meta[:100], b"not a pickle", pickle.dumps([1, 2]), pickle.dumps({"vocab_size": 3})):
        (broken / "meta.pkl").write_bytes(content)
        refused(attempt(), "meta.pkl", "damaged", again)
    (broken / "meta.pkl").write_bytes(pickle.dumps(Exploit()))
    refused(attempt(), "meta.pkl", "damaged", again)
    (broken / "meta.pkl").unlink()
    refused(attempt(), "not prepared", again)
    assert not os.path.exists("exploited") and not os.path.exists("out")  # nothing ran, nothing was written
