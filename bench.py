"""Measures what a run costs on this machine and prints a table; trains nothing that is kept.

    OMP_NUM_THREADS=1 python bench.py config/train_math_mini_14.py [--plain]

With --plain, a plain loop (eager PyTorch, an optimizer that is not fused, windows cut one by one from a
memory-mapped file, one prompt at a time) is measured beside it, block by block in the same process, so
that the ratio holds even where the times are noisy. On a CPU, times are CPU time: what else the
machine does counts little.
"""

import math
import resource
import statistics
import sys
import time
from pathlib import Path

import study  # noqa: F401, first: from here on a Ctrl-C ends in one line
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import train_with_eval
from study.dataset import DATA_DIR
from study.device import describe, machine, setup_device
from study.files import write_files
from study.run_folder import to_bytes
from study.scoring import NUM_SAMPLES, TEMPERATURE, TOP_K, evaluate
from study.settings import run_script
from study.state import set_up
from study.update import build, get_lr, make_train

plain = False  # also measure the plain loop
blocks = 7  # timed blocks of iterations, after one to warm up
block_iters = 100  # iterations a block
evals = 7  # timed evaluations, after one to warm up
matrix_size = 2048  # of the square product that the machine's own rate is measured with


def seconds_of(device, function):
    """Seconds that a call takes: of this process's CPU time, or on a GPU until it is done."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, lambda: None)
    wait()
    start = clock()
    function()
    wait()
    return clock() - start


def time_in_turns(device, repeats, *functions):
    """A list of seconds for each function, called in turn, `repeats` times after once to warm up."""
    rounds = [[seconds_of(device, function) for function in functions] for _ in range(repeats + 1)]
    return [list(seconds) for seconds in zip(*rounds[1:])]


def with_range(seconds, digits=2):
    """"median (lowest to highest)" in milliseconds."""
    low, middle, high = (1000 * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:.{digits}f} ms ({low:.{digits}f} to {high:.{digits}f})"


def flops_per_token(model, block_size):
    """Forward and backward: 6 for each weight that multiplies, and attention over the whole block.

    The count of PaLM, appendix B, of what a plain loop does: a lookup in place of a product, or a
    context computed once though drawn twice, counts in full. The tied embedding is the output layer.
    """
    c = model.config
    return 6 * model.num_params() + 12 * c.n_layer * c.n_embd * block_size


def repeats_on(device):
    """How often what takes less than a millisecond on a GPU is done there, so that launching and waiting do not count."""
    return 1 if device.type == "cpu" else 100


def matrix_rate(device, dtype, size):
    """FLOP/s of a square matrix product, the best of several, in the dtype that training uses."""
    a, b = torch.randn(2, size, size, device=device).to(getattr(torch, dtype)).unbind()
    products = repeats_on(device)

    def multiply():
        for _ in range(products):
            a @ b

    [seconds] = time_in_turns(device, 10, multiply)
    return 2 * products * size**3 / min(seconds)


def memory_rate(device):
    """Bytes a second that a copy of 256 MB reads and writes, the best of several."""
    a = torch.zeros(1 << 26, device=device)
    b = torch.ones_like(a)
    copies = repeats_on(device)

    def copy():
        for _ in range(copies):
            a.copy_(b)

    [seconds] = time_in_turns(device, 5, copy)
    return 2 * copies * a.nbytes / min(seconds)


def plain_train(model, optimizer, cfg, autocast, device, iterations):
    """The training loop in its plainest form."""
    steps = cfg.gradient_accumulation_steps
    for it in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = get_lr(it, cfg)
        for _ in range(steps):
            data = np.memmap(DATA_DIR / cfg.dataset / "train.bin", dtype=np.uint16, mode="r")
            starts = torch.randint(len(data) - cfg.block_size, (cfg.batch_size,))
            x = torch.stack([torch.from_numpy(data[i : i + cfg.block_size].astype(np.int64)) for i in starts])
            y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + cfg.block_size].astype(np.int64)) for i in starts])
            with autocast:
                _, loss = model(x.to(device), y.to(device))
            (loss / steps).backward()
        if cfg.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def plain_evaluation(model, splits, chars, tasks, cfg, autocast):
    """Both losses from 200 random batches each, as in nanoGPT, and one prompt at a time."""
    model.eval()
    device = splits["train"].device
    with torch.no_grad(), autocast:
        for windows in splits.values():
            for _ in range(200):
                batch = windows[torch.randint(len(windows), (cfg.batch_size,), device=device)]
                model(batch[:, :-1], batch[:, 1:])[1].item()
        for task in tasks:
            for problem in task.problems:
                prompt = torch.tensor([[chars.index(char) for char in problem.prompt]], device=device)
                for _ in range(NUM_SAMPLES):
                    model.generate(prompt, task.max_new_tokens, TEMPERATURE, TOP_K)
    model.train()


def achieved(flops, seconds, rate):
    return f"{flops / seconds / 1e9:,.1f} GFLOP/s, {100 * flops / seconds / rate:.1f}% of the matrix rate"


def print_table(title, lines):
    print(f"\n{title}")
    for name, value in lines:
        print(f"  {name:34} {value}")


def main(cfg):
    device, dtype, autocast = setup_device(cfg.device, cfg.dtype)
    state, splits, tasks, resolved = set_up(cfg, device, dtype)
    model, batches, chars = state.model, state.batches, resolved["chars"]
    train, step_name, notes = make_train(model, state.optimizer, state.scaler, splits["train"], cfg, device, dtype, autocast)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    plain_model, _ = build(cfg, len(chars), device)
    plain_optimizer = torch.optim.AdamW(plain_model.parameters(), lr=cfg.learning_rate, betas=(cfg.beta1, cfg.beta2), foreach=False)
    few = max(1, cfg.block_iters // 10)

    def iterations():
        for it in range(0, cfg.block_iters, train.max_updates):
            updates = min(train.max_updates, cfg.block_iters - it)
            train(batches.draw(updates), [get_lr(it + i, cfg) for i in range(updates)])

    def evaluation():
        evaluate(model, splits, chars, tasks, 0, cfg, autocast)

    def save(content):
        path = Path(f".bench-{cfg.out_dir}.pt".replace("/", "_"))
        write_files({path: to_bytes(content())})
        path.unlink()

    info = machine(device) | {"dtype": dtype, "step": step_name}
    print(f"{cfg.out_dir}: {model.num_params():,} parameters on {describe(info)}")
    if device.type == "cpu" and info["threads"] > 1:
        print(f"note: seconds are CPU time, added up over {info['threads']} threads; OMP_NUM_THREADS=1 gives those of one", file=sys.stderr)
    measured = [iterations]
    if cfg.plain:
        measured.append(lambda: plain_train(plain_model, plain_optimizer, cfg, autocast, device, few))
    steps, *plain_steps = time_in_turns(device, cfg.blocks, *measured)
    steps = [seconds / cfg.block_iters for seconds in steps]
    [evaluations] = time_in_turns(device, cfg.evals, evaluation)
    best, last = time_in_turns(device, 5, lambda: save(model.state_dict), lambda: save(state.state_dict))
    device_memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    rate, bandwidth = matrix_rate(device, dtype, cfg.matrix_size), memory_rate(device)
    with FlopCounterMode(display=False) as counter:
        evaluation()

    step, evaluated = statistics.median(steps), statistics.median(evaluations)
    tokens = cfg.batch_size * cfg.block_size * cfg.gradient_accumulation_steps
    flops = tokens * flops_per_token(model, cfg.block_size)
    # Weight, gradient and both moments are read and written, each 4 bytes; a token is an id of 8.
    roofline = max(flops / rate, (8 * 4 * sum(p.numel() for p in model.parameters()) + 8 * tokens) / bandwidth)
    count = math.ceil(cfg.max_iters / cfg.eval_interval) + 1
    whole = cfg.max_iters * step + count * (evaluated + statistics.median(best))
    lines = [
        ("one update", with_range(steps, 3)),
        ("  tokens a second", f"{tokens / step:,.0f}"),
        ("  achieved", achieved(flops, step, rate)),
        ("  roofline of the plain loop", f"{1000 * roofline:.3f} ms"),
        ("one evaluation", with_range(evaluations, 1)),
        ("  achieved", achieved(counter.get_total_flops(), evaluated, rate)),
        ("one best checkpoint", with_range(best, 1)),
        ("ckpt_last.pt, with the optimizer", with_range(last, 1)),
        (f"whole run ({cfg.max_iters:,} iterations)",
         f"{whole:.0f} s with {count} evaluations, {100 * cfg.max_iters * step / whole:.1f}% of it training"),
        ("peak memory of the process", f"{memory:.0f} MB" + ", the plain loop's included" * cfg.plain),
        ("measured here", f"{rate / 1e9:,.0f} GFLOP/s in a matrix product, {bandwidth / 1e9:,.0f} GB/s in a copy"),
    ]
    if device.type == "cuda":
        lines.append(("peak memory of the device", f"{device_memory / 1e6:.0f} MB" + ", the plain loop's included" * cfg.plain))
    print_table("this version", lines)

    if cfg.plain:
        plain_steps = [seconds / few for seconds in plain_steps[0]]
        ratios = [theirs / ours for theirs, ours in zip(plain_steps, steps)]
        plain_eval = seconds_of(device, lambda: plain_evaluation(plain_model, splits, chars, tasks, cfg, autocast))
        plain_whole = cfg.max_iters * statistics.median(plain_steps) + count * plain_eval
        print_table("plain loop", [
            ("one update", f"{with_range(plain_steps)}, {statistics.median(ratios):.1f} times as long ({min(ratios):.1f} to {max(ratios):.1f})"),
            ("one evaluation", f"{1000 * plain_eval:.0f} ms, {plain_eval / evaluated:.0f} times as long"),
            ("whole run", f"{plain_whole:.0f} s, {plain_whole / whole:.1f} times as long"),
        ])


if __name__ == "__main__":
    run_script(main, vars(train_with_eval), globals())
