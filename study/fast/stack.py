"""Updates of many models of one shape together: their weights stacked, one operation for all of them.

For a GPU, which a single small model leaves idle. Up to rounding, each member equals a single run.
This has not run on a GPU yet; study/steps.py compares members with the plain step before a stack trains.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import adamw


def make_stacked_update(model, weights, optimizer, windows, cfg, autocast):
    """Return update(batches): one update of every member of a stack, and their mean losses (members,).

    model: one of the members, for its shapes. weights: {name: (members, ...)}, the parameters of the
    optimizer. windows: (members, windows, block_size + 1). batches: (members, gradient_accumulation_steps,
    windows of a batch) rows of a member's windows.
    """

    def loss_of(weights, windows, indices):
        batch = windows[indices]
        with autocast, sdpa_kernel(SDPBackend.MATH):  # matrix products, which can be stacked
            return torch.func.functional_call(model, weights, (batch[:, :-1], batch[:, 1:]))[1]

    gradients_of = torch.func.vmap(torch.func.grad_and_value(loss_of))

    @torch.no_grad()  # grad_and_value tracks what it needs
    def update(batches):
        total, steps = 0.0, batches.size(1)
        for indices in batches.unbind(1):
            gradients, losses = gradients_of(weights, windows, indices)
            total = total + losses / steps
            for name, weight in weights.items():
                # The fused optimizer takes a gradient's memory in the order of the weight's.
                gradient = gradients[name].contiguous() / steps
                weight.grad = gradient if weight.grad is None else weight.grad + gradient
        if cfg.grad_clip > 0:
            clip_each(list(weights.values()), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return update


def clip_each(weights, largest):
    """Scale the gradients of each member by its own norm, as clip_grad_norm_ does those of a model."""
    norms = torch.stack([weight.grad.flatten(1).norm(dim=1) for weight in weights]).norm(dim=0)
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    for weight in weights:
        weight.grad.mul_(factors.view(-1, *[1] * (weight.dim() - 1)))


def stack_up(states, cfg):
    """(weights, AdamW over them) of members' TrainingStates, which have made as many updates.

    weights: {name: (members, ...)}.
    """
    members = [dict(state.model.named_parameters()) for state in states]
    weights = {name: torch.stack([member[name].detach() for member in members]) for name in members[0]}
    matrices = [weight for weight in weights.values() if weight.dim() >= 3]  # a member has a dimension less
    vectors = [weight for weight in weights.values() if weight.dim() < 3]
    optimizer = adamw(matrices, vectors, cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2))
    for name, weight in weights.items():
        moments = [state.optimizer.state[member[name]] for state, member in zip(states, members)]
        optimizer.state[weight] = {
            "step": moments[0]["step"].clone(),
            **{key: torch.stack([each[key] for each in moments]) for key in ("exp_avg", "exp_avg_sq")},
        }
    return weights, optimizer


@torch.no_grad()
def hand_back(weights, optimizer, states):
    """Copy the stack's weights and moments into the members' models and optimizers.

    Returns whether their weights are finite (members,).
    """
    for k, state in enumerate(states):
        for name, parameter in state.model.named_parameters():
            parameter.copy_(weights[name][k])
            stacked, moments = optimizer.state[weights[name]], state.optimizer.state[parameter]
            moments["step"].copy_(stacked["step"])
            for key in ("exp_avg", "exp_avg_sq"):
                moments[key].copy_(stacked[key][k])
    return torch.stack([weight.flatten(1).sum(dim=1) for weight in weights.values()]).sum(dim=0).isfinite()
