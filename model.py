"""The GPT of the study: nanoGPT's model with the MLP expansion as a parameter (paper, section 3.2).

Field and parameter names are nanoGPT's, and the initial weights are drawn in the same order, so the
same torch seed gives the same model and nanoGPT's checkpoints can be loaded.
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


def gpt_config(config, vocab_size):
    """GPTConfig of settings of train_with_eval.py, all of them, as a {name: value}."""
    return GPTConfig(**{key: config[key] for key in GPTConfig.__dataclass_fields__ if key != "vocab_size"}, vocab_size=vocab_size)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x, shared=None):
        qkv = self.c_attn(x)
        if shared:  # the attention takes windows
            place, context = shared
            qkv = to_windows(qkv, context)
        B, T, C = *qkv.shape[:2], x.size(-1)
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (part.view(heads).transpose(1, 2) for part in qkv.split(C, dim=2))
        dropout = self.dropout if self.training else 0.0
        with torch.autocast(x.device.type, enabled=False):  # q, k, v are cast already; torch.func would cast inside again
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = y.transpose(1, 2).reshape(B, T, C)
        if shared:
            y = y.flatten(0, 1)[place]
        return self.resid_dropout(self.c_proj(y))


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
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x, shared=None):
        x = x + self.attn(self.ln_1(x), shared)
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
            ln_f=nn.LayerNorm(config.n_embd, bias=config.bias),
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

    def hidden(self, idx, shared=None):
        """Token ids (B, T), T <= block_size -> the normalized last layer (B, T, n_embd); (contexts, n_embd) if shared."""
        positions = torch.arange(idx.size(1), device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(positions)
        if shared:
            place, _ = shared
            x = x.flatten(0, 1)[place]
        x = self.transformer.drop(x)
        for block in self.transformer.h:
            x = block(x, shared)
        return self.transformer.ln_f(x)

    def forward(self, idx, targets, shared=None):
        """Token ids idx and targets, both (B, T) -> logits (B, T, vocab_size), mean cross-entropy in nats per token.

        shared: of shared_contexts(idx), computes each context once. Without dropout that changes nothing but rounding.
        """
        logits = self.lm_head(self.hidden(idx, shared))
        if shared:
            _, context = shared
            logits = to_windows(logits, context)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizer(self, weight_decay, learning_rate, betas):
        """AdamW that decays tensors of two or more dimensions only (weights, not norms and biases)."""
        parameters = list(self.parameters())
        matrices, vectors = [p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]
        return adamw(matrices, vectors, weight_decay, learning_rate, betas)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, generator=None):
        """Token ids (B, T) -> (B, T + max_new_tokens): each row with a sampled continuation.

        A context longer than block_size is cropped to its last block_size tokens, as in nanoGPT.
        """
        for _ in range(max_new_tokens):
            logits = self.lm_head(self.hidden(idx[:, -self.config.block_size :])[:, -1])
            probabilities = next_token_probabilities(logits, temperature, top_k)
            idx = torch.cat([idx, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
        return idx


def shared_contexts(idx):
    """Token ids (B, T) -> (place, context), for computing once what several rows begin with.

    Two places have the same context if their rows are the same up to there. context: (B, T) the number of each
    place's context. place: (contexts) a place in idx.flatten() that has it; filled up with zeros to a multiple of
    256, since tensors of another size in each batch would leave the memory in pieces.
    """
    base = int(idx.max()) + 1
    context, before, contexts = torch.empty_like(idx), torch.zeros_like(idx[:, 0]), 0
    for t in range(idx.size(1)):
        distinct, before = torch.unique(before * base + idx[:, t], return_inverse=True)
        context[:, t] = contexts + before
        contexts += len(distinct)
    place = context.new_empty(contexts).scatter_(0, context.flatten(), torch.arange(context.numel(), device=idx.device))
    return F.pad(place, (0, -contexts % 256)), context


def to_windows(features, context):
    """(contexts, n) -> (B, T, n). Its gradient, a sum over the places that share a context, is taken in float32 or better."""
    return F.embedding(context, features.to(torch.promote_types(features.dtype, torch.float32))).to(features.dtype)


def adamw(decayed, others, weight_decay, learning_rate, betas):
    """AdamW of two lists of parameters, of which the first decay."""
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    on_cuda = decayed[0].is_cuda  # there an update may become part of a CUDA graph
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True, capturable=on_cuda)


def next_token_probabilities(logits, temperature, top_k=None):
    """Probabilities (B, vocab_size) of the next token as it is sampled, from logits of that shape."""
    logits = logits.float() / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.size(1))).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    return logits.softmax(dim=1)
