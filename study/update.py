"""Training updates by PyTorch: eager, compiled, or captured as a CUDA graph; and which step a run takes.

Each make_..._train returns train(indices, lrs), which makes an update for each of the learning rates and
returns the last one's loss. indices: (updates, gradient_accumulation_steps, windows) rows of the training
windows, on their device. train.max_updates is how many updates one call may be asked for.
"""

import math
import os
import shutil
import sysconfig
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from study import StudyError
from model import GPT, gpt_config, shared_contexts
from study.fast import c_step
from study.device import seed_everything


BLOCK = 100  # updates that one call makes at most, where that saves time


def get_lr(it, cfg):
    """Learning rate of iteration `it`: linear warm-up, cosine to min_lr, constant (paper, section 3.2)."""
    if it < cfg.warmup_iters:
        return cfg.learning_rate * (it + 1) / (cfg.warmup_iters + 1)
    if it >= cfg.lr_decay_iters:
        return cfg.min_lr
    progress = (it - cfg.warmup_iters) / (cfg.lr_decay_iters - cfg.warmup_iters)
    return cfg.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (cfg.learning_rate - cfg.min_lr)


def build(cfg, vocab_size, device):
    """(GPT, AdamW) with the initial weights that cfg.seed draws; ends the program if no model has such settings."""
    seed_everything(cfg.seed, device)
    try:
        model = GPT(gpt_config(vars(cfg), vocab_size)).to(device)
    except ValueError as error:
        raise StudyError(error)
    return model, model.configure_optimizer(cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2))


def make_update(model, optimizer, scaler, windows, cfg, autocast, shares=False):
    """Returns update(batches): one update from the mean gradient of some batches, and their mean loss.

    With several processes the gradients, and so the updates, are those of all windows together.
    shares: computes a context that several windows have once.
    """
    parameters = list(model.parameters())
    scales = scaler.is_enabled()  # else no call to it: torch.compile would stop at each

    def update(batches):
        total = 0.0
        for indices in batches.unbind():
            batch = windows[indices]
            idx, targets = batch[:, :-1], batch[:, 1:]
            if shares:
                with autocast, sdpa_kernel(SDPBackend.MATH):  # the CPU's fused attention takes several times as long in its backward
                    _, loss = model(idx, targets, shared_contexts(idx))
            else:
                with autocast:
                    _, loss = model(idx, targets)
            loss = loss / len(batches)
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


def compiled(update):
    """The update by torch.compile: model, gradient and clipping as one graph, then AdamW's own fused kernel."""
    from torch._inductor.decomposition import decompositions  # takes most of a second
    from torch._inductor.lowering import make_fallback

    torch._dynamo.config.trace_autograd_ops = True  # else the graph ends at backward()
    # An embedding's gradient stays PyTorch's own kernel: inductor makes it an index_put_, and that, when it has to be
    # deterministic, adds up all rows of a token one by one on CUDA. warn=False: else it is an error where CI is set.
    embedding_gradient = torch.ops.aten.embedding_dense_backward.default
    decompositions.pop(embedding_gradient, None)
    make_fallback(embedding_gradient, warn=False)
    return torch.compile(update)


def why_not_compiled():
    """What Triton, which torch.compile has make its kernels on CUDA, lacks here to build its launcher; "" if nothing."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "no C compiler was found (gcc or clang)"
    scheme = sysconfig.get_default_scheme()
    headers = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]  # Debian's, as Triton has it
    if not (Path(headers) / "Python.h").exists():
        return "Python's C headers are not installed (Python.h)"
    return ""


def hold_lr_in_tensor(optimizer, device):
    """For an update that becomes a graph: a Python number would be a constant of it, a tensor is read in each update."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(math.nan, dtype=torch.float32, device=device)


def make_eager_train(update, optimizer):
    def train(indices, lrs):
        for batches, lr in zip(indices, lrs):
            for group in optimizer.param_groups:
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr
            loss = update(batches)
        return loss

    train.max_updates = 1
    return train


def make_captured_train(update, model, optimizer, shape, device, capture):
    """train() for CUDA, where launching the kernels of a small model one by one takes most of the time.

    The whole update is one CUDA graph. What changes from one update to the next it reads from tensors
    that stay in place: a block of batches and learning rates, moved there at once, and the number of
    the next one in it. shape: of the indices of an update. capture: cuda_graph, or anything else that turns
    a function into a faster one.
    """
    block = torch.zeros(BLOCK, *shape, dtype=torch.int64, device=device)
    block_lrs = torch.zeros(BLOCK, dtype=torch.float32, device=device)
    next_in_block = torch.zeros(1, dtype=torch.int64, device=device)

    def next_update():
        for group in optimizer.param_groups:
            group["lr"].copy_(block_lrs[next_in_block][0])
        loss = update(block[next_in_block][0])
        next_in_block.add_(1)
        return loss

    launch = capture(next_update, model, optimizer, device)

    def train(indices, lrs):
        block[: len(indices)] = indices
        block_lrs[: len(lrs)] = torch.tensor(lrs, dtype=torch.float32)
        next_in_block.zero_()
        for _ in range(len(indices)):
            loss = launch()
        return loss

    train.max_updates = BLOCK
    return train


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
    put_back(model, optimizer, weights, states)
    torch.cuda.set_rng_state(random_before, device)

    def launch():
        graph.replay()
        return loss

    return launch


@torch.no_grad()
def put_back(model, optimizer, weights, states):
    """Copies weights and optimizer state back in place: a graph has their addresses. Without states: zeros."""
    for parameter, before in zip(model.parameters(), weights):
        parameter.copy_(before)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            value.copy_(states[parameter][key] if states else torch.zeros_like(value))


def make_train(model, optimizer, scaler, windows, cfg, device, dtype, autocast):
    """(train, step_name, notes): the step that is the fastest for this run, what it is called, and what there is to say of it."""
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    notes = []
    if cfg.fast and device.type == "cpu" and dtype == "float32" and world_size == 1 and c_step.applies_to(model.config):
        step, step_name = c_step.load_step(model.config)
        if step:
            train = c_step.make_fast_train(model, optimizer, windows, cfg, step)
            train.max_updates = BLOCK
            torch.set_num_threads(1)  # evaluations of models this small gain nothing from more, and wait for each other
            return train, step_name, notes
        notes.append(f"{step_name}; training takes PyTorch's step, which is several times slower")

    # With several processes or loss scaling the host has work in every update, which no graph can hold.
    captures = device.type == "cuda" and cfg.cuda_graph is not False and world_size == 1 and not scaler.is_enabled()
    compiles = cfg.compile is True
    if cfg.compile == "auto" and device.type == "cuda" and world_size == 1:
        compiles = not (lacks := why_not_compiled())
        if lacks:
            notes.append(f"{lacks}; the update is not compiled and takes longer")
    # In a model of one layer, finding the contexts takes as long as it saves; on a GPU the host would wait for their number.
    shares = cfg.fast and device.type == "cpu" and not compiles and model.config.n_layer > 1 and model.config.dropout == 0
    update = make_update(model, optimizer, scaler, windows, cfg, autocast, shares)
    if captures or compiles:
        hold_lr_in_tensor(optimizer, device)
    if compiles:
        update = compiled(update)
    step_name = "PyTorch" + ", contexts shared" * shares + ", compiled" * compiles + ", one CUDA graph an update" * captures
    if captures:
        shape = (cfg.gradient_accumulation_steps, cfg.batch_size)
        return make_captured_train(update, model, optimizer, shape, device, cuda_graph), step_name, notes
    return make_eager_train(update, optimizer), step_name, notes
