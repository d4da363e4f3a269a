"""Measure what a run costs on this machine and print a table; train nothing that is kept.

    OMP_NUM_THREADS=1 python bench.py config/train_math_mini_14.py [--plain]

With --plain, a plain loop is measured beside it: eager PyTorch, an optimizer that is not fused, windows cut
one by one from a memory-mapped file, one prompt at a time. The two take turns in one process, so that their
ratio holds even where the times are noisy. On a CPU, times are CPU time, which other programs hardly change.
"""

import math
import resource
import statistics
import sys
import time
from pathlib import Path

import study  # noqa: F401, first: from here on Ctrl-C ends in one line
import numpy as np
import torch

import train_with_eval
from study.dataset import DATA_DIR
from study.device import describe, machine, seed_everything, setup_device
from study.files import write_files
from study.progress import notes
from study.run_folder import to_bytes
from study.scoring import NUM_SAMPLES, TEMPERATURE, TOP_K, evaluate, next_token_probabilities
from study.settings import run_script
from study.state import set_up
from study.steps import choose_step
from study.update import build, get_lr

plain = False  # also measure the plain loop
blocks = 7  # timed blocks of iterations, after one to warm up
block_iters = 100  # iterations a block
evals = 7  # timed evaluations, after one to warm up
matrix_size = 2048  # of the square product that the machine's matrix rate is measured with


def seconds_of(device, function):
    """Seconds that a call takes: CPU time of this process, or on a GPU the time until it is done."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    wait()
    start = clock()
    function()
    wait()
    return clock() - start


def time_in_turns(device, repeats, *functions):
    """A list of seconds for each function, called in turn, `repeats` times after one to warm up."""
    rounds = [[seconds_of(device, function) for function in functions] for _ in range(repeats + 1)]
    return [list(seconds) for seconds in zip(*rounds[1:])]


def make_updates(step, batches, cfg, updates):
    """Make the first updates of a run, in blocks as large as the step takes."""
    for it in range(0, updates, step.max_updates):
        count = min(step.max_updates, updates - it)
        step.run(batches.draw(count), [get_lr(it + i, cfg) for i in range(count)])


def tokens_per_update(cfg):
    return cfg.batch_size * cfg.block_size * cfg.gradient_accumulation_steps


def flops_per_token(model, block_size):
    """Operations forward and backward: 6 for each weight that multiplies, and attention over the whole block.

    This is the count of PaLM, appendix B, for the plain loop. A faster step that skips some of them is given
    all of them. The tied embedding counts as the output layer.
    """
    c = model.config
    return 6 * model.num_params() + 12 * c.n_layer * c.n_embd * block_size


def matrix_rate(device, dtype, size):
    """FLOP/s of a square matrix product in the dtype that training uses, the best of ten."""
    seed_everything(0, device)  # before the first product of all: PyTorch reads cuBLAS's settings there
    a, b = torch.randn(2, size, size, device=device).to(getattr(torch, dtype)).unbind()
    products = 1 if device.type == "cpu" else 100  # on a GPU, launching one takes as long as the product

    def multiply():
        for _ in range(products):
            a @ b

    [seconds] = time_in_turns(device, 10, multiply)
    return 2 * products * size**3 / min(seconds)


def plain_train(model, optimizer, cfg, autocast, device, iterations):
    """The training loop in its plainest form."""
    size, steps = cfg.block_size, cfg.gradient_accumulation_steps
    for it in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = get_lr(it, cfg)
        for _ in range(steps):
            data = np.memmap(DATA_DIR / cfg.dataset / "train.bin", dtype=np.uint16, mode="r")
            starts = torch.randint(len(data) - size, (cfg.batch_size,))
            x = torch.stack([torch.from_numpy(data[i : i + size].astype(np.int64)) for i in starts])
            y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + size].astype(np.int64)) for i in starts])
            with autocast:
                _, loss = model(x.to(device), y.to(device))
            (loss / steps).backward()
        if cfg.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def plain_evaluation(model, splits, chars, tasks, cfg, autocast):
    """Both losses from 200 random batches each, as in nanoGPT, and one prompt at a time."""
    model.eval()
    device = splits["train"].device
    with autocast:
        for windows in splits.values():
            for _ in range(200):
                batch = windows[torch.randint(len(windows), (cfg.batch_size,), device=device)]
                model(batch[:, :-1], batch[:, 1:])[1].item()
        for task in tasks:
            for problem in task.problems:
                prompt = torch.tensor([[chars.index(char) for char in problem.prompt]], device=device)
                for _ in range(NUM_SAMPLES):
                    idx = prompt
                    for _ in range(task.max_new_tokens):
                        logits = model(idx[:, -cfg.block_size :])[0][:, -1]
                        probabilities = next_token_probabilities(logits, TEMPERATURE, TOP_K)
                        idx = torch.cat([idx, torch.multinomial(probabilities, 1)], dim=1)
    model.train()


def with_range(seconds, digits=2):
    """Return 'median (lowest to highest)' in milliseconds."""
    low, middle, high = (1000 * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:.{digits}f} ms ({low:.{digits}f} to {high:.{digits}f})"


def print_table(title, lines):
    print(f"\n{title}")
    for name, value in lines:
        print(f"  {name:34} {value}")


def main(cfg):
    device, dtype, autocast = setup_device(cfg.device, cfg.dtype)
    state, splits, tasks, resolved = set_up(cfg, device, dtype)
    model, chars = state.model, resolved["chars"]
    step, refused = choose_step(state, splits["train"], cfg, dtype, autocast)
    info = machine(device) | {"dtype": dtype, "step": step.name}
    print(f"{cfg.out_dir}: {model.num_params():,} parameters on {describe(info)}")
    resolved |= {"step": step.name, "step_refused": refused}
    for note in notes(model, resolved, {}, device):
        print(f"note: {note}", file=sys.stderr)
    if device.type == "cpu" and info["threads"] > 1:
        print(f"note: seconds are CPU time, added up over {info['threads']} threads; OMP_NUM_THREADS=1 gives "
              "those of one", file=sys.stderr)

    def save(content):
        path = Path(f".bench-{cfg.out_dir}.pt".replace("/", "_"))
        write_files({path: to_bytes(content())})
        path.unlink()

    loops = [lambda: make_updates(step, state.batches, cfg, cfg.block_iters)]
    if cfg.plain:
        few = max(1, cfg.block_iters // 10)
        plain_model, _ = build(cfg, len(chars), device)
        plain_optimizer = torch.optim.AdamW(
            plain_model.parameters(), lr=cfg.learning_rate, betas=(cfg.beta1, cfg.beta2), foreach=False)
        loops.append(lambda: plain_train(plain_model, plain_optimizer, cfg, autocast, device, few))
    updates, *plain_updates = time_in_turns(device, cfg.blocks, *loops)
    updates = [seconds / cfg.block_iters for seconds in updates]
    [evaluations] = time_in_turns(
        device, cfg.evals, lambda: evaluate(model, splits, chars, tasks, 0, cfg, autocast))
    best, last = time_in_turns(device, 5, lambda: save(model.state_dict), lambda: save(state.state_dict))
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:.0f} MB"
    if device.type == "cuda":
        memory += f", {torch.cuda.max_memory_allocated(device) / 1e6:.0f} MB on the GPU"
    rate = matrix_rate(device, dtype, cfg.matrix_size)

    update, evaluated = statistics.median(updates), statistics.median(evaluations)
    tokens = tokens_per_update(cfg)
    count = math.ceil(cfg.max_iters / cfg.eval_interval) + 1
    training = cfg.max_iters * update
    whole = training + count * (evaluated + statistics.median(best))
    flops = tokens * flops_per_token(model, cfg.block_size) / update
    print_table("this version", [
        ("one update", with_range(updates, 3)),
        ("  tokens a second", f"{tokens / update:,.0f}"),
        ("  achieved", f"{flops / 1e9:,.1f} GFLOP/s, {100 * flops / rate:.1f}% of the {rate / 1e9:,.0f} of a "
                       "matrix product"),
        ("one evaluation", with_range(evaluations, 1)),
        ("one best checkpoint", with_range(best, 1)),
        ("ckpt_last.pt, with the optimizer", with_range(last, 1)),
        (f"whole run ({cfg.max_iters:,} iterations)",
         f"{whole:.0f} s with {count} evaluations, {100 * training / whole:.1f}% of it training"),
        ("peak memory", f"{memory}, with the plain loop's" if cfg.plain else memory),
    ])
    if cfg.plain:
        plain_updates = [seconds / few for seconds in plain_updates[0]]
        ratios = [theirs / ours for theirs, ours in zip(plain_updates, updates)]
        plain_eval = seconds_of(
            device, lambda: plain_evaluation(plain_model, splits, chars, tasks, cfg, autocast))
        plain_whole = cfg.max_iters * statistics.median(plain_updates) + count * plain_eval
        print_table("plain loop", [
            ("one update", f"{with_range(plain_updates)}, {statistics.median(ratios):.1f} times as long "
                           f"({min(ratios):.1f} to {max(ratios):.1f})"),
            ("one evaluation", f"{1000 * plain_eval:.0f} ms, {plain_eval / evaluated:.0f} times as long"),
            ("whole run", f"{plain_whole:.0f} s, {plain_whole / whole:.1f} times as long"),
        ])


if __name__ == "__main__":
    run_script(main, vars(train_with_eval), globals())
