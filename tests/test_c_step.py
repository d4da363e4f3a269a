"""Check that the C step agrees with PyTorch, gives the same bytes everywhere, and is compiled and cached."""

import json
import platform
import shutil
import statistics
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, SHORT, refused
from torch.nn import functional as F

from model import GPT, GPTConfig
from study.fast import c_step
from study.batches import load_splits
from study.device import cpu_info
from study.run_folder import load_model
from study.update import begin_moments

needs_a_compiler = pytest.mark.skipif(c_step.find_compiler() is None, reason="needs a C compiler")
DATASETS = {"as_math": (17, 9), "facts_char": (51, 24), "both_math_and_facts": (66, 24)}  # vocabulary, block


def setting(dataset, width, dtype, weight_decay=0.0, grad_clip=1.0, expansion=1):
    """Return (cfg, windows, a model away from its initial weights, its optimizer)."""
    vocab_size, block_size = DATASETS[dataset]
    cfg = SimpleNamespace(beta1=0.9, beta2=0.99, weight_decay=weight_decay, grad_clip=grad_clip)
    windows = load_splits(dataset, block_size, torch.device("cpu"))["train"]
    torch.manual_seed(5)
    model = GPT(GPTConfig(block_size, vocab_size, 1, 1, width, bias=False, mlp_expansion=expansion)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # at the start all gains are 1 and all scores near 0
            parameter += 0.3 * torch.randn(parameter.shape, dtype=dtype)
    return cfg, windows, model, optimizer_of(model, weight_decay)


def optimizer_of(model, weight_decay):
    optimizer = model.configure_optimizer(weight_decay, 0.0, (0.9, 0.99))
    begin_moments(optimizer)
    return optimizer


def plain_updates(cfg, windows, model, optimizer, indices, lrs):
    """Train with autograd and AdamW; return the gradients of the last update, before clipping."""
    for [rows], lr in zip(indices, lrs):
        optimizer.zero_grad()
        logits = model.lm_head(model.hidden(windows[rows, :-1]))
        F.cross_entropy(logits.flatten(0, 1), windows[rows, 1:].flatten()).backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        if cfg.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return gradients


def fast(cfg, windows, model, optimizer):
    return c_step.make_c_step(model, optimizer, windows, cfg).run


def fast_updates(cfg, windows, model, optimizer, indices, lrs):
    fast(cfg, windows, model, optimizer)(indices, lrs)


def draw(windows, updates, batch_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(windows), (updates, 1, batch_size), generator=generator)


def distance(ours, theirs):
    """Return the distance between two lists of tensors, relative to the size of the second.

    The size is clamped: with width 1 all gradients are 0 except for rounding.
    """
    ours, theirs = (torch.cat([t.detach().flatten() for t in tensors]) for tensors in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-3))


@needs_a_compiler
@pytest.mark.parametrize("width", [1, 7, 14, 28, 56, 64])
@pytest.mark.parametrize("dataset", DATASETS)
def test_gradients_and_twenty_updates_match_autograd(project, monkeypatch, dataset, width):
    quick_flags = ["-O1" if flag == "-O3" else flag for flag in c_step.FLAGS]  # these compile faster
    monkeypatch.setattr(c_step, "FLAGS", quick_flags)
    decay = 0.1 if width in (7, 28, 64) else 0.0
    # Clipping is active, switched off, and on without effect.
    clip = {"as_math": 0.01, "facts_char": 0.0, "both_math_and_facts": 1e6}[dataset]
    theirs, ours = (setting(dataset, width, torch.float64, decay, clip) for _ in range(2))
    indices, lrs = draw(theirs[1], 20, 150), [1e-2] * 20
    train = fast(*ours)
    expected = plain_updates(*theirs, indices[:1], lrs[:1])
    train(indices[:1], lrs[:1])
    assert distance([p.grad for p in ours[2].parameters()], expected) < 1e-10
    plain_updates(*theirs, indices[1:], lrs[1:])
    train(indices[1:], lrs[1:])
    assert distance(ours[2].parameters(), theirs[2].parameters()) < 1e-8
    for p, q in zip(ours[2].parameters(), theirs[2].parameters()):
        assert ours[3].state[p]["step"] == theirs[3].state[q]["step"] == 20


@needs_a_compiler
def test_a_wider_mlp_and_the_loss_match_autograd(project):
    theirs, ours = (setting("as_math", 5, torch.float64, expansion=3) for _ in range(2))
    indices = draw(theirs[1], 1, 400)
    _, loss = theirs[2](theirs[1][indices[0, 0], :-1], theirs[1][indices[0, 0], 1:])
    expected = plain_updates(*theirs, indices, [1e-3])
    assert fast(*ours)(indices, [1e-3]) == pytest.approx(loss.item(), rel=1e-12)
    assert distance([p.grad for p in ours[2].parameters()], expected) < 1e-10


@needs_a_compiler
def test_the_loss_is_finite_when_a_probability_underflows_float32(project):
    theirs, ours = (setting("as_math", 3, torch.float32) for _ in range(2))
    for _, _, model, _ in (theirs, ours):
        model.get_parameter("transformer.ln_f.weight").data *= 300  # logits of hundreds
    indices = draw(theirs[1], 1, 400)
    _, loss = theirs[2](theirs[1][indices[0, 0], :-1], theirs[1][indices[0, 0], 1:])
    expected = plain_updates(*theirs, indices, [1e-3])
    assert loss > 87  # nats: the step computes no exp below exp(-87)
    assert fast(*ours)(indices, [1e-3]) == pytest.approx(loss.item(), rel=1e-5)
    assert distance([p.grad for p in ours[2].parameters()], expected) < 1e-5


@needs_a_compiler
@pytest.mark.parametrize("dataset, width", [("as_math", 14), ("both_math_and_facts", 28)])
def test_the_float32_step_matches_pytorch_up_to_rounding(project, dataset, width):
    theirs, ours = (setting(dataset, width, torch.float32, 0.1) for _ in range(2))
    indices = draw(theirs[1], 10, 200)
    expected = plain_updates(*theirs, indices[:1], [1e-3])
    train = fast(*ours)
    train(indices[:1], [1e-3])
    assert distance([p.grad for p in ours[2].parameters()], expected) < 1e-5
    plain_updates(*theirs, indices[1:], [1e-3] * 9)
    train(indices[1:], [1e-3] * 9)
    assert distance(ours[2].parameters(), theirs[2].parameters()) < 1e-4


@needs_a_compiler
@pytest.mark.parametrize("run, dataset", [("math_mini_14", "as_math"), ("facts_mini_28", "facts_char")])
def test_the_error_of_a_trained_models_gradient_is_below_three_times_pytorchs(project, run, dataset):
    [path] = (ROOT / "results/paper" / run).glob("ckpt*.pt")
    cfg, windows, *_ = setting(dataset, 1, torch.float32, grad_clip=0.0)
    indices = draw(windows, 10, 882)
    errors = {"C step": [], "PyTorch": []}  # distances from the gradient in float64
    for batch in indices.split(1):
        def gradients(updates, dtype):
            model = load_model(path, torch.device("cpu"))[0].to(dtype)
            updates(cfg, windows, model, optimizer_of(model, 0.0), batch, [0.0])
            return [p.grad.double() for p in model.parameters()]

        exact = gradients(plain_updates, torch.float64)
        errors["C step"].append(distance(gradients(fast_updates, torch.float32), exact))
        errors["PyTorch"].append(distance(gradients(plain_updates, torch.float32), exact))
    ours, theirs = map(statistics.median, errors.values())
    assert 0 < ours < 3 * theirs and ours < 5e-5


@needs_a_compiler
def test_splitting_updates_or_batches_does_not_change_the_bytes(project):
    runs = [setting("as_math", 14, torch.float32) for _ in range(3)]
    indices, lrs = draw(runs[0][1], 6, 300), [1e-2, 9e-3, 8e-3, 7e-3, 6e-3, 5e-3]
    fast(*runs[0])(indices, lrs)
    one_by_one = fast(*runs[1])
    for i in range(6):
        one_by_one(indices[i : i + 1], lrs[i : i + 1])
    fast(*runs[2])(indices.view(6, 3, 100), lrs)  # three accumulated batches
    for other in runs[1:]:
        assert all(torch.equal(p, q) for p, q in zip(runs[0][2].parameters(), other[2].parameters()))


def machines():
    """Yield (name, compiler and flags, runner) for each target that this machine can compile for and run."""
    cpu = cpu_info()
    for compiler in ("gcc", "clang"):
        if shutil.which(compiler):
            if platform.machine() == "x86_64":
                yield f"{compiler}-sse2", [compiler], []
                if "avx2" in cpu and "fma" in cpu:
                    yield f"{compiler}-avx2", [compiler, "-mavx2", "-mfma"], []
                if "avx512f" in cpu:
                    yield f"{compiler}-avx512", [compiler, "-mavx512f", "-mavx512dq", "-mfma"], []
            else:
                yield f"{compiler}-{platform.machine()}", [compiler], []
    cross_tools = ("aarch64-linux-gnu-gcc", "qemu-aarch64-static")
    if all(map(shutil.which, cross_tools)) and platform.machine() != "aarch64":
        yield "gcc-arm64", ["aarch64-linux-gnu-gcc", "-static"], ["qemu-aarch64-static"]


# tests/c_step_digest.c prints these with every compiler and processor.
# The keys are (width, MLP expansion, vocabulary, block).
DIGESTS = {(14, 1, 17, 9): "179ef9bf52f46d7c", (28, 2, 66, 24): "042eb8758b94b8dc"}


def printed_by(source, size, program, compiler, runner=()):
    """Compile a C program of the tests with the step for a size, run it, and return what it prints.

    The size is (width, MLP expansion, vocabulary, block).
    """
    c, m, v, t = size
    flags = [flag for flag in c_step.FLAGS if flag not in ("-shared", "-fPIC")]
    constants = [f"-DC={c}", f"-DH={m * c}", f"-DV={v}", f"-DT={t}", "-Dreal=float"]
    include = f"-I{ROOT / 'study/fast'}"
    command = [*compiler, *flags, *constants, include, ROOT / "tests" / source, "-o", program, "-lm"]
    subprocess.run(command, check=True)
    return subprocess.run([*runner, program], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("compiler, runner", [pytest.param(c, r, id=name) for name, c, r in machines()])
def test_every_compiler_and_processor_gives_the_same_bytes(tmp_path, compiler, runner):
    for size, digest in DIGESTS.items():
        assert printed_by("c_step_digest.c", size, tmp_path / "program", compiler, runner).strip() == digest


@needs_a_compiler
def test_the_exp_and_erf_of_the_step_are_accurate(tmp_path):
    size, compiler = (14, 1, 17, 9), c_step.find_compiler()
    printed = printed_by("c_step_numbers.c", size, tmp_path / "program", compiler)
    exp_error, exp_below_87, erf_error = map(float, printed.split())
    assert exp_error < 2 and exp_below_87 == 0 and erf_error < 6e-7


@needs_a_compiler
def test_scaling_the_gradient_changes_no_sum_that_begins_with_denormal_numbers(tmp_path):
    size, compiler = (14, 1, 17, 9), c_step.find_compiler()
    printed = printed_by("c_step_underflow.c", size, tmp_path / "program", compiler)
    differ, would_differ_without_them = map(int, printed.split())
    assert differ == 0 and would_differ_without_them > 1000


@needs_a_compiler
def test_scaling_the_gradient_changes_no_byte_of_a_model_that_is_sure(project, monkeypatch):
    weights = {}
    for flags in ([], ["-DSCALE=1"]):
        cfg, windows, model, optimizer = setting("as_math", 28, torch.float32)
        with torch.no_grad():
            model.transformer.ln_f.weight *= 30  # logits far apart: most probabilities are denormal or 0
        monkeypatch.setattr(c_step, "FLAGS", [*c_step.FLAGS, *flags])
        fast_updates(cfg, windows, model, optimizer, draw(windows, 100, 882), [1e-4] * 100)
        weights[bool(flags)] = [p.detach() for p in model.parameters()]
    logits = model(windows[:, :-1], windows[:, 1:])[0]
    smallest = logits.log_softmax(-1).min(dim=-1).values
    assert (smallest < -75).float().mean() > 0.5
    assert all(torch.equal(scaled, plain) for scaled, plain in zip(*weights.values()))


@needs_a_compiler
def test_a_run_reports_which_step_it_uses(call, in_tmp):
    result = call("train_with_eval.py", *SHORT, "--out_dir=fast")
    assert "C step (" in result.stdout.splitlines()[0] and result.stderr == ""
    assert json.loads(Path("fast/run.json").read_text())["step"].startswith("C step (")
    for reason in ("--fast=False", "--dropout=0.1", "--n_head=2", "--bias=True", "--dtype=bfloat16",
                   "--n_layer=2 --fast=False", "--n_layer=2 --dropout=0.1", "--n_layer=2"):
        arguments = ["--max_iters=1", *reason.split(), "--out_dir=plain", "--overwrite"]
        result = call("train_with_eval.py", *arguments)
        step = "PyTorch, contexts shared" if reason == "--n_layer=2" else "PyTorch"
        step += ", 16-bit masks" if "dropout" in reason else ""
        assert result.stdout.splitlines()[0].endswith(f", {step}") and result.stderr == "", reason


@pytest.mark.parametrize("compiler, why", [
    ("nowhere-cc", "CC=nowhere-cc names no program"),
    ('"cc', 'CC="cc names no program'),
    ("false", "could not compile study/fast/c_step.c"),
])
def test_without_a_working_compiler_pytorch_trains_and_says_why(call, in_tmp, monkeypatch, compiler, why):
    monkeypatch.setenv("CC", compiler)
    result = call("train_with_eval.py", "--max_iters=2", "--out_dir=run")
    assert result.returncode == 0 and ", PyTorch" in result.stdout.splitlines()[0]
    [line] = result.stderr.splitlines()
    assert line.startswith("note: ") and why in line and "PyTorch" in line


@needs_a_compiler
def test_resuming_with_another_step_prints_a_note(call, in_tmp, monkeypatch):
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    resume = ("--out_dir=run", "--init_from=resume")
    refused(call("train_with_eval.py", *SHORT, *resume, "--fast=False"), "fast=True", "False")
    monkeypatch.setenv("CC", "nowhere-cc")
    result = call("train_with_eval.py", *SHORT, *resume, "--max_iters=45")
    first, second = result.stderr.splitlines()
    assert result.returncode == 0 and "names no program" in first
    assert "made by C step" in second and "rounds differently" in second


@needs_a_compiler
def test_a_step_is_compiled_once_and_again_after_any_change(in_tmp, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "cache"))
    monkeypatch.setattr(c_step, "FLAGS", ["-O0", *c_step.FLAGS[1:]])
    config = GPTConfig(9, 17, 1, 1, 4, bias=False, mlp_expansion=1)
    real, folder = c_step.find_compiler()[0], in_tmp / "cache" / "too-big-to-think"
    counting = in_tmp / "counting-cc"
    count = f'case "$*" in *--version*) ;; *) echo x >> {in_tmp}/calls ;; esac'
    counting.write_text(f'#!/bin/sh\n{count}\nexec {real} "$@"\n')
    counting.chmod(0o755)
    monkeypatch.setenv("CC", str(counting))

    def compilations():
        c_step.load(config)
        assert all(path.suffix == ".so" for path in folder.iterdir())  # no temporary file remains
        return len((in_tmp / "calls").read_text().split())

    assert compilations() == 1 and compilations() == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    config.n_embd = 6
    assert compilations() == 2
    monkeypatch.setattr(c_step, "FLAGS", [*c_step.FLAGS, "-g"])
    assert compilations() == 3
    changed = in_tmp / "c_step.c"
    changed.write_text(c_step.SOURCE.read_text() + "\n")
    monkeypatch.setattr(c_step, "SOURCE", changed)
    assert compilations() == 4
    monkeypatch.setattr(c_step, "cpu_info", lambda: "model name: another processor")
    assert compilations() == 5


@needs_a_compiler
def test_a_cache_folder_that_others_can_write_is_not_used(in_tmp, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp))
    monkeypatch.setattr(c_step, "FLAGS", ["-O0", *c_step.FLAGS[1:]])
    config = GPTConfig(9, 17, 1, 1, 4, bias=False, mlp_expansion=1)
    c_step.load(config)
    folder = in_tmp / "too-big-to-think"
    [library] = folder.iterdir()
    library.unlink()  # write a new file: the old one is loaded in this process
    library.write_bytes(b"not what was compiled")
    folder.chmod(0o777)
    c_step.load(config)
    assert library.read_bytes() == b"not what was compiled" and len(list(folder.iterdir())) == 1


def test_a_user_without_a_home_gets_a_temporary_cache_folder(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(c_step.Path, "home", no_home)
    folder = c_step.cache_folder()
    assert folder.is_dir() and folder.name.startswith("too-big-to-think-")
    folder.rmdir()


@needs_a_compiler
def test_a_damaged_library_is_compiled_again(in_tmp, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp))
    monkeypatch.setattr(c_step, "FLAGS", ["-O0", *c_step.FLAGS[1:]])
    config = GPTConfig(9, 17, 1, 1, 3, bias=False, mlp_expansion=1)
    monkeypatch.setattr(c_step, "NATIVE", [[]])  # so that the path is known before anything is loaded
    path = c_step.compile_step(config, torch.float32, c_step.find_compiler(), [], c_step.cache_folder())
    path.write_bytes(b"")
    c_step.load_library(config, torch.float32, c_step.find_compiler(), c_step.cache_folder())
    assert path.stat().st_size > 1000
