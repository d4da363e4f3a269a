"""Compute a context that several windows of a batch share once: for deep models without dropout on a CPU.

A batch of the study draws 882 windows of a text of 1,764 characters, so that many begin alike. The values
differ from the plain model's by rounding alone.
"""

import torch
from torch.nn import functional as F

from study.attention import Replace, attention
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
    with Replace({F.scaled_dot_product_attention: attention}):
        x = layers.drop(rows(model.embed(idx).flatten(0, 1), first))
        for block in layers.h:
            qkv = rows(block.attn.c_attn(block.ln_1(x)), context)
            y = block.attn.attend(qkv.view(*idx.shape, -1))
            x = x + block.attn.resid_dropout(block.attn.c_proj(rows(y.flatten(0, 1), first)))
            x = x + block.mlp(block.ln_2(x))
        logits = rows(model.lm_head(layers.ln_f(x)), context)
        return F.cross_entropy(logits, targets.flatten())


def shared_contexts(idx):
    """Token ids (B, T) -> (first, context): which positions have equal contexts.

    The context of a position is its row up to there. context: (B * T), the number of each position's context.
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
    context = context.flatten()
    first = context.new_empty(contexts).scatter_(0, context, positions)
    return F.pad(first, (0, -contexts % 256)), context


class Rows(torch.autograd.Function):
    """Rows of x (N, n) by an index (M) -> (M, n), with gradients summed in float32 or better."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save_for_backward(index)
        ctx.num_rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        [index] = ctx.saved_tensors
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
        return wide.new_zeros(ctx.num_rows, grad.size(1)).index_add_(0, index, wide).to(grad.dtype), None


rows = Rows.apply
