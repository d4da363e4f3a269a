"""bench.py prints what it measures; check_gpu.py tries every step and exits with 0 only if all agree."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import refused

import check_gpu
from study import StudyError
from study.fast import c_step
from study.settings import configure
from study.update import Step

QUICK = ("--blocks=1", "--block_iters=2", "--matrix_size=64")
needs_a_compiler = pytest.mark.skipif(c_step.find_compiler() is None, reason="needs a C compiler")


def test_bench_prints_its_table(call, in_tmp):
    result = call("bench.py", *QUICK, "--evals=1", "--plain")
    assert result.returncode == 0, result.stderr
    for row in ("one update", "tokens a second", "GFLOP/s", "one evaluation", "one best checkpoint",
                "ckpt_last.pt", "whole run", "peak memory", "plain loop", "times as long"):
        assert row in result.stdout
    assert not list(in_tmp.iterdir())


@pytest.fixture
def check(in_tmp, monkeypatch, capsys):
    """check(*arguments) -> (exit status, line above the table, rows of cells) of check_gpu.py on the CPU."""
    monkeypatch.setattr("study.ROOT", in_tmp)
    Path("config").mkdir()
    for name, n_layer in ("flat", 1), ("deep", 2):
        Path(f"config/train_{name}.py").write_text(f"batch_size, n_embd, n_layer = 16, 8, {n_layer}")

    def check(*arguments, tests="print('== 3 passed ==')"):
        monkeypatch.setattr(check_gpu, "TESTS", [sys.executable, "-c", tests])
        arguments = ["--device=cpu", *QUICK, "--models=flat,deep", *arguments]
        status = 0
        try:
            check_gpu.main(configure(vars(check_gpu), arguments=arguments))
        except StudyError as error:
            status = error.status
        above, table = capsys.readouterr().out.rsplit("\n\n", 1)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        assert rows[0] == check_gpu.COLUMNS and set("".join(rows[1])) == {"-"}
        return status, above.splitlines()[-1], rows[2:]

    return check


@needs_a_compiler
@pytest.mark.parametrize("compile, deep", [
    ("auto", "PyTorch, contexts shared"), ("True", "PyTorch, compiled"),
])
def test_every_step_of_every_model_is_tried_and_timed(check, monkeypatch, compile, deep):
    monkeypatch.setattr("study.fast.compiled.compile_update", lambda update: update)  # to compile takes long
    status, title, rows = check(f"--compile={compile}")
    assert status == 0 and "float32" in title and torch.__version__ in title and "3 passed" in title
    steps = [("flat", "C step"), ("flat", "PyTorch"), ("deep", deep), ("deep", "PyTorch")]
    if compile == "True":
        steps.insert(1, ("flat", "PyTorch, compiled"))
    assert [(model, step) for model, step, *_ in rows] == steps
    for _, _, milliseconds, tokens, _, share, verdict in rows:
        assert verdict == "agrees" and float(share.rstrip("%")) > 0
        assert float(tokens.replace(",", "")) == pytest.approx(16 * 9 / float(milliseconds) * 1000, rel=0.01)


def test_a_step_that_fails_is_refused_with_its_reason_and_the_next_is_tried(check, monkeypatch):
    def fails():
        raise RuntimeError("no kernel image")

    wrong = Step("wrong", lambda indices, lrs: 1.0)
    monkeypatch.setattr(check_gpu, "fast_steps", lambda *_: [("fails", fails), ("wrong", lambda: wrong)])
    status, _, rows = check("--models=flat")
    assert status == 1 and [step for _, step, *_ in rows] == ["fails", "wrong", "PyTorch"]
    assert rows[0][2:] == [""] * 4 + ["no kernel image"]
    assert rows[1][2:6] == [""] * 4 and "off by" in rows[1][6] and rows[2][6] == "agrees"


def test_where_the_plain_step_fails_the_other_models_are_still_measured(check, monkeypatch):
    expect = check_gpu.expect

    def fails_for_deep_models(state, *arguments):
        if state.model.config.n_layer > 1:
            raise RuntimeError("no deterministic implementation")
        return expect(state, *arguments)

    monkeypatch.setattr(check_gpu, "expect", fails_for_deep_models)
    status, _, rows = check("--models=deep,flat")
    assert status == 1 and rows[0][0] == "deep" and rows[0][6] == "no deterministic implementation"
    assert rows[-1][:2] == ["flat", "PyTorch"] and rows[-1][6] == "agrees"


def test_the_table_is_printed_though_the_gpu_tests_fail(check):
    status, title, rows = check("--models=deep", tests="print('1 failed'); raise SystemExit(1)")
    assert status == 1 and "1 failed" in title and {row[6] for row in rows} == {"agrees"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_check_ends_at_once(call):
    result = call("check_gpu.py")
    assert refused(result, "CUDA", "--device=cpu") and result.stdout == ""
