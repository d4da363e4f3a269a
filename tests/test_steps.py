"""Test the trial of a step: a run refuses a wrong step, reports why and trains with the plain one."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import SHORT, rows_of

import train_with_eval
from study import run_folder, steps, update
from study.device import setup_device
from study.fast import c_step, compiled, masks, shared
from study.settings import configure
from study.state import set_up
from study.update import get_lr

needs_a_compiler = pytest.mark.skipif(c_step.find_compiler() is None, reason="needs a C compiler")
DEEP = ("--n_layer=2", "--n_head=2", "--n_embd=16", "--batch_size=64")
WRONG_C = {  # what is wrong: (code of the C step, wrong code in its place)
    "the learning rate": ("rate = lr /", "rate = 1.01 * lr /"),
    "AdamW's epsilon": ("(real)1e-8", "(real)1e-4"),
    "the layer norm's epsilon": ("(real)1e-5", "(real)1e-4"),
}


def prepare(project, *arguments):
    """Return (state, windows, cfg, dtype, autocast) of a run that has not started, for choose_step()."""
    cfg = configure(vars(train_with_eval), arguments=["--device=cpu", *arguments])
    device, dtype, autocast = setup_device(cfg.device, cfg.dtype)
    state, splits, _, _ = set_up(cfg, device, dtype)
    return state, splits["train"], cfg, dtype, autocast


def same_result(first, second):
    """Tell whether two runs ended with the same evaluations and the same weights."""
    a, b = (torch.load(f"{folder}/ckpt_last.pt", weights_only=True)["model"] for folder in (first, second))
    return rows_of(first) == rows_of(second) and all(torch.equal(a[name], b[name]) for name in b)


def refusal_of(result, folder, step):
    """Return why a run refused a step; check that it trained and gave the reason in one line and run.json."""
    assert result.returncode == 0, result.stderr
    [line] = result.stderr.splitlines()
    reason = json.loads(Path(folder, "run.json").read_text())["step_refused"][step]
    assert line.startswith("note: ") and step in line and reason in line
    return reason


@pytest.fixture
def plain_run(call, in_tmp):
    """Return a function that trains with the plain step and returns the folder of the run."""

    def plain_run(*arguments):
        result = call("train_with_eval.py", *SHORT, *arguments, "--fast=False", "--compile=False",
                      "--out_dir=plain")
        assert result.returncode == 0 and result.stdout.splitlines()[0].endswith("PyTorch"), result.stderr
        return "plain"

    return plain_run


@needs_a_compiler
@pytest.mark.parametrize("mistake", WRONG_C)
def test_a_wrong_c_step_is_refused_and_the_plain_step_trains(call, in_tmp, monkeypatch, plain_run, mistake):
    source, (right, wrong) = c_step.SOURCE.read_text(), WRONG_C[mistake]
    assert right in source
    changed = in_tmp / "c_step.c"
    changed.write_text(source.replace(right, wrong))
    monkeypatch.setattr(c_step, "SOURCE", changed)
    monkeypatch.setattr(c_step, "FLAGS", ["-O1" if flag == "-O3" else flag for flag in c_step.FLAGS])
    result = call("train_with_eval.py", *SHORT, "--n_embd=6", "--out_dir=run")
    assert re.search(r"off by [\d.e+]+%", refusal_of(result, "run", "C step"))
    assert same_result("run", plain_run("--n_embd=6"))


@pytest.mark.parametrize("factor", [0.5, 1.01, float("nan")])
def test_a_shared_step_with_a_wrong_gradient_is_refused(call, in_tmp, monkeypatch, plain_run, factor):
    right = shared.shared_loss
    monkeypatch.setattr(shared, "shared_loss", lambda model, *batch: factor * right(model, *batch))
    result = call("train_with_eval.py", *SHORT, *DEEP, "--out_dir=run")
    reason = refusal_of(result, "run", "PyTorch, contexts shared")
    assert "loss" in reason and same_result("run", plain_run(*DEEP))


@pytest.mark.parametrize("factor", [0.5, 1.05, float("nan")])
def test_a_step_whose_masks_scale_wrongly_is_refused(call, in_tmp, monkeypatch, plain_run, factor):
    right = masks.mask
    monkeypatch.setattr(masks, "mask", lambda *arguments: factor * right(*arguments))
    dropout = (*DEEP, "--dropout=0.2")
    result = call("train_with_eval.py", *SHORT, *dropout, "--out_dir=run")
    refusal_of(result, "run", "PyTorch, 16-bit masks")
    assert same_result("run", plain_run(*dropout))


@pytest.mark.parametrize("failure", ["raises", "wrong gradient", "wrong learning rate"])
def test_a_compiled_step_that_fails_is_refused(project, monkeypatch, failure):
    arguments = ("--compile=True", "--fast=False", "--batch_size=64")
    state, windows, cfg, dtype, autocast = prepare(project, *arguments)

    def compile_update(update):
        if failure == "raises":
            raise RuntimeError("inductor has no kernel for this\nand a second line")

        def wrong_update(batches):
            hooks = []
            if failure == "wrong gradient":
                hooks = [p.register_hook(lambda gradient: 2 * gradient)
                         for p in state.model.transformer.h.parameters()]
            if failure == "wrong learning rate":
                for group in state.optimizer.param_groups:
                    group["lr"].mul_(1.01)
            loss = update(batches)
            for hook in hooks:
                hook.remove()
            return loss

        return wrong_update

    monkeypatch.setattr(compiled, "compile_update", compile_update)
    before = copy_state(state)
    step, refused = steps.choose_step(state, windows, cfg, dtype, autocast)
    assert step.name == "PyTorch" and list(refused) == ["PyTorch, compiled"]
    assert "\n" not in refused["PyTorch, compiled"]
    assert ("no kernel" if failure == "raises" else "off by") in refused["PyTorch, compiled"]
    assert equal_states(before, copy_state(state))
    assert all(type(group["lr"]) is float for group in state.optimizer.param_groups)


def copy_state(state):
    """Return copies of everything that a run resumes from, after the number of threads."""
    content = state.state_dict()
    return [torch.get_num_threads(), *(tensor.clone() if isinstance(tensor, torch.Tensor) else tensor
                                       for tensor in torch.utils._pytree.tree_leaves(content))]


def equal_states(before, after):
    return len(before) == len(after) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, after))


@pytest.mark.parametrize("arguments", [
    ("--n_embd=6",), (*DEEP,), ("--n_layer=2", "--dtype=bfloat16", "--batch_size=64"),
])
def test_a_trial_leaves_the_state_unchanged(project, arguments):
    state, windows, cfg, dtype, autocast = prepare(project, *arguments)
    for _ in range(2):  # at the start, and in the middle of a run
        threads, before = torch.get_num_threads(), copy_state(state)
        step, refused = steps.choose_step(state, windows, cfg, dtype, autocast)
        assert step.name != "PyTorch" and refused == {}
        assert equal_states(before[1:], copy_state(state)[1:])
        for _ in range(20):
            step.run(state.batches.draw(1), [get_lr(state.iter_num, cfg)])
            state.iter_num += 1
        torch.set_num_threads(threads)


@needs_a_compiler
def test_a_resumed_run_tries_a_step_again_on_another_machine_or_with_other_code(call, in_tmp, monkeypatch):
    def of_commit(commit):
        for module in (steps, run_folder):
            monkeypatch.setattr(module, "COMMIT", commit)

    of_commit("one")
    assert call("train_with_eval.py", *SHORT, "--out_dir=run").returncode == 0
    trials = []
    expect = steps.expect
    monkeypatch.setattr(steps, "expect", lambda *arguments: trials.append(1) or expect(*arguments))
    resume = ("train_with_eval.py", "--eval_interval=20", "--out_dir=run", "--init_from=resume")
    assert call(*resume, "--max_iters=60").returncode == 0 and trials == []
    info = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(info | {"device_name": "Another CPU"}))
    assert call(*resume, "--max_iters=80").returncode == 0 and trials == [1]
    info = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps(info | {"commit": "another"}))
    assert call(*resume, "--max_iters=100").returncode == 0 and trials == [1, 1]
    of_commit("one-dirty")  # which may be any code
    assert call(*resume, "--max_iters=120").returncode == 0 and len(trials) == 3
    assert call(*resume, "--max_iters=140").returncode == 0 and len(trials) == 4


def test_the_trial_allows_the_differences_of_rounding_and_dropout_and_no_more(project):
    state, windows, cfg, dtype, autocast = prepare(project, *DEEP, "--dropout=0.2", "--dtype=bfloat16")
    indices, lrs = steps.next_batches(state, cfg)
    exact, allowed, start = steps.expect(state, windows, cfg, dtype, autocast, indices, lrs)
    with steps.no_dropout(state.model):
        _, allowed_without, _ = steps.expect(state, windows, cfg, dtype, autocast, indices, lrs)
    assert all(allowed[name] > allowed_without[name] for name in allowed_without)
    steps.compare(exact, exact, allowed, start)
    with pytest.raises(ArithmeticError, match="loss"):
        steps.compare(exact | {"loss": 1.5 * exact["loss"]}, exact, allowed, start)
    with pytest.raises(ArithmeticError, match="wte"):
        negated = {"transformer.wte.weight": start["transformer.wte.weight"] * -1}
        steps.compare(exact | negated, exact, allowed, start)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("arguments", [
    "--dropout=0.2 --n_layer=2 --n_head=2 --n_embd=16 --batch_size=64",
    "--dropout=0.5 --n_embd=28 --dtype=bfloat16",
])
def test_a_right_step_with_other_masks_is_taken(project, seed, arguments):
    state, windows, cfg, dtype, autocast = prepare(project, f"--seed={seed}", *arguments.split())
    step, refused = steps.choose_step(state, windows, cfg, dtype, autocast)
    assert (step.name, refused) == (masks.NAME, {})
    layers = [module.p for module in state.model.modules() if isinstance(module, torch.nn.Dropout)]
    assert {*layers, *(block.attn.dropout for block in state.model.transformer.h)} == {cfg.dropout}


def test_the_trial_allows_for_masks_that_differ(project):
    arguments = ("--dropout=0.3", "--n_embd=16", "--n_head=2", "--batch_size=64")
    for seed in range(10):
        state, windows, cfg, dtype, autocast = prepare(project, f"--seed={seed}", *arguments)
        indices, lrs = steps.next_batches(state, cfg)
        expected = steps.expect(state, windows, cfg, dtype, autocast, indices, lrs)
        torch.manual_seed(1000 + seed)
        plain = update.make_update(state.model, state.optimizer, state.scaler, windows, cfg, autocast)
        step = update.make_eager_step(plain, state.optimizer)
        steps.compare(steps.result_of(state.model, state.optimizer, step.run(indices, lrs), cfg), *expected)


def test_each_fast_step_is_a_file_that_imports_no_other_step():
    paths = Path(steps.__file__).parent.glob("fast/*.py")
    files = {path.stem: path.read_text() for path in paths if path.stem != "__init__"}
    assert {"c_step", "captured", "compiled", "masks", "shared", "stack"} == files.keys()
    for name, source in files.items():
        code = source.split('"""', 2)[2]
        another_step = rf"study\.fast(?!\.{name})|from study import steps|study\.steps import"
        assert not re.search(another_step, code), name


def test_train_can_be_called_and_returns_the_state_of_the_run(project, in_tmp):
    cfg = configure(vars(train_with_eval), arguments=["--device=cpu", *SHORT, "--out_dir=run"])
    state = train_with_eval.train(cfg)
    assert [row["iter"] for row in state.rows] == [0, 20, 40] == [int(row["iter"]) for row in rows_of("run")]
    assert state.iter_num == 40 and state.stopped_by is None
    last = torch.load("run/ckpt_last.pt", weights_only=True)["model"]
    assert all(torch.equal(weight, last[name]) for name, weight in state.model.state_dict().items())
