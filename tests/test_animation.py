"""The picture that moves shows the answers of the evaluations, and looking at them changes no run."""

import os
import signal
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import ROOT, SHORT, refused
from PIL import Image

import animate_answers
import train_with_eval
from study.scoring import tally
from study.settings import configure

pytestmark = pytest.mark.usefixtures("close_figures")


@pytest.fixture
def animate(project, in_tmp, monkeypatch):
    """Return a function that makes answers.gif of three early evaluations; temporary files go into tmp."""
    Path("tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(in_tmp / "tmp"))
    monkeypatch.setattr(animate_answers, "FRAMES", [0, 250, 500])
    monkeypatch.setattr(animate_answers, "PAUSE", 1)
    cfg = configure(vars(animate_answers), arguments=["--root_dir=.", "--device=cpu"])
    return lambda: animate_answers.main(cfg)


def frames_of(path):
    """Return ([RGB image of each frame], [its milliseconds])."""
    frames, durations = [], []
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(image.convert("RGB"))
            durations.append(image.info["duration"])
    return frames, durations


def test_the_callback_gets_the_answers_of_each_evaluation_and_the_run_stays_the_same(project, in_tmp):
    seen, states = {}, []
    for name, callback in (("with", lambda it, *rest: seen.update({it: rest})), ("without", None)):
        states.append(train_with_eval.train(configure(vars(train_with_eval), arguments=[
            f"{ROOT}/config/train_math_mini_14.py", *SHORT, f"--out_dir={name}", "--device=cpu"]), callback))
    assert list(seen) == [0, 20, 40] == [row["iter"] for row in states[0].rows]
    for row, (task, answers) in zip(states[0].rows, seen.values()):
        for group in ("add", "sub"):
            correct, _ = tally(task.problems, answers, lambda problem: problem.group == group)
            assert correct == row[f"{group}_correct"]
    assert Path("with/results.csv").read_bytes() == Path("without/results.csv").read_bytes()
    weights, same = (state.model.state_dict() for state in states)
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_a_frame_marks_wrong_cells_frames_held_out_ones_and_counts_both():
    table = {(a, b): (str(a + b), True, (a, b) == (0, 1)) for a in range(2) for b in range(2)}
    wrong = table | {(0, 1): ("7", False, True), (1, 0): ("8", False, False)}
    figure = plt.figure()
    animate_answers.draw_frame(figure, 500, {"n28": table, "n14": table})
    animate_answers.draw_frame(figure, 1500, {"n14": table, "n28": wrong})
    left, right = figure.axes
    assert left.images[0].get_array().tolist() == [[False, False], [False, False]]
    assert right.images[0].get_array().tolist() == [[False, True], [True, False]]
    assert [text.get_text() for text in right.texts] == ["0", "7", "8", "2"]
    for ax in (left, right):
        assert [patch.get_xy() for patch in ax.patches] == [(0.5, -0.5)]  # column b = 1, row a = 0
    for ax, words in ((left, ["n14", "3 of 3", "1 of 1"]), (right, ["n28", "2 of 3", "0 of 1"])):
        assert all(word in ax.get_title() for word in words)
    assert any("1,500" in text.get_text() for text in figure.texts)
    assert not any("iteration 500" in text.get_text() for text in figure.texts)


def test_the_script_writes_one_file_and_the_same_each_time(animate, in_tmp):
    animate()
    first = Path("answers.gif").read_bytes()
    frames, durations = frames_of("answers.gif")
    assert len(frames) == 3 and durations == [200, 200, 1200]
    assert frames[0].tobytes() != frames[1].tobytes() != frames[2].tobytes()
    animate()
    assert Path("answers.gif").read_bytes() == first
    assert sorted(path.name for path in in_tmp.rglob("*")) == ["answers.gif", "tmp"]


def test_ctrl_c_ends_it_without_a_file(animate, in_tmp, monkeypatch):
    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(animate_answers, "answer_table", interrupted)
    with pytest.raises(SystemExit) as stop:
        animate()
    assert stop.value.code == 128 + signal.SIGINT
    assert [path.name for path in in_tmp.rglob("*")] == ["tmp"]


def test_the_published_picture_has_every_frame_and_is_small():
    path = ROOT / "results" / "answers.gif"
    frames, durations = frames_of(path)
    assert len(frames) == len(animate_answers.FRAMES)
    assert 10_000 <= sum(durations) <= 20_000 and durations[-1] >= 2_000
    assert path.stat().st_size <= 2**20
    with Image.open(path) as image:
        assert image.info["loop"] == 0  # for ever


def test_a_folder_that_is_missing_is_noticed_before_anything_is_trained(call, in_tmp):
    result = call("animate_answers.py", "--root_dir=nowhere")
    assert refused(result, "nowhere", "--root_dir") and result.stdout == ""
