"""Scripts end in one line, or do their work, whatever the machine around them is like."""

import fcntl
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PATIENCE, ROOT, SHORT, refused
from errors import AS_MATH, BENCH, EXPERIMENT, GRIDS, MATH, PLOT, SAMPLE, TABLES, TRAIN, change

from model import GPT, GPTConfig
from study import end_in_one_line
from study.dataset import write_dataset
from study.fast import c_step
from study.update import build_optimizer


def results_of(folder):
    return [line.split(",")[0] for line in Path(folder, "results.csv").read_text().splitlines()[1:]]


@pytest.mark.parametrize("log_interval", [10, 100])  # noticed in training, or at an evaluation
@pytest.mark.parametrize("fast", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run_and_harms_nothing(call, here, fast, log_interval):
    arguments = (f"--fast={fast}", "--eval_interval=20", f"--log_interval={log_interval}",
                 "--learning_rate=1e30")
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


def c_step_without_memory():
    model = GPT(GPTConfig(block_size=4, vocab_size=5, n_layer=1, n_head=1, n_embd=4))
    cfg = SimpleNamespace(beta1=0.9, beta2=0.99, weight_decay=0.0, grad_clip=1.0, learning_rate=0.1)
    windows = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c_step, "load", lambda *_: (lambda *_: -1, "C step"))
        step = c_step.make_c_step(model, build_optimizer(model, cfg), windows, cfg)
    step.run(torch.zeros(1, 1, 2, dtype=torch.int64), [0.1])


def raises(error):
    def fails():
        raise error

    return fails


@pytest.mark.parametrize("fails, one_line", [
    (lambda: np.ones(10**15), True),
    (lambda: torch.ones(10**15), True),
    (lambda: [0] * 10**15, True),
    (c_step_without_memory, True),
    (raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")), True),
    (raises(RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")), True),
    (raises(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")), True),
    (raises(RuntimeError("the compiler said: out of memory")), False),
    (raises(ValueError("out of memory")), False),
    (raises(OSError("can't allocate memory")), False),
])
def test_only_a_failed_allocation_ends_in_a_line_about_memory(capsys, fails, one_line):
    try:
        fails()
    except BaseException:
        end_in_one_line(*sys.exc_info())
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: out of memory" if one_line else "Traceback")
    assert (len(stderr.splitlines()) == 1) == one_line


def test_the_package_does_not_import_torch():
    code = "import study, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc to see imports")
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
@pytest.mark.parametrize("command", [
    [SAMPLE, "--out_dir=run"], [MATH, "--out_dir=run"], [TABLES, "--root_dir=."], [SAMPLE, "--help"],
    [AS_MATH, "--folder=x"],
])
def test_output_into_a_full_device_ends_in_one_line(script, here, command):
    (here / "run").rename(here / "math_mini_14")
    (here / "run").symlink_to("math_mini_14")
    with open("/dev/full", "w") as full:
        result = script(*command, stdout=full)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("not run yet")]
    assert result.returncode == 1 and lines == ["error: cannot write the output: No space left on device"]


@pytest.fixture
def umlauts(here):
    """The name of a dataset, and of runs, that ASCII cannot encode."""
    write_dataset("data/zürich", "Zürich → Genève\n" * 9)
    return "zürich"


def test_what_the_output_cannot_encode_is_escaped(script, project, umlauts):
    shutil.copytree(Path("data") / umlauts, project / "data" / umlauts, dirs_exist_ok=True)
    ascii = {"env": os.environ | {"PYTHONIOENCODING": "ascii"}}
    run = (TRAIN, f"--dataset={umlauts}", f"--out_dir={umlauts}", *SHORT)
    trained = script(*run, **ascii)
    assert trained.returncode == 0 and r"z\xfcrich" in trained.stdout, trained.stderr
    resumed = script(*run, "--init_from=resume", **ascii)
    assert resumed.returncode == 0, resumed.stderr
    sampled = script(SAMPLE, f"--out_dir={umlauts}", "--start=Zür", **ascii)
    assert sampled.returncode == 0 and r"Z\xfcr" in sampled.stdout, sampled.stderr
    plotted = script(PLOT, f"--model_folder={umlauts}", **ascii)
    assert plotted.returncode == 0 and Path(umlauts, "plot.png").exists(), plotted.stderr
    refused(script(*run, **ascii), r"z\xfcrich")


def test_a_folder_whose_name_is_not_utf_8_is_trained_in_and_plotted(script, in_tmp):
    name = os.fsdecode(b"run\xff")
    for command in ([TRAIN, f"--out_dir={name}", *SHORT], [PLOT, f"--model_folder={name}"]):
        result = script(*command)
        assert result.returncode == 0 and r"run\udcff" in result.stdout, result.stderr
    assert Path(name, "plot.png").exists()


def test_a_bar_on_a_terminal_that_cannot_encode_a_name_goes_on(start, here):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    ascii = os.environ | {"PYTHONIOENCODING": "ascii"}
    process = start(TRAIN, *SHORT, "--out_dir=zürich", stdout=theirs, stderr=theirs, env=ascii)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the process has ended
        pass
    os.close(ours)
    assert process.wait(timeout=PATIENCE) == 0 and rb"z\xfcrich: complete" in shown and b"it/s" in shown


@pytest.mark.parametrize("linked", ["data", "data/as_math"])
def test_data_may_be_a_link_to_a_folder_elsewhere(project, in_tmp, linked):
    shutil.copytree(project, "copy")
    for name in ("train.bin", "val.bin", "meta.pkl", "train.txt"):
        os.remove(f"copy/data/as_math/{name}")
    Path("copy", linked).rename("elsewhere")
    Path("copy", linked).symlink_to(in_tmp / "elsewhere")
    for command in ([AS_MATH], [TRAIN, "--device=cpu", "--max_iters=1"]):
        result = subprocess.run([sys.executable, *command], cwd="copy", capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert result.stdout and Path("copy/out/ckpt.pt").exists()


@pytest.mark.parametrize("command", [
    [PLOT, "--model_folder=run"], [MATH, "--out_dir=run", "--plot=run/plot.png"]])
def test_a_plot_needs_no_backend_of_the_users(script, here, command):
    result = script(*command, env=os.environ | {"MPLBACKEND": "nonsense"})
    assert result.returncode == 0 and Path("run/plot.png").exists(), result.stderr


@pytest.mark.parametrize("name", ["animate_answers.py", "plot_all_models.py", "plot_embeddings.py",
                                  "plot_experiment.py"])
def test_no_script_that_draws_needs_a_backend_of_the_users(script, in_tmp, name):
    result = script(name, "--no_such_setting=1", env=os.environ | {"MPLBACKEND": "nonsense"})
    refused(result, "no_such_setting")


def test_under_nohup_a_run_goes_on_after_a_hangup(start, in_tmp):
    process = start(TRAIN, "--max_iters=1_000_000", "--n_embd=6", "--eval_interval=50", "--out_dir=run",
                    preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    evaluations = 0
    for line in process.stdout:
        evaluations += line.startswith("iter ")
        if evaluations == 2:
            process.send_signal(signal.SIGHUP)
        if evaluations == 5:
            break
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and "stopped at iteration" in stderr
