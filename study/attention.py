"""Causal attention by matrix products, for steps on a CPU: PyTorch's fused one has a slow backward there."""

import math

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def attention(q, k, v, dropout_p, is_causal, dropout=F.dropout):
    """Causal attention of queries, keys and values (B, n_head, T, head size).

    Scores and weights are computed in float32 or better.
    """
    T, scale = q.size(-2), 1 / math.sqrt(q.size(-1))
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(diagonal=1)
    scores = q @ k.transpose(-2, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
    return dropout(weights, dropout_p, dropout_p > 0, False).to(v.dtype) @ v


class Replace(TorchFunctionMode):
    """Call other functions where a model calls those of PyTorch; others: {PyTorch's: the one to call}."""

    def __init__(self, others):
        super().__init__()
        self.others = others

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.others.get(func, func)(*args, **(kwargs or {}))
