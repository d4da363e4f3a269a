"""Choose the step that a run takes: the fastest one that makes the plain step's updates, as a trial shows.

Each faster step has a file in study/fast/. One that cannot be built, raises, or differs from the plain step
is refused with a reason, and the next is tried; the plain step is the last. A trial makes a few updates from
the state that the run is in, with the batches and learning rates that come, and puts everything back.
"""

import contextlib
import copy

import torch
import torch.distributed as dist

from study import StudyError
from study.device import machine
from study.fast import c_step, captured, compiled, masks, shared, stack
from study.run_folder import COMMIT
from study.state import random_state, set_random_state
from study.update import build_optimizer, copy_of, get_lr, make_eager_step, make_update, put_back

UPDATES = 2  # of a trial; with more than one, AdamW's moments and bias correction count
# A step may be off by the sum of these:
ROUNDING = 10  # times what the plain step is off by in the run's precision
MASKS = 3  # with dropout, times what another draw of the masks changes
# A share of the value, in case the plain step is exact by chance.
SHARE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
# A weight whose gradient has less than this share of the whole gradient's norm is not compared: AdamW turns
# rounding errors into full updates there, as in models of width 1 and 2.
NEGLIGIBLE = {"float32": 1e-4, "bfloat16": 2e-3, "float16": 2e-3}


def choose_step(state, windows, cfg, dtype, autocast, earlier=None):
    """(Step, refused): the step that a run takes, and {name: why} of the faster ones that were refused.

    state: the run's TrainingState, which stays as it is. earlier: run.json of the part of the run before; a
    step that it took on this machine is not tried again.
    """
    plain = make_update(state.model, state.optimizer, state.scaler, windows, cfg, autocast)
    before, refused, expected = snapshot(state), {}, None
    try:
        indices, lrs = next_batches(state, cfg)
    except (MemoryError, RuntimeError):  # no step could train; the first update says so
        return make_eager_step(plain, state.optimizer), refused
    for name, make in fast_steps(state, windows, cfg, dtype, autocast, plain):
        try:
            step = make()
            if not took(earlier or {}, step, state.device):
                # It draws other masks than the plain step, and reads the probability in each update.
                with no_dropout(state.model) if name == masks.NAME else contextlib.nullcontext():
                    expected = expected or expect(state, windows, cfg, dtype, autocast, indices, lrs)
                    try_step(step, state, before, cfg, indices, lrs, expected)
            return step, refused
        except Exception as error:  # whatever it is, the run goes on without this step
            refused[name] = reason_of(error)
            restore(state, before, settings=True)
    return make_eager_step(plain, state.optimizer), refused


@contextlib.contextmanager
def no_dropout(model):
    """Inside, a model in training drops nothing, so that a step with other masks compares exactly."""
    dropouts = [(module, name, getattr(module, name)) for module in model.modules()
                for name in ("p", "dropout") if isinstance(getattr(module, name, None), float)]
    for module, name, _ in dropouts:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, p in dropouts:
            setattr(module, name, p)


def try_step(step, state, before, cfg, indices, lrs, expected):
    """Make a trial's updates with a Step; raise if it differs from expect(), else put the state back."""
    set_random_state(before["random"], state.device)
    loss = step.run(indices, lrs)
    compare(result_of(state.model, state.optimizer, loss, cfg), *expected)
    restore(state, before)


def fast_steps(state, windows, cfg, dtype, autocast, plain):
    """[(name, function that makes the Step)] of the steps that fit a run, the fastest first."""
    model, optimizer, device = state.model, state.optimizer, state.device
    on_cpu, on_cuda = device.type == "cpu", device.type == "cuda"
    single = not dist.is_initialized() or dist.get_world_size() == 1
    compiles = cfg.compile is True or (cfg.compile == "auto" and on_cuda and single)
    # With several processes or loss scaling the host has work in every update, which no graph can hold.
    captures = on_cuda and cfg.cuda_graph is not False and single and not state.scaler.is_enabled()

    def capture(update, name):
        shape = (cfg.gradient_accumulation_steps, cfg.batch_size)
        return captured.make_captured_step(update, list(model.parameters()), optimizer, shape, device, name)

    steps = []
    if on_cpu and single and cfg.fast and dtype == "float32" and c_step.applies_to(model.config):
        steps.append(("C step", lambda: c_step.make_c_step(model, optimizer, windows, cfg)))
    if captures and compiles:
        both = "PyTorch, compiled, one CUDA graph an update"
        steps.append((both, lambda: capture(compiled.compile_update(plain), both)))
    if captures:
        graph = "PyTorch, one CUDA graph an update"
        steps.append((graph, lambda: capture(plain, graph)))
    elif compiles:
        steps.append(("PyTorch, compiled", lambda: compiled.make_compiled_step(plain, optimizer, device)))
    on_cores = on_cpu and single and cfg.fast and not compiles
    # In a model of one layer, finding what windows share takes as long as it saves.
    if on_cores and cfg.dropout == 0 and cfg.n_layer > 1:
        name = "PyTorch, contexts shared"
        steps.append((name, lambda: shared.make_shared_step(state, windows, cfg, autocast)))
    elif on_cores and cfg.dropout > 0:
        steps.append((masks.NAME, lambda: masks.make_masks_step(state, windows, cfg, autocast)))
    return steps


def choose_stack_step(states, windows, cfg, device, dtype, autocast):
    """(Step, hand_back, refused) of a stack of runs, of which the first and the last are compared.

    windows: each run's. step.run takes indices (updates, members, ...) and returns losses (members,).
    hand_back() copies the stack's weights and moments to the runs' states and returns which are finite.
    Raises StudyError if no step is left, and torch.OutOfMemoryError.
    """
    weights, optimizer = stack.stack_up(states, cfg)
    parameters = list(weights.values())
    model, stacked = states[0].model, torch.stack(windows)
    update = stack.make_stacked_update(model, weights, optimizer, stacked, cfg, autocast)
    eager = f"PyTorch, a stack of {len(states)}"
    graph = f"{eager}, one CUDA graph an update"
    shape = (len(states), cfg.gradient_accumulation_steps, cfg.batch_size)
    steps = [(eager, lambda: make_eager_step(update, optimizer, eager))]
    if device.type == "cuda" and cfg.cuda_graph is not False:
        capture = captured.make_captured_step
        steps.insert(0, (graph, lambda: capture(update, parameters, optimizer, shape, device, graph)))

    def hand_back():
        return stack.hand_back(weights, optimizer, states)

    drawn, [lrs, *_] = zip(*(next_batches(state, cfg) for state in states))
    expected = {k: expect(states[k], windows[k], cfg, dtype, autocast, drawn[k], lrs)
                for k in {0, len(states) - 1}}
    copies, refused = copy_of(parameters, optimizer), {}
    for name, make in steps:
        try:
            step = make()
            losses = step.run(torch.stack(drawn, dim=1), lrs)
            hand_back()
            for k, outcome in expected.items():
                compare(result_of(states[k].model, states[k].optimizer, losses[k], cfg), *outcome)
            return step, hand_back, refused
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever it is, the runs go on without this step
            refused[name] = reason_of(error)
        finally:
            put_back(parameters, optimizer, copies)
            hand_back()
    raise StudyError("; ".join(f"{name} is not used: {reason}" for name, reason in refused.items()))


def next_batches(state, cfg):
    """(indices, learning rates) of the updates that come next; the run draws them again."""
    order = state.batches.generator.get_state()
    try:
        indices = state.batches.draw(UPDATES)
    finally:
        state.batches.generator.set_state(order)
    return indices, [get_lr(state.iter_num + i, cfg) for i in range(UPDATES)]


def expect(state, windows, cfg, dtype, autocast, indices, lrs):
    """(exact, allowed, start) of a trial.

    exact: result_of() the plain step in a wider precision. allowed: {name: what a step may be off by}, for
    all that is compared. start: {name: weights before}.
    """
    random = random_state(state.device)
    start = {name: parameter.detach().double().clone() for name, parameter in state.model.named_parameters()}

    def plain_result(weights_dtype, autocast):
        model = copy.deepcopy(state.model).to(weights_dtype)
        optimizer = build_optimizer(model, cfg)
        moments = copy.deepcopy(state.optimizer.state_dict()["state"])
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        scaler = copy.deepcopy(state.scaler)
        step = make_eager_step(make_update(model, optimizer, scaler, windows, cfg, autocast), optimizer)
        return result_of(model, optimizer, step.run(indices, lrs), cfg)

    no_autocast = torch.autocast(state.device.type, enabled=False)
    weights_dtype = next(iter(state.model.parameters())).dtype
    exact = plain_result(torch.float64 if dtype == "float32" else torch.float32, no_autocast)
    set_random_state(random, state.device)
    rounded = plain_result(weights_dtype, autocast)
    allowed = {name: ROUNDING * off + SHARE[dtype] for name, off in distances(rounded, exact, start).items()}
    if state.model.transformer.drop.p > 0:
        another = plain_result(weights_dtype, autocast)  # the random state has moved on
        off = distances(another, rounded, start)
        # Two draws of one number may be close by chance: what the most different one is off by counts.
        for kind in (start.keys(), off.keys() - start.keys() - {"loss"}):
            most = max(off[name] for name in kind)
            for name in kind:
                allowed[name] += MASKS * most
        allowed["loss"] += 2 * MASKS * spread_of_loss(state.model, windows[indices[-1, 0]], autocast)
    set_random_state(random, state.device)
    for name in start:
        if exact[gradient_of(name)] < NEGLIGIBLE[dtype] * exact["gradient norm"]:
            del allowed[name], allowed[gradient_of(name)]
    return exact, allowed, start


@torch.no_grad()
def spread_of_loss(model, windows, autocast):
    """Standard deviation, as a share of the mean, of the loss over ten draws of dropout's masks."""
    with autocast:
        losses = torch.stack([model(windows[:, :-1], windows[:, 1:])[1].double() for _ in range(10)])
    return float(losses.std() / losses.mean())


def result_of(model, optimizer, loss, cfg):
    """{name: float64 tensor} of loss, gradient norm, and each weight with its gradient's norm, after updates.

    The norms are those that AdamW's second moments average. The weights alone would not tell a gradient from
    twice that gradient, because AdamW divides by its size.
    """
    result = {"loss": torch.as_tensor(loss).detach().double()}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        bias = 1 - cfg.beta2 ** max(1.0, float(moments["step"]))
        result[name] = parameter.detach().double().clone()
        result[gradient_of(name)] = (moments["exp_avg_sq"].double().sum() / bias).sqrt()
    norms = [value for name, value in result.items() if name.startswith(gradient_of(""))]
    return result | {"gradient norm": torch.stack(norms).norm()}


def gradient_of(name):
    return f"gradient of {name}"


def distances(result, exact, start):
    """How far a result is off, {name: share}: of the exact value, or for a weight of how far it moved."""
    shares = {}
    for name, value in exact.items():
        way = (value - start[name]).norm() if name in start else value.abs()
        off = (result[name].to(value.device) - value).norm()
        shares[name] = 0.0 if off == 0 else float(off / way)
    return shares


def compare(result, exact, allowed, start):
    """Raise ArithmeticError if a result is further from the exact one than allowed."""
    fails = [value for value in allowed.values() if value != value]  # nan
    if fails or not all(value.isfinite().all() for value in exact.values()):
        return  # the plain step itself fails, as the run will say
    for name, off in distances(result, exact, start).items():
        if name in allowed and not off <= allowed[name]:
            what = f"update of {name}" if name in start else name
            raise ArithmeticError(f"after {UPDATES} updates its {what} is off by {100 * off:.2g}%, "
                                  f"and {100 * allowed[name]:.2g}% is rounding")


def snapshot(state):
    """All that a trial may change, for restore()."""
    return {
        "copies": copy_of(list(state.model.parameters()), state.optimizer),
        "scale": copy.deepcopy(state.scaler.state_dict()), "random": random_state(state.device),
        "lrs": [group["lr"] for group in state.optimizer.param_groups], "threads": torch.get_num_threads(),
    }


def restore(state, before, settings=False):
    """Put weights, moments and random states back; with settings, learning rates and threads too."""
    put_back(list(state.model.parameters()), state.optimizer, before["copies"])
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(before["scale"])
    set_random_state(before["random"], state.device)
    if settings:
        for group, lr in zip(state.optimizer.param_groups, before["lrs"]):
            group["lr"] = lr
        torch.set_num_threads(before["threads"])


def took(earlier, step, device):
    """Whether a run.json says that its run took this step after a trial of this code on such a machine."""
    if earlier.get("step") != step.name or "step_refused" not in earlier:
        return False
    if COMMIT is None or COMMIT.endswith("-dirty"):  # the code may have changed since
        return False
    here = machine(device) | {"commit": COMMIT}
    return all(earlier.get(key) == here[key] for key in ("device_name", "torch", "driver", "commit"))


def reason_of(error):
    """An exception in one line."""
    if isinstance(error, getattr(torch, "AcceleratorError", ())) and error.__context__:  # since torch 2.8
        error = error.__context__  # the end of a capture that failed raises an error of its own
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if isinstance(error, (ArithmeticError, RuntimeError)) else f"{type(error).__name__}: {text}"
