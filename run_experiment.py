"""Make all runs of an experiment, side by side, and the two tables that hold them.

    python run_experiment.py experiments/paper.py                    (into results/paper/)
    python run_experiment.py experiments/paper.py --root_dir=again   (again, into another folder)

A run that the tables in <root_dir> hold is not made again; if it was made with other settings, the program
ends and says which, and --overwrite=True makes it again. Each other run has its folder in <root_dir>/runs,
with what it printed in train.log; experiments share these folders. Complete runs are skipped and interrupted
ones are resumed, so after any interruption give the same command again. On a CPU a run has one core and one
thread; on a GPU runs of equal shape train together (study/train_stack.py). study/experiments/runs.py says
what is in the tables.
"""

import itertools
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from multiprocessing.connection import wait
from pathlib import Path

from study import ROOT, StudyError  # first: from here on Ctrl-C ends in one line
import torch

import train_with_eval
from study.dataset import read_meta
from study.device import setup_device
from study.experiments.results import read_tables
from study.experiments.runs import (
    config_file, config_of, dataset_of, expected_identity, finished_run, is_same_run, runs_by_name,
    train_settings, write_tables)
from study.files import make_folder
from study.identity import identity_of
from study.run_folder import BUSY, RunFolder, lock_folder, read_run_json
from study.settings import catch_stop, hold_stop_signals, release_stop_signals, run_script
from study.train_stack import MEMBER_SETTINGS, train_stack

runs = []  # the runs, each a {setting: value}; the experiment's file assigns them
out_dir = ""  # folder of the tables in root_dir; the file's name unless set
root_dir = "results"  # what the experiments share: a folder for the tables of each, and runs/ for their runs
overwrite = False  # make runs again that were made with other settings
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
jobs = 0  # runs side by side; 0: one for each core of the CPU, or one on a GPU

WRITE_EVERY = 300  # seconds between writing the tables
LARGEST_STACK = 100  # runs, the most seeds that a cell is asked for
TERMINAL = sys.stdout.isatty()
CLEAR = "\r\x1b[K" if TERMINAL else ""  # of the progress line
STOPPED = f"{CLEAR}stopped; the same command continues"


def cores():
    """How many cores of the machine this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def prepare(experiment):
    """Prepare every dataset that the runs are trained on."""
    for command in dict.fromkeys(dataset_of(settings)[1] for settings in experiment.values()):
        if subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL).returncode:
            raise StudyError(f"python {' '.join(command)} failed", status=1)


def start(settings, folder, device):
    """Start or resume a run in a process of its own; return the process."""
    resume = ["--init_from=resume"] if (folder / "run.json").exists() else []
    changed = (f"--{key}={value}" for key, value in train_settings(settings).items())
    command = ["train_with_eval.py", str(config_file(settings)), f"--out_dir={folder}", f"--device={device}",
               *changed, *resume]
    on_cpu = device == "cpu"
    # A start takes seconds, most of them to import PyTorch. So on Linux a process that has imported it is
    # forked for each run. On a GPU runs are few and long.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" and on_cpu else "spawn")
    # AdamW imports the last.
    context.set_forkserver_preload(["study.session", "run_experiment", "torch._dynamo"])
    process = context.Process(target=train_in_child, args=(command, folder / "train.log", on_cpu))
    process.start()
    return process


def train_in_child(command, path, one_thread):
    """Run train_with_eval.py in this process, with its output appended to a file."""
    os.setsid()  # run_experiment.py passes Ctrl-C on
    release_stop_signals()
    threading.Thread(target=end_with_parent, daemon=True).start()
    if one_thread:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the command that resumes
        torch.set_num_threads(1)
    sys.argv = command
    try:
        with open(path, "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        run_script(train_with_eval.main, vars(train_with_eval))
    except Exception:  # else multiprocessing would print all of them as tracebacks
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def end_with_parent():
    """Stop this process as soon as the one that started it has ended, even by SIGKILL."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def is_free(folder):
    """Return whether a run's folder is free: another run_experiment.py may be training there."""
    lock = lock_folder(folder)
    if lock:
        lock.close()
    return bool(lock)


def is_complete(settings, folder):
    """Return whether a run's folder holds the run at its last iteration."""
    return read_run_json(folder).get("saved_iter_num", 0) >= config_of(settings)["max_iters"]


def largest_stack(config, memory):
    """How many runs of a config a stack may have in `memory` bytes."""
    tokens = config["batch_size"] * config["block_size"]
    # Bytes a run: 31 to 64 float32 for each token and channel were measured.
    activations = 4 * 65 * tokens * config["n_layer"] * config["n_embd"]
    return min(LARGEST_STACK, int(memory / activations))


def stacks_of(runs, done, device, memory):
    """The lists of two or more names in {name: settings} whose runs can train as a stack.

    They differ in MEMBER_SETTINGS alone and are at the same iteration. memory: bytes that a stack may take.
    """
    stacks = {}  # what its runs have in common -> (most names, names)
    for name, settings in runs.items():
        config = config_of(settings)
        chars, meta = read_meta(dataset_of(settings)[0])
        shared = {key: value for key, value in config.items() if key not in MEMBER_SETTINGS}
        scales_loss = setup_device(device, config["dtype"])[1] == "float16"
        if config["dropout"] == 0 and not scales_loss:
            in_common = str(shared), chars, meta["tokens"]["train"], done[name]
            stacks.setdefault(in_common, (largest_stack(config, memory), []))[1].append(name)
    parts = [names[i : i + most] for most, names in stacks.values() if most > 1
             for i in range(0, len(names), most)]
    return [names for names in parts if len(names) > 1]


def train_stacks(experiment, folders, waiting, done, device, memory, finish):
    """Train the waiting runs that can be stacked, stack by stack; call finish(name) for each complete one.

    A run that cannot go on in its stack is left as it is, and so are the runs of a stack that does not fit
    into memory. memory: bytes that a stack may take.
    """
    with catch_stop() as signals:
        for names in stacks_of({name: experiment[name] for name in waiting}, done, device, memory):
            cfgs = []
            for name in names:
                begun = (folders[name] / "run.json").exists()
                starts = {"out_dir": str(folders[name]), "device": device,
                          "init_from": "resume" if begun else "scratch"}
                settings = config_of(experiment[name]) | train_settings(experiment[name]) | starts
                cfgs.append(types.SimpleNamespace(**settings))
            say = stack_progress(names, cfgs[0])
            try:
                ended = train_stack(cfgs, *setup_device(device, cfgs[0].dtype), signals, say)
            except (torch.OutOfMemoryError, StudyError) as error:
                reason = error if isinstance(error, StudyError) else "together they do not fit into memory"
                print(f"note: {len(names)} runs like {names[0]} train one by one: {reason}", file=sys.stderr)
                continue
            if signals:
                break
            for name, cfg in zip(names, cfgs):
                if cfg in ended:
                    finish(name)
    torch.cuda.empty_cache()  # for the processes that train what is left
    if signals:
        print(STOPPED, file=sys.stderr)
        sys.exit(128 + signals[0])


def stack_progress(names, cfg):
    """say(iteration), which prints the iteration of a stack about once a minute."""
    printed = -math.inf

    def say(it):
        nonlocal printed
        if time.monotonic() - printed > 60:
            printed = time.monotonic()
            print(f"{names[0]} and {len(names) - 1} like it: {it:,} of {cfg.max_iters:,}", flush=True)

    return say


def made_before(experiment, tables, folders, overwrite):
    """({name: Run} of the complete runs, {name: iterations in its folder}, names to replace in tables).

    tables: {folder: {name: Run}}. Raises StudyError if a run was made with other settings; with overwrite,
    removes it from its folder instead.
    """
    finished, done, replaced = {}, dict.fromkeys(experiment, 0), set()
    for name, settings in experiment.items():
        expected, folder = expected_identity(settings), folders[name]
        published = {table: runs[name] for table, runs in tables.items() if name in runs}
        if not all(is_same_run(name, expected, run.info, table / "runs.csv", overwrite)
                   for table, run in published.items()):
            replaced.add(name)
        elif published:
            finished[name] = list(published.values())[-1]
            continue
        info = read_run_json(folder)
        if not info:
            continue
        done[name] = info.get("saved_iter_num", 0)
        same = True
        for part in [*info.get("earlier_parts", []), info]:
            made = {key: value for key, value in identity_of(part).items() if value is not None}
            if done[name] < expected["max_iters"] or part is not info:
                made["max_iters"] = expected["max_iters"]  # it can be made longer
            same = same and is_same_run(name, expected, expected | made, folder, overwrite)
        if not same:
            RunFolder(types.SimpleNamespace(out_dir=folder, init_from="scratch", overwrite=True))
            done[name] = 0
        elif done[name] >= expected["max_iters"] and "digest" in info:  # else resuming it adds one
            finished[name] = finished_run(name, settings, folder)
    return finished, done, replaced


def run_all(experiment, root, table, device, jobs, stack_memory=0, overwrite=False):
    """Make {name: settings} complete, with their tables in the folder `table`; return the runs that failed.

    With stack_memory (bytes), runs that can train together do so first, in this process. Of the others `jobs`
    train at a time, each in a process of its own.
    """
    make_folder(table)
    folders = {name: root / "runs" / name for name in experiment}
    paths = {*root.glob("*/runs.csv"), table / "runs.csv"}
    tables = {path.parent: read_tables(path.parent) for path in sorted(paths) if path.exists()}
    finished, done, replaced = made_before(experiment, tables, folders, overwrite)
    waiting = [name for name in experiment if name not in finished]
    print(f"{len(finished)} of {len(experiment)} runs complete, {jobs} at a time", flush=True)
    prepare({name: experiment[name] for name in waiting})

    def write():
        known = tables.get(table, {}) | finished  # a run that the file no longer lists stays
        if finished:
            write_tables(table, {name: known[name] for name in {**experiment, **known} if name in known})
        anew = replaced & finished.keys()
        for other, runs in tables.items():
            if other != table and anew & runs.keys():
                write_tables(other, runs | {name: finished[name] for name in runs if name in anew})

    def finish(name):
        finished[name] = finished_run(name, experiment[name], folders[name])
        print(f"{CLEAR}{name}: complete", flush=True)

    if stack_memory:
        try:
            train_stacks(experiment, folders, waiting, done, device, stack_memory, finish)
        finally:
            write()
        waiting = [name for name in waiting if name not in finished]
    return run_side_by_side(experiment, folders, waiting, device, jobs, finish, write)


def run_side_by_side(experiment, folders, waiting, device, jobs, finish, write):
    """Train the waiting runs, `jobs` at a time, in processes of their own; return the runs that failed.

    Calls finish(name) for each that is complete, and write() from time to time and at the end.
    """
    running, failed, complete = {}, [], len(experiment) - len(waiting)
    printed, written = -math.inf, time.monotonic()
    try:
        while waiting or running:
            free = (name for name in waiting if is_free(folders[name]))
            for name in list(itertools.islice(free, jobs - len(running))):
                waiting.remove(name)
                hold_stop_signals()  # until what was started is known here
                running[name] = start(experiment[name], folders[name], device)
                release_stop_signals()
            wait([process.sentinel for process in running.values()], timeout=1)  # seconds
            for name, process in list(running.items()):
                if not process.is_alive():
                    del running[name]
                    if process.exitcode == BUSY:  # another process trains it, or looked whether it is free
                        waiting.append(name)
                    elif process.exitcode and not is_complete(experiment[name], folders[name]):
                        failed.append(name)
                        print(f"{CLEAR}{name} failed: {folders[name] / 'train.log'} says why", flush=True)
                    else:  # by this process, or by another that was faster
                        finish(name)
                        complete += 1
            if time.monotonic() - written > WRITE_EVERY:
                write()
                written = time.monotonic()
            if (running or waiting) and (TERMINAL or time.monotonic() - printed > 60):
                printed = time.monotonic()
                done = {name: read_run_json(folders[name]).get("iter_num", 0) for name in running}
                line = ", ".join(f"{name} {it:,}" for name, it in done.items())
                if not running:
                    does = "starts" if is_free(folders[waiting[0]]) else "is trained by another process"
                    line = f"{waiting[0]} {does}"
                line += f"; {complete} complete, {len(waiting)} waiting"
                if TERMINAL:
                    line = line[: shutil.get_terminal_size().columns - 1]  # \r clears one row only
                print(CLEAR + line, end="" if TERMINAL else "\n", flush=True)
    except BaseException as error:  # Ctrl-C, SIGTERM, a closed terminal: what we started ends with us
        hold_stop_signals()  # a second one must not cut the saving short
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
        if isinstance(error, (KeyboardInterrupt, SystemExit, BrokenPipeError)):
            print(STOPPED, file=sys.stderr)
        raise
    finally:
        write()
    return failed


def main(cfg):
    device = setup_device(cfg.device)[0]
    on_cpu = device.type == "cpu"
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # then a closed pipe is an exception, like the others
    jobs = cfg.jobs or (cores() if on_cpu else 1)
    root = Path(cfg.root_dir).resolve()
    os.chdir(ROOT)  # where the scripts and configs are
    root = Path(os.path.relpath(root))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    failed = run_all(runs_by_name(cfg.runs), root, root / cfg.out_dir, str(device), jobs,
                     stack_memory=free / 2, overwrite=cfg.overwrite)
    if failed:
        raise StudyError(f"{len(failed)} runs failed ({', '.join(failed)}); the same command tries them "
                         "again", status=1)


if __name__ == "__main__":
    run_script(main, globals())
