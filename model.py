"""The GPT of the study: nanoGPT's model with the MLP expansion as a parameter (paper, section 3.2).

Field and parameter names are nanoGPT's, and the initial weights are drawn in the same order, so
checkpoints can be exchanged and the same torch seed gives the same model.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    mlp_expansion: int = 4  # hidden width of the MLP over n_embd; nanoGPT's is always 4


class LayerNorm(nn.Module):
    """nn.LayerNorm of one dimension, with an optional bias."""

    def __init__(self, n_embd, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x):
        B, T, C = x.shape
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))
        dropout = self.dropout if self.training else 0.0
        if x.is_cuda:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        else:
            y = short_attention(q * q.size(3) ** -0.5, k, v, dropout)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))


def short_attention(q, k, v, dropout):
    """Causal attention for blocks of a few tokens, where a CPU's fused kernel is slow.

    q, k, v: (B, heads, T, head size), q over the root of the head size already. Scores are kept as
    (key, query), so that the softmax runs down the columns of each small matrix, which vectorizes,
    and not along its rows of T numbers.
    """
    B, heads, T, head_size = q.shape
    q, k, v = (part.reshape(B * heads, T, head_size) for part in (q, k, v))
    future = torch.full((T, T), -math.inf, dtype=q.dtype, device=q.device).tril(-1)
    scores = torch.baddbmm(future, k, q.transpose(1, 2))
    weights = F.dropout(scores.softmax(dim=1), dropout, training=dropout > 0)
    return torch.bmm(weights.transpose(1, 2), v).view(B, heads, T, head_size)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden = config.mlp_expansion * config.n_embd
        self.c_fc = nn.Linear(config.n_embd, hidden, bias=config.bias)
        self.c_proj = nn.Linear(hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Raises ValueError if n_embd is not divisible by n_head."""

    def __init__(self, config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd={config.n_embd} is not divisible by n_head={config.n_head}")
        self.config = config
        # Every layer draws when it is built and again below: the order of both matters for the seed.
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
            ln_f=LayerNorm(config.n_embd, config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight  # tied

        self.apply(self._init_weights)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # GPT-2 scales what is added to the residual stream
                nn.init.normal_(parameter, mean=0.0, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def num_params(self):
        """Parameters without the position embeddings, as the paper counts them."""
        return sum(p.numel() for p in self.parameters()) - self.transformer.wpe.weight.numel()

    def hidden(self, idx):
        """Token ids (B, T), T <= block_size -> the normalized last layer (B, T, n_embd)."""
        blocks = self.transformer.h
        no_dropout = self.config.dropout == 0 or not self.training
        if not idx.is_cuda and self.config.n_head == 1 and no_dropout and len(idx) > self.config.vocab_size:
            x, blocks = self.first_block_by_table(idx), blocks[1:]
        else:
            positions = torch.arange(idx.size(1), device=idx.device)
            x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(positions))
        for block in blocks:
            x = block(x)
        return self.transformer.ln_f(x)

    def first_block_by_table(self, idx):
        """What the first block makes of token ids (B, T), computed in less time: (B, T, n_embd).

        Up to its attention a position knows only itself and its token. A large batch holds the same
        (position, token) again and again, so each is computed once and looked up. With one head the
        projection of the attention's output is part of that: a weighted mean of projected values is
        the projected weighted mean.
        """
        T, C = idx.size(1), self.config.n_embd
        block = self.transformer.h[0]
        x = self.transformer.wte.weight + self.transformer.wpe.weight[:T, None]  # (T, vocab_size, C)
        q, k, v = block.attn.c_attn(block.ln_1(x)).split(C, dim=2)
        table = torch.cat([x, q * C**-0.5, k, block.attn.c_proj(v)], dim=2).flatten(0, 1)
        rows = idx + self.config.vocab_size * torch.arange(T, device=idx.device)
        x, *qkv = F.embedding(rows, table).split(C, dim=2)
        x = x + short_attention(*(part[:, None] for part in qkv), 0.0)[:, 0]
        return x + block.mlp(block.ln_2(x))

    def forward(self, idx, targets, weights=None):
        """Token ids idx and targets, both (B, T) -> logits (B, T, vocab_size), cross-entropy in nats per token.

        The loss is the mean over the rows, or weighs them by `weights` (B,), which sum to 1.
        """
        logits = self.lm_head(self.hidden(idx))
        if weights is None:
            return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return logits, losses.view(targets.shape).mean(dim=1) @ weights.to(losses.dtype)

    def configure_optimizer(self, weight_decay, learning_rate, betas):
        """AdamW that decays tensors of two or more dimensions only (weights, not norms and biases)."""
        parameters = list(self.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        on_cuda = parameters[0].is_cuda  # there an update may become part of a CUDA graph
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True, capturable=on_cuda)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, lengths=None, stop=None, generator=None):
        """Samples continuations of a batch of prompts of different lengths.

        idx: (B, T) token ids, each row a prompt of lengths[i] tokens (T without lengths) and then
        padding of any content. A row ends after max_new_tokens or with the token `stop`. A context
        longer than block_size is cropped to its last block_size tokens, as in nanoGPT.

        Returns (B, T + max_new_tokens) token ids and the new lengths (B,): the prompts with their
        continuations right behind them.
        """
        B, T = idx.shape
        block_size = self.config.block_size
        lengths = idx.new_full((B,), T) if lengths is None else lengths.clone()
        tokens = torch.cat([idx, idx.new_zeros(B, max_new_tokens)], dim=1)
        inside = torch.arange(T, device=idx.device) < lengths[:, None]
        prompts = torch.where(inside, idx, -1).cpu()  # not every device finds unique rows
        context = prompts.unique(dim=0, return_inverse=True)[1].to(idx.device)  # equal numbers: equal contexts
        rows = torch.arange(B, device=idx.device)  # those that have not ended
        for _ in range(max_new_tokens):
            # Rows with the same context share one forward pass: near temperature 0 that is most.
            distinct, shared = context.unique(return_inverse=True)
            example = torch.empty_like(distinct).scatter_(0, shared, rows)  # one row of each context
            start = (lengths[example] - block_size).clamp(min=0)
            width = torch.arange(min(block_size, int(lengths[example].max())), device=idx.device)
            last = self.hidden(tokens[example[:, None], start[:, None] + width])[
                torch.arange(len(example), device=idx.device), lengths[example] - start - 1
            ]
            logits = self.lm_head(last).float() / temperature
            if top_k is not None:
                kth = logits.topk(min(top_k, logits.size(1))).values[:, -1:]
                logits = logits.masked_fill(logits < kth, -math.inf)
            drawn = torch.multinomial(logits.softmax(dim=1)[shared], 1, generator=generator)[:, 0]
            tokens[rows, lengths[rows]] = drawn
            lengths[rows] += 1
            context = shared * self.config.vocab_size + drawn
            if stop is not None:
                going_on = drawn != stop
                rows, context = rows[going_on], context[going_on]
                if len(rows) == 0:
                    break
        return tokens, lengths
