"""Makes all runs of an experiment, side by side, and the two tables that hold them.

    python run_experiment.py experiments/paper.py                    (into results/paper/)
    python run_experiment.py experiments/paper.py --root_dir=again   (anew, into another folder)

What the tables in <root_dir> hold already is not made again. Each other run has its folder in <root_dir>/runs,
with what it printed in train.log; experiments share these folders, complete runs are skipped and those that
were cut off go on: after any interruption the same command does. On a CPU a run has one core and one thread.
study/experiments.py says what is in the tables.
"""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from study.device import setup_device
from study.experiments import config_file, config_of, dataset_of, finished_run, named, train_settings, write_tables
from study.results import ROOT, params_of, published_runs
from study.run_folder import read_run_json
from study.settings import configure, fail

runs = []  # the runs, each a {setting: value}: what the experiment's file is there to say
out_dir = ""  # folder of the tables in root_dir; the file's name unless set
root_dir = "results"  # what the experiments share: their tables' folders, and the runs' own in its folder runs
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
jobs = 0  # runs side by side; 0 for one a core of the CPU, or one on a GPU

WRITE_EVERY = 300  # seconds between writing the tables


def work_of(settings):
    """Work of a run, in a unit of its own: tokens times parameters, with an allowance for what each token costs."""
    config = config_of(settings)
    return config["max_iters"] * config["batch_size"] * config["block_size"] * (params_of(config) + 10_000)


def progress(folder):
    """(iterations done, seconds an iteration of late or None) of a run that may not have begun."""
    info = read_run_json(folder)
    done = info.get("iter_num", 0)
    here = done - (info["earlier_parts"][-1]["iter_num"] if info.get("earlier_parts") else 0)
    return done, sum(info["seconds"].values()) / here if here > 0 else None


def prepare(experiment):
    """Prepares every dataset that the runs are trained on."""
    for command in dict.fromkeys(dataset_of(settings)[1] for settings in experiment.values()):
        if subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL).returncode:
            fail(f"python {' '.join(command)} failed", status=1)


def start(settings, folder, device, threads):
    """Starts a run or resumes it, with its output appended to train.log; returns the process."""
    folder.mkdir(parents=True, exist_ok=True)
    resume = ["--init_from=resume"] if (folder / "run.json").exists() else []
    command = [sys.executable, "train_with_eval.py", config_file(settings), f"--out_dir={folder}", f"--device={device}",
               *(f"--{key}={value}" for key, value in train_settings(settings).items()), *resume]
    with open(folder / "train.log", "a") as log:  # a session of its own: Ctrl-C is ours to pass on
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | threads, start_new_session=True)


def hours(seconds):
    return "?" if seconds is None else f"{seconds // 3600:.0f} h {seconds // 60 % 60:.0f} min"


def run_all(experiment, root, table, device, jobs, threads):
    """Makes {run: settings} complete, `jobs` at a time, with their tables in the folder `table`; returns the runs that failed."""
    terminal = sys.stdout.isatty()
    clear = "\r\x1b[K" if terminal else ""
    try:
        table.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"cannot make the folder {table}: {error.strerror}")
    folders = {name: root / "runs" / name for name in experiment}
    finished = {name: run for name, run in published_runs(root).items() if name in experiment}
    iters = {name: config_of(settings)["max_iters"] for name, settings in experiment.items()}
    done = {name: progress(folder)[0] for name, folder in folders.items()}
    for name in experiment:
        if name not in finished and done[name] >= iters[name]:
            finished[name] = finished_run(name, experiment[name], folders[name])
    waiting = [name for name in experiment if name not in finished]
    print(f"{len(experiment)} runs, {len(finished)} of them complete, {jobs} at a time", flush=True)
    prepare({name: experiment[name] for name in waiting})

    def write():
        write_tables(table, {name: finished[name] for name in experiment if name in finished})

    work = {name: work_of(experiment[name]) for name in waiting}
    left = {name: work[name] * (1 - done[name] / iters[name]) for name in waiting}  # work
    paces = {}  # run -> seconds for a unit of work
    running, failed, said, written = {}, [], -math.inf, time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                running[name] = start(experiment[name], folders[name], device, threads)
            time.sleep(1)
            for name, process in list(running.items()):
                done[name], pace = progress(folders[name])
                if pace:
                    paces[name] = pace * iters[name] / work[name]
                left[name] = work[name] * (1 - done[name] / iters[name])
                if process.poll() is not None:
                    del running[name]
                    left.pop(name)
                    if process.returncode:
                        failed.append(name)
                        print(f"{clear}{name} failed: {folders[name] / 'train.log'} says why", flush=True)
                    else:
                        finished[name] = finished_run(name, experiment[name], folders[name])
                        print(f"{clear}{name}: complete", flush=True)
            if time.monotonic() - written > WRITE_EVERY:
                write()
                written = time.monotonic()
            if running and (terminal or time.monotonic() - said > 60):
                said = time.monotonic()
                where = ", ".join(f"{name} {done[name]:,}" for name in running)
                typical = sum(paces.values()) / len(paces) if paces else None
                seconds = [rest * paces.get(name, typical) for name, rest in left.items()] if typical else None
                until = hours(max(sum(seconds) / jobs, max(seconds)) if seconds else None)
                line = f"{where}; {len(waiting)} waiting; about {until} left"
                print(clear + line, end="" if terminal else "\n", flush=True)
    except BaseException:  # Ctrl-C, SIGTERM, a closed terminal: what we started ends with us
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        print(f"{clear}stopped; the same command goes on", file=sys.stderr)
        raise
    finally:
        write()
    return failed


if __name__ == "__main__":
    cfg = configure(globals())
    on_cpu = setup_device(cfg.device)[0].type == "cpu"
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # then a closed pipe is an exception, like the others
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, lambda signum, _: sys.exit(128 + signum))
    jobs = cfg.jobs or (torch.get_num_threads() if on_cpu else 1)
    threads = {"OMP_NUM_THREADS": "1"} if on_cpu and jobs > 1 else {}
    root = Path(cfg.root_dir).resolve()
    os.chdir(ROOT)  # where the scripts and configs are
    root = Path(os.path.relpath(root))
    failed = run_all(named(cfg.runs), root, root / cfg.out_dir, cfg.device, jobs, threads)
    if failed:
        fail(f"{len(failed)} runs failed ({', '.join(failed)}); the same command tries them again", status=1)
