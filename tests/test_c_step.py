"""The C step is PyTorch's, makes the same bytes everywhere, and is compiled, kept and left out as it should be."""

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
    """(cfg, windows, a model away from its initial weights, its optimizer)."""
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
    """Autograd and AdamW; returns the gradients of the last update, before clipping."""
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
    return torch.randint(len(windows), (updates, 1, batch_size), generator=torch.Generator().manual_seed(seed))


def distance(ours, theirs):
    """Of two lists of tensors, relative to the size of the second (with width 1 all gradients are 0 but for rounding)."""
    ours, theirs = (torch.cat([t.detach().flatten() for t in tensors]) for tensors in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-3))


@needs_a_compiler
@pytest.mark.parametrize("width", [1, 7, 14, 28, 56, 64])
@pytest.mark.parametrize("dataset", DATASETS)
def test_gradients_and_twenty_updates_are_those_of_autograd(project, monkeypatch, dataset, width):
    monkeypatch.setattr(c_step, "FLAGS", ["-O1" if flag == "-O3" else flag for flag in c_step.FLAGS])  # compiles sooner
    decay = 0.1 if width in (7, 28, 64) else 0.0
    clip = {"as_math": 0.01, "facts_char": 0.0, "both_math_and_facts": 1e6}[dataset]  # active, left out, not active
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
def test_a_wider_mlp_and_a_loss_are_those_of_autograd(project):
    theirs, ours = (setting("as_math", 5, torch.float64, expansion=3) for _ in range(2))
    indices = draw(theirs[1], 1, 400)
    _, loss = theirs[2](theirs[1][indices[0, 0], :-1], theirs[1][indices[0, 0], 1:])
    expected = plain_updates(*theirs, indices, [1e-3])
    assert fast(*ours)(indices, [1e-3]) == pytest.approx(loss.item(), rel=1e-12)
    assert distance([p.grad for p in ours[2].parameters()], expected) < 1e-10


@needs_a_compiler
def test_the_loss_is_finite_where_a_target_has_no_probability_that_float32_could_hold(project):
    theirs, ours = (setting("as_math", 3, torch.float32) for _ in range(2))
    for _, _, model, _ in (theirs, ours):
        model.get_parameter("transformer.ln_f.weight").data *= 300  # logits of hundreds
    indices = draw(theirs[1], 1, 400)
    _, loss = theirs[2](theirs[1][indices[0, 0], :-1], theirs[1][indices[0, 0], 1:])
    expected = plain_updates(*theirs, indices, [1e-3])
    assert loss > 87  # nats: exp(-87) is the smallest that the step has
    assert fast(*ours)(indices, [1e-3]) == pytest.approx(loss.item(), rel=1e-5)
    assert distance([p.grad for p in ours[2].parameters()], expected) < 1e-5


@needs_a_compiler
@pytest.mark.parametrize("dataset, width", [("as_math", 14), ("both_math_and_facts", 28)])
def test_in_float32_it_is_pytorchs_step_but_for_rounding(project, dataset, width):
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
def test_of_a_trained_model_the_gradient_is_as_near_to_float64s_as_pytorchs_within_a_factor_of_three(project, run, dataset):
    [path] = (ROOT / "results/paper" / run).glob("ckpt*.pt")
    cfg, windows, *_ = setting(dataset, 1, torch.float32, grad_clip=0.0)
    indices = draw(windows, 10, 882)
    off = {"C step": [], "PyTorch": []}  # from the gradient in float64
    for batch in indices.split(1):
        def gradients(updates, dtype):
            model = load_model(path, torch.device("cpu"))[0].to(dtype)
            updates(cfg, windows, model, optimizer_of(model, 0.0), batch, [0.0])
            return [p.grad.double() for p in model.parameters()]

        exact = gradients(plain_updates, torch.float64)
        off["C step"].append(distance(gradients(fast_updates, torch.float32), exact))
        off["PyTorch"].append(distance(gradients(plain_updates, torch.float32), exact))
    ours, theirs = map(statistics.median, off.values())
    assert 0 < ours < 3 * theirs and ours < 5e-5


@needs_a_compiler
def test_updates_one_by_one_or_together_and_batches_apart_or_as_one_give_the_same_bytes(project):
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
    """(name, compiler and flags, what runs the program) of what can be compiled for and run here."""
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
    if shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64-static") and platform.machine() != "aarch64":
        yield "gcc-arm64", ["aarch64-linux-gnu-gcc", "-static"], ["qemu-aarch64-static"]


# What tests/c_step_digest.c prints, whatever the compiler and the processor.
DIGESTS = {(14, 1, 17, 9): "179ef9bf52f46d7c", (28, 2, 66, 24): "042eb8758b94b8dc"}  # width, MLP expansion, vocabulary, block


def printed_by(source, size, program, compiler, runner=()):
    """What a C program of the tests prints, compiled with the step for a size: width, MLP expansion, vocabulary, block."""
    c, m, v, t = size
    flags = [flag for flag in c_step.FLAGS if flag not in ("-shared", "-fPIC")]
    constants = [f"-DC={c}", f"-DH={m * c}", f"-DV={v}", f"-DT={t}", "-Dreal=float"]
    subprocess.run([*compiler, *flags, *constants, f"-I{ROOT / 'study/fast'}", ROOT / "tests" / source, "-o", program, "-lm"], check=True)
    return subprocess.run([*runner, program], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("compiler, runner", [pytest.param(c, r, id=name) for name, c, r in machines()])
def test_the_same_bytes_come_out_of_every_compiler_and_processor(tmp_path, compiler, runner):
    for size, digest in DIGESTS.items():
        assert printed_by("c_step_digest.c", size, tmp_path / "program", compiler, runner).strip() == digest


@needs_a_compiler
def test_the_steps_own_exp_and_erf_are_as_near_as_they_are_said_to_be(tmp_path):
    of_exp, below, of_erf = map(float, printed_by("c_step_numbers.c", (14, 1, 17, 9), tmp_path / "program", c_step.find_compiler()).split())
    assert of_exp < 2 and below == 0 and of_erf < 6e-7


@needs_a_compiler
def test_a_run_says_which_step_it_takes(call, in_tmp):
    result = call("train_with_eval.py", *SHORT, "--out_dir=fast")
    assert "C step (" in result.stdout.splitlines()[0] and result.stderr == ""
    assert json.loads(Path("fast/run.json").read_text())["step"].startswith("C step (")
    for reason in ("--fast=False", "--dropout=0.1", "--n_head=2", "--bias=True", "--dtype=bfloat16",
                   "--n_layer=2 --fast=False", "--n_layer=2 --dropout=0.1", "--n_layer=2"):
        result = call("train_with_eval.py", "--max_iters=1", *reason.split(), "--out_dir=plain", "--overwrite")
        step = "PyTorch, contexts shared" if reason == "--n_layer=2" else "PyTorch"
        assert result.stdout.splitlines()[0].endswith(f", {step}") and result.stderr == "", reason


@pytest.mark.parametrize("compiler, why", [
    ("nowhere-cc", "CC=nowhere-cc is no program"), ('"cc', 'CC="cc is no program'), ("false", "could not compile study/fast/c_step.c")])
def test_without_a_compiler_that_works_pytorch_trains_and_says_so(call, in_tmp, monkeypatch, compiler, why):
    monkeypatch.setenv("CC", compiler)
    result = call("train_with_eval.py", "--max_iters=2", "--out_dir=run")
    assert result.returncode == 0 and ", PyTorch" in result.stdout.splitlines()[0]
    [line] = result.stderr.splitlines()
    assert line.startswith("note: ") and why in line and "PyTorch" in line


@needs_a_compiler
def test_a_run_that_goes_on_with_another_step_says_so(call, in_tmp, monkeypatch):
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    refused(call("train_with_eval.py", *SHORT, "--out_dir=run", "--init_from=resume", "--fast=False"), "fast=True", "False")
    monkeypatch.setenv("CC", "nowhere-cc")
    result = call("train_with_eval.py", *SHORT, "--out_dir=run", "--init_from=resume", "--max_iters=45")
    first, second = result.stderr.splitlines()
    assert result.returncode == 0 and "is no program" in first and "made by C step" in second and "rounds differently" in second


@needs_a_compiler
def test_a_step_is_compiled_once_and_anew_when_anything_about_it_changes(in_tmp, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "cache"))
    monkeypatch.setattr(c_step, "FLAGS", ["-O0", *c_step.FLAGS[1:]])
    config = GPTConfig(9, 17, 1, 1, 4, bias=False, mlp_expansion=1)
    real, folder = c_step.find_compiler()[0], in_tmp / "cache" / "too-big-to-think"
    counting = in_tmp / "counting-cc"
    counting.write_text(f'#!/bin/sh\ncase "$*" in *--version*) ;; *) echo x >> {in_tmp}/calls ;; esac\nexec {real} "$@"\n')
    counting.chmod(0o755)
    monkeypatch.setenv("CC", str(counting))

    def compiled():
        c_step.load(config)
        assert all(path.suffix == ".so" for path in folder.iterdir())  # nothing half-made is left
        return len((in_tmp / "calls").read_text().split())

    assert compiled() == 1 and compiled() == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    config.n_embd = 6
    assert compiled() == 2
    monkeypatch.setattr(c_step, "FLAGS", [*c_step.FLAGS, "-g"])
    assert compiled() == 3
    changed = in_tmp / "c_step.c"
    changed.write_text(c_step.SOURCE.read_text() + "\n")
    monkeypatch.setattr(c_step, "SOURCE", changed)
    assert compiled() == 4
    monkeypatch.setattr(c_step, "cpu_info", lambda: "model name: another processor")
    assert compiled() == 5


@needs_a_compiler
def test_nothing_is_loaded_from_or_kept_in_a_folder_that_others_can_write(in_tmp, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp))
    monkeypatch.setattr(c_step, "FLAGS", ["-O0", *c_step.FLAGS[1:]])
    config = GPTConfig(9, 17, 1, 1, 4, bias=False, mlp_expansion=1)
    c_step.load(config)
    folder = in_tmp / "too-big-to-think"
    [library] = folder.iterdir()
    library.unlink()  # another file: this one is loaded
    library.write_bytes(b"not what was compiled")
    folder.chmod(0o777)
    c_step.load(config)
    assert library.read_bytes() == b"not what was compiled" and len(list(folder.iterdir())) == 1


def test_a_user_without_a_home_gets_a_folder_of_this_run(monkeypatch):
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
    monkeypatch.setattr(c_step, "NATIVE", [[]])  # then the path is known before anything is loaded
    path = c_step.compile_step(config, torch.float32, c_step.find_compiler(), [], c_step.cache_folder())
    path.write_bytes(b"")
    c_step.load_library(config, torch.float32, c_step.find_compiler(), c_step.cache_folder())
    assert path.stat().st_size > 1000
