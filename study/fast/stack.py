"""Training many models of one shape together: their weights stacked, one operation for all where each had its own.

For a GPU, which a single small model leaves idle. Each member keeps its initial weights, its batches, its
windows, its run folder and its ckpt_last.pt, and is the single run of its settings up to rounding: either can
go on with what the other began.
"""

import sys
import time
from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import adamw
from study import StudyError
from study.progress import timed
from study.run_folder import RunFolder
from study.scoring import evaluate
from study.state import TrainingState, resume, set_up
from study.update import cuda_graph, get_lr, hold_lr_in_tensor, make_captured_train, make_eager_train

OWN = {"seed", "data_seed", "dataset", "out_dir", "init_from"}  # settings in which the members of a stack may differ


def make_stacked_update(model, weights, optimizer, windows, cfg, autocast):
    """Returns update(batches): one update of every member of a stack, and their mean losses (members,).

    model: one of the members, for its shapes. weights: {name: (members, ...)}, the parameters of the
    optimizer. windows: (members, windows, block_size + 1). batches: (members, gradient_accumulation_steps,
    windows of a batch) rows of a member's windows.
    """

    def loss_of(weights, windows, indices):
        batch = windows[indices]
        with autocast, sdpa_kernel(SDPBackend.MATH):  # matrix products, which stack: contexts are too short for more
            return torch.func.functional_call(model, weights, (batch[:, :-1], batch[:, 1:]))[1]

    gradients_of = torch.func.vmap(torch.func.grad_and_value(loss_of))

    @torch.no_grad()  # grad_and_value has its own; no gradient of gradients is wanted
    def update(batches):
        total, steps = 0.0, batches.size(1)
        for indices in batches.unbind(1):
            gradients, losses = gradients_of(weights, windows, indices)
            total = total + losses / steps
            for name, weight in weights.items():
                # The fused optimizer reads memory in the order of the weights, whatever strides a gradient has.
                gradient = gradients[name].contiguous() / steps
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
        if cfg.grad_clip > 0:
            clip_each(list(weights.values()), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return update


def clip_each(weights, largest):
    """Scales the gradients of each member by its own norm, as clip_grad_norm_ does those of a model."""
    norms = torch.stack([weight.grad.flatten(1).norm(dim=1) for weight in weights]).norm(dim=0)
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    for weight in weights:
        weight.grad.mul_(factors.view(-1, *[1] * (weight.dim() - 1)))


def stack_up(states, cfg):
    """(weights, AdamW over them) of members' TrainingStates: {name: (members, ...)}, and their moments likewise."""
    each = [dict(state.model.named_parameters()) for state in states]
    weights = {name: torch.stack([one[name].detach() for one in each]) for name in each[0]}
    matrices = [weight for weight in weights.values() if weight.dim() >= 3]  # a member has a dimension less
    vectors = [weight for weight in weights.values() if weight.dim() < 3]
    optimizer = adamw(matrices, vectors, cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2))
    for name, weight in weights.items():
        earlier = [state.optimizer.state[one[name]] for state, one in zip(states, each) if state.optimizer.state]
        if earlier:  # all members have made as many updates
            optimizer.state[weight] = {
                "step": earlier[0]["step"].clone(),
                **{key: torch.stack([moments[key] for moments in earlier]) for key in ("exp_avg", "exp_avg_sq")},
            }
    return weights, optimizer


@torch.no_grad()
def hand_back(weights, optimizer, states):
    """Copies the stack's weights and moments into the members' own models and optimizers.

    Returns whether their weights are finite (members,).
    """
    for k, state in enumerate(states):
        for name, parameter in state.model.named_parameters():
            parameter.copy_(weights[name][k])
            moments = optimizer.state.get(weights[name])
            if moments:
                state.optimizer.state[parameter] = {
                    "step": moments["step"].clone(),
                    **{key: moments[key][k].clone() for key in ("exp_avg", "exp_avg_sq")},
                }
    return torch.stack([weight.flatten(1).sum(dim=1) for weight in weights.values()]).sum(dim=0).isfinite()


def make_stacked_train(states, windows, cfg, device, autocast, captures):
    """(train, sync): train(indices, lrs) as in study/update.py, with indices (updates, members, ...) and losses (members,).

    windows: each member's. sync(): hand_back() for this stack.
    """
    weights, optimizer = stack_up(states, cfg)
    update = make_stacked_update(states[0].model, weights, optimizer, torch.stack(windows), cfg, autocast)
    if captures:
        hold_lr_in_tensor(optimizer, device)
        shape = (len(states), cfg.gradient_accumulation_steps, cfg.batch_size)
        all_weights = torch.nn.ParameterList(weights.values())
        train = make_captured_train(update, all_weights, optimizer, shape, device, cuda_graph)
    else:
        train = make_eager_train(update, optimizer)
    return train, lambda: hand_back(weights, optimizer, states)


class Member(NamedTuple):
    cfg: SimpleNamespace  # its settings
    state: TrainingState
    splits: dict  # load_splits() of its dataset
    tasks: list
    resolved: dict  # what dataset and dtype come to: chars, held_out, data, dtype
    run: RunFolder


def open_member(cfg, device, dtype):
    """The Member of a run, begun or resumed."""
    state, splits, tasks, resolved = set_up(cfg, device, dtype)
    run = RunFolder(cfg)
    if cfg.init_from == "resume":
        resume(state, cfg, resolved)
    return Member(cfg, state, splits, tasks, resolved, run)


def attempt(function, *arguments):
    """What a function returns; None, with the error printed, if it raises StudyError."""
    try:
        return function(*arguments)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return None


def train_stack(cfgs, device, dtype, autocast, signals, say):
    """Trains runs that differ in OWN alone, from where they are to max_iters, or until `signals` is not empty.

    cfgs: their settings, those of train_with_eval.py. say(iteration) is told how far the stack is. Returns the
    settings of the runs that came to the end. The others are left as they were saved last: those that cannot be
    opened, those whose weights or loss are no longer finite, and those that are not where most of the stack is.
    """
    cfg = cfgs[0]
    members = [member for own in cfgs if (member := attempt(open_member, own, device, dtype))]
    if not members:
        return []
    [(it, _)] = Counter(member.state.iter_num for member in members).most_common(1)
    members = [member for member in members if member.state.iter_num == it]
    states = [member.state for member in members]
    captures = device.type == "cuda" and cfg.cuda_graph is not False
    windows = [member.splits["train"] for member in members]
    train, sync = make_stacked_train(states, windows, cfg, device, autocast, captures)
    step_name = f"PyTorch, a stack of {len(members)}" + ", one CUDA graph an update" * captures
    seconds = dict.fromkeys(("training", "evaluation", "saving"), 0.0)  # a member's share of the stack's time
    for member in members:
        resolved = member.resolved | {"step": step_name, "processes": 1}
        member.run.begin(member.state.model, member.tasks, device, resolved, seconds, it, member.state.rows)

    saved = time.monotonic()
    while True:
        due, ends = it % cfg.eval_interval == 0 or it >= cfg.max_iters, it >= cfg.max_iters or bool(signals)
        saves = ends or time.monotonic() - saved > cfg.save_interval
        if due or saves:
            lost = [state for state, finite in zip(states, sync().tolist()) if not finite]
            for member in members:
                if member.state in lost:
                    print(f"note: the weights of {member.cfg.out_dir} at iteration {it} are not finite; it is left "
                          "as it was saved last", file=sys.stderr)
            members = [member for member in members if member.state not in lost]
        for member in list(members) if due else []:
            rows = member.state.rows
            if rows and rows[-1]["iter"] == it:  # a resumed run may have this one
                continue
            with timed(seconds, "evaluation", len(states)):
                row = attempt(evaluate, member.state.model, member.splits, member.resolved["chars"], member.tasks, it, member.cfg, autocast)
            if row is None:
                members.remove(member)
                continue
            rows.append(row)
            with timed(seconds, "saving", len(states)):
                member.run.save_evaluation(rows)
        if saves:
            with timed(seconds, "saving", len(states)):
                for member in members:
                    member.state.iter_num = it
                    member.run.save_last(member.state.state_dict())
            saved = time.monotonic()
        say(it)
        if ends or not members:
            return [member.cfg for member in members if it >= cfg.max_iters]
        updates = min(train.max_updates, cfg.max_iters - it, cfg.eval_interval - it % cfg.eval_interval)
        with timed(seconds, "training", len(states)):
            indices = torch.stack([state.batches.draw(updates) for state in states], dim=1)
            losses = train(indices, [get_lr(it + i, cfg) for i in range(updates)])
            it += updates
            if it % cfg.eval_interval == 0 or it % cfg.log_interval == 0:
                losses.cpu()  # waits for the device, so that the clock tells its time
