"""The GPT of the study: nanoGPT's model with the MLP expansion as a parameter (paper, section 3.2).

Field and parameter names are nanoGPT's, and the initial weights are drawn in the same order. So the same
torch seed gives the same model, and nanoGPT's checkpoints can be loaded.
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


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def attend(self, qkv):
        """Queries, keys and values (B, T, 3 * n_embd) -> what each position attends to (B, T, n_embd)."""
        B, T, C = qkv.size(0), qkv.size(1), qkv.size(2) // 3
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (part.view(heads).transpose(1, 2) for part in qkv.split(C, dim=2))
        dropout = self.dropout if self.training else 0.0
        with torch.autocast(qkv.device.type, enabled=False):  # cast already; torch.func would cast again
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return y.transpose(1, 2).reshape(B, T, C)

    def forward(self, x):
        return self.resid_dropout(self.c_proj(self.attend(self.c_attn(x))))


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

    def embed(self, idx):
        """Token ids (B, T), T <= block_size -> token plus position embeddings (B, T, n_embd)."""
        positions = torch.arange(idx.size(1), device=idx.device)
        return self.transformer.wte(idx) + self.transformer.wpe(positions)

    def hidden(self, idx):
        """Token ids (B, T), T <= block_size -> the normalized last layer (B, T, n_embd), before the head."""
        x = self.transformer.drop(self.embed(idx))
        for block in self.transformer.h:
            x = block(x)
        return self.transformer.ln_f(x)

    def forward(self, idx, targets=None):
        """Token ids (B, T) -> (logits (B, T, vocab_size), mean cross-entropy in nats per token).

        Without targets (B, T): (logits (B, 1, vocab_size) of the last position, None).
        """
        x = self.hidden(idx)
        if targets is None:
            return self.lm_head(x[:, [-1]]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizer(self, weight_decay, learning_rate, betas):
        """AdamW that decays tensors of two or more dimensions only (weights, not norms and biases)."""
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        vectors = [p for p in self.parameters() if p.dim() < 2]
        return adamw(matrices, vectors, weight_decay, learning_rate, betas)


def adamw(decayed, others, weight_decay, learning_rate, betas):
    """AdamW over two lists of parameters; weight decay applies to the first."""
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    on_cuda = decayed[0].is_cuda  # there an update may become part of a CUDA graph
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True, capturable=on_cuda)
