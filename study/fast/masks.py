"""Draw dropout's masks from 16-bit numbers: for models with dropout on a CPU.

PyTorch draws one unit after the other from a serial generator, 40 million in an update of the MLT on
arithmetic. Here one draw of 64 bits decides on four units. The probability is rounded to a multiple of 2^-16,
and what is kept is scaled by that.
"""

import functools
import math

import torch
from torch.nn import functional as F

from study.attention import Replace, attention
from study.update import make_eager_step, make_update

NAME = "PyTorch, 16-bit masks"


def make_masks_step(state, windows, cfg, autocast):
    """The Step of the plain update, with dropout() and attention() in place of PyTorch's."""
    update = make_update(state.model, state.optimizer, state.scaler, windows, cfg, autocast, masked_loss)
    return make_eager_step(update, state.optimizer, NAME)


def masked_loss(model, idx, targets):
    """Mean cross-entropy of token ids idx and targets, both (B, T)."""
    masked_attention = functools.partial(attention, dropout=dropout)
    with Replace({F.dropout: dropout, F.scaled_dot_product_attention: masked_attention}):
        return model(idx, targets)[1]


def dropout(x, p, training, inplace):
    return x * mask(x.shape, p, x.dtype) if training else x


def mask(shape, p, dtype):
    """What dropout multiplies by: zero with probability p, else 1 / (1 - p); p to the nearest 2^-16.

    Drawn from torch's generator of the CPU, which checkpoints hold.
    """
    threshold = min(round(p * 2**16), 2**16 - 1)
    units = math.prod(shape)
    drawn = torch.empty(-(-units // 4), dtype=torch.int64).random_(-2**63, None)  # None: all 64 bits
    kept = drawn.view(torch.int16)[:units].view(shape) >= threshold - 2**15
    return kept * torch.tensor(1 / (1 - threshold / 2**16), dtype=dtype)
