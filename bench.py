"""Measures what a run costs on this machine and prints a table; trains nothing that is kept.

    python bench.py config/train_math_mini_14.py [--device=...] [--plain]

Run it on a machine with nothing else to do. With --plain, a plain version of the same work (eager,
unfused optimizer, windows cut one by one from a memory-mapped file, one prompt at a time) is
measured beside it in the same process, so that the ratio holds even where the times are noisy.
"""

import math
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import train_with_eval as train
from configurator import configure, fail
from data.dataset import DATA_DIR, read_meta, write_files
from data.tasks import tasks_spelled_by
from evaluation import NUM_SAMPLES, TEMPERATURE, TOP_K, describe, machine, setup_device

plain = False  # also measure the plain version
blocks = 7  # timed blocks of iterations, after one to warm up
block_iters = 100  # iterations a block
evals = 7  # timed evaluations, after one to warm up
matrix_size = 2048  # of the square product that the machine's own rate is measured with


def wait_for(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device, function, repeats):
    """Seconds of each of `repeats` calls, after one call to warm up."""
    seconds = []
    for i in range(repeats + 1):
        wait_for(device)
        clock = time.perf_counter()
        function()
        wait_for(device)
        seconds.append(time.perf_counter() - clock)
    return seconds[1:]


def spread(seconds, digits=2):
    """"median (lowest to highest)" in milliseconds."""
    low, middle, high = (1000 * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:.{digits}f} ms ({low:.{digits}f} to {high:.{digits}f})"


def flops_per_token(model, block_size):
    """Forward and backward: 6 for each weight that multiplies, and attention over the whole block.

    The count of PaLM, appendix B, of what a plain loop does: a lookup in place of a product, or a
    window computed once though drawn twice, counts in full. The tied embedding is the output layer.
    """
    c = model.config
    return 6 * model.num_params() + 12 * c.n_layer * c.n_embd * block_size


def matrix_rate(device, dtype, size):
    """FLOP/s of a square matrix product, the best of several, in the dtype that training uses."""
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    b = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    products = 1 if device.type == "cpu" else 100  # so that launching and waiting do not count

    def multiply():
        for _ in range(products):
            a @ b

    return 2 * products * size**3 / min(timed(device, multiply, 10))


def memory_rate(device):
    """Bytes a second that a copy of 256 MB reads and writes, the best of several."""
    a = torch.zeros(1 << 26, device=device)
    b = torch.ones_like(a)
    return 2 * a.nbytes / min(timed(device, lambda: a.copy_(b), 5))


def plain_steps(model, optimizer, cfg, autocast, device, iterations):
    """The training loop in its plainest form."""
    for it in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = train.get_lr(it, cfg)
        data = np.memmap(DATA_DIR / cfg.dataset / "train.bin", dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - cfg.block_size, (cfg.batch_size,))
        x = torch.stack([torch.from_numpy(data[i : i + cfg.block_size].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + cfg.block_size].astype(np.int64)) for i in starts])
        with autocast:
            _, loss = model(x.to(device), y.to(device))
        loss.backward()
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


def report(title, lines):
    print(f"\n{title}")
    for name, value in lines:
        print(f"  {name:34} {value}")


if __name__ == "__main__":
    cfg = configure(vars(train), globals())
    train.check(cfg)
    for key in ("blocks", "block_iters", "evals", "matrix_size"):
        if getattr(cfg, key) < 1:
            fail(f"{key}={getattr(cfg, key)} must be at least 1")
    if cfg.block_iters > train.INDEX_BLOCK:
        fail(f"block_iters={cfg.block_iters} must be at most {train.INDEX_BLOCK}")
    device, dtype, autocast = setup_device(cfg.device, cfg.dtype)
    chars, _ = read_meta(cfg.dataset)
    splits = train.load_splits(cfg.dataset, cfg.block_size, device)
    tasks = tasks_spelled_by(chars)
    model, optimizer = train.build_model(cfg, len(chars), device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    fast = torch.compile(model) if train.compiled(cfg, device) else model

    train_steps = train.make_train_steps(fast, optimizer, scaler, splits["train"], cfg, autocast)

    def iterations():
        shape = (cfg.block_iters, cfg.gradient_accumulation_steps, cfg.batch_size)
        starts = torch.randint(len(splits["train"]), shape).to(device)
        train_steps(starts, 0)

    def evaluation():
        train.evaluate(model, splits, chars, tasks, 0, cfg, autocast)

    def save(state):
        path = Path(f".bench-{cfg.out_dir}.pt".replace("/", "_"))
        write_files({path: train.to_bytes(state)})
        path.unlink()

    print(f"{cfg.out_dir}: {model.num_params():,} parameters on {describe(machine(device) | {'dtype': dtype})}")
    steps = [seconds / cfg.block_iters for seconds in timed(device, iterations, cfg.blocks)]
    evaluations = timed(device, evaluation, cfg.evals)
    best = timed(device, lambda: save({"model": model.state_dict()}), 5)
    last = timed(device, lambda: save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}), 5)
    device_memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    rate, bandwidth = matrix_rate(device, dtype, cfg.matrix_size), memory_rate(device)
    with FlopCounterMode(display=False) as counter:
        evaluation()

    step, evaluated = statistics.median(steps), statistics.median(evaluations)
    tokens = cfg.batch_size * cfg.block_size * cfg.gradient_accumulation_steps
    flops = tokens * flops_per_token(model, cfg.block_size)
    # Weight, gradient and both moments are read and written, each 4 bytes; a token is an id of 8.
    floor = max(flops / rate, (8 * 4 * sum(p.numel() for p in model.parameters()) + 8 * tokens) / bandwidth)
    count = math.ceil(cfg.max_iters / cfg.eval_interval) + 1
    whole = cfg.max_iters * step + count * (evaluated + statistics.median(best) + statistics.median(last))
    training_share = cfg.max_iters * step / whole
    lines = [
        ("one iteration", spread(steps)),
        ("  tokens a second", f"{tokens / step:,.0f}"),
        ("  achieved", achieved(flops, step, rate)),
        ("  floor of arithmetic and bytes", f"{1000 * floor:.3f} ms"),
        ("one evaluation", spread(evaluations, 1)),
        ("  achieved", achieved(counter.get_total_flops(), evaluated, rate)),
        ("  floor of the arithmetic", f"{1000 * counter.get_total_flops() / rate:.3f} ms"),
        ("one best checkpoint", spread(best, 1)),
        ("ckpt_last.pt, with the optimizer", spread(last, 1)),
        (f"whole run ({cfg.max_iters:,} iterations)", f"{whole:.0f} s with {count} evaluations, {100 * training_share:.1f}% of it training"),
        ("peak memory of the process", f"{memory:.0f} MB"),
        ("measured here", f"{rate / 1e9:,.0f} GFLOP/s in a matrix product, {bandwidth / 1e9:,.0f} GB/s in a copy"),
    ]
    if device.type == "cuda":
        lines.append(("peak memory of the device", f"{device_memory / 1e6:.0f} MB"))
    report("this version", lines)

    if cfg.plain:
        model, _ = train.build_model(cfg, len(chars), device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate, betas=(cfg.beta1, cfg.beta2), foreach=False)
        few = max(1, cfg.block_iters // 5)
        plain_step = statistics.median(
            timed(device, lambda: plain_steps(model, optimizer, cfg, autocast, device, few), cfg.blocks)) / few
        plain_eval = min(timed(device, lambda: plain_evaluation(model, splits, chars, tasks, cfg, autocast), 1))
        plain_whole = cfg.max_iters * plain_step + count * plain_eval
        report("plain version", [
            ("one iteration", f"{1000 * plain_step:.2f} ms, {plain_step / step:.1f} times as long"),
            ("one evaluation", f"{1000 * plain_eval:.0f} ms, {plain_eval / evaluated:.0f} times as long"),
            ("whole run", f"{plain_whole:.0f} s, {plain_whole / whole:.1f} times as long"),
        ])
