"""Runs, plots and tabulates the study: the paper's 24 runs and its search for the smallest model.

    python run_paper.py                       (all of it)
    python run_paper.py --mlt=False           (without the MLT, which wants a GPU)
    python run_paper.py --root_dir=again      (anew, into another folder)

Each run goes into <root_dir>/<run>, what it prints into train.log there. A complete run is skipped
and one that was cut off is resumed, so after any interruption the same command goes on. Runs go side
by side: one on each core of a CPU, with one thread; on a GPU one after the other.
"""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from study.device import output_of, setup_device
from study.files import write_files
from study.results import GRIDS, SIZES, params_of
from study.run_folder import read_run_json
from study.settings import configure, fail, run_config_file

root_dir = "results"  # folder of the runs' folders
mlt = True  # also the runs of the MLT
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
jobs = 0  # runs side by side; 0 for one a core of the CPU, or one on a GPU
max_iters = 30_000  # of each run; fewer for a rehearsal


def paper_runs(mlt):
    """{run: (config file, {setting: value} over it)}, the longest first: short ones fill the gaps at the end."""
    sizes = [size for size in reversed(SIZES.values()) if mlt or size != "mlt"]
    tasks = [GRIDS[grid] for grid in ("combined", "facts", "math")]
    names = [f"{task}_mini_{size}{suffix}" for size in sizes for task in tasks for suffix in ("", "_wd")]
    runs = {name: (f"config/train_{name}.py", {}) for name in names}
    # The search for the smallest model that learns arithmetic, which ended at n14 (section 3.2).
    return runs | {f"math_mini_{n}": ("config/train_math_mini_14.py", {"n_embd": n}) for n in range(13, 0, -1)}


def work_of(config_file, settings):
    """Work of an iteration, in a unit of its own: tokens times parameters, with an allowance for what each token costs."""
    config = run_config_file(Path(config_file)) | settings
    return config["batch_size"] * config["block_size"] * (params_of(config) + 10_000)


def progress(folder):
    """(iterations done, seconds an iteration of late or None) of a run that may not have begun."""
    info = read_run_json(folder)
    done = info.get("iter_num", 0)
    here = done - (info["earlier_parts"][-1]["iter_num"] if info.get("earlier_parts") else 0)
    return done, sum(info["seconds"].values()) / here if here > 0 else None


def start(folder, config_file, settings, threads):
    """Starts a run or resumes it, with its output appended to train.log; returns the process."""
    folder.mkdir(parents=True, exist_ok=True)
    resume = ["--init_from=resume"] if (folder / "run.json").exists() else []
    command = [sys.executable, "train_with_eval.py", config_file, f"--out_dir={folder}",
               *(f"--{key}={value}" for key, value in settings.items()), *resume]
    with open(folder / "train.log", "a") as log:  # a session of its own: Ctrl-C is ours to pass on
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | threads, start_new_session=True)


def time_left(folders, work, jobs, max_iters):
    """Seconds until all runs are done, about; None before any has a speed.

    A run that has none yet is taken to be as fast as the others are for the work of an iteration.
    """
    known = {name: progress(folder) for name, folder in folders.items()}
    speeds = [pace / work[name] for name, (_, pace) in known.items() if pace]
    if not speeds:
        return None
    typical = sum(speeds) / len(speeds)
    left = [(max_iters - done) * (pace or typical * work[name]) for name, (done, pace) in known.items()]
    return max(sum(left) / jobs, max(left))


def hours(seconds):
    return "?" if seconds is None else f"{seconds // 3600:.0f} h {seconds // 60 % 60:.0f} min"


def call(*command):
    """Runs a script of the project; ends the program if it fails."""
    status = subprocess.run([sys.executable, *command]).returncode
    if status:
        sys.exit(status)


def run_all(runs, root, cfg, jobs, threads):
    """Makes {run: (config file, settings)} complete, `jobs` at a time, and plots each; returns those that failed."""
    terminal = sys.stdout.isatty()
    clear = "\r\x1b[K" if terminal else ""
    folders = {name: root / name for name in runs}
    work = {name: work_of(*run) for name, run in runs.items()}
    common = {"device": cfg.device, "max_iters": cfg.max_iters}
    waiting = [name for name, folder in folders.items() if progress(folder)[0] < cfg.max_iters]
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them complete, {jobs} at a time", flush=True)
    started = set(waiting)
    running, failed, said = {}, [], -math.inf
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                config_file, settings = runs[name]
                running[name] = start(folders[name], config_file, settings | common, threads)
            time.sleep(1)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    if process.returncode:
                        failed.append(name)
                        print(f"{clear}{name} failed: {folders[name] / 'train.log'} says why", flush=True)
                    else:
                        print(f"{clear}{name}: complete", flush=True)
            if running and (terminal or time.monotonic() - said > 60):
                said = time.monotonic()
                where = ", ".join(f"{name} {progress(folders[name])[0]:,}" for name in running)
                left = hours(time_left({name: folders[name] for name in [*running, *waiting]}, work, jobs, cfg.max_iters))
                line = f"{where} of {cfg.max_iters:,}; {len(waiting)} waiting; about {left} left"
                print(clear + line, end="" if terminal else "\n", flush=True)
    except BaseException:  # Ctrl-C, SIGTERM, a closed terminal: what we started ends with us
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        print(f"{clear}stopped; the same command goes on", file=sys.stderr)
        raise
    for name, folder in folders.items():
        if name not in failed and (name in started or not (folder / "plot.png").exists()):
            call("plot_results.py", f"--model_folder={folder}")
    return failed


if __name__ == "__main__":
    cfg = configure(globals())
    on_cpu = setup_device(cfg.device)[0].type == "cpu"
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # then a closed pipe is an exception, like the others below
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, lambda signum, _: sys.exit(128 + signum))
    jobs = cfg.jobs or (torch.get_num_threads() if on_cpu else 1)
    threads = {"OMP_NUM_THREADS": "1"} if on_cpu and jobs > 1 else {}
    if on_cpu and cfg.mlt:
        print("note: an iteration of the MLT takes seconds on a CPU; --mlt=False leaves its six runs out", file=sys.stderr)
    root = Path(cfg.root_dir).resolve()
    os.chdir(Path(__file__).resolve().parent)  # where the scripts and configs are
    root = Path(os.path.relpath(root))
    for prepare in sorted(Path("data").glob("*/prepare.py")):
        call(prepare)

    failed = run_all(paper_runs(cfg.mlt), root, cfg, jobs, threads)
    if failed:
        fail(f"{len(failed)} runs failed ({', '.join(failed)}); the same command tries them again", status=1)
    for suffix in ("", "_wd"):
        call("plot_all_models.py", f"--root_dir={root}", f"--suffix={suffix}")
        call("tabulate_all_models.py", f"--root_dir={root}", f"--suffix={suffix}")
    n14 = root / "math_mini_14"  # section 5.1: the same model on operands up to 19
    beyond = output_of([sys.executable, "eval_as_math.py", f"--out_dir={n14}", "--max_operand=19", f"--device={cfg.device}"])
    if beyond is None:
        fail(f"eval_as_math.py failed: python eval_as_math.py --out_dir={n14} --max_operand=19 says why", status=1)
    write_files({n14 / "operands_to_19.txt": f"{beyond}\n".encode()})
