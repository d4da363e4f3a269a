"""The plain update, which every other step must equal, and what all steps share.

A step makes updates: step.run(indices, lrs) makes one for each learning rate and returns the loss of the
last. indices: (updates, gradient_accumulation_steps, windows), rows of the training windows on their device.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist

from model import GPT, GPTConfig
from study import StudyError
from study.device import seed_everything

BLOCK = 100  # updates that a step makes at most in one call, where that saves time


class Step(NamedTuple):
    name: str  # for run.json and people
    run: Callable  # run(indices, lrs) -> loss of the last update, a number or a tensor of one
    max_updates: int = 1  # that one call can make


def get_lr(it, cfg):
    """Learning rate of iteration `it`: linear warm-up, cosine to min_lr, constant (paper, section 3.2)."""
    if it < cfg.warmup_iters:
        return cfg.learning_rate * (it + 1) / (cfg.warmup_iters + 1)
    if it >= cfg.lr_decay_iters:
        return cfg.min_lr
    progress = (it - cfg.warmup_iters) / (cfg.lr_decay_iters - cfg.warmup_iters)
    return cfg.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (cfg.learning_rate - cfg.min_lr)


def gpt_config(settings, vocab_size):
    """GPTConfig from the {name: value} of train_with_eval.py's settings."""
    fields = GPTConfig.__dataclass_fields__.keys() - {"vocab_size"}
    return GPTConfig(**{key: settings[key] for key in fields}, vocab_size=vocab_size)


def build(cfg, vocab_size, device):
    """(GPT with the weights that cfg.seed draws, AdamW); raises StudyError if no model fits."""
    seed_everything(cfg.seed, device)
    try:
        model = GPT(gpt_config(vars(cfg), vocab_size)).to(device)
    except ValueError as error:
        raise StudyError(error)
    return model, build_optimizer(model, cfg)


def build_optimizer(model, cfg):
    """AdamW over a model's parameters, its moments begun at zero."""
    optimizer = model.configure_optimizer(cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2))
    begin_moments(optimizer)
    return optimizer


def begin_moments(optimizer):
    """Give AdamW the state that its first step would, so that every step finds it there."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if not optimizer.state[p]:
                optimizer.state[p].update(step=torch.zeros((), dtype=torch.float32, device=p.device),
                                          exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))


def hold_lr_in_tensor(optimizer, device):
    """Put learning rates where a graph reads them in each update; a number would be fixed in the graph."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(math.nan, dtype=torch.float32, device=device)


def copy_of(parameters, optimizer):
    """Copies of weights and moments, for put_back()."""
    return ([p.detach().clone() for p in parameters],
            [{key: value.clone() for key, value in optimizer.state[p].items()} for p in parameters])


@torch.no_grad()
def put_back(parameters, optimizer, copies):
    """Copy weights and moments back in place, where a CUDA graph finds them."""
    for p, weight, moments in zip(parameters, *copies):
        p.copy_(weight)
        p.grad = None
        for key, value in moments.items():
            optimizer.state[p][key].copy_(value)


def make_update(model, optimizer, scaler, windows, cfg, autocast, loss_of=None):
    """Return update(batches): one update from the mean gradient of some batches; it returns their mean loss.

    With several processes the gradients, and so the updates, are those of all windows together.
    loss_of(model, idx, targets): another way to compute the loss.
    """
    parameters = list(model.parameters())
    scales = scaler.is_enabled()  # else no call to it: torch.compile would stop at each
    loss_of = loss_of or (lambda model, idx, targets: model(idx, targets)[1])

    def update(batches):
        total = 0.0
        for indices in batches.unbind():
            batch = windows[indices]
            with autocast:
                loss = loss_of(model, batch[:, :-1], batch[:, 1:]) / len(batches)
            (scaler.scale(loss) if scales else loss).backward()
            total = total + loss.detach()
        if dist.is_initialized():
            for p in parameters:
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        if cfg.grad_clip > 0:
            if scales:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        if scales:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return update


def make_eager_step(update, optimizer, name="PyTorch"):
    """The Step that makes one update after the other."""

    def run(indices, lrs):
        for batches, lr in zip(indices, lrs):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr
            loss = update(batches)
        return loss

    return Step(name, run)
