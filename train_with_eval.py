"""Trains a GPT on one of the study's datasets and evaluates it as it learns.

    python train_with_eval.py config/train_math_mini_14.py [--key=value ...]
    torchrun --standalone --nproc_per_node=N train_with_eval.py config/train_math_mini_14.py

Every eval_interval iterations, from 0 to the last, it appends a row to <out_dir>/results.csv and
saves ckpt_last.pt, which --init_from=resume goes on from, and each best model so far: ckpt.pt
(validation loss), ckpt_best_math.pt, ckpt_best_facts.pt and ckpt_best_combined.pt (accuracy). How
the run was made, and the seconds it took, stand in run.json.
"""

import dataclasses
import fcntl
import gc
import io
import json
import math
import os
import random
import shlex
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from configurator import configure, fail
from data.dataset import append_to_file, read_meta, read_tokens, write_files
from data.tasks import tasks_spelled_by
from evaluation import answer, load_checkpoint, load_weights, machine, output_of, read_run_json, setup_device, tally
from model import GPT, GPTConfig

out_dir = "out"  # folder of the run; a config file's name without train_ unless set
init_from = "scratch"  # scratch, or resume to go on from out_dir/ckpt_last.pt
overwrite = False  # replace the run that out_dir holds
seed = 1337  # of the initial weights, the batches, dropout and the sampling
# data
dataset = "as_math"  # folder in data/
block_size = 9  # context length, tokens
batch_size = 882  # windows per update (times gradient_accumulation_steps), over all processes
gradient_accumulation_steps = 1  # batches whose gradients make one update
# model
n_layer = 1  # blocks
n_head = 1  # attention heads; must divide n_embd
n_embd = 14  # width
mlp_expansion = 1  # hidden width of the MLP, in multiples of n_embd
dropout = 0.0  # probability
bias = False  # in the linear layers and layer norms
# AdamW
learning_rate = 1e-2  # peak, reached after warm-up
min_lr = 1e-4  # from lr_decay_iters on
warmup_iters = 2000  # iterations of linear warm-up
lr_decay_iters = 25_000  # iteration at which the cosine ends
max_iters = 30_000  # updates in total
weight_decay = 0.0  # on tensors of two or more dimensions
beta1 = 0.9  # decay of AdamW's first moment
beta2 = 0.99  # decay of AdamW's second moment
grad_clip = 1.0  # largest norm of the gradient; 0 for no clipping
# evaluation and output
eval_interval = 250  # iterations between evaluations
log_interval = 100  # iterations between progress lines
wandb_log = False  # also log to Weights & Biases (pip install wandb)
wandb_project = "too-big-to-think"  # its project
wandb_run_name = ""  # its run; out_dir unless set
# machine
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # auto (bfloat16 on CUDA, else float32), float32, bfloat16, float16
compile = "auto"  # torch.compile the model, on CUDA also capture updates as a graph: True, False or auto (CUDA only)

# What may differ when a run is resumed: nothing here changes the weights on a given machine.
FREE_ON_RESUME = {"out_dir", "init_from", "overwrite", "max_iters", "eval_interval", "log_interval",
                  "wandb_log", "wandb_project", "wandb_run_name", "device"}
# Checkpoint of the best evaluation by a column of results.csv, and whether more or less is better.
BEST = {"ckpt.pt": ("val_loss", -1), "ckpt_best_math.pt": ("math_acc", 1),
        "ckpt_best_facts.pt": ("facts_acc", 1), "ckpt_best_combined.pt": ("combined_acc", 1)}
INDEX_BLOCK = 250  # iterations whose batch indices are drawn and moved to the device at once, at most


def check(cfg):
    """Ends the program if a setting has a value that no run can have."""
    for key in ("batch_size", "block_size", "gradient_accumulation_steps", "n_layer", "n_head", "n_embd",
                "mlp_expansion", "eval_interval", "log_interval"):
        if getattr(cfg, key) < 1:
            fail(f"{key}={getattr(cfg, key)} must be at least 1")
    for key in ("learning_rate", "min_lr", "warmup_iters", "lr_decay_iters", "max_iters", "weight_decay", "grad_clip"):
        if not 0 <= getattr(cfg, key) < math.inf:
            fail(f"{key}={getattr(cfg, key)} must be a finite number of at least 0")
    for key in ("dropout", "beta1", "beta2"):
        if not 0 <= getattr(cfg, key) < 1:
            fail(f"{key}={getattr(cfg, key)} must be at least 0 and below 1")
    if not cfg.out_dir.strip():
        fail("out_dir is empty: --out_dir must name a folder")
    if not 0 <= cfg.seed < 2**32:
        fail(f"seed={cfg.seed} must be at least 0 and below 2**32")
    if cfg.n_embd % cfg.n_head:
        fail(f"n_embd={cfg.n_embd} is not divisible by n_head={cfg.n_head}")
    if cfg.init_from not in ("scratch", "resume"):
        fail(f"init_from='{cfg.init_from}' must be scratch or resume")
    if cfg.init_from == "resume" and cfg.overwrite:
        fail("init_from=resume goes on with a run and overwrite=True replaces it: give one of the two")
    if cfg.compile not in (True, False, "auto"):
        fail(f"compile='{cfg.compile}' must be True, False or auto")


def get_lr(it, cfg):
    """Learning rate of iteration `it`: linear warm-up, cosine to min_lr, constant."""
    if it < cfg.warmup_iters:
        return cfg.learning_rate * (it + 1) / (cfg.warmup_iters + 1)
    if it >= cfg.lr_decay_iters:
        return cfg.min_lr
    progress = (it - cfg.warmup_iters) / (cfg.lr_decay_iters - cfg.warmup_iters)
    return cfg.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (cfg.learning_rate - cfg.min_lr)


def seed_everything(seed, device):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # the CPU and every CUDA device
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if device.type == "cuda":  # the CPU's kernels are deterministic as they are
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cuda.enable_cudnn_sdp(False)  # an attention whose gradient need not be the same twice
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads any


def load_splits(dataset, block_size, device):
    """{"train": windows, "val": windows}: int64 (tokens - block_size, block_size + 1) on the device.

    A window is block_size inputs and, moved by one, their targets. Where both splits hold the same
    text, as in the study, they are the same tensor.
    """
    splits = {}
    for split in ("train", "val"):
        tokens = torch.from_numpy(read_tokens(dataset, split, block_size))
        splits[split] = tokens.unfold(0, block_size + 1, 1).contiguous().to(device)
    if torch.equal(splits["train"], splits["val"]):
        splits["val"] = splits["train"]
    return splits


def build_model(cfg, vocab_size, device):
    """(GPT, AdamW) with the initial weights that cfg.seed draws."""
    seed_everything(cfg.seed, device)
    fields = {key: getattr(cfg, key) for key in GPTConfig.__dataclass_fields__ if key != "vocab_size"}
    model = GPT(GPTConfig(**fields, vocab_size=vocab_size)).to(device)
    return model, model.configure_optimizer(cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2))


def compiled(cfg, device):
    return cfg.compile is True or (cfg.compile == "auto" and device.type == "cuda")


def update(model, optimizer, scaler, windows, batches, cfg, autocast):
    """One update; returns its last batch's loss, on the device.

    batches: (gradient_accumulation_steps, windows of this process) rows of `windows`.
    """
    # A batch is drawn with replacement, so it holds some windows more than once, about a fifth of
    # it on arithmetic. Where shapes may vary, each is computed once and weighs as often as it came.
    merge = windows.device.type == "cpu" and cfg.dropout == 0 and not compiled(cfg, windows.device)
    for j, rows in enumerate(batches):
        if hasattr(model, "require_backward_grad_sync"):  # DDP: average with the last batch only
            model.require_backward_grad_sync = j == len(batches) - 1
        weights = None
        if merge:
            rows, counts = rows.unique(return_counts=True)
            weights = counts / counts.sum()
        batch = windows[rows]
        with autocast:
            _, loss = model(batch[:, :-1], batch[:, 1:], weights)
        scaler.scale(loss / len(batches)).backward()
    if cfg.grad_clip > 0:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def eager_steps(model, optimizer, scaler, windows, cfg, autocast):
    """Returns steps(starts, iter_num, bar), which makes len(starts) updates from iteration iter_num on.

    starts: (updates, gradient_accumulation_steps, windows of this process) rows of the training
    windows. It returns the last loss, on the device.
    """

    def steps(starts, iter_num, bar=None):
        for i, batches in enumerate(starts):
            for group in optimizer.param_groups:
                group["lr"] = get_lr(iter_num + i, cfg)
            loss = update(model, optimizer, scaler, windows, batches, cfg, autocast)
            if bar is not None:
                bar.update()
        return loss

    return steps


def captured_steps(model, optimizer, scaler, windows, cfg, autocast):
    """eager_steps for CUDA, where launching the kernels of a small model one by one takes most of the time.

    The whole update is captured as one CUDA graph. What changes from one update to the next it reads
    from tensors that stay in place: a block of batches and learning rates, moved there at once, and
    the number of the next one in it. (On another device nothing is captured, for tests.)
    """
    device = windows.device
    block_starts = torch.zeros(INDEX_BLOCK, cfg.gradient_accumulation_steps, cfg.batch_size, dtype=torch.int64, device=device)
    block_lrs = torch.zeros(INDEX_BLOCK, device=device)
    i = torch.zeros(1, dtype=torch.int64, device=device)
    lr = torch.zeros((), device=device)
    for group in optimizer.param_groups:
        group["lr"] = lr

    def next_update():
        lr.copy_(block_lrs[i][0])
        loss = update(model, optimizer, scaler, windows, block_starts[i][0], cfg, autocast)
        i.add_(1)
        return loss

    launch = cuda_graph(next_update, model, optimizer, device) if device.type == "cuda" else next_update

    def steps(starts, iter_num, bar=None):
        updates = len(starts)
        block_starts[:updates] = starts
        block_lrs[:updates] = torch.tensor([get_lr(iter_num + j, cfg) for j in range(updates)])
        i.zero_()
        for _ in range(updates):
            loss = launch()
            if bar is not None:
                bar.update()
        return loss

    return steps


def make_train_steps(model, optimizer, scaler, windows, cfg, autocast):
    """The steps function that is the fastest for this run."""
    # DDP and loss scaling work on the host in every update, which no graph can hold.
    device = windows.device
    captures = device.type == "cuda" and compiled(cfg, device) and not dist.is_initialized() and not scaler.is_enabled()
    make = captured_steps if captures else eager_steps
    return make(model, optimizer, scaler, windows, cfg, autocast)


def cuda_graph(step, model, optimizer, device):
    """Captures step() as a CUDA graph and returns a function that launches it.

    The calls that warm it up leave no trace: weights, optimizer and random state are put back.
    """
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    states = {p: {key: value.clone() for key, value in state.items()} for p, state in optimizer.state.items()}
    random_before = torch.cuda.get_rng_state(device)
    side_stream = torch.cuda.Stream(device)
    side_stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    with torch.no_grad():
        for parameter, before in zip(model.parameters(), weights):
            parameter.copy_(before)
        for parameter, state in optimizer.state.items():
            for key, value in state.items():  # in place: the graph has their addresses
                value.copy_(states[parameter][key] if states else torch.zeros_like(value))
    torch.cuda.set_rng_state(random_before, device)

    def launch():
        graph.replay()
        return loss

    return launch


@torch.no_grad()
def mean_loss(model, windows, batch_size):
    """Cross-entropy (nats per token) over all windows, each once."""
    batches = windows.split(batch_size)
    losses = torch.stack([model(batch[:, :-1], batch[:, 1:])[1] for batch in batches]).tolist()
    return sum(loss * len(batch) for loss, batch in zip(losses, batches)) / len(windows)


def evaluate(model, splits, chars, tasks, iter_num, cfg, autocast):
    """One row of results.csv: both losses and every task of the run; disturbs no random state."""
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(cfg.seed + iter_num)
    model.eval()
    count = dict.fromkeys(["add", "sub", "facts", "held_out"], (0, 0))
    with autocast:
        train_loss = mean_loss(model, splits["train"], cfg.batch_size)
        same = splits["val"] is splits["train"]
        val_loss = train_loss if same else mean_loss(model, splits["val"], cfg.batch_size)
        for task in tasks:
            answers = answer(model, chars, task, task.problems, generator)
            for group in {problem.group for problem in task.problems}:
                count[group] = tally(task.problems, answers, lambda problem: problem.group == group)
            if task.name == "math":
                count["held_out"] = tally(task.problems, answers, lambda problem: problem.held_out)
    model.train()

    def accuracy(*groups):
        return sum(count[g][0] for g in groups) / max(1, sum(count[g][1] for g in groups))

    return {
        "iter": iter_num,
        "add_correct": count["add"][0], "add_total": count["add"][1],
        "sub_correct": count["sub"][0], "sub_total": count["sub"][1], "math_acc": accuracy("add", "sub"),
        "facts_correct": count["facts"][0], "facts_total": count["facts"][1], "facts_acc": accuracy("facts"),
        "train_loss": train_loss, "val_loss": val_loss,
        "held_out_correct": count["held_out"][0], "held_out_total": count["held_out"][1],
        "combined_acc": accuracy("add", "sub", "facts"),
    }


def best_checkpoints(rows, tasks):
    """Names of the checkpoints whose best evaluation is the last row (the earliest of equals wins)."""
    names = {task.name for task in tasks}
    return [
        name for name, (column, sign) in BEST.items()
        if column not in ("math_acc", "facts_acc") or column.removesuffix("_acc") in names
        if all(sign * rows[-1][column] > sign * row[column] for row in rows[:-1])
    ]


def summary(row):
    """The accuracies of a row for people to read; a task that is not part of the run is left out."""
    parts = {}
    for name, column in (("add", "add"), ("sub", "sub"), ("held out", "held_out"), ("facts", "facts")):
        correct, total = row[f"{column}_correct"], row[f"{column}_total"]
        if total:
            parts[name] = f"{correct}/{total}" if name == "held out" else f"{100 * correct / total:.1f}%"
    return parts


def write_results(folder, rows, appended):
    """Brings results.csv up to date with the evaluations so far; `appended`: it only lacks the last one."""
    lines = [",".join(map(str, row.values())) + "\n" for row in rows]
    if appended:
        append_to_file(folder / "results.csv", lines[-1])
    else:
        write_files({folder / "results.csv": "".join([",".join(rows[0]) + "\n", *lines]).encode()})


def to_bytes(checkpoint):
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def random_state(device):
    """The random states that training draws from (dropout), of this process."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state, device):
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def require_finite(loss, iter_num):
    """Ends the program before anything is written with a loss that is not a number."""
    if not math.isfinite(loss):
        fail(f"the loss at iteration {iter_num} is not finite ({loss}): nothing was saved since the evaluation "
             "before; try a lower --learning_rate", status=1)


def run_info(cfg, model, device, dtype, world_size, resumed):
    """How this run is made, for run.json; what it says of the parts before a resumption stays."""
    before = read_run_json(cfg.out_dir) if resumed else {}
    return {
        "command": shlex.join(["python", *sys.argv]),
        "start_time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": output_of(["git", "describe", "--always", "--abbrev=40", "--dirty", "--match="], Path(__file__).parent),
        **machine(device), "dtype": dtype, "processes": world_size,
        "num_params": model.num_params(),
        "iter_num": 0,  # iterations done
        "seconds": dict.fromkeys(("training", "evaluation", "saving"), 0.0),  # wall time since start_time
        "config": vars(cfg),
        "earlier_parts": before.pop("earlier_parts", []) + ([before] if before else []),
    }


def save_evaluation(folder, rows, tasks, checkpoint, to_resume, info):
    """Writes the last evaluation of `rows`, the checkpoints it is best for, run.json, and at the end ckpt_last.pt.

    In this order, a kill between two of them loses nothing: a resumed run comes to this evaluation
    again, with the same outcome. Returns the names of the best checkpoints that were written.
    """
    write_results(folder, rows, appended=len(rows) > 1)
    names = best_checkpoints(rows, tasks)
    if names:
        best = to_bytes(checkpoint)
        write_files({folder / name: best for name in names})
    write_files({folder / "run.json": (json.dumps(info, indent=1) + "\n").encode()})
    write_files({folder / "ckpt_last.pt": to_bytes(checkpoint | to_resume)})
    return names


def evaluations_in(folder):
    path = folder / "results.csv"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def open_folder(cfg):
    """Makes out_dir, or checks that it can be used; returns the locked file that keeps others out."""
    folder = Path(cfg.out_dir)
    if cfg.init_from == "resume" and not ((folder / "ckpt_last.pt").exists() or (folder / ".lock").exists()):
        fail(f"there is no run to resume in {folder}; without --init_from=resume a new one starts")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        fail(f"cannot write into {folder}: {error.strerror}")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given up by the kernel, however we end
    except OSError:
        fail(f"another run is writing into {folder}; wait for it or set another --out_dir")
    if cfg.init_from == "resume" and not (folder / "ckpt_last.pt").exists() and evaluations_in(folder) > 1:
        fail(f"{folder} lacks the ckpt_last.pt to resume from: --overwrite=True instead starts the run anew")
    held = [path for path in folder.iterdir() if path.name in ("results.csv", "run.json", "ckpt_last.pt", *BEST)]
    if held and cfg.init_from == "scratch":
        if not cfg.overwrite:
            fail(f"{folder} holds a run: --init_from=resume goes on with it, --overwrite=True replaces it")
        for path in held:
            path.unlink()
    return lock


def resume_command(world_size):
    """The command that goes on with this run."""
    arguments = [argument for argument in sys.argv if not argument.startswith(("--init_from=", "--overwrite"))]
    launcher = "python" if world_size == 1 else f"torchrun --standalone --nproc_per_node={world_size}"
    return f"{launcher} {shlex.join(arguments)} --init_from=resume"


if __name__ == "__main__":
    cfg = configure(globals())
    check(cfg)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    master = rank == 0
    if cfg.batch_size % world_size:
        fail(f"batch_size={cfg.batch_size} is not divisible by the {world_size} processes")
    device, dtype, autocast = setup_device(cfg.device, cfg.dtype)
    if world_size > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if cfg.wandb_log and master:
        try:
            import wandb
        except ImportError:
            fail("wandb_log=True needs the package wandb: pip install wandb")

    chars, _ = read_meta(cfg.dataset)
    splits = load_splits(cfg.dataset, cfg.block_size, device)
    tasks = tasks_spelled_by(chars)

    raw_model, optimizer = build_model(cfg, len(chars), device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    batch_generator = torch.Generator().manual_seed(cfg.seed)
    if rank > 0:
        torch.manual_seed(cfg.seed + rank)  # its own dropout

    folder = Path(cfg.out_dir)
    lock = open_folder(cfg) if master else None
    rows, iter_num = [], 0  # rows: the evaluations so far, those of results.csv
    # A run that was killed before its first checkpoint resumes at iteration 0.
    if cfg.init_from == "resume" and (folder / "ckpt_last.pt").exists():
        path, last = load_checkpoint(folder, "ckpt_last.pt")
        if not {"config", "chars", "optimizer", "scaler", "batch_generator", "random_states", "rows"} <= last.keys():
            fail(f"{path} holds a model but not what resuming needs: --overwrite=True instead starts the run anew")
        for key, value in last["config"].items():
            if key not in FREE_ON_RESUME and getattr(cfg, key, None) != value:
                fail(f"the run in {folder} was started with {key}={value}, not {getattr(cfg, key, None)}: resume it as it was")
        if last["chars"] != chars:
            fail(f"data/{cfg.dataset} has another vocabulary than the run in {folder} was started with")
        load_weights(raw_model, last["model"], path)
        groups = optimizer.state_dict()["param_groups"]  # from the config, for this device
        optimizer.load_state_dict({"state": last["optimizer"]["state"], "param_groups": groups})
        scaler.load_state_dict(last["scaler"])
        batch_generator.set_state(last["batch_generator"])
        if rank < len(last["random_states"]):
            set_random_state(last["random_states"][rank], device)
        rows, iter_num = last["rows"], last["iter_num"]
        del last
    if master and rows:
        write_results(folder, rows, appended=False)  # a killed run's may be cut, or ahead of its checkpoint
    if master and cfg.wandb_log:
        wandb.init(project=cfg.wandb_project, name=cfg.wandb_run_name or cfg.out_dir, config=vars(cfg))

    model = torch.compile(raw_model) if compiled(cfg, device) else raw_model
    if world_size > 1:
        ids = [device.index] if device.type == "cuda" else None
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)


    terminal = master and sys.stdout.isatty()
    bar = tqdm(total=cfg.max_iters, initial=iter_num, disable=not terminal, unit="it", dynamic_ncols=True)

    def say(line):
        if master:
            bar.write(line) if terminal else print(line, flush=True)

    say(f"{cfg.out_dir}: {raw_model.num_params():,} parameters, data {cfg.dataset}, tasks "
        f"{' and '.join(task.name for task in tasks) or 'none'}, {device} {dtype}"
        + (f", resumed at iteration {iter_num}" if rows else ""))
    info = run_info(cfg, raw_model, device, dtype, world_size, resumed=bool(rows))
    seconds = info["seconds"]
    try:
        clock = time.perf_counter()
        train_steps = make_train_steps(model, optimizer, scaler, splits["train"], cfg, autocast)
        seconds["training"] += time.perf_counter() - clock
        while True:
            due = iter_num % cfg.eval_interval == 0 or iter_num >= cfg.max_iters
            if due and not (rows and rows[-1]["iter"] == iter_num):  # a resumed run has this one
                random_states = [random_state(device)] * world_size
                if world_size > 1:
                    dist.all_gather_object(random_states, random_state(device))
                if master:
                    clock = time.perf_counter()
                    row = evaluate(raw_model, splits, chars, tasks, iter_num, cfg, autocast)
                    seconds["evaluation"] += time.perf_counter() - clock
                    require_finite(row["train_loss"] + row["val_loss"], iter_num)
                    rows.append(row)
                    scores = "".join(f", {name} {score}" for name, score in summary(row).items())
                    say(f"iter {iter_num}: train loss {row['train_loss']:.4f}, val loss {row['val_loss']:.4f}{scores}")
                    checkpoint = {
                        "model": raw_model.state_dict(),
                        "model_args": dataclasses.asdict(raw_model.config),
                        "iter_num": iter_num,
                        "best_val_loss": min(row["val_loss"] for row in rows),
                        **{key: value for key, value in row.items() if key != "iter"},
                        "config": vars(cfg),
                        "chars": chars,
                    }
                    to_resume = {
                        "optimizer": optimizer.state_dict(),
                        "scaler": scaler.state_dict(),
                        "batch_generator": batch_generator.get_state(),
                        "random_states": random_states,
                        "rows": rows,
                    }
                    info["iter_num"] = iter_num
                    clock = time.perf_counter()
                    for name in save_evaluation(folder, rows, tasks, checkpoint, to_resume, info):
                        column, _ = BEST[name]
                        say(f"new best {column} {row[column]:.4f}: {folder / name}")
                    seconds["saving"] += time.perf_counter() - clock
                    if cfg.wandb_log:
                        wandb.log(row, step=iter_num)
            if iter_num >= cfg.max_iters:
                break

            # On to the next evaluation or progress line.
            clock = time.perf_counter()
            updates = min(cfg.eval_interval - iter_num % cfg.eval_interval,
                          cfg.log_interval - iter_num % cfg.log_interval, cfg.max_iters - iter_num, INDEX_BLOCK)
            shape = (updates, cfg.gradient_accumulation_steps, cfg.batch_size)
            starts = torch.randint(len(splits["train"]), shape, generator=batch_generator)
            starts = starts[:, :, rank::world_size].to(device)
            loss = float(train_steps(starts, iter_num, bar))
            iter_num += updates
            elapsed = time.perf_counter() - clock
            seconds["training"] += elapsed
            if master:
                require_finite(loss, iter_num)
            if terminal:
                bar.set_postfix(loss=f"{loss:.4f}", **summary(rows[-1]))
            elif iter_num % cfg.log_interval == 0:
                say(f"iter {iter_num}: loss {loss:.4f}, {1000 * elapsed / updates:.2f} ms an iteration")
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        fail(f"out of memory ({str(error).splitlines()[0]}): try a smaller --batch_size", status=1)
    except SystemExit as stop:
        bar.close()
        if master and stop.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            print(f"stopped at iteration {iter_num}; to go on: {resume_command(world_size)}", file=sys.stderr)
        raise
    bar.close()
    say(f"{cfg.out_dir}: complete at iteration {iter_num}; this time " + ", ".join(
        f"{name} {value:.1f} s" for name, value in seconds.items()))
    if world_size > 1:
        dist.barrier()
        del model  # DDP keeps the process group, whose threads must have ended before Python does
        gc.collect()
        dist.destroy_process_group()
