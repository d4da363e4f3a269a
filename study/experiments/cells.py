"""Compute what one set of runs has: the findings of a cell, as plain data.

A finding is a dict. It says "what" it is of, and has one of
    right, total, interval         a share of runs and its 95% interval (Wilson)
    difference, interval, p, test  a minus b, its 95% interval, p of the test that is named or None
    value, interval, unit          an estimate and its 95% interval (bootstrap); unit: % or none
    median, right, total           the runs' median, and how many have a value; None unless more than half do
    values, unit, quartiles        first quartile, median and third quartile of the runs' values
    values, mean                   their mean
    values                         the lowest and the highest
    share, p                       a part of a whole, and the p of a permutation test or None
    right, total, iter, max_iters  a score of one run, which has come to iteration iter
    counts                         {value: how many have it}
A share leaves out the runs that the question is not defined for. Without runs, counts, totals and lists are
0 or empty, and the rest is None.
"""

import numpy as np

from study.scoring import NUM_SAMPLES
from study.experiments.results import best_evaluation, late_evaluations, right_and_total
from study.experiments.statistics import (
    difference, fisher_exact, holm, mcnemar_exact, mean_interval, paired_difference, paired_p, quartiles,
    wilson,
)

MARGIN = 0.1  # settings are equivalent if the interval of their difference in score lies within it
SCORED = ("add", "sub", "facts", "combined", "held_out", "trained")  # what right_and_total() counts


# What a run can have. The functions return None for a run without such samples or evaluations.


def all_of(run, what, at=-1):
    """Whether all samples of `what` are right at an evaluation."""
    right, total = right_and_total(run.results, what, at)
    return bool(right == total) if total else None


def at_some(run, *what):
    """Whether all samples of each `what` are right at one and the same evaluation."""
    scores = [right_and_total(run.results, each, slice(None)) for each in what]
    if not all(total[-1] for _, total in scores):
        return None
    return bool(np.all([right == total for right, total in scores], axis=0).any())


def always_late(run):
    """Whether all held-out samples are right at every late evaluation."""
    right, total = late_evaluations(run.results)
    return right == total if total and run.results["held_out_total"].any() else None


def all_200(run):
    """Whether all sums and differences, trained and held out, are right at the last evaluation."""
    trained, held_out = all_of(run, "trained"), all_of(run, "held_out")
    return None if None in (trained, held_out) else trained and held_out


def at_best(run, what):
    """Whether all samples of `what` are right at the evaluation that the paper counts."""
    return all_of(run, what, best_evaluation(run.results))


def at_best_of_trained(run, latest):
    """Whether all held-out samples are right at the evaluation with the most trained ones right."""
    return all_of(run, "held_out", best_evaluation(run.results, "trained", latest))


CRITERIA = {  # name -> what a run must have, whether it has it
    "generalizes": ("all held-out samples right at the last evaluation",
                    lambda run: all_of(run, "held_out")),
    "at_best": ("all held-out samples right at the best evaluation",
                lambda run: at_best(run, "held_out")),
    "at_best_of_trained": ("all held-out samples right at the earliest evaluation with most trained ones",
                           lambda run: at_best_of_trained(run, latest=False)),
    "at_latest_best_of_trained": ("all held-out samples right at the latest such evaluation",
                                  lambda run: at_best_of_trained(run, latest=True)),
    "at_some": ("all held-out samples right at some evaluation", lambda run: at_some(run, "held_out")),
    "always_late": ("all held-out samples right at every late evaluation", always_late),
    "trained": ("all trained samples right at the last evaluation", lambda run: all_of(run, "trained")),
    "everything": ("all sums and differences right at the last evaluation", all_200),
    "everything_at_some": ("all sums and differences right at some evaluation",
                           lambda run: at_some(run, "trained", "held_out")),
    "all_capitals": ("all capitals right at the last evaluation", lambda run: all_of(run, "facts")),
    "all_capitals_at_best": ("all capitals right at the best evaluation",
                             lambda run: at_best(run, "facts")),
}


# Findings.


def rate(what, values):
    """The share of True among values, of which None does not count."""
    known = [value for value in values if value is not None]
    right, total = sum(known), len(known)
    return {"what": what, "right": right, "total": total, "interval": wilson(right, total) if total else None}


def rate_of(what, runs, criterion):
    """The rate of runs that meet one of CRITERIA."""
    meaning, has = CRITERIA[criterion]
    return rate(f"{what}: {meaning}", [has(run) for run in runs])


def no_difference(what, test):
    """The finding of a comparison without runs."""
    return {"what": what, "difference": None, "interval": None, "p": None, "test": test}


def compared(a, b):
    """The difference of two rates, by a test that takes all runs as independent."""
    finding = no_difference(f"{a['what']}; against {b['what']}", "Fisher's exact test") | {"a": a, "b": b}
    if a["total"] and b["total"]:
        counts = a["right"], a["total"], b["right"], b["total"]
        finding["difference"] = a["right"] / a["total"] - b["right"] / b["total"]
        finding |= {"interval": difference(*counts), "p": fisher_exact(*counts)}
    return finding


def paired_rates(what, ours, theirs, criterion):
    """The difference in the share of {seed: Run}s that meet one of CRITERIA, on the seeds that both have.

    more, fewer: seeds of which only ours meets it, and only theirs.
    """
    meaning, has = CRITERIA[criterion]
    finding = no_difference(f"{what}: {meaning}", "McNemar's exact test")
    pairs = [(has(ours[seed]), has(theirs[seed])) for seed in sorted(ours.keys() & theirs.keys())]
    both, more, fewer, neither = (pairs.count(pair) for pair in
                                  ((True, True), (True, False), (False, True), (False, False)))
    if both + more + fewer + neither == 0:
        return finding
    return finding | {"difference": (more - fewer) / (both + more + fewer + neither), "more": more,
                      "fewer": fewer, "interval": paired_difference(both, more, fewer, neither),
                      "p": mcnemar_exact(more, fewer)}


def paired_scores(what, ours, theirs):
    """The mean difference in held-out score of {seed: Run}s at the last evaluation, on the seeds of both.

    ours, theirs: the mean percents themselves, on these seeds.
    """
    seeds = [seed for seed in sorted(ours.keys() & theirs.keys())
             if percents_at_last([ours[seed]], "held_out") and percents_at_last([theirs[seed]], "held_out")]
    return paired(what, *(percents_at_last([runs[seed] for seed in seeds], "held_out")
                          for runs in (ours, theirs)))


def paired(what, ours, theirs):
    """The mean difference of two lists of percents, one of each seed, as in paired_scores()."""
    finding = no_difference(what, "paired permutation test") | {"seeds": len(ours), "ours": None,
                                                                "theirs": None}
    if not ours:
        return finding
    a, b = np.array(ours) / 100, np.array(theirs) / 100
    interval = mean_interval(a - b) if len(ours) > 2 else None
    return finding | {"difference": float((a - b).mean()), "p": paired_p(a - b), "interval": interval,
                      "ours": float(100 * a.mean()), "theirs": float(100 * b.mean())}


def verdict(difference):
    """Whether a difference in score is within the MARGIN or not zero; None without its interval."""
    if difference["interval"] is None:
        return None
    low, high = difference["interval"]
    if -MARGIN < low and high < MARGIN:
        return "equivalent"
    return "different" if low > 0 or high < 0 else "cannot tell"


def corrected(tests):
    """{name: comparison}, with Holm's correction of the p values for testing all of them."""
    made = [test for test in tests.values() if test["p"] is not None]
    for test, p in zip(made, holm([test["p"] for test in made])):
        test["p"] = p
    return tests


def spread(what, values, unit):
    """The values and their quartiles. unit: %, problems, bits, bits a parameter, or nats per character."""
    return {"what": what, "values": values, "unit": unit, "quartiles": quartiles(values) if values else None}


def mean(what, values):
    return {"what": what, "values": values, "mean": float(np.mean(values)) if values else None}


def score(what, groups):
    """The primary outcome: mean percent of held-out samples right at the last evaluation.

    groups: lists of runs that are one observation each.
    """
    values = [np.mean(percents) for group in groups if (percents := percents_at_last(group, "held_out"))]
    return {"what": f"{what}: mean held-out score at the last evaluation", "unit": "%",
            "value": float(np.mean(values)) if values else None,
            "interval": mean_interval(values) if len(values) > 2 else None}


def span(what, values):
    return {"what": what, "values": [int(min(values)), int(max(values))] if len(values) else None}


def scores_at_best(runs, what):
    """What each run answers correctly at its best evaluation: problems if held out, else percent."""
    scores = [right_and_total(run.results, what, best_evaluation(run.results)) for run in runs]
    return [float(right / NUM_SAMPLES if what == "held_out" else 100 * right / total)
            for right, total in scores if total]


def percents_at_last(runs, what):
    scores = [right_and_total(run.results, what) for run in runs]
    return [float(100 * right / total) for right, total in scores if total]


def of_cell(what, runs):
    """Everything that is computed of one set of runs."""
    asked = [run for run in runs if run.results["held_out_total"].any()]
    late = [right / total for right, total in (late_evaluations(run.results) for run in asked) if total]
    losses = [float(run.results["val_loss"].min()) for run in runs]
    return {
        "runs": len(runs), "params": max((int(run.info["num_params"]) for run in runs), default=None),
        "score": score(what, [[run] for run in runs]),
        **{criterion: rate_of(what, runs, criterion) for criterion in CRITERIA},
        "best": {column: spread(f"{what}: {column} at the best evaluation", scores_at_best(runs, column),
                                "problems" if column == "held_out" else "%") for column in SCORED},
        "last": {column: mean(f"{what}: percent of {column} at the last evaluation",
                              percents_at_last(runs, column)) for column in SCORED},
        "late": {"what": f"{what}: mean share of late evaluations with all held-out samples right",
                 "share": float(np.mean(late)) if late else None, "p": None},
        "lowest_loss": spread(f"{what}: lowest validation loss", losses, "nats per character"),
    }
