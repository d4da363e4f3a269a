"""Check that the model is nanoGPT with an MLP expansion, and that batched sampling equals single sampling."""

import math

import pytest
import torch
from torch import nn

from study.dataset import read_tokens
from model import GPT, GPTConfig
from study.batches import load_splits
from study.fast.shared import shared_contexts, shared_loss
from study.scoring import next_token_probabilities, sample

SIZES = {"n14": (1, 1, 14, 1), "n28": (1, 1, 28, 1), "n56": (1, 1, 56, 1), "MLT": (6, 6, 384, 4)}
# (block size, vocabulary)
SHAPES = {"as_math": (9, 17), "facts_char": (24, 51), "both_math_and_facts": (24, 66)}
each_model = pytest.mark.parametrize("size", SIZES)
each_dataset = pytest.mark.parametrize("dataset", SHAPES)


def build(size, block_size, vocab_size, **fields):
    n_layer, n_head, n_embd, m = SIZES[size]
    torch.manual_seed(1337)
    shape = (block_size, vocab_size, n_layer, n_head, n_embd)
    return GPT(GPTConfig(*shape, bias=False, mlp_expansion=m, **fields)).eval()


class PlainGPT(nn.Module):
    """A plain form of nanoGPT's GPT without biases and dropout; its MLP is m times as wide as the rest."""

    def __init__(self, block_size, vocab_size, n_layer, n_head, width, m):
        super().__init__()
        self.n_head = n_head
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(block_size, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict({
                "norm_1": nn.LayerNorm(width, bias=False),
                "qkv": nn.Linear(width, 3 * width, bias=False),
                "attention_out": nn.Linear(width, width, bias=False),
                "norm_2": nn.LayerNorm(width, bias=False),
                "up": nn.Linear(width, m * width, bias=False),
                "down": nn.Linear(m * width, width, bias=False),
            })
            for _ in range(n_layer)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.token.weight = self.head.weight
        inner = [layer[name] for layer in self.layers for name in ("qkv", "attention_out", "up", "down")]
        for module in (self.token, self.position, *inner, self.head):
            nn.init.normal_(module.weight, 0.0, 0.02)
        for layer in self.layers:
            nn.init.normal_(layer["attention_out"].weight, 0.0, 0.02 / math.sqrt(2 * n_layer))
            nn.init.normal_(layer["down"].weight, 0.0, 0.02 / math.sqrt(2 * n_layer))

    def attention(self, q, k, v):
        """Compute one head: each position attends to itself and to those before it."""
        scores = q @ k.transpose(1, 2) / math.sqrt(q.size(2))
        after = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        return torch.softmax(scores.masked_fill(after, -math.inf), dim=2) @ v

    def forward(self, idx, targets):
        x = self.token(idx) + self.position(torch.arange(idx.size(1)))
        for layer in self.layers:
            qkv = layer["qkv"](layer["norm_1"](x)).chunk(3, dim=2)
            heads = zip(*(part.chunk(self.n_head, dim=2) for part in qkv))
            x = x + layer["attention_out"](torch.cat([self.attention(*head) for head in heads], dim=2))
            hidden = layer["up"](layer["norm_2"](x))
            x = x + layer["down"](hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
        logits = self.head(self.norm(x))
        return logits, -logits.log_softmax(dim=2).gather(2, targets[:, :, None]).mean()


def build_plain(size, block_size, vocab_size):
    n_layer, n_head, width, m = SIZES[size]
    torch.manual_seed(1337)
    return PlainGPT(block_size, vocab_size, n_layer, n_head, width, m)


@each_dataset
@each_model
def test_a_seed_gives_nanogpts_initial_weights_bit_for_bit(size, dataset):
    ours, plain = build(size, *SHAPES[dataset]), build_plain(size, *SHAPES[dataset])
    for (name, p), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, theirs), name


@pytest.mark.parametrize("size, dataset", [
    *((size, dataset) for size in ("n14", "n28", "n56") for dataset in SHAPES),
    ("MLT", "both_math_and_facts")])
def test_loss_and_gradients_match_nanogpt(size, dataset):
    block_size, vocab_size = SHAPES[dataset]
    ours, plain = (make(size, block_size, vocab_size).double() for make in (build, build_plain))
    batch = torch.randint(vocab_size, (4, block_size + 1), generator=torch.Generator().manual_seed(0))
    for model in (ours, plain):
        with torch.no_grad():
            for p in model.parameters():  # far from the start, where attention is nearly uniform
                p *= 2 if size == "MLT" else 8
    outputs = (model(batch[:, :-1], batch[:, 1:]) for model in (ours, plain))
    (logits, loss), (plain_logits, plain_loss) = outputs
    loss.backward()
    plain_loss.backward()
    assert loss.item() == pytest.approx(plain_loss.item(), rel=1e-10)
    assert torch.allclose(logits, plain_logits, rtol=1e-9, atol=1e-9)
    for (name, p), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert theirs.grad.norm() > 0 and (p.grad - theirs.grad).norm() < 1e-10 * theirs.grad.norm(), name


@pytest.mark.parametrize("dataset", ["as_math", "both_math_and_facts"])
def test_shared_contexts_are_computed_once(project, dataset):
    block_size, vocab_size = SHAPES[dataset]
    windows = load_splits(dataset, block_size, torch.device("cpu"))["train"]
    batch = windows[torch.randint(len(windows), (500,), generator=torch.Generator().manual_seed(0))]
    idx, targets = batch[:, :-1], batch[:, 1:]
    first, context = shared_contexts(idx)
    contexts = [tuple(row[: t + 1]) for row in idx.tolist() for t in range(block_size)]
    assert [contexts[i] for i in first[context.flatten()]] == contexts
    assert context.max() + 1 == len(set(contexts)) < 0.9 * len(contexts)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    sizes = {len(shared_contexts(windows[order.roll(50 * k)[:500], :-1])[0]) for k in range(20)}
    assert len(sizes) <= 3  # few sizes do not fragment the memory

    torch.manual_seed(1337)
    model = GPT(GPTConfig(block_size, vocab_size, n_layer=2, n_head=2, n_embd=32, bias=False))

    def plain_loss(model, idx, targets):
        return model(idx, targets)[1]

    def loss_and_gradient(loss_of, autocasts):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocasts):
            loss = loss_of(model, idx, targets)
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        return float(loss.detach()), torch.cat([part.flatten() for part in gradient])

    loss, exact = loss_and_gradient(plain_loss, autocasts=False)

    def error(loss_of, autocasts):
        return float((loss_and_gradient(loss_of, autocasts)[1] - exact).norm() / exact.norm())

    assert loss_and_gradient(shared_loss, autocasts=False)[0] == pytest.approx(loss, rel=1e-6)
    assert error(shared_loss, autocasts=False) < 1e-5
    # Sums over contexts in bfloat16 would have several times this error.
    assert error(shared_loss, autocasts=True) < 1.2 * error(plain_loss, autocasts=True) < 0.02


# The first evaluation of the published runs, seed 1337: it depends only on the initial weights and the text.
@pytest.mark.parametrize("dataset, losses", [
    ("as_math", (2.8537, 2.8834, 2.9262, 3.0427)),
    ("facts_char", (3.9292, 3.9571, 3.9553, 4.0783)),
    ("both_math_and_facts", (4.1977, 4.1925, 4.2375, 4.3143)),
])
def test_the_first_loss_matches_the_published_runs(project, dataset, losses):
    block_size, vocab_size = SHAPES[dataset]
    tokens = torch.from_numpy(read_tokens(dataset, "train", block_size))
    windows = tokens.unfold(0, block_size + 1, 1)
    for size, published in zip(SIZES, losses):
        # The MLT would take long on all windows.
        subset, tolerance = (windows[::8], 0.01) if size == "MLT" else (windows, 0.001)
        with torch.no_grad():
            _, loss = build(size, block_size, vocab_size)(subset[:, :-1], subset[:, 1:])
        assert loss.item() == pytest.approx(published, abs=tolerance), size


@pytest.mark.parametrize("size, counts", [
    ("n14", (1456, 1932, 2142)), ("n28", (5264, 6216, 6636)), ("n56", (19936, 21840, 22680)),
    ("MLT", (10628352, 10641408, 10647168)),
])
def test_the_parameter_counts_match_the_paper(size, counts):
    with torch.device("meta"):
        assert tuple(build(size, *shape).num_params() for shape in SHAPES.values()) == counts


def test_parameter_names_match_nanogpt():
    names = set(build("n14", 9, 17).state_dict())
    assert names == {
        "transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.ln_1.weight",
        "transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_proj.weight",
        "transformer.h.0.ln_2.weight", "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_proj.weight",
        "transformer.ln_f.weight", "lm_head.weight",
    }
    model = GPT(GPTConfig(block_size=8, vocab_size=10, n_layer=1, n_head=2, n_embd=8, bias=True))
    assert "transformer.h.0.attn.c_attn.bias" in model.state_dict()
    assert model.transformer.h[0].mlp.c_fc.weight.shape == (32, 8)  # nanoGPT's expansion of 4 by default


def test_a_token_does_not_see_the_ones_after_it():
    model = build("n28", 9, 17)
    idx = torch.randint(17, (5, 9), generator=torch.Generator().manual_seed(0))
    changed = idx.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 17
    assert torch.allclose(model.hidden(idx)[:, :6], model.hidden(changed)[:, :6], atol=1e-6)
    assert not torch.allclose(model.hidden(idx)[:, 6:], model.hidden(changed)[:, 6:], atol=1e-3)


def test_dropout_applies_only_in_training():
    idx = torch.randint(17, (5, 9), generator=torch.Generator().manual_seed(0))
    model, without = build("n28", 9, 17, dropout=0.3), build("n28", 9, 17)
    assert torch.equal(model.hidden(idx), without.hidden(idx))
    assert torch.equal(without.train().hidden(idx), without.eval().hidden(idx))
    model.train()
    assert not torch.allclose(model.hidden(idx), model.hidden(idx), atol=1e-2)


def test_weight_decay_applies_only_to_matrices():
    groups = build("n14", 9, 17).configure_optimizer(0.1, 1e-2, (0.9, 0.99)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert {p.dim() for p in groups[0]["params"]} == {2} and {p.dim() for p in groups[1]["params"]} == {1}


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="n_embd=14 is not divisible by n_head=4"):
        GPT(GPTConfig(n_embd=14, n_head=4))


def test_a_checkpoint_of_nanogpt_can_be_sampled(call, in_tmp):
    args = dict(n_layer=1, n_head=2, n_embd=16, block_size=9, bias=True, vocab_size=17, dropout=0.0)
    model = GPT(GPTConfig(**args))
    torch.save({
        "model": {f"_orig_mod.{name}": value for name, value in model.state_dict().items()},
        "model_args": args, "config": {"dataset": "as_math"}, "iter_num": 0, "best_val_loss": 1.0,
        "optimizer": {},
    }, in_tmp / "ckpt.pt")
    result = call("sample.py", "--out_dir=.", "--num_samples=2", "--start=<1+1=")
    assert result.returncode == 0 and result.stdout.count("<1+1=") >= 2


# Sampling

CHARS = "abcdefghijklmnopq"


def sharpened(size="n28", vocab_size=17):
    """Return a model whose weights are scaled up, so that some characters are much likelier than others."""
    model = build(size, 9, vocab_size)
    for p in model.parameters():
        p.data *= 2 if size == "MLT" else 8
    return model


def words(lengths, chars=CHARS):
    generator = torch.Generator().manual_seed(1)
    return ["".join(chars[i] for i in torch.randint(len(chars), (n,), generator=generator)) for n in lengths]


@torch.no_grad()
def next_logits(model, idx):
    """Return the logits (B, vocab_size) that follow the token ids idx (B, T), by the whole forward pass."""
    idx = idx[:, -model.config.block_size :]
    return model(idx)[0][:, -1]


def likeliest(model, prompt, new):
    """Return the likeliest `new` characters after a prompt, chosen one at a time."""
    idx = torch.tensor([[CHARS.index(char) for char in prompt]])
    for _ in range(new):
        idx = torch.cat([idx, next_logits(model, idx).argmax(dim=1, keepdim=True)], dim=1)
    return "".join(CHARS[i] for i in idx[0, len(prompt):])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", ["n28", "MLT"])
def test_sampling_prompts_together_equals_sampling_one_at_a_time(size):
    model = sharpened(size)
    prompts = words([1, 3, 9, 14, 5, 3, 20, 1])  # some longer than the block
    prompts += [prompts[1], prompts[3]]  # and some twice
    texts = sample(model, CHARS, prompts, 2, 12, temperature=0.7, top_k=1, generator=seeded())
    assert texts == [[likeliest(model, prompt, 12)] * 2 for prompt in prompts]
    assert len({text for text, _ in texts}) > 4


def test_only_the_last_characters_of_a_long_prompt_count():
    model = sharpened()
    [long] = words([30])
    [whole], [end] = (
        sample(model, CHARS, [prompt], 20, 12, 1.0, None, seeded()) for prompt in (long, long[-9:]))
    assert whole == end and len(set(whole)) > 10


def test_a_sample_ends_at_its_stop_character_while_others_continue():
    model = build("n14", 9, 5)
    texts = sample(model, CHARS[:5], words([2, 4, 3], CHARS[:5]), 20, 8, 1.0, None, seeded(), stop="d")
    for text in sum(texts, []):
        assert "d" not in text[:-1] and (text[-1] == "d" or len(text) == 8)
    assert len({len(text) for text in sum(texts, [])}) > 2


def test_stopping_changes_nothing_before_the_stop_character():
    model, prompts = sharpened(), words([3, 12, 5, 7, 1, 9])
    whole, cut = (sample(model, CHARS, prompts, 2, 12, 1.0, 1, seeded(), stop) for stop in (None, "e"))
    assert cut == [[text[: text.find("e") + 1] or text for text in texts] for texts in whole]
    assert whole != cut


def test_samples_follow_the_softmax_of_their_context():
    chars = CHARS[:5]
    model = build("n14", 9, 5)
    model.lm_head.weight.data *= 12
    prompts, samples = ["bc", "e", "bc"], 20_000
    texts = sample(model, chars, prompts, samples, 2, temperature=0.8, top_k=3, generator=seeded())
    compared = 0
    for prompt, group in zip(prompts, texts):
        assert len(group) == samples
        for before in ("", *chars):  # the first new character, and the second after each first one
            following = [text[len(before)] for text in group if text.startswith(before)]
            if len(following) < 2000:
                continue
            idx = torch.tensor([[chars.index(char) for char in prompt + before]])
            logits = next_logits(model, idx)[0] / 0.8
            expected = logits.masked_fill(logits < logits.topk(3).values[-1], -math.inf).softmax(dim=0)
            share = torch.tensor([following.count(char) / len(following) for char in chars])
            assert (share - expected).abs().max() < 0.04 and (expected > 0)[share > 0].all()
            assert expected.max() < 0.95
            compared += 1
    assert compared >= 6 and texts[0] != texts[2]


def test_sampling_uses_only_the_generator_it_is_given():
    model = build("n14", 9, 17)
    before = torch.get_rng_state()
    first, second, other = (
        sample(model, CHARS, ["abc", "d"], 10, 6, 1.0, None, seeded(seed)) for seed in (5, 5, 6))
    assert first == second != other
    assert torch.equal(before, torch.get_rng_state())


def test_without_targets_the_model_returns_only_the_last_logits():
    model = sharpened()
    idx = torch.randint(17, (6, 4), generator=seeded())
    logits, loss = model(idx)
    assert loss is None and logits.shape == (6, 1, 17)
    assert torch.allclose(logits[:, 0], model(idx, idx)[0][:, -1], atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 3, None, 1000])
def test_next_token_probabilities_match_nanogpt(top_k):
    logits = next_logits(sharpened(), torch.randint(17, (6, 4), generator=seeded()))
    expected = logits / 0.7
    if top_k is not None:
        expected[expected < expected.topk(min(top_k, 17)).values[:, -1:]] = -math.inf
    assert torch.allclose(next_token_probabilities(logits, 0.7, top_k), expected.softmax(dim=1))
