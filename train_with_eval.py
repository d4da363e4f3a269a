"""Trains a GPT on one of the study's datasets and evaluates it as it learns.

    python train_with_eval.py config/train_math_mini_14.py [--key=value ...]
    torchrun --standalone --nproc_per_node=N train_with_eval.py config/train_math_mini_14.py

Every eval_interval iterations, from 0 to the last, it appends a row to <out_dir>/results.csv and
saves each best model so far: ckpt.pt (validation loss), ckpt_best_math.pt, ckpt_best_facts.pt and
ckpt_best_combined.pt (accuracy). ckpt_last.pt is what --init_from=resume goes on from, exactly. How
the run was made, and the seconds it took, stand in run.json.
"""

import os
import shlex
import signal
import sys
import time

from study import StudyError  # first: from here on Ctrl-C ends in one line
import torch
import torch.distributed as dist

from study.device import setup_device
from study.progress import Progress, timed
from study.run_folder import RunFolder, launcher
from study.scoring import evaluate, require_finite
from study.settings import catch_stop, run_script
from study.state import resume, set_up
from study.update import get_lr, make_train

out_dir = "out"  # folder of the run; a config file's name without train_ unless set
init_from = "scratch"  # scratch, or resume to go on from out_dir/ckpt_last.pt
overwrite = False  # replace the run that out_dir holds
seed = 1337  # of the initial weights, dropout and the sampling
data_seed = -1  # of the order of the batches; -1: seed
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
log_interval = 100  # iterations between looks at the training loss, which the bar on a terminal shows
save_interval = 30.0  # seconds between savings of ckpt_last.pt, at least; it is saved at the end and when stopped too
wandb_log = False  # also log to Weights & Biases (pip install wandb)
wandb_project = "too-big-to-think"  # its project
wandb_run_name = ""  # its run; out_dir unless set
# machine
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # auto (on CUDA bfloat16, or float16 on a GPU without it, else float32), float32, bfloat16, float16
fast = True  # on a CPU without dropout: the compiled C step (one layer, one head, no bias, float32, one process), or contexts shared (more layers)
compile = "auto"  # torch.compile PyTorch's update: True, False or auto (on CUDA with one process)
cuda_graph = "auto"  # capture the update as one CUDA graph: True, False or auto; on CUDA only, with one process


def check(cfg):
    """Ends the program if settings do not go together (settings.py has the range of each)."""
    if not cfg.out_dir.strip():
        raise StudyError("out_dir is empty: --out_dir must name a folder")
    if cfg.init_from == "resume" and cfg.overwrite:
        raise StudyError("init_from=resume goes on with a run and overwrite=True replaces it: give one of the two")


def in_any_process(condition, device):
    """Whether the condition holds in one of the processes: they must agree on when to save and to stop."""
    if not dist.is_initialized():
        return condition
    holds = torch.tensor(float(condition), device=device)
    dist.all_reduce(holds, dist.ReduceOp.MAX)
    return bool(holds)


def resume_command(world_size):
    """The command that goes on with this run, with as many threads."""
    arguments, threads = [], os.environ.get("OMP_NUM_THREADS")
    for before, argument in zip(["", *sys.argv], sys.argv):
        of_another = before == "--init_from" or (before == "--overwrite" and argument in ("True", "False"))
        if not of_another and argument.partition("=")[0] not in ("--init_from", "--overwrite"):
            arguments.append(argument)
    return (f"OMP_NUM_THREADS={threads} " if threads else "") + f"{launcher(world_size)} {shlex.join(arguments)} --init_from=resume"


def main(cfg):
    check(cfg)
    device, dtype, autocast = setup_device(cfg.device, cfg.dtype)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if cfg.batch_size % world_size:
        raise StudyError(f"batch_size={cfg.batch_size} is not divisible by the {world_size} processes")
    if world_size > 1 or cfg.wandb_log:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a socket that another end closed is an error then, no silent death
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if cfg.wandb_log and rank == 0:
        try:
            import wandb
        except ImportError:
            raise StudyError("wandb_log=True needs the package wandb: pip install wandb")

    # build
    state, splits, tasks, resolved = set_up(cfg, device, dtype, rank, world_size)
    model, batches, chars = state.model, state.batches, resolved["chars"]
    if rank > 0:
        torch.manual_seed(cfg.seed + rank)  # its own dropout
    run = RunFolder(cfg) if rank == 0 else None
    if cfg.init_from == "resume":
        resume(state, cfg, resolved)
    rows, it = state.rows, state.iter_num
    train, step_name, notes = make_train(model, state.optimizer, state.scaler, splits["train"], cfg, device, dtype, autocast)
    seconds, earlier = dict.fromkeys(("training", "evaluation", "saving"), 0.0), {}
    if rank == 0:
        earlier = run.begin(model, tasks, device, resolved | {"step": step_name, "processes": world_size}, seconds, it, rows)
    if cfg.wandb_log and rank == 0:
        wandb.init(project=cfg.wandb_project, name=cfg.wandb_run_name or cfg.out_dir, config=vars(cfg))

    progress = Progress(cfg.max_iters, it, rank)
    progress.say(f"{cfg.out_dir}: {model.num_params():,} parameters, data {cfg.dataset}, tasks "
                 f"{' and '.join(task.name for task in tasks) or 'none'}, {device} {dtype}, {step_name}"
                 + (f", resumed at iteration {it}" if it else ""))
    if earlier.get("step", step_name).split(" (")[0] != step_name.split(" (")[0]:
        notes.append(f"this run was made by {earlier['step']} until here; another step rounds differently")
    elif device.type == "cpu" and earlier.get("threads", torch.get_num_threads()) != torch.get_num_threads():
        notes.append(f"this run was made with OMP_NUM_THREADS={earlier['threads']} until here; another number rounds differently")
    for note in notes if rank == 0 else []:
        print(f"note: {note}", file=sys.stderr)

    stopping = catch_stop()
    signals = stopping.__enter__()
    saved = time.monotonic()
    while True:
        due = it % cfg.eval_interval == 0 or it >= cfg.max_iters
        if rank == 0 and due and not (rows and rows[-1]["iter"] == it):  # a resumed run may have this one
            with timed(seconds, "evaluation"):
                row = evaluate(model, splits, chars, tasks, it, cfg, autocast)
            rows.append(row)
            with timed(seconds, "saving"):
                best = run.save_evaluation(rows)
            progress.evaluated(row, best)
            if cfg.wandb_log:
                wandb.log(row, step=it)

        agree = world_size == 1 or it % cfg.log_interval == 0  # processes wait for each other to agree
        ends = it >= cfg.max_iters or (agree and in_any_process(bool(signals), device))
        if ends or (agree and in_any_process(time.monotonic() - saved > cfg.save_interval, device)):
            require_finite(float(sum(p.detach().sum() for p in model.parameters())), it)
            with timed(seconds, "saving"):
                everything = state.state_dict()  # of all processes
                if rank == 0:
                    run.save_last(everything)
            saved = time.monotonic()
        if ends:
            break

        until_due = [every - it % every for every in (cfg.eval_interval, cfg.log_interval)]
        updates = min(train.max_updates, cfg.max_iters - it, *until_due)
        before = seconds["training"]
        with timed(seconds, "training"):
            loss = train(batches.draw(updates), [get_lr(it + i, cfg) for i in range(updates)])
            waits = any((it + updates) % every == 0 for every in (cfg.eval_interval, cfg.log_interval))
            loss = float(loss) if waits else None  # so that the clock tells the device's time
        it = state.iter_num = it + updates
        progress.trained(updates, loss, seconds["training"] - before, rows)
        if loss is not None:
            require_finite(loss, it)
    progress.close()
    if world_size > 1:
        dist.destroy_process_group()
    if it < cfg.max_iters:
        if rank == 0:
            print(f"stopped at iteration {it}; to go on: {resume_command(world_size)}", file=sys.stderr)
        sys.exit(128 + (signals[0] if signals else signal.SIGTERM))  # without: another process was told to stop
    progress.say(f"{cfg.out_dir}: complete at iteration {it}; this time " + ", ".join(
        f"{name} {value:.1f} s" for name, value in seconds.items()))


if __name__ == "__main__":
    run_script(main, globals())
