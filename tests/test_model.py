"""The model is nanoGPT's with an MLP expansion; batched generation equals one prompt at a time."""

import math

import numpy as np
import pytest
import torch
from conftest import refused
from torch.nn import functional as F

from data.dataset import read_tokens
from model import GPT, GPTConfig, short_attention

SIZES = {"n14": (1, 1, 14, 1), "n28": (1, 1, 28, 1), "n56": (1, 1, 56, 1), "MLT": (6, 6, 384, 4)}


def build(size, vocab_size, block_size, **fields):
    n_layer, n_head, n_embd, m = SIZES[size]
    torch.manual_seed(1337)
    return GPT(GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, bias=False, mlp_expansion=m, **fields)).eval()


@pytest.mark.parametrize("size, counts", [
    ("n14", (1456, 1932, 2142)), ("n28", (5264, 6216, 6636)), ("n56", (19936, 21840, 22680)),
    ("MLT", (10628352, 10641408, 10647168)),
])
def test_the_parameter_counts_are_the_papers(size, counts):
    assert tuple(build(size, vocab, 9).num_params() for vocab in (17, 51, 66)) == counts


# The first evaluation of the published runs, seed 1337: it depends on the initial weights only.
@pytest.mark.parametrize("dataset, vocab_size, block_size, losses", [
    ("as_math", 17, 9, (2.8537, 2.8834, 2.9262, 3.0427)),
    ("facts_char", 51, 24, (3.9292, 3.9571, 3.9553, 4.0783)),
    ("both_math_and_facts", 66, 24, (4.1977, 4.1925, 4.2375, 4.3143)),
])
def test_the_seed_draws_the_weights_of_the_published_runs(project, dataset, vocab_size, block_size, losses):
    tokens = torch.from_numpy(read_tokens(dataset, "train", block_size))
    windows = tokens.unfold(0, block_size + 1, 1)[::8]  # enough for the tolerance
    for size, published in zip(SIZES, losses):
        with torch.no_grad():
            _, loss = build(size, vocab_size, block_size)(windows[:, :-1], windows[:, 1:])
        assert loss.item() == pytest.approx(published, abs=0.01), size


def test_parameter_names_are_nanogpts():
    names = set(build("n14", 17, 9).state_dict())
    assert names == {
        "transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.ln_1.weight",
        "transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_proj.weight", "transformer.h.0.ln_2.weight",
        "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_proj.weight", "transformer.ln_f.weight",
        "lm_head.weight",
    }
    model = GPT(GPTConfig(block_size=8, vocab_size=10, n_layer=1, n_head=2, n_embd=8, bias=True))
    assert "transformer.h.0.attn.c_attn.bias" in model.state_dict()
    assert model.transformer.h[0].mlp.c_fc.weight.shape == (32, 8)  # nanoGPT's expansion of 4 by default


def test_a_token_does_not_see_the_ones_after_it():
    model = build("n28", 17, 9)
    idx = torch.randint(17, (5, 9), generator=torch.Generator().manual_seed(0))
    changed = idx.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 17
    assert torch.allclose(model.hidden(idx)[:, :6], model.hidden(changed)[:, :6], atol=1e-6)
    assert not torch.allclose(model.hidden(idx)[:, 6:], model.hidden(changed)[:, 6:], atol=1e-3)


def test_the_cpus_attention_is_torchs():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(7, 3, 9, 5, generator=generator) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    q = q * 5**-0.5
    assert torch.allclose(short_attention(q, k, v, 0.0), expected, atol=1e-6)
    # With dropout, weights are zeroed or scaled by 1 / (1 - p): the mean over many draws is the same.
    torch.manual_seed(0)
    mean = torch.stack([short_attention(q, k, v, 0.3) for _ in range(4000)]).mean(dim=0)
    assert torch.allclose(mean, expected, atol=0.08) and not torch.equal(mean, expected)


def test_rows_can_be_weighed_in_the_loss():
    model = build("n14", 17, 9)
    batch = torch.randint(17, (6, 10), generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([0, 1, 1, 1, 4, 5])
    _, repeated = model(batch[rows, :-1], batch[rows, 1:])
    unique, counts = rows.unique(return_counts=True)
    _, weighed = model(batch[unique, :-1], batch[unique, 1:], counts / counts.sum())
    assert weighed.item() == pytest.approx(repeated.item(), rel=1e-6)


def prompts_of(lengths, vocab_size, generator):
    return [torch.randint(vocab_size, (n,), generator=generator) for n in lengths]


def padded(prompts, filler):
    idx = torch.full((len(prompts), max(map(len, prompts))), filler)
    for row, prompt in zip(idx, prompts):
        row[: len(prompt)] = prompt
    return idx, torch.tensor([len(prompt) for prompt in prompts])


@pytest.mark.parametrize("size", ["n28", "MLT"])
def test_prompts_of_different_lengths_at_once_equal_one_at_a_time(size):
    generator = torch.Generator().manual_seed(1)
    model = build(size, 17, 9)
    for parameter in model.parameters():  # far from the nearly uniform start, so that top_k=1 is decided
        parameter.data *= 8 if size == "n28" else 2
    prompts = prompts_of([1, 3, 9, 14, 5, 3, 20, 1], 17, generator)  # some longer than the block
    prompts += [prompts[1], prompts[3]]  # and some twice
    idx, lengths = padded(prompts, filler=16)
    tokens, ends = model.generate(idx, 12, temperature=0.7, top_k=1, lengths=lengths)
    for row, end, prompt in zip(tokens, ends, prompts):
        text = prompt
        for _ in range(12):  # nanoGPT's loop
            with torch.no_grad():
                logits = model.lm_head(model.hidden(text[None, -9:]))[0, -1]
            text = torch.cat([text, logits.argmax()[None]])
        assert row[:end].tolist() == text.tolist()


def test_a_row_ends_with_its_stop_token_and_the_others_go_on():
    generator = torch.Generator().manual_seed(2)
    model = build("n14", 5, 9)
    idx, lengths = padded(prompts_of([2, 4, 3] * 20, 5, generator), filler=0)
    tokens, ends = model.generate(idx, 8, lengths=lengths, stop=3, generator=generator)
    for row, start, end in zip(tokens.tolist(), lengths.tolist(), ends.tolist()):
        new = row[start:end]
        assert 3 not in new[:-1] and (new[-1] == 3 or len(new) == 8)
    assert len(set((ends - lengths).tolist())) > 2


def test_samples_follow_the_softmax_and_equal_prompts_are_sampled_apart():
    model = build("n14", 5, 9)
    model.lm_head.weight.data *= 12
    prompt = torch.tensor([[1, 2]])
    with torch.no_grad():
        logits = model.lm_head(model.hidden(prompt))[0, -1] / 0.8
    kth = logits.topk(3).values[-1]
    expected = logits.masked_fill(logits < kth, -math.inf).softmax(dim=0)
    generator = torch.Generator().manual_seed(0)
    tokens, _ = model.generate(prompt.repeat(20_000, 1), 1, temperature=0.8, top_k=3, generator=generator)
    share = torch.bincount(tokens[:, 2], minlength=5) / 20_000
    assert (share - expected).abs().max() < 0.02 and (expected > 0).sum() == 3 and expected.max() < 0.95


def test_sampling_draws_from_its_own_generator_only():
    model = build("n14", 17, 9)
    idx = torch.zeros(10, 3, dtype=torch.long)
    before = torch.get_rng_state()
    first, _ = model.generate(idx, 6, generator=torch.Generator().manual_seed(5))
    second, _ = model.generate(idx, 6, generator=torch.Generator().manual_seed(5))
    other, _ = model.generate(idx, 6, generator=torch.Generator().manual_seed(6))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_weight_decay_falls_on_matrices_only():
    groups = build("n14", 17, 9).configure_optimizer(0.1, 1e-2, (0.9, 0.99)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert {p.dim() for p in groups[0]["params"]} == {2} and {p.dim() for p in groups[1]["params"]} == {1}


def test_a_checkpoint_of_nanogpt_can_be_sampled(call, in_tmp):
    model = build("n14", 17, 9)
    args = dict(n_layer=1, n_head=2, n_embd=16, block_size=9, bias=True, vocab_size=17, dropout=0.0)
    model = GPT(GPTConfig(**args))
    torch.save({
        "model": {f"_orig_mod.{name}": value for name, value in model.state_dict().items()},
        "model_args": args, "config": {"dataset": "as_math"}, "iter_num": 0, "best_val_loss": 1.0, "optimizer": {},
    }, in_tmp / "ckpt.pt")
    result = call("sample.py", "--out_dir=.", "--num_samples=2", "--start=<1+1=")
    assert result.returncode == 0 and result.stdout.count("<1+1=") >= 2


def test_heads_must_divide_the_width(call):
    with pytest.raises(ValueError, match="n_embd=14 is not divisible by n_head=4"):
        GPT(GPTConfig(n_embd=14, n_head=4))
    refused(call("train_with_eval.py", "--n_head=4"), "n_embd=14", "n_head=4")


def test_ids_are_int64_for_the_embedding(project):
    assert read_tokens("as_math", "val", 9).dtype == np.int64
