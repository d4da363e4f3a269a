"""Print a line for each evaluation and, on a terminal, a bar below; add up what the time is spent on."""

import contextlib
import signal
import sys
import time

import torch
from tqdm import tqdm

from study import StudyError
from study.device import multiplies_bfloat16
from study.identity import kind_of
from study.scoring import accuracies


@contextlib.contextmanager
def timed(seconds, what, runs=1):
    """Add a run's share of the wall time of what is done inside to seconds[what]."""
    clock = time.perf_counter()
    yield
    seconds[what] += (time.perf_counter() - clock) / runs


class Progress:
    """How far a run is; with several processes rank 0 prints it."""

    def __init__(self, cfg, done, rank):
        self.cfg, self.done, self.prints = cfg, done, rank == 0
        self.terminal = self.prints and sys.stdout.isatty()
        self.bar = tqdm(total=cfg.max_iters, initial=done, disable=not self.terminal, unit="it",
                        dynamic_ncols=True)
        self.updates, self.seconds = 0, 0.0  # of training since the last evaluation

    def print(self, line):
        if self.prints:
            self.bar.write(line) if self.terminal else print(line, flush=True)

    def begin(self, model, tasks, device, resolved, earlier):
        """Print what trains. resolved: what the settings resolve to. earlier: run.json of the part before."""
        tasks = " and ".join(task.name for task in tasks) or "none"
        resumed = f", resumed at iteration {self.done}" if self.done else ""
        self.print(f"{self.cfg.out_dir}: {model.num_params():,} parameters, data {self.cfg.dataset}, "
                   f"tasks {tasks}, {device} {resolved['dtype']}, {resolved['step']}{resumed}")
        for note in notes(model, resolved, earlier, device) if self.prints else []:
            print(f"note: {note}", file=sys.stderr)

    def evaluated(self, row, best):
        """Print an evaluation. best: columns in which the row is better than every one before."""
        scores = "".join(f", {name} {score}" for name, score in accuracies(row).items())
        losses = f"train loss {row['train_loss']:.4f}, val loss {row['val_loss']:.4f}"
        pace = f", {1000 * self.seconds / self.updates:.2f} ms an iteration" if self.updates else ""
        best = f", best {' and '.join(best)}" if best else ""
        self.print(f"iter {row['iter']}: {losses}{scores}{pace}{best}")
        self.updates, self.seconds = 0, 0.0

    def trained(self, updates, loss, seconds, rows):
        """Count `updates` updates that took `seconds`. loss: the last one's if it was read, else None."""
        self.bar.update(updates)
        self.updates, self.seconds = self.updates + updates, self.seconds + seconds
        if loss is not None and self.terminal:
            self.bar.set_postfix(loss=f"{loss:.4f}", **accuracies(rows[-1]))

    def end(self, it, seconds):
        self.bar.close()
        if it >= self.cfg.max_iters:
            spent = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
            self.print(f"{self.cfg.out_dir}: complete at iteration {it}; this time {spent}")


def notes(model, resolved, earlier, device):
    """What a user should know of the step that a run takes, in one line each."""
    lines = [f"{name} is not used: {reason}; this run trains by {resolved['step']}"
             for name, reason in resolved["step_refused"].items()]
    before, now = map(kind_of, (earlier.get("step", resolved["step"]), resolved["step"]))
    threads = earlier.get("threads", torch.get_num_threads())
    if before != now:
        lines.append(f"this run was made by {earlier['step']} until here; another step rounds differently")
    elif device.type == "cpu" and threads != torch.get_num_threads():
        lines.append(f"this run was made with OMP_NUM_THREADS={threads} until here; "
                     "another number rounds differently")
    large = model.num_params() > 10**6
    if device.type == "cpu" and large and resolved["dtype"] == "float32" and multiplies_bfloat16():
        lines.append("a model of this size trains faster on this processor with --dtype=bfloat16")
    return lines


@contextlib.contextmanager
def wandb_logger(cfg, rank):
    """Yield a function that logs a row of results.csv to Weights & Biases if cfg says so.

    Raises StudyError.
    """
    if not cfg.wandb_log or rank > 0:
        yield lambda row: None
        return
    try:
        import wandb
    except ImportError:
        raise StudyError("wandb_log=True needs the package wandb: pip install wandb")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a socket that another end closed is an error then
    runs = []

    def log(row):
        if not runs:
            name = cfg.wandb_run_name or cfg.out_dir
            try:
                runs.append(wandb.init(project=cfg.wandb_project, name=name, config=vars(cfg)))
            except Exception as error:  # of wandb's own kinds
                raise StudyError(f"wandb cannot start a run ({error}): wandb login, or --wandb_log=False")
        wandb.log(row, step=row["iter"])

    yield log
    if runs:
        runs[0].finish()
