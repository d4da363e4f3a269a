"""Test dropout from 16-bit masks: it drops the right share of units at random, and changes nothing else."""

import math

import pytest
import torch
from conftest import SHORT, rows_of

from model import GPT, GPTConfig
from study.fast import masks
from study.progress import notes

SHAPE = 500, 400


def correlation(a, b):
    """Return how many standard errors the correlation of two equally long lists is away from none."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) * math.sqrt(a.numel())


@pytest.fixture
def small():
    """Return (model of two layers with dropout, idx, targets)."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(9, 15, n_layer=2, n_head=2, n_embd=16, dropout=0.25, bias=False))
    with torch.no_grad():
        for p in model.parameters():
            p *= 8  # so that attention and MLP count
    idx, targets = torch.randint(15, (2, 32, 9))
    return model, idx, targets


@pytest.mark.parametrize("p", [0.001, 0.2, 0.5, 0.9])
def test_a_mask_drops_its_share_of_units_and_scales_the_others(p):
    torch.manual_seed(0)
    mask = masks.mask(SHAPE, p, torch.float64)
    units, dropped = mask.numel(), int((mask == 0).sum())
    assert mask.shape == SHAPE and mask.dtype == torch.float64
    assert abs(dropped - p * units) < 5 * math.sqrt(p * (1 - p) * units)
    assert mask[mask > 0].unique().tolist() == pytest.approx([1 / (1 - p)], rel=2e-4)  # p in steps of 2^-16


@pytest.mark.parametrize("p, share", [(1e-9, 0.0), (1 - 1e-9, 1 - 2**-16)])
def test_at_the_ends_the_probability_is_the_nearest_that_leaves_a_unit(p, share):
    torch.manual_seed(0)
    mask = masks.mask(SHAPE, p, torch.float32)
    assert mask.isfinite().all() and abs(float((mask == 0).double().mean()) - share) < 1e-4


def test_neighbours_layers_and_updates_are_independent():
    torch.manual_seed(0)
    first, second = (masks.mask(SHAPE, 0.2, torch.float64) for _ in range(2))
    assert abs(correlation(first, second)) < 5
    for apart in range(1, 9):  # four come from one draw
        assert abs(correlation(first.flatten()[apart:], first.flatten()[:-apart])) < 5


@pytest.mark.parametrize("units", [1, 2, 3, 5, 1023])
def test_a_mask_can_have_any_number_of_units(units):
    assert masks.mask((units,), 0.5, torch.float32).shape == (units,)


def test_the_generator_decides_on_the_masks():
    def drawn(seed):
        torch.manual_seed(seed)
        return masks.mask(SHAPE, 0.5, torch.float32)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_loss_and_gradient_are_the_plain_ones_where_nothing_is_dropped(small, monkeypatch):
    model, idx, targets = small
    monkeypatch.setattr(masks, "mask", lambda shape, p, dtype: torch.ones(shape, dtype=dtype))
    loss = masks.masked_loss(model, idx, targets)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    exact = model.eval()(idx, targets)[1]
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    for ours, theirs in zip(gradient, torch.autograd.grad(exact, list(model.parameters()))):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def test_every_dropout_of_the_model_has_a_mask_of_its_own(small, monkeypatch):
    model, idx, targets = small
    shapes, mask = [], masks.mask
    monkeypatch.setattr(masks, "mask", lambda shape, *rest: shapes.append(tuple(shape)) or mask(shape, *rest))
    masks.masked_loss(model, idx, targets)
    layer = [(32, 2, 9, 9), (32, 9, 16), (32, 9, 16)]  # attention, its output, the MLP
    assert shapes == [(32, 9, 16), *layer, *layer]
    model.eval()
    masks.masked_loss(model, idx, targets)
    assert len(shapes) == 7  # an evaluation drops nothing


def test_the_loss_with_dropout_is_distributed_as_pytorchs(small):
    model, idx, targets = small
    with torch.no_grad():
        ours = torch.stack([masks.masked_loss(model, idx, targets) for _ in range(400)])
        theirs = torch.stack([model(idx, targets)[1] for _ in range(400)])
        without = model.eval()(idx, targets)[1]
    error = math.sqrt((ours.var() + theirs.var()) / 400)
    assert abs(ours.mean() - theirs.mean()) < 5 * error < abs(ours.mean() - without)
    assert 0.8 < ours.std() / theirs.std() < 1.25


def test_a_run_with_masks_that_was_stopped_makes_the_bytes_of_one_that_was_not(call, in_tmp):
    arguments = (*SHORT, "--dropout=0.2", "--n_layer=2", "--n_head=2", "--n_embd=16", "--batch_size=64")
    whole = call("train_with_eval.py", *arguments, "--out_dir=whole")
    assert whole.stdout.splitlines()[0].endswith("PyTorch, 16-bit masks") and whole.stderr == ""
    call("train_with_eval.py", *arguments, "--max_iters=20", "--out_dir=parts")
    call("train_with_eval.py", *arguments, "--out_dir=parts", "--init_from=resume")
    assert rows_of("whole") == rows_of("parts")
    a, b = (torch.load(f"{folder}/ckpt_last.pt", weights_only=True)["model"] for folder in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("n_embd, dtype, has_bfloat16, says", [
    (512, "float32", True, True), (512, "float32", False, False), (512, "bfloat16", True, False),
    (56, "float32", True, False),
])
def test_a_large_model_in_float32_on_a_cpu_says_what_is_faster(
        monkeypatch, n_embd, dtype, has_bfloat16, says):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bfloat16}, raising=False)
    with torch.device("meta"):
        model = GPT(GPTConfig(9, 17, n_layer=1, n_head=8, n_embd=n_embd))
    lines = notes(model, {"dtype": dtype, "step": "PyTorch", "step_refused": {}}, {}, torch.device("cpu"))
    assert ["--dtype=bfloat16" in line for line in lines] == [True] * says
