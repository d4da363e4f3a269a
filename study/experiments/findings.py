"""Compute what the runs show: every number that figures, tables, README and RESULTS.md quote.

findings() returns nested dicts of plain data. Nothing in them is formatted. cells.py says what a finding is.
"""

from collections import Counter

import numpy as np

from study.identity import kind_of
from study.tasks import HELD_OUT
from study.experiments.cells import (
    CRITERIA, MARGIN, SCORED, all_of, at_some, compared, corrected, no_difference, of_cell, paired_rates,
    paired_scores, percents_at_last, rate_of, score, span, spread, verdict,
)
from study.experiments.floors import floors
from study.experiments.problems import by_pair, held_out, is_pair
from study.experiments.results import GRIDS, LATE, SIZES, best_evaluation, right_and_total
from study.experiments.select import N14, PAPER_SEED, by_seed, seeds_by, seeds_of, varied
from study.experiments.statistics import bootstrap, permutation_p, two_way_shares
from study.experiments.why import why
from study.experiments.widths import at_fit, window

TASKS = tuple(GRIDS.values())
SMALL = ("n14", "n28", "n56")
CONFIGS = {task: {panel + suffix: f"{task}_mini_{size}{suffix}" for panel, size in SIZES.items()
                  for suffix in ("", "_wd")} for task in TASKS}
BEYOND = 3000  # samples of sums, and of differences, with an operand from 10 to 19
MAX_ITERS = 30_000  # of the paper's runs
PAPER_BEYOND_SUB = 4.75  # percent of those differences that the paper's n14 has right (section 5.1)


def findings(runs, unfinished=None):
    """All findings of {name: Run} from the tables.

    unfinished: {name: Run}; those named like the paper's runs stand in for them.
    """
    unfinished = unfinished or {}
    cells = {task: {panel: by_seed(runs, config) for panel, config in configs.items()}
             for task, configs in CONFIGS.items()}
    widths = {task: seeds_by("n_embd", runs, f"{task}_mini_14") for task in TASKS}
    by_width = {task: {n: of_cell(f"{task} n{n}", cell) for n, cell in of_task.items()}
                for task, of_task in widths.items()}
    paper_seed = {config: run for configs in CONFIGS.values() for config in configs.values()
                  if (run := varied(runs, config).get((), unfinished.get(config)))}
    mlts = {config: run for config, run in paper_seed.items() if "_mlt" in config}
    complete = sum(run.results["iter"][-1].item() >= int(run.info["max_iters"]) for run in mlts.values())
    found = {task: {name: of_cell(f"{task} {name}", list(cell.values())) for name, cell in of_task.items()}
             for task, of_task in cells.items()}
    math, both = cells["math"], cells["both"]
    capitals = [run.results["facts_correct"].max() / run.results["facts_total"].max()
                for panel in ("n14", "n14_wd") for run in cells["facts"][panel].values()]
    return found | {
        "all": of_all(runs, runs | mlts),
        "mlt": {"complete": complete, "begun": len(mlts) - complete},
        "paper_seed": {task: {panel: of_one_run(config, paper_seed.get(config))
                              for panel, config in configs.items()} for task, configs in CONFIGS.items()},
        "n28_against_n14": paired_scores("n28 minus n14: held-out score", math["n28"], math["n14"]),
        "weight_decay": {panel: against(f"{panel}: weight decay minus none", math[f"{panel}_wd"], math[panel])
                         for panel in SMALL},
        "both_against_math": paired_scores("n14, both minus arithmetic: held-out score", both["n14"],
                                           math["n14"]),
        "most_capitals_n14": float(max(capitals)) if capitals else None,
        "smallest": smallest(by_width["math"], varied(runs, N14, "n_embd")),
        "beyond": beyond(math["n14"].values()),
        "by_width": by_width,
        "lacking": lacking(widths["math"]),
        "window": window({n: cell["generalizes"] for n, cell in by_width["math"].items()}),
        "at_fit": at_fit(widths["math"]),
        "held_out": held_out(widths["math"]),
        "by_pair": by_pair(runs),
        "floors": floors(),
        "orders": orders(runs, math["n14"]),
        "pairs": pairs(runs, math["n14"], found["math"]["n14"]),
        "steps": steps(runs),
        "why": why(runs),
    }


def against(what, ours, theirs):
    """How {seed: Run}s differ on the seeds that both have: in score, and in shares of runs."""
    change = paired_scores(f"{what}: held-out score", ours, theirs)
    return {"score": change, "verdict": verdict(change)} | {
        criterion: paired_rates(what, ours, theirs, criterion)
        for criterion in ("generalizes", "at_best", "always_late")}


def of_all(runs, every):
    """How many runs there are, how long they are, and what made `every` one, the unfinished MLTs too."""
    iterations = [run.results["iter"] for run in runs.values()
                  if int(run.info["max_iters"]) <= MAX_ITERS]  # without those of experiments/long.py
    machines = Counter(part for run in every.values() for part in run.info["made_on"].split("; ") if part)
    other_seeds = sum(run.info["seed"] != str(PAPER_SEED) for run in runs.values())
    small = [run.info for run in runs.values() if "_mlt" not in run.info["config"]]
    return {
        "other_seeds": other_seeds, "paper_seed": len(runs) - other_seeds,
        "machines": {"what": "machines, and how many runs each made", "counts": dict(machines.most_common())},
        "last_iter": span("last iteration", [its[-1] for its in iterations]),
        "evaluations": span("evaluations of a run", [len(its) for its in iterations]),
        "late_evaluations": span("late evaluations of a run", [(its >= LATE).sum() for its in iterations]),
        "late_from": LATE, "margin": round(100 * MARGIN),
        "core_hours": sum(float(info.get("seconds") or 0) for info in small) / 3600,
        "most_params": max((int(info["num_params"]) for info in small), default=None),
    }


def of_one_run(config, run):
    """{column: score} of a run at its best evaluation so far; None without the run."""
    if not run:
        return None
    scores = {column: right_and_total(run.results, column, best_evaluation(run.results)) for column in SCORED}
    return {column: {"what": f"{config}, seed {PAPER_SEED}: {column} at the best evaluation",
                     "right": int(right), "total": int(total),
                     "iter": int(run.results["iter"][-1]), "max_iters": int(run.info["max_iters"])}
            for column, (right, total) in scores.items()}


def smallest(by_width, paper_seed):
    """Which widths up to 14 have all sums and differences right.

    by_width: {n: the cell of arithmetic}. paper_seed: {(n,): Run}.
    """
    widths = [n for n in by_width if n <= 14]
    can = [n for n in widths if by_width[n]["everything_at_some"]["right"]]
    shown = [n for n in widths if not can or n >= can[0]]
    paper = [n for (n,), run in paper_seed.items() if n <= 14 and at_some(run, "trained", "held_out")]
    return {
        "widths": [f"n{n}" for n in can] if widths else None,
        "paper_seed": [f"n{n}" for n in paper] if paper_seed else None,
        "at_some": {f"n{n}": by_width[n]["everything_at_some"] for n in shown},
        "at_last": {f"n{n}": by_width[n]["everything"] for n in shown},
        "runs_below": sum(by_width[n]["runs"] for n in widths if n not in shown),
    }


def beyond(runs):
    """What the runs of n14 that generalize answer for operands from 10 to 19 at the end of training."""
    infos = [run.info for run in runs if run.info.get("beyond_add")]
    add, sub = ([100 * int(info[f"beyond_{group}"]) / BEYOND for info in infos] for group in ("add", "sub"))
    return {
        "runs": len(infos), **{f"{group}_median": float(np.median(shares)) if infos else None
                               for group, shares in (("add", add), ("sub", sub))},
        "add": spread("additions beyond single digits", add, "%"), "most_add": max(add, default=None),
        "sub": spread("subtractions beyond single digits", sub, "%"), "most_sub": max(sub, default=None),
        "more_sub_than_paper": sum(share > PAPER_BEYOND_SUB for share in sub),
    }


def lacking(widths):
    """How many trained samples are wrong at the end, in runs of n14 and wider that lack any."""
    runs = [run for n, cell in widths.items() if n >= 14 for run in cell]
    scores = [right_and_total(run.results, "trained") for run in runs]
    lack = [int(total - right) for right, total in scores if right < total]
    return {"runs": len(lack), "of": span("trained samples", [total for _, total in scores]),
            "median": float(np.median(lack)) if lack else None, "most": max(lack, default=None)}


def orders(runs, paper):
    """n14 in other orders of the lines; paper: {seed: Run} in the paper's order."""
    table = {key: run for key, run in varied(runs, N14, "line_seed", "seed").items()
             if key[0] != -1 and key[1] != PAPER_SEED}
    lines, of_seeds = (sorted({key[i] for key in table}) for i in (0, 1))
    whole = [[table[line, seed] for seed in of_seeds] for line in lines  # the orders that have every seed
             if all((line, seed) in table for seed in of_seeds)]
    per_order = Counter(sum(all_of(run, "held_out") for run in row) for row in whole)
    means = [np.mean(percents_at_last(row, "held_out")) / 100 for row in whole]  # an order is one observation
    theirs = [percent / 100 for percent in percents_at_last(paper.values(), "held_out")]
    difference = no_difference("other orders minus the paper's: held-out score", None)
    if len(means) > 2 and len(theirs) > 2:
        difference |= {"difference": float(np.mean(means) - np.mean(theirs)),
                       "interval": bootstrap(lambda groups: groups[0].mean() - groups[1].mean(),
                                             [means, theirs])}
    return {
        "orders": len(whole), "seeds": len(of_seeds),
        "first_seed": min(of_seeds, default=None), "last_seed": max(of_seeds, default=None),
        "generalizes": rate_of("n14 in other orders", table.values(), "generalizes"),
        "score": score("n14 in other orders", whole), "against_paper": difference,
        "verdict": verdict(difference),
        "per_order": {"what": "runs of an order that generalize, and how many orders have so many",
                      "counts": dict(sorted(per_order.items()))},
        "variance": variance(whole) if len(whole) > 1 else None,
        "held_out_right": {key: int(run.results["held_out_correct"][-1]) for key, run in table.items()},
    }


def variance(table):
    """How much of the variance the order and the seed explain, of runs [order][seed]."""
    def parts(name, shares, ps):
        return {part: {"what": f"variance of {name}: {part}", "share": float(share), "p": p}
                for part, share, p in zip(("order", "seed", "rest"), shares, ps)}

    values = {"generalizes": [[all_of(run, "held_out") for run in row] for row in table],
              "held_out": [[run.results["held_out_correct"][-1] for run in row] for row in table]}
    cells = len(table) * len(table[0])
    order, seed = ((groups - 1) / (cells - 1) for groups in (len(table), len(table[0])))  # degrees of freedom
    found = {name: parts(name, two_way_shares(each), (*permutation_p(each), None))
             for name, each in values.items()}
    return found | {"by_chance": parts("chance alone", (order, seed, 1 - order - seed), (None, None, None))}


def pairs(runs, paper_runs, paper):
    """n14 with other pairs of digits held out; paper: its cell with the paper's pair, of {seed: Run}s.

    Pairs that have fewer runs than others are still being run and do not count.
    """
    of_pairs = {pair: of_seed for (pair,), of_seed in seeds_of(runs, N14, "held_out").items()
                if is_pair(pair) and pair != HELD_OUT}
    most = max(map(len, of_pairs.values()), default=0)
    of_pairs = {pair: of_seed for pair, of_seed in of_pairs.items() if len(of_seed) == most}
    cells = {pair: of_cell(f"n14 without {pair}", list(of_seed.values()))
             for pair, of_seed in of_pairs.items()}
    against_paper = corrected({pair: compared(cell["generalizes"], paper["generalizes"])
                               for pair, cell in cells.items()})
    differing = [test["difference"] for test in against_paper.values()
                 if test["p"] is not None and test["p"] < 0.05]
    seeds = set().union(*of_pairs.values())
    return {
        "cells": cells, "paper": paper, "against_paper": against_paper,
        "all": sum(cell["generalizes"]["total"] for cell in cells.values()),
        "generalize": sum(cell["generalizes"]["right"] for cell in cells.values()),
        "pairs": len(cells), "runs": most,
        "paper_by_seeds": {name: score(f"n14 without 5,7, the {name} seeds as the other pairs",
                                       [[run for seed, run in paper_runs.items() if (seed in seeds) == same]])
                           for name, same in (("same", True), ("other", False))},
        "rarer": sum(change < 0 for change in differing),
        "more_frequent": sum(change > 0 for change in differing),
        "apart": {criterion: apart(of_pairs, criterion) for criterion in ("generalizes", "at_best")},
    }


def apart(of_pairs, criterion):
    """How far apart the shares of {pair: {seed: Run}} are, and whether chance does as much; or None."""
    if not of_pairs:
        return None
    has = CRITERIA[criterion][1]
    values = [[has(run) for run in of_seed.values()] for of_seed in of_pairs.values()]
    shares = [float(100 * np.mean(of_pair)) for of_pair in values]
    return {"lowest": min(shares), "highest": max(shares), "without_a_run": shares.count(0),
            "p": permutation_p(values)[0]}


def steps(runs):
    """n14 by what computed the updates, with the seeds that all three have."""
    made = {
        "c_step": made_by(runs, "C step", "float32"),
        "pytorch": made_by(runs, "PyTorch", "float32", fast=False, dtype="float32"),
        "bfloat16": made_by(runs, "PyTorch", "bfloat16", fast=False, dtype="bfloat16"),
    }
    shared = sorted(set.intersection(*map(set, made.values())))
    made = {name: {seed: of_step[seed] for seed in shared} for name, of_step in made.items()}
    return {name: of_cell(f"n14 by {name}", list(cell.values())) for name, cell in made.items()} | {
        "seeds": len(shared),
        "against_pytorch": {name: against(f"{name} minus PyTorch in float32", made[name], made["pytorch"])
                            for name in ("c_step", "bfloat16")},
    }


def made_by(runs, step, precision, **settings):
    """{seed: Run} of n14 on arithmetic whose updates a step computed in a precision."""
    made = {seed: run for (seed,), run in varied(runs, N14, "seed", **settings).items()
            if (kind_of(run.info["step"]), run.info["dtype"]) == (step, precision)}
    made.pop(PAPER_SEED, None)
    return made
