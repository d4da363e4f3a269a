"""Compute a context that several windows of a batch share once: for deep models without dropout on a CPU.

A batch of the study draws 882 windows of a text of 1,764 characters, so that many begin alike. The values
differ from the plain model's by rounding alone.
"""

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from study.update import make_eager_step, make_update


def make_shared_step(state, windows, cfg, autocast):
    """The Step of the plain update, with the loss computed over distinct contexts."""
    update = make_update(state.model, state.optimizer, state.scaler, windows, cfg, autocast, shared_loss)
    return make_eager_step(update, state.optimizer, "PyTorch, contexts shared")


def shared_loss(model, idx, targets):
    """Mean cross-entropy of token ids idx and targets, both (B, T).

    All layers but attention compute a row for each distinct context. Attention computes whole windows.
    """
    first, context = shared_contexts(idx)
    layers = model.transformer
    with sdpa_kernel(SDPBackend.MATH):  # the CPU's fused attention has a slow backward
        x = layers.drop(model.embed(idx).flatten(0, 1)[first])
        for block in layers.h:
            qkv = to_windows(block.attn.c_attn(block.ln_1(x)), context)
            y = block.attn.attend(qkv).flatten(0, 1)[first]
            x = x + block.attn.resid_dropout(block.attn.c_proj(y))
            x = x + block.mlp(block.ln_2(x))
        logits = to_windows(model.lm_head(layers.ln_f(x)), context)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def shared_contexts(idx):
    """Token ids (B, T) -> (first, context): which positions have equal contexts.

    The context of a position is its row up to there. context: (B, T), the number of each position's context.
    first: (contexts), a position in idx.flatten() that has it. It is filled up with zeros to a multiple of
    256, because tensors of another size in each batch would fragment the memory.
    """
    base = int(idx.max()) + 1
    context, before, contexts = torch.empty_like(idx), torch.zeros_like(idx[:, 0]), 0
    for t in range(idx.size(1)):
        distinct, before = torch.unique(before * base + idx[:, t], return_inverse=True)
        context[:, t] = contexts + before
        contexts += len(distinct)
    positions = torch.arange(context.numel(), device=idx.device)
    first = context.new_empty(contexts).scatter_(0, context.flatten(), positions)
    return F.pad(first, (0, -contexts % 256)), context


def to_windows(features, context):
    """(contexts, n) -> (B, T, n), with a gradient summed over equal contexts in float32 or better."""
    wide = torch.promote_types(features.dtype, torch.float32)
    return F.embedding(context, features.to(wide)).to(features.dtype)
