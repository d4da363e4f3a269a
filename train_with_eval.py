"""Train a GPT on one of the study's datasets and evaluate it as it learns.

    python train_with_eval.py config/train_math_mini_14.py [--key=value ...]
    torchrun --standalone --nproc_per_node=N train_with_eval.py config/train_math_mini_14.py

Every eval_interval iterations, from 0 to the last, it appends a row to <out_dir>/results.csv and saves each
best model so far: ckpt.pt (validation loss), ckpt_best_math.pt, ckpt_best_facts.pt and ckpt_best_combined.pt
(accuracy). --init_from=resume continues from ckpt_last.pt, exactly. run.json says how the run was made.
"""

import math
import os
import signal
import sys
import time

from study import StudyError  # first: from here on Ctrl-C ends in one line
from study.device import setup_device
from study.processes import in_any_process, process_group, resume_command
from study.progress import Progress, timed, wandb_logger
from study.run_folder import RunFolder
from study.scoring import evaluate, require_finite
from study.settings import catch_stop, run_script
from study.state import resume, set_up
from study.steps import choose_step
from study.update import get_lr

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
log_interval = 100  # iterations between readings of the training loss, which a terminal shows
save_interval = 30.0  # seconds at least between savings of ckpt_last.pt; the end and a stop save it too
wandb_log = False  # also log to Weights & Biases (pip install wandb)
wandb_project = "too-big-to-think"  # its project
wandb_run_name = ""  # its run; out_dir unless set
# machine
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # float32, bfloat16, float16, or auto: bfloat16 on CUDA (float16 without it), else float32
fast = True  # on a CPU: C step (one layer and head, float32), shared contexts or 16-bit dropout masks
compile = "auto"  # torch.compile PyTorch's update: True, False or auto (on CUDA with one process)
cuda_graph = "auto"  # capture the update as one CUDA graph: True, False or auto (on CUDA with one process)


def train(cfg, callback=None):
    """Train by settings and return the TrainingState at the end.

    Its rows are the evaluations and its model has the last weights. If a signal ended training before
    max_iters, stopped_by is its number. cfg: configure(vars(train_with_eval), arguments=["config/...", ...]).
    callback: a function that evaluate() calls with the answers.
    """
    check(cfg)
    device, dtype, autocast = setup_device(cfg.device, cfg.dtype)
    with process_group(cfg, device) as (rank, world_size), wandb_logger(cfg, rank) as log:
        state, splits, tasks, resolved = set_up(cfg, device, dtype, rank, world_size)
        run = RunFolder(cfg) if rank == 0 else None
        earlier = resume(state, cfg, resolved) if cfg.init_from == "resume" else {}
        step, refused = choose_step(state, splits["train"], cfg, dtype, autocast, earlier)
        resolved |= {"step": step.name, "step_refused": refused, "processes": world_size}
        seconds = {"training": 0.0, "evaluation": 0.0, "saving": 0.0}
        if rank == 0:
            run.begin(state.model, tasks, device, resolved, seconds, state.iter_num, state.rows)
        progress = Progress(cfg, state.iter_num, rank)
        progress.begin(state.model, tasks, device, resolved, earlier)

        rows, it, saved = state.rows, state.iter_num, time.monotonic()
        with catch_stop() as signals:
            while True:
                due = it % cfg.eval_interval == 0 or it >= cfg.max_iters
                if rank == 0 and due and not (rows and rows[-1]["iter"] == it):  # a resumed run may have it
                    with timed(seconds, "evaluation"):
                        row = evaluate(
                            state.model, splits, resolved["chars"], tasks, it, cfg, autocast, callback)
                    rows.append(row)
                    with timed(seconds, "saving"):
                        best = run.save_evaluation(rows)
                    progress.evaluated(row, best)
                    log(row)

                agree = world_size == 1 or it % cfg.log_interval == 0  # processes wait to agree
                ends = it >= cfg.max_iters or (agree and in_any_process(bool(signals), device))
                late = time.monotonic() - saved > cfg.save_interval
                if ends or (agree and in_any_process(late, device)):
                    require_finite(float(sum(p.detach().sum() for p in state.model.parameters())), it)
                    with timed(seconds, "saving"):
                        content = state.state_dict()  # of all processes
                        if rank == 0:
                            run.save_last(content)
                    saved = time.monotonic()
                if ends:
                    break

                until_due = [every - it % every for every in (cfg.eval_interval, cfg.log_interval)]
                updates = min(step.max_updates, cfg.max_iters - it, *until_due)
                before = seconds["training"]
                with timed(seconds, "training"):
                    lrs = [get_lr(it + i, cfg) for i in range(updates)]
                    loss = step.run(state.batches.draw(updates), lrs)
                    # float() synchronizes, so the timing includes GPU work.
                    loss = float(loss) if updates in until_due else None
                it = state.iter_num = it + updates
                progress.trained(updates, loss, seconds["training"] - before, rows)
                if loss is not None:  # of this process's share of the batch
                    fails = in_any_process(not math.isfinite(loss), device)
                    require_finite(math.nan if fails else loss, it)
        progress.end(it, seconds)
    if it < cfg.max_iters:
        state.stopped_by = signals[0] if signals else signal.SIGTERM  # without one, another process got it
    return state


def check(cfg):
    """Raise StudyError if settings do not go together (study/settings.py has the range of each)."""
    if not cfg.out_dir.strip():
        raise StudyError("out_dir is empty: --out_dir must name a folder")
    if cfg.init_from == "resume" and cfg.overwrite:
        raise StudyError("init_from=resume goes on with a run, overwrite=True replaces it: give one of them")


def main(cfg):
    state = train(cfg)
    if state.stopped_by:
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped at iteration {state.iter_num}; to go on: {resume_command()}", file=sys.stderr)
        sys.exit(128 + state.stopped_by)


if __name__ == "__main__":
    run_script(main, globals())
