"""Prints a line for each evaluation and, on a terminal, a bar below; and adds up what the time is spent on."""

import contextlib
import sys
import time

from tqdm import tqdm

from study.scoring import accuracies


@contextlib.contextmanager
def timed(seconds, what, runs=1):
    """Adds a run's share of the wall time of what is done inside to seconds[what]."""
    clock = time.perf_counter()
    yield
    seconds[what] += (time.perf_counter() - clock) / runs


class Progress:
    """Of `total` iterations, `done` of which are made. Of several processes rank 0 speaks."""

    def __init__(self, total, done, rank):
        self.speaks = rank == 0
        self.terminal = self.speaks and sys.stdout.isatty()
        self.bar = tqdm(total=total, initial=done, disable=not self.terminal, unit="it", dynamic_ncols=True)
        self.updates, self.seconds = 0, 0.0  # of training since the last evaluation

    def say(self, line):
        if self.speaks:
            self.bar.write(line) if self.terminal else print(line, flush=True)

    def evaluated(self, row, best):
        """best: columns in which the row is better than every one before."""
        scores = "".join(f", {name} {score}" for name, score in accuracies(row).items())
        line = f"iter {row['iter']}: train loss {row['train_loss']:.4f}, val loss {row['val_loss']:.4f}{scores}"
        pace = f", {1000 * self.seconds / self.updates:.2f} ms an iteration" if self.updates else ""
        self.say(line + pace + (f", best {' and '.join(best)}" if best else ""))
        self.updates, self.seconds = 0, 0.0

    def trained(self, updates, loss, seconds, rows):
        """After `updates` updates in so many seconds; loss: the last one's where it is due, else None."""
        self.bar.update(updates)
        self.updates, self.seconds = self.updates + updates, self.seconds + seconds
        if loss is not None and self.terminal:
            self.bar.set_postfix(loss=f"{loss:.4f}", **accuracies(rows[-1]))

    def close(self):
        self.bar.close()
