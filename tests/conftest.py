"""Run the scripts as a user does, on data prepared in a temporary copy of the project.

`script` starts a new process. `call` runs the same file inside the test's process, which saves the
import of torch; use it where a test does not depend on the process. Scripts that compute use the CPU
unless a test passes another --device.
"""

import contextlib
import csv
import gc
import io
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other crawl on a busy machine
if "PYTEST_XDIST_WORKER" not in os.environ:
    # All workers share one cache of compiled steps and fonts, apart from the user's.
    CACHE = tempfile.TemporaryDirectory(prefix="too-big-to-think-tests-")
    os.environ["XDG_CACHE_HOME"] = os.environ["MPLCONFIGDIR"] = CACHE.name

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import torch  # noqa: E402, after the number of threads is set

DATASETS = ("as_math", "facts_char", "both_math_and_facts")
HAVE_A_DEVICE = (
    "train_with_eval.py", "sample.py", "eval_as_math.py", "eval_capitals.py", "bench.py", "run_experiment.py")
rounds_as_published = pytest.mark.skipif(
    "AVX" not in torch.backends.cpu.get_cpu_capability(),
    reason="PyTorch may round differently here than where the results were made")
# This run takes a few seconds and has evaluations, best and last checkpoints, like a long one.
SHORT = ("--max_iters=40", "--eval_interval=20", "--log_interval=10")
PATIENCE = 1800  # seconds before a process counts as hung; none takes nearly as long on a busy machine


def pytest_collection_finish():
    gc.freeze()  # run_inside collects garbage: spare it the modules imported so far


def copy_project(folder):
    left_out = shutil.ignore_patterns("__pycache__", "*.bin", "*.pkl", "train.txt")
    for source in ("data", "config", "docs", "experiments", "study"):
        shutil.copytree(ROOT / source, folder / source, ignore=left_out)
    for source in ROOT.glob("*.py"):
        shutil.copy(source, folder)
    for dataset in DATASETS:
        prepare = folder / "data" / dataset / "prepare.py"
        subprocess.run([sys.executable, prepare], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """Copy the project and prepare its data, which `call` uses too."""
    import study.dataset

    folder = copy_project(tmp_path_factory.mktemp("project"))
    study.dataset.DATA_DIR = folder / "data"
    return folder


@pytest.fixture
def in_tmp(tmp_path, monkeypatch, project):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_device(name, arguments):
    """Return the arguments as strings, with --device=cpu first if the script takes it and they lack it."""
    arguments = [str(argument) for argument in arguments]
    if name in HAVE_A_DEVICE and not any(argument.startswith("--device") for argument in arguments):
        return ["--device=cpu", *arguments]
    return arguments


def heed_hangups():
    """Restore SIGHUP in a script's process, which would inherit nohup from the tests."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def start(project, in_tmp):
    """start(script, *arguments) -> Popen in the test's folder, with pipes for its output."""
    processes = []

    def start(name, *arguments, **options):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        options = pipes | {"preexec_fn": heed_hangups} | options
        command = [sys.executable, "-u", str(project / name), *with_device(name, arguments)]
        processes.append(subprocess.Popen(command, cwd=in_tmp, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def script(start):
    """script(name, *arguments) -> the finished process."""

    def script(name, *arguments, **options):
        process = start(name, *arguments, **options)
        stdout, stderr = process.communicate(timeout=PATIENCE)
        return types.SimpleNamespace(returncode=process.returncode, stdout=stdout, stderr=stderr)

    return script


@pytest.fixture
def call(in_tmp):
    return run_inside


def run_inside(name, *arguments):
    """Run a script of the project in this process; a traceback goes to stderr with exit status 1."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    argv, path, hook = sys.argv, sys.path[:], sys.excepthook
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP)
    handlers = {signum: signal.getsignal(signum) for signum in signals}
    sys.argv = [str(ROOT / name), *with_device(name, arguments)]
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    except Exception:
        with contextlib.redirect_stderr(stderr):
            sys.excepthook(*sys.exc_info())  # as the interpreter does
        code = 1
    finally:
        sys.argv, sys.path[:], sys.excepthook = argv, path, hook
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        gc.collect()  # release RunFolders and their locks, as the end of a process does
    return types.SimpleNamespace(returncode=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def refused(result, *words, status=2):
    """Check that a command printed one line on standard error that contains all of `words`."""
    assert result.returncode == status, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
    return True


def rows_of(folder):
    """Return the rows of a run's results.csv as {column: text}."""
    with open(Path(folder) / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def cells_of_row(text, first):
    """Return the cells of the first row that begins with `first` in a text's Markdown tables."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.fixture
def published(in_tmp):
    """Return a folder `results` with links to the project's tables, without its unfinished `runs`."""
    (in_tmp / "results").mkdir()
    for path in (ROOT / "results").iterdir():
        if path.is_dir() and path.name != "runs":
            (in_tmp / "results" / path.name).symlink_to(path)
        elif path.suffix == ".csv":
            shutil.copy(path, in_tmp / "results")
    return in_tmp / "results"


@pytest.fixture
def close_figures():
    import matplotlib.pyplot as plt  # only tests that draw need it

    yield
    plt.close("all")


@pytest.fixture(scope="session")
def runs(project, tmp_path_factory):
    """Train one short run on each dataset; return their folder."""
    folder = tmp_path_factory.mktemp("runs")
    before = os.getcwd()
    os.chdir(folder)
    try:
        for name in ("math_mini_14", "facts_mini_14", "both_mini_14"):
            result = run_inside("train_with_eval.py", project / "config" / f"train_{name}.py", *SHORT)
            assert result.returncode == 0, result.stderr
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(in_tmp, project, runs, monkeypatch):
    """Fill the test's folder with the short runs `run` and `facts` and with the prepared `data`."""
    import study.dataset

    shutil.copytree(project / "data", "data")
    monkeypatch.setattr(study.dataset, "DATA_DIR", in_tmp / "data")
    for source, name in (("math_mini_14", "run"), ("facts_mini_14", "facts")):
        shutil.copytree(runs / source, name)
    return in_tmp
