"""Train runs of one shape together, as a stack: the loop of train_with_eval.py for many runs at once.

Each member has its own initial weights, batches, windows, run folder and ckpt_last.pt, so that a single run
can go on with what a stack began, and the other way round.
"""

import sys
import time
from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import torch

from study import StudyError
from study.progress import timed
from study.run_folder import RunFolder
from study.scoring import evaluate
from study.state import TrainingState, resume, set_up
from study.steps import choose_stack_step
from study.update import get_lr

MEMBER_SETTINGS = {"seed", "data_seed", "dataset", "out_dir", "init_from"}  # in these, members may differ


class Member(NamedTuple):
    cfg: SimpleNamespace  # its settings
    state: TrainingState
    splits: dict  # load_splits() of its dataset
    tasks: list
    resolved: dict  # what dataset and dtype resolve to, of set_up()
    run: RunFolder


def open_member(cfg, device, dtype):
    """The Member of a run, begun or resumed; raises StudyError."""
    state, splits, tasks, resolved = set_up(cfg, device, dtype)
    run = RunFolder(cfg)
    if cfg.init_from == "resume":
        resume(state, cfg, resolved)
    return Member(cfg, state, splits, tasks, resolved, run)


def or_none(function, *arguments):
    """What a function returns; None, with the error printed, if it raises StudyError."""
    try:
        return function(*arguments)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return None


def train_stack(cfgs, device, dtype, autocast, signals, progress):
    """Train runs that differ in MEMBER_SETTINGS alone, to max_iters or until `signals` is not empty.

    cfgs: their settings, those of train_with_eval.py. progress(iteration) is called between updates. Returns
    the settings of the runs that came to the end. The others stay as they were saved last: those that cannot
    be opened, whose weights or loss are not finite, or that are not at the iteration of most of the stack.
    Raises StudyError if no step is left that makes the plain step's updates.
    """
    opened = [member for each in cfgs if (member := or_none(open_member, each, device, dtype))]
    if not opened:
        return []
    [(it, _)] = Counter(member.state.iter_num for member in opened).most_common(1)
    members = [member for member in opened if member.state.iter_num == it]
    try:
        return train_members(members, it, device, dtype, autocast, signals, progress)
    finally:
        for member in opened:
            member.run.lock.close()  # now, because processes may train these runs next


def train_members(members, it, device, dtype, autocast, signals, progress):
    """Train members of a stack from iteration `it` on; see train_stack()."""
    cfg = members[0].cfg
    states = [member.state for member in members]
    windows = [member.splits["train"] for member in members]
    step, hand_back, refused = choose_stack_step(states, windows, cfg, device, dtype, autocast)
    seconds = dict.fromkeys(("training", "evaluation", "saving"), 0.0)  # a member's share of the stack's time
    for member in members:
        resolved = member.resolved | {"step": step.name, "step_refused": refused, "processes": 1}
        member.run.begin(member.state.model, member.tasks, device, resolved, seconds, it, member.state.rows)

    saved = time.monotonic()
    while True:
        due = it % cfg.eval_interval == 0 or it >= cfg.max_iters
        ends = it >= cfg.max_iters or bool(signals)
        saves = ends or time.monotonic() - saved > cfg.save_interval
        if due or saves:
            finite = dict(zip(map(id, states), hand_back().tolist()))
            for member in members:
                if not finite[id(member.state)]:
                    print(f"note: the weights of {member.cfg.out_dir} at iteration {it} are not finite; "
                          "it is left as it was saved last", file=sys.stderr)
            members = [member for member in members if finite[id(member.state)]]
        for member in list(members) if due else []:
            rows = member.state.rows
            if rows and rows[-1]["iter"] == it:  # a resumed run may have this one
                continue
            with timed(seconds, "evaluation", len(states)):
                row = or_none(evaluate, member.state.model, member.splits, member.resolved["chars"],
                              member.tasks, it, member.cfg, autocast)
            if row is None:
                members.remove(member)
                continue
            rows.append(row)
            with timed(seconds, "saving", len(states)):
                member.run.save_evaluation(rows)
        if saves:
            with timed(seconds, "saving", len(states)):
                for member in members:
                    member.state.iter_num = it
                    member.run.save_last(member.state.state_dict())
            saved = time.monotonic()
        progress(it)
        if ends or not members:
            return [member.cfg for member in members if it >= cfg.max_iters]
        updates = min(step.max_updates, cfg.max_iters - it, cfg.eval_interval - it % cfg.eval_interval)
        with timed(seconds, "training", len(states)):
            indices = torch.stack([state.batches.draw(updates) for state in states], dim=1)
            losses = step.run(indices, [get_lr(it + i, cfg) for i in range(updates)])
            it += updates
            if it % cfg.eval_interval == 0 or it % cfg.log_interval == 0:
                losses.cpu()  # synchronizes, so the timing includes GPU work
