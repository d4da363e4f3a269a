"""torch.compile on a CPU: the compiled update is the plain one, and a missing compiler ends no run."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SHORT
from fake_gpu import settings  # noqa: F401, a fixture
from fake_gpu import CPU, assert_close, new_state, rates, windows_of
from torch._inductor import config as inductor

from study import steps, update

needs_a_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="needs a C++ compiler")


@needs_a_compiler
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # PyTorch's, within torch.compile
def test_compiled_updates_equal_eager_ones_and_are_compiled_before_training(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CI", "true")  # where inductor refuses a kernel of PyTorch's that it can decompose
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    trained, compiled = {}, []
    for compile in (False, True):
        cfg = settings("math_mini_14", "--batch_size=128", "--fast=False", f"--compile={compile}")
        windows, vocab_size = windows_of(cfg)
        state = new_state(cfg, windows, vocab_size, CPU)
        with inductor.patch(compile_threads=1):
            step, refused = steps.choose_step(state, windows, cfg, "float32", contextlib.nullcontext())
            assert ("compiled" in step.name) == compile and refused == {}
            for indices, lr in zip(state.batches.draw(20), rates(20)):
                step.run(indices[None], [lr])
                compiled.append((counters["stats"]["unique_graphs"], counters["frames"]["total"]))
        trained[compile] = state.model
    # The model's forward pass alone is about 30 calls: gradient and clipping are captured too.
    assert counters["stats"]["calls_captured"] > 60
    assert compiled[19] == (0, 0) and compiled[20] == compiled[39] and compiled[20][0] >= 1
    assert_close(trained[True], trained[False], update.build(cfg, vocab_size, CPU)[0])
    code = "".join(path.read_text() for path in tmp_path.rglob("*.py"))  # what was compiled
    assert "torch.ops.aten.embedding_dense_backward" in code
    assert "index_put" not in code  # on CUDA it would be a serial sum


def test_without_a_compiler_that_works_the_plain_step_trains_and_says_why(script, in_tmp, monkeypatch):
    arguments = ("train_with_eval.py", *SHORT, "--fast=False")
    plain = script(*arguments, "--out_dir=plain")
    assert plain.returncode == 0 and plain.stderr == ""
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(in_tmp / "cache"))
    result = script(*arguments, "--compile=True", "--out_dir=run")
    assert result.returncode == 0, result.stderr
    [note] = [line for line in result.stderr.splitlines() if line.startswith("note: ")]  # PyTorch warns too
    assert "Traceback" not in result.stderr and "PyTorch, compiled" in note and "C++ compiler" in note
    info = json.loads(Path("run/run.json").read_text())
    assert info["step"] == "PyTorch" and "C++ compiler" in info["step_refused"]["PyTorch, compiled"]
    assert Path("run/results.csv").read_bytes() == Path("plain/results.csv").read_bytes()
