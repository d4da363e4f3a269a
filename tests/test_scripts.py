"""Sampling and scoring a trained model from its checkpoint alone."""

import re
import signal
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import PATIENCE, refused, run_inside

from study import scoring
from study.experiments.figures import draw_answers

SCORE = re.compile(r"^(.*?) +(\d+)/10(  held out)?(?:  wrong: (.*))?$")


def scores(stdout):
    """{problem: correct of 10} and {total: (correct, total)} of an evaluation script's output."""
    problems, totals = {}, {}
    for line in stdout.splitlines()[1:]:
        if match := SCORE.match(line):
            problems[match[1]] = int(match[2])
            wrong = re.findall(r"\((\d+)\)", match[4] or "")
            assert int(match[2]) + sum(map(int, wrong)) == 10, line  # every answer is shown
        else:
            name, correct, total = re.match(r"(.+): (\d+) of (\d+) \(", line).groups()
            totals[name] = (int(correct), int(total))
    return problems, totals


@pytest.fixture(scope="session")
def knowing(runs, tmp_path_factory):
    """A run folder whose model has learnt a little, so that right and wrong answers both occur."""
    folder = tmp_path_factory.mktemp("knowing")
    result = run_inside(
        "train_with_eval.py", "--dataset=both_math_and_facts", "--block_size=24", "--n_embd=56",
        "--batch_size=128", "--warmup_iters=100", "--max_iters=400", "--eval_interval=200",
        "--log_interval=100", f"--out_dir={folder / 'run'}")
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.mark.parametrize("ckpt", ["", "--ckpt=ckpt.pt", "--ckpt=ckpt_last.pt"])
def test_every_arithmetic_problem_is_scored_out_of_ten(call, knowing, ckpt):
    result = call("eval_as_math.py", f"--out_dir={knowing}", *filter(None, [ckpt]))
    assert result.returncode == 0, result.stderr
    problems, totals = scores(result.stdout)
    assert len(problems) == 200 and "<5+7=12" in problems and "<0-9=-9" in problems
    assert totals == {
        "addition": (sum(n for p, n in problems.items() if "+" in p), 1000),
        "subtraction": (sum(n for p, n in problems.items() if "+" not in p), 1000),
        "held out (5,7)": (sum(problems[p] for p in ("<5+7=12", "<7+5=12", "<5-7=-2", "<7-5=2")), 40),
    }
    assert result.stdout.count("held out") == 5
    assert 0 < totals["addition"][0] + totals["subtraction"][0] < 2000
    assert result.stdout.startswith(str(knowing / (ckpt[7:] or "ckpt_best_math.pt")))


def test_an_evaluation_script_agrees_with_the_training(call, knowing):
    row = (knowing / "results.csv").read_text().splitlines()[-1].split(",")
    _, totals = scores(call("eval_as_math.py", f"--out_dir={knowing}", "--ckpt=ckpt_last.pt").stdout)
    assert totals["addition"][0] == pytest.approx(int(row[1]), abs=20)  # other samples, the same model
    assert totals["subtraction"][0] == pytest.approx(int(row[3]), abs=20)
    _, totals = scores(call("eval_capitals.py", f"--out_dir={knowing}", "--ckpt=ckpt_last.pt").stdout)
    assert totals["capitals"] == (pytest.approx(int(row[6]), abs=10), 500)


def test_output_into_head_ends_quietly(start, runs):
    process = start("eval_as_math.py", f"--out_dir={runs / 'math_mini_14'}")
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=PATIENCE)[1] == "" and process.returncode in (0, -signal.SIGPIPE)


def test_one_operation_and_larger_operands(call, runs):
    n14 = f"--out_dir={runs / 'math_mini_14'}"
    result = call("eval_as_math.py", n14, "--operation=subtraction", "--max_operand=19")
    problems, totals = scores(result.stdout)
    assert len(problems) == 400 and "<19-3=16" in problems and "<19+3=22" not in problems
    beyond = sum(n for p, n in problems.items() if max(map(int, re.findall(r"<(\d+)-(\d+)=", p)[0])) > 9)
    assert totals["subtraction beyond single digits"] == (beyond, 3000)
    assert totals["subtraction"] == (sum(problems.values()), 4000) and totals["held out (5,7)"][1] == 20
    _, totals = scores(call("eval_as_math.py", n14, "--max_operand=3").stdout)
    assert totals["addition"][1] == 160 and "held out (5,7)" not in totals


def test_capitals_show_the_wrong_answers(call, knowing):
    result = call("eval_capitals.py", f"--out_dir={knowing}")
    problems, totals = scores(result.stdout)
    assert len(problems) == 50 and "Capital of the USA is Washington DC" in problems
    assert totals == {"capitals": (sum(problems.values()), 500)} and "wrong: " in result.stdout


def test_a_checkpoint_is_enough_to_sample_and_score_without_data(call, runs, monkeypatch, tmp_path):
    import study.dataset

    monkeypatch.setattr(study.dataset, "DATA_DIR", tmp_path / "no data")
    folder = runs / "math_mini_14"
    assert call("sample.py", f"--out_dir={folder}", "--start=<7-5", "--num_samples=1").returncode == 0
    assert call("eval_as_math.py", f"--out_dir={folder}").returncode == 0


def test_samples_continue_the_prompt(call, runs, in_tmp):
    folder = runs / "math_mini_14"
    arguments = (f"--out_dir={folder}", "--num_samples=5", "--max_new_tokens=3", "--ckpt=ckpt_best_math.pt")
    first = call("sample.py", *arguments, "--start=<7-5=")
    samples = first.stdout.split("\n---------------\n")[:-1]
    assert len(samples) == 5 and all(text.startswith("<7-5=") and len(text) == 8 for text in samples)
    assert call("sample.py", *arguments, "--start=<7-5=").stdout == first.stdout
    assert call("sample.py", *arguments, "--start=<7-5=", "--seed=1").stdout != first.stdout
    Path("prompt.txt").write_text("<7-5=")
    assert call("sample.py", *arguments, "--start=FILE:prompt.txt").stdout == first.stdout


def test_without_a_folder_the_published_models_are_used(call, in_tmp):
    for name, model, words in (
            ("sample.py", "math_mini_14", "---------------"),
            ("eval_as_math.py", "math_mini_14", "addition: "),
            ("eval_capitals.py", "facts_mini_28", "capitals: ")):
        result = call(name)
        assert result.returncode == 0 and words in result.stdout
        [note] = result.stderr.splitlines()
        assert note.startswith("note: ") and model in note and "--out_dir" in note
        assert refused(call(name, "--ckpt=ckpt_last.pt"), "out does not exist")  # that file was meant


def test_without_a_folder_and_published_models_that_is_an_error(script):  # in a copy without results/
    for name in ("sample.py", "eval_as_math.py", "eval_capitals.py"):
        assert refused(script(name), "out does not exist")


def test_the_answers_are_shown_as_tables_and_as_a_picture(call, in_tmp):
    result = call("eval_as_math.py", "--grid", "--plot=grid.png")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    at = lines.index("subtraction (* wrong, [] held out, ? no number)")
    head, *table = [line.split() for line in lines[at + 1 : at + 12]]
    digits = list(map(str, range(10)))
    assert head == ["a\\b", *digits] and [row[0] for row in table] == digits
    assert table[5][1 + 7] == "[-1]*" and table[7][1 + 5] == "[2]"  # the published n14 has only 5-7 wrong
    text = " ".join(cell for row in table for cell in row)
    assert text.count("*") == 1 and text.count("[") == 2
    assert "subtraction: 990 of 1000" in result.stdout and lines[-1] == "wrote grid.png"
    assert plt.imread("grid.png").std() > 0.05
    only = call("eval_as_math.py", "--grid", "--operation=addition", "--max_operand=11").stdout
    assert "subtraction" not in only
    [head] = [line for line in only.splitlines() if line.startswith("a\\b")]
    assert len(head.split()) == 13


def test_the_picture_marks_wrong_cells_and_frames_held_out_ones():
    table = {(a, b): (str(a + b), (a, b) != (1, 0), (a, b) == (0, 1)) for a in range(2) for b in range(2)}
    figure = draw_answers({"addition": table})
    [ax] = figure.axes
    assert ax.images[0].get_array().tolist() == [[False, False], [True, False]]
    assert [text.get_text() for text in ax.texts] == ["0", "1", "1", "2"]
    assert [patch.get_xy() for patch in ax.patches] == [(0.5, -0.5)]  # column b = 1, row a = 0
    plt.close(figure)


@pytest.mark.parametrize("trained_in, computes_in", [
    ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float32)])
def test_a_model_computes_in_the_precision_of_its_training(
        call, runs, in_tmp, monkeypatch, trained_in, computes_in):
    (in_tmp / "run").mkdir()
    checkpoint = torch.load(runs / "math_mini_14" / "ckpt.pt", weights_only=True)
    torch.save(checkpoint | {"dtype": trained_in}, in_tmp / "run" / "ckpt.pt")
    dtypes, probabilities = set(), scoring.next_token_probabilities
    monkeypatch.setattr(scoring, "next_token_probabilities",
                        lambda logits, *rest: dtypes.add(logits.dtype) or probabilities(logits, *rest))
    for name in ("eval_as_math.py", "sample.py"):
        for dtype in ("auto", "float32"):
            dtypes.clear()
            assert call(name, "--out_dir=run", f"--dtype={dtype}").returncode == 0
            assert dtypes == {computes_in if dtype == "auto" else torch.float32}
