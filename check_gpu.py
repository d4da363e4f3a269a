"""Check a GPU: run the GPU tests, then try and time every step of three models. `make gpu` calls it.

    python check_gpu.py

Each step is tried as before a run: one that cannot be built, or differs from the plain step, is refused
with a reason. The table at the end can be pasted into an issue. The exit status is 0 only if the tests passed
and no step was refused. --device=cpu --block_iters=2 shows what it does, without a GPU. There the step with
16-bit masks is tried with dropout on, less strictly than before a run.
"""

import statistics
import subprocess
import sys

import study  # first: from here on Ctrl-C ends in one line
import torch

import train_with_eval
from bench import flops_per_token, make_updates, matrix_rate, time_in_turns, tokens_per_update
from study import StudyError
from study.device import describe, machine, setup_device
from study.settings import configure, run_script
from study.state import set_up
from study.steps import expect, fast_steps, next_batches, reason_of, restore, snapshot, try_step
from study.update import make_eager_step, make_update

models = "math_mini_14,both_mini_28,math_mini_mlt"  # each with its config/train_<model>.py
device = "cuda"  # cuda, cuda:1; or cpu
compile = "auto"  # try compiled steps too: True, False or auto (on CUDA)
blocks = 5  # timed blocks of updates, after one to warm up
block_iters = 100  # updates a block
matrix_size = 4096  # of the square product that the device's matrix rate is measured with

TESTS = [sys.executable, "-m", "pytest", "-v", "-m", "gpu"]
COLUMNS = ["model", "step", "ms an update", "tokens/s", "GFLOP/s", "of the matrix rate", "trial"]


def run_tests():
    """(whether the GPU tests passed, pytest's last line)."""
    last = ""
    with subprocess.Popen(TESTS, cwd=study.ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip("= \n") or last
    return process.returncode == 0, last


def check_steps(run, cfg, rate):
    """A row of the table for each step that fits a run, the plain step last. rate: FLOP/s of the device."""
    torch.compiler.reset()  # else it would compile the next model for any shape, which a run does not
    device, dtype, autocast = setup_device(run.device, run.dtype)
    state, splits, _, _ = set_up(run, device, dtype)
    windows, before, rows = splits["train"], snapshot(state), []
    update = make_update(state.model, state.optimizer, state.scaler, windows, run, autocast)
    steps = fast_steps(state, windows, run, dtype, autocast, update)
    steps.append(("PyTorch", lambda: make_eager_step(update, state.optimizer)))
    indices, lrs = next_batches(state, run)
    expected = expect(state, windows, run, dtype, autocast, indices, lrs)
    for name, make in steps:
        print(f"{run.out_dir}: {name}", file=sys.stderr)
        numbers, verdict = [""] * 4, "agrees"
        try:
            restore(state, before, settings=True)
            step = make()
            try_step(step, state, before, run, indices, lrs, expected)
            [blocks] = time_in_turns(
                device, cfg.blocks, lambda: make_updates(step, state.batches, run, cfg.block_iters))
            seconds = statistics.median(blocks) / cfg.block_iters
            tokens = tokens_per_update(run) / seconds
            flops = tokens * flops_per_token(state.model, run.block_size)
            numbers = [f"{1e3 * seconds:.3f}", f"{tokens:,.0f}", f"{flops / 1e9:,.1f}", f"{flops / rate:.1%}"]
        except Exception as error:  # whatever it is, the next step is tried
            verdict = reason_of(error)
        rows.append([run.out_dir, name, *numbers, verdict])
    return rows


def print_table(rows):
    """Print rows as a Markdown table; the last column is not padded, since a reason may be long."""
    widths = [max(map(len, column)) for column in zip(*rows)][:-1]
    for row in [rows[0], ["-" * width for width in widths] + ["---"], *rows[1:]]:
        print("|", " | ".join([*map(str.ljust, row, widths), row[-1]]), "|")


def main(cfg):
    if cfg.device.startswith("cuda") and not torch.cuda.is_available():
        raise StudyError("PyTorch finds no CUDA device here; --device=cpu shows what this does without one")
    device, dtype, _ = setup_device(cfg.device)
    options = [f"--device={cfg.device}", f"--compile={cfg.compile}"]
    runs = [configure(vars(train_with_eval), arguments=[f"{study.ROOT}/config/train_{model}.py", *options])
            for model in cfg.models.split(",")]
    passed, tests = run_tests()
    info, rate = machine(device) | {"dtype": dtype}, matrix_rate(device, dtype, cfg.matrix_size)
    rows = []
    for run in runs:
        try:
            rows += check_steps(run, cfg, rate)
        except Exception as error:  # the plain step itself fails
            rows.append([run.out_dir, "PyTorch", *[""] * 4, reason_of(error)])
    driver = f", driver {info['driver']}" if info["driver"] else ""
    print(f"\n{describe(info)}{driver}, matrix rate {rate / 1e9:,.0f} GFLOP/s, GPU tests: {tests}\n")
    print_table([COLUMNS, *rows])
    refused = sum(row[-1] != "agrees" for row in rows)
    if refused or not passed:
        passed = "passed" if passed else "failed"
        raise StudyError(f"the GPU tests {passed}, {refused} of {len(rows)} steps were refused", status=1)


if __name__ == "__main__":
    run_script(main, globals())
