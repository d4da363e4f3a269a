"""Makes all runs of an experiment, side by side, and the two tables that hold them.

    python run_experiment.py experiments/paper.py                    (into results/paper/)
    python run_experiment.py experiments/paper.py --root_dir=again   (anew, into another folder)

What the tables in <root_dir> hold already is not made again. Each other run has its folder in <root_dir>/runs,
with what it printed in train.log; experiments share these folders, complete runs are skipped and those that
were cut off go on: after any interruption the same command does. On a CPU a run has one core and one thread;
on a GPU runs of equal shape train together (study/fast/stack.py). study/experiments/runs.py says what is in the tables.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

from study import ROOT, StudyError  # first: from here on Ctrl-C ends in one line
import torch

from study.dataset import read_meta
from study.device import setup_device
from study.experiments.runs import config_file, config_of, dataset_of, finished_run, named, require_same_run, train_settings, write_tables
from study.experiments.results import params_of, published_runs, read_tables
from study.run_folder import read_run_json
from study.settings import catch_stop, exit_on_signals, run_script
from study.train_stack import MEMBER_SETTINGS, train_stack
from study.state import require_same_settings

runs = []  # the runs, each a {setting: value}: what the experiment's file is there to say
out_dir = ""  # folder of the tables in root_dir; the file's name unless set
root_dir = "results"  # what the experiments share: their tables' folders, and the runs' own in its folder runs
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
jobs = 0  # runs side by side; 0 for one a core of the CPU, or one on a GPU

WRITE_EVERY = 300  # seconds between writing the tables
LARGEST_STACK = 100  # runs, the most seeds that a cell is asked for
TERMINAL = sys.stdout.isatty()
CLEAR = "\r\x1b[K" if TERMINAL else ""  # of the line that tells how far the runs are


def work_of(settings):
    """Work of a run, in a unit of its own: tokens times parameters, with an allowance for what each token costs."""
    config = config_of(settings)
    return config["max_iters"] * config["batch_size"] * config["block_size"] * (params_of(config) + 3_000)


def progress(folder):
    """(iterations done, seconds an iteration since it was last started, or None) of a run that may not have begun."""
    info = read_run_json(folder)
    done = info.get("iter_num", 0)
    here = done - (info["earlier_parts"][-1]["saved_iter_num"] if info.get("earlier_parts") else 0)
    return done, sum(info["seconds"].values()) / here if here > 0 else None


def saved(folder):
    """How many iterations of a run its ckpt_last.pt holds."""
    return read_run_json(folder).get("saved_iter_num", 0)


def cores():
    """How many cores of the machine this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def prepare(experiment):
    """Prepares every dataset that the runs are trained on."""
    for command in dict.fromkeys(dataset_of(settings)[1] for settings in experiment.values()):
        if subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL).returncode:
            raise StudyError(f"python {' '.join(command)} failed", status=1)


def start(settings, folder, device, threads):
    """Starts a run or resumes it, with its output appended to train.log; returns the process."""
    folder.mkdir(parents=True, exist_ok=True)
    resume = ["--init_from=resume"] if (folder / "run.json").exists() else []
    command = [sys.executable, "train_with_eval.py", config_file(settings), f"--out_dir={folder}", f"--device={device}",
               *(f"--{key}={value}" for key, value in train_settings(settings).items()), *resume]
    with open(folder / "train.log", "a") as log:  # a session of its own: Ctrl-C is ours to pass on
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | threads, start_new_session=True)


def largest_stack(config, memory):
    """How many runs of a config a stack may have in so many bytes."""
    tokens = config["batch_size"] * config["block_size"]
    activations = 4 * 65 * tokens * config["n_layer"] * config["n_embd"]  # bytes a run: measured, 31 to 64 float32 a token and channel
    return min(LARGEST_STACK, int(memory / activations))


def stacks_of(runs, done, device, memory):
    """The lists of two or more names in {name: settings} whose runs can train as a stack: alike but for MEMBER_SETTINGS, and equally far.

    memory: bytes that a stack may take.
    """
    stacks = {}  # what its runs have in common -> (most names, names)
    for name, settings in runs.items():
        config = config_of(settings)
        chars, meta = read_meta(dataset_of(settings)[0])
        alike = {key: value for key, value in config.items() if key not in MEMBER_SETTINGS}
        if config["dropout"] == 0 and setup_device(device, config["dtype"])[1] != "float16":  # which needs a loss scale
            in_common = str(alike), chars, meta["tokens"]["train"], done[name]
            stacks.setdefault(in_common, (largest_stack(config, memory), []))[1].append(name)
    parts = [names[i : i + most] for most, names in stacks.values() if most > 1 for i in range(0, len(names), most)]
    return [names for names in parts if len(names) > 1]


def train_stacks(experiment, folders, waiting, done, device, memory, finish):
    """Trains the waiting runs that can be stacked, stack by stack, and calls finish(name) for each that is complete.

    A run that cannot go on in its stack is left as it is, and so are the runs of one that does not fit into memory.
    memory: bytes that a stack may take.
    """
    stopping = catch_stop()
    signals = stopping.__enter__()
    for names in stacks_of({name: experiment[name] for name in waiting}, done, device, memory):
        cfgs = []
        for name in names:
            begun = (folders[name] / "run.json").exists()
            own = {"out_dir": str(folders[name]), "device": device, "init_from": "resume" if begun else "scratch"}
            cfgs.append(types.SimpleNamespace(**config_of(experiment[name]) | train_settings(experiment[name]) | own))
        say = stack_progress(names, cfgs[0])
        try:
            ended = train_stack(cfgs, *setup_device(device, cfgs[0].dtype), signals, say)
        except (torch.OutOfMemoryError, StudyError) as error:
            reason = error if isinstance(error, StudyError) else "they do not fit into memory together"
            print(f"note: {len(names)} runs like {names[0]} train one by one: {reason}", file=sys.stderr)
            continue
        if signals:
            break
        for name, cfg in zip(names, cfgs):
            if cfg in ended:
                finish(name)
    torch.cuda.empty_cache()  # for the processes that train what is left
    exit_on_signals()
    if signals:
        sys.exit(128 + signals[0])


def stack_progress(names, cfg):
    """say(iteration) that tells about once a minute how far a stack is."""
    began = said = time.monotonic()
    first = None

    def say(it):
        nonlocal said, first
        first = it if first is None else first
        if time.monotonic() - said > 60 or it == first:
            said = time.monotonic()
            left = (said - began) * (cfg.max_iters - it) / (it - first) if it > first else None
            print(f"{names[0]} and {len(names) - 1} like it {it:,} of {cfg.max_iters:,}; about {hours(left)} left", flush=True)

    return say


def time_left(left, paces, jobs):
    """Seconds until all is done, about, from {run: work left} and {run: seconds for a unit of it}; None before any pace is known.

    A run without a pace is taken to be as fast as the others are.
    """
    if not paces:
        return None
    typical = sum(paces.values()) / len(paces)
    seconds = [work * paces.get(name, typical) for name, work in left.items()]
    return max(sum(seconds) / jobs, max(seconds))


def hours(seconds):
    if seconds is not None and seconds < 60:
        return "a minute"
    return "?" if seconds is None else f"{seconds // 3600:.0f} h {seconds // 60 % 60:.0f} min"


def made_before(experiment, root, folders):
    """({run: Run} of the complete ones, {run: iterations that its folder holds}); ends the program if one was made with other settings."""
    finished = {name: run for name, run in published_runs(root).items() if name in experiment}
    done = {name: saved(folder) for name, folder in folders.items()}
    for name, settings in experiment.items():
        if name in finished:
            require_same_run(name, settings, finished[name])
            continue
        config = config_of(settings)
        cfg = types.SimpleNamespace(**config | train_settings(settings) | {"out_dir": folders[name]})
        require_same_settings(cfg, read_run_json(folders[name]).get("config", {}))
        if done[name] >= config["max_iters"]:
            finished[name] = finished_run(name, settings, folders[name])
    return finished, done


def run_all(experiment, root, table, device, jobs, threads, stack_memory=0):
    """Makes {run: settings} complete, with their tables in the folder `table`; returns the runs that failed.

    `jobs` train at a time, in processes of their own; with bytes for a stack, first those that can train together, here.
    """
    try:
        table.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot make the folder {table}: {error.strerror}")
    folders = {name: root / "runs" / name for name in experiment}
    finished, done = made_before(experiment, root, folders)
    unlisted = {name: run for name, run in read_tables(table).items() if name not in experiment} if (table / "runs.csv").exists() else {}
    waiting = [name for name in experiment if name not in finished]
    print(f"{len(finished)} of {len(experiment)} runs complete, {jobs} at a time", flush=True)
    prepare({name: experiment[name] for name in waiting})

    def write():
        if finished:  # what the file has listed before stays in the tables
            write_tables(table, {name: finished[name] for name in experiment if name in finished} | unlisted)

    def finish(name):
        finished[name] = finished_run(name, experiment[name], folders[name])
        print(f"{CLEAR}{name}: complete", flush=True)

    if stack_memory:
        try:
            train_stacks(experiment, folders, waiting, done, device, stack_memory, finish)
        finally:
            write()
        waiting = [name for name in waiting if name not in finished]
    return run_side_by_side(experiment, folders, waiting, done, device, jobs, threads, finish, write)


def run_side_by_side(experiment, folders, waiting, done, device, jobs, threads, finish, write):
    """Trains the waiting runs, `jobs` at a time, in processes of their own; returns the runs that failed.

    Calls finish(name) for each that is complete, and write() from time to time and at the end.
    """
    iters = {name: config_of(experiment[name])["max_iters"] for name in waiting}
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
                        print(f"{CLEAR}{name} failed: {folders[name] / 'train.log'} says why", flush=True)
                    else:
                        finish(name)
            if time.monotonic() - written > WRITE_EVERY:
                write()
                written = time.monotonic()
            if running and (TERMINAL or time.monotonic() - said > 60):
                said = time.monotonic()
                where = ", ".join(f"{name} {done[name]:,}" for name in running)
                line = f"{where}; {len(waiting)} waiting; about {hours(time_left(left, paces, jobs))} left"
                if TERMINAL:
                    line = line[: shutil.get_terminal_size().columns - 1]  # \r clears one row only
                print(CLEAR + line, end="" if TERMINAL else "\n", flush=True)
    except BaseException:  # Ctrl-C, SIGTERM, a closed terminal: what we started ends with us
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        print(f"{CLEAR}stopped; the same command goes on", file=sys.stderr)
        raise
    finally:
        write()
    return failed


def main(cfg):
    device = setup_device(cfg.device)[0]
    on_cpu = device.type == "cpu"
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # then a closed pipe is an exception, like the others
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, lambda signum, _: sys.exit(128 + signum))
    jobs = cfg.jobs or (cores() if on_cpu else 1)
    threads = {"OMP_NUM_THREADS": "1"} if on_cpu else {}  # with any number of jobs: PyTorch's step rounds by its threads
    root = Path(cfg.root_dir).resolve()
    os.chdir(ROOT)  # where the scripts and configs are
    root = Path(os.path.relpath(root))
    stack_memory = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else 0  # half of what is free
    failed = run_all(named(cfg.runs), root, root / cfg.out_dir, str(device), jobs, threads, stack_memory)
    if failed:
        raise StudyError(f"{len(failed)} runs failed ({', '.join(failed)}); the same command tries them again", status=1)


if __name__ == "__main__":
    run_script(main, globals())
