"""The problems of the arithmetic, their answers and the orders of its lines are settings of the text.

The same table gives the text, the prompts and what counts as right.
"""

import hashlib
import json
import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, rows_of

import run_experiment
from study.dataset import read_meta
from study.experiments.results import read_tables
from study.experiments.runs import OPTIONAL, expected_identity, runs_by_name
from study.tasks import PUBLISHED_ORDER, ProblemTable, arithmetic, arithmetic_text, capitals_text, table_of

N14 = {"config": "math_mini_14"}


def lines_of(**settings):
    return [line.rstrip() for line in arithmetic_text(**settings).splitlines()]


def answers_of(lines):
    """{prompt: answer} of lines such as <3+4=7>."""
    return {line[: line.index("=") + 1]: line[line.index("=") + 1 : -1] for line in lines}


# Shuffled answers.


@pytest.mark.parametrize("settings", [
    {}, {"line_seed": 3}, {"operations": "sub"}, {"held_out": "3 pairs of seed 2"}, {"held_out": "none"},
    {"max_operand": 12, "line_seed": 1}])
def test_shuffled_answers_are_the_true_ones_of_the_same_lines_in_another_order(settings):
    true, one, two = (answers_of(lines_of(**settings, answer_seed=seed)) for seed in (-1, 1, 2))
    assert list(true) == list(one) == list(two)
    for sign in {re.search("[0-9]([+-])", prompt)[1] for prompt in true}:
        of_sign = [{prompt: answer for prompt, answer in answers.items() if re.search(rf"\d\{sign}", prompt)}
                   for answers in (true, one, two)]
        assert len({tuple(sorted(answers.values())) for answers in of_sign}) == 1
        for a, b in combinations(of_sign, 2):
            assert sum(a[prompt] == b[prompt] for prompt in a) < len(a) / 3


def test_a_seed_of_answers_always_gives_the_same_text():
    digest = hashlib.sha256(arithmetic_text(answer_seed=1).encode()).hexdigest()
    assert digest == "054be28a7a2bffaeea68ec00be4588605d3760f40a489928ca776e1a9645f65a"


@pytest.mark.parametrize("table", [
    ProblemTable(), ProblemTable(answer_seed=4), ProblemTable("3,4;1,8", answer_seed=1),
    ProblemTable("2,3", "add", 6, 2), ProblemTable("10,12;0,3", "sub", 12),
    ProblemTable("none", "both", 12, 7)])
def test_what_is_right_is_what_the_text_says(table):
    problems = arithmetic(table).problems
    trained = {problem.prompt: problem.answer for problem in problems if not problem.held_out}
    assert answers_of(lines_of(line_seed=1, **table._asdict())) == trained
    held_out = {problem.prompt for problem in problems if problem.held_out}
    pairs = 0 if table.answer_seed >= 0 or table.held_out == "none" else table.held_out.count(",")
    assert len(held_out) == 2 * pairs * (2 if table.operations == "both" else 1)


def test_a_table_of_shuffled_answers_has_no_problem_beyond_it():
    table = ProblemTable(answer_seed=1)
    with pytest.raises(ValueError, match="max_operand=19"):
        arithmetic(table, 19)
    few = [problem for problem in arithmetic(table).problems
           if max(map(int, re.findall(r"\d", problem.prompt))) <= 3]
    assert arithmetic(table, 3).problems == few and len(few) == 32


# Which problems.


def test_one_operation_and_smaller_operands_leave_the_rest_of_the_published_order():
    published = lines_of()
    assert lines_of(operations="add") == [line for line in published if "+" in line]
    assert lines_of(operations="sub") == [line for line in published if "+" not in line]
    small = [name for name in PUBLISHED_ORDER.split() if max(name[0], name[2]) <= "4"]
    lines = lines_of(max_operand=4, held_out="0,3")
    assert [line[1:4] for line in lines] == [
        name for name in small if name[0] + name[2] not in ("03", "30")] and len(lines) == 46


@pytest.mark.parametrize("operations, width", [("both", 11), ("add", 10)])
@pytest.mark.parametrize("answer_seed", [-1, 5])
def test_lines_of_larger_operands_are_longer_and_all_of_one_length(operations, width, answer_seed):
    text = arithmetic_text(2, operations=operations, max_operand=19, answer_seed=answer_seed,
                           held_out="5,7;12,19")
    lines = text.splitlines()
    assert {len(line) for line in lines} == {width}
    assert len(lines) == (400 - 4) * (2 if operations == "both" else 1) and "<12+19=" not in text
    assert answer_seed >= 0 or "<19+18=37>" in text


def test_an_answer_is_sampled_to_its_end():
    assert arithmetic().max_new_tokens == arithmetic(max_operand=99).max_new_tokens == 4  # -99>
    assert arithmetic(max_operand=199).max_new_tokens == 5  # -199>


def test_an_operand_is_beyond_if_it_is_larger_than_those_of_the_text():
    problems = arithmetic(ProblemTable("none", "add", 12), max_operand=15).problems
    assert len(problems) == 16**2 and sum(problem.beyond for problem in problems) == 16**2 - 13**2
    assert not any(problem.beyond for problem in arithmetic(ProblemTable("none", "add", 12)).problems)


def test_drawn_pairs_are_different_for_each_seed_and_fewer_are_among_more():
    drawn = {(count, seed): table_of({"held_out": f"{count} pairs of seed {seed}"}).held_out.split(";")
             for count in (1, 5, 45) for seed in (1, 2)}
    assert drawn[5, 1] != drawn[5, 2] and all(len(drawn[5, seed]) == 5 for seed in (1, 2))
    assert set(drawn[1, 1]) < set(drawn[5, 1]) < set(drawn[45, 1]) == set(drawn[45, 2])
    assert all(a < b for pair in drawn[45, 1] for a, _, b in [pair])
    assert table_of({"held_out": "1 pair of seed 2"}).held_out == ";".join(drawn[1, 2])
    assert table_of({"held_out": "0 pairs of seed 2"}).held_out == "none"
    large = table_of({"held_out": "300 pairs of seed 1", "max_operand": 30})
    assert max(int(operand) for operand in re.findall(r"\d+", large.held_out)) > 19


@pytest.mark.parametrize("held_out", [
    "46 pairs of seed 1", "3 pairs", "3 pairs of seed -1", "pairs of seed 1"])
def test_a_draw_that_cannot_be_made_is_refused(call, held_out):
    result = call("data/as_math/prepare.py", f"--held_out={held_out}", "--folder=made")
    assert refused(result, held_out) and not Path("made").exists()


# Orders of the lines.


@pytest.mark.parametrize("line_seed", [-1, 3])
@pytest.mark.parametrize("dataset", ["as_math", "both_math_and_facts"])
def test_shuffles_are_orders_of_all_lines_one_after_the_other(call, dataset, line_seed):
    result = call(f"data/{dataset}/prepare.py", f"--line_seed={line_seed}", "--shuffles=4", "--folder=made")
    assert result.returncode == 0, result.stderr
    text = Path("made/train.txt").read_text()
    orders = [text[i : i + 1764] for i in range(0, 4 * 1764, 1764)]
    assert orders[0] == arithmetic_text(line_seed) and len(set(orders)) == 4
    assert len({tuple(sorted(order.splitlines())) for order in orders}) == 1
    assert text[4 * 1764 :] == (capitals_text() if dataset == "both_math_and_facts" else "")
    train, val = (np.fromfile(f"made/{split}.bin", np.uint16) for split in ("train", "val"))
    others = train[1764 : 4 * 1764]
    assert len(others) + len(val) == len(train) and val.tolist() == [*train[:1764], *train[4 * 1764 :]]
    assert f"{len(train):,} for training, {len(val):,} for validation" in result.stdout


# Runs.


@pytest.fixture
def run(project, monkeypatch, tmp_path):
    """run(max_iters, **settings) -> the Run of n14 with these settings, from the tables in tmp_path/mine."""
    def run(max_iters, **settings):
        monkeypatch.chdir(project)
        experiment = {"one": N14 | settings | {"max_iters": max_iters}}
        options = {"device": "cpu", "jobs": 1}
        assert run_experiment.run_all(experiment, tmp_path, tmp_path / "mine", **options) == []
        return read_tables(tmp_path / "mine")["one"]

    return run


def test_a_run_on_shuffled_answers_is_made_resumed_and_scored(run, call, tmp_path):
    run(3, answer_seed=1)
    shutil.rmtree(tmp_path / "mine")
    made = run(6, answer_seed=1)
    assert "resumed at iteration 3" in (tmp_path / "runs/one/train.log").read_text()
    new = {"answer_seed": "1", "stored_bits": made.info["stored_bits"], "table_bits": made.info["table_bits"]}
    assert {column: made.info[column] for column in OPTIONAL if column in made.info} == new
    assert 700 < float(made.info["table_bits"]) < 900 and float(made.info["stored_bits"]) < 0
    last = made.rows[-1]
    assert (last["add_total"], last["sub_total"], last["held_out_total"]) == ("980", "980", "0")
    assert last["held_out_answers"] == "" and rows_of(tmp_path / "runs/one")[-1] == last

    folder = tmp_path / "runs/one"
    lines = call("eval_as_math.py", f"--out_dir={folder}").stdout.splitlines()
    shown = dict(re.match(r"(<.+=)(-?\d+) ", line).groups() for line in lines if line.startswith("<"))
    assert shown == answers_of(lines_of(answer_seed=1))
    assert refused(call("eval_as_math.py", f"--out_dir={folder}", "--max_operand=19"), "max_operand=19")
    grid = call("eval_as_math.py", f"--out_dir={folder}", "--grid", f"--plot={tmp_path}/grid.png").stdout
    cells = [len(line.split()) for line in grid.splitlines() if re.match("[0-9] ", line)]
    assert cells == 2 * [11, 11, 11, 11, 11, 10, 11, 10, 11, 11]  # 5+7 and its like are not asked
    assert (tmp_path / "grid.png").exists()


def test_a_run_holds_the_pairs_that_were_drawn(run, tmp_path):
    settings = {"held_out": "2 pairs of seed 3", "operations": "add", "max_operand": 12, "line_seed": 2,
                "shuffles": 2, "block_size": 11}
    made = run(3, **settings)
    table = table_of(settings)
    assert re.fullmatch(r"\d+,\d+;\d+,\d+", table.held_out)
    values = table._asdict()
    [dataset] = {line.split(", ")[1] for line in (tmp_path / "runs/one/train.log").read_text().splitlines()
                 if ", data " in line}
    _, meta = read_meta(dataset.removeprefix("data "))
    checkpoints = [torch.load(path, weights_only=True) for path in (tmp_path / "runs/one").glob("*.pt")]
    assert len(checkpoints) == 4
    for stored in (meta, json.loads((tmp_path / "runs/one/run.json").read_text()), *checkpoints):
        assert {key: stored[key] for key in values} == values
    assert {column: made.info[column] for column in OPTIONAL if column in made.info} == {
        "operations": "add", "max_operand": "12", "shuffles": "2"}
    assert made.info["held_out"] == table.held_out == expected_identity(N14 | settings)["held_out"]
    assert (made.rows[-1]["add_total"], made.rows[-1]["sub_total"]) == ("1690", "0")
    assert made.rows[-1]["held_out_total"] == "40"
    assert run(3, **settings)[:2] == made[:2]  # it is known to be complete


def test_each_setting_of_the_text_is_an_axis_and_makes_another_run():
    values = {"line_seed": 3, "held_out": "2 pairs of seed 1", "operations": "add", "answer_seed": 1,
              "shuffles": 2}
    listed = [N14, *(N14 | {key: value} for key, value in values.items()),
              N14 | {"max_operand": 10, "line_seed": 1}, N14 | {"max_operand": 8}]
    experiment = runs_by_name(listed)
    assert len(experiment) == len(listed)
    identities = [expected_identity(settings) for settings in experiment.values()]
    assert len({identity["data"] for identity in identities}) == len(listed)
    assert all(not OPTIONAL.keys() & identity.keys() for identity in identities)
    drawn = {"held_out": table_of({"held_out": "2 pairs of seed 1"}).held_out}
    assert expected_identity(N14 | drawn) == expected_identity(N14 | {"held_out": "2 pairs of seed 1"})


def test_what_was_made_before_there_were_tables_of_problems_is_of_the_papers(call, here):
    new = ("operations", "max_operand", "answer_seed")
    for path in Path("run").glob("*.pt"):
        checkpoint = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in checkpoint.items() if key not in new}, path)
    info = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps({key: info[key] for key in info if key not in new}))
    scored = call("eval_as_math.py", "--out_dir=run").stdout.splitlines()
    assert sum("/10  held out" in line for line in scored) == 4
    resumed = call("train_with_eval.py", "--init_from=resume", "--out_dir=run", "--max_iters=60",
                   "--eval_interval=20", "--log_interval=10")
    assert resumed.returncode == 0, resumed.stderr


def test_a_run_is_not_resumed_on_other_answers(call, here):
    assert call("data/as_math/prepare.py", "--answer_seed=1", "--folder=data/as_math").returncode == 0
    result = call("train_with_eval.py", "--init_from=resume", "--out_dir=run", "--max_iters=60",
                  "--eval_interval=20", "--log_interval=10")
    assert refused(result, "answer_seed -1", "not 1")
