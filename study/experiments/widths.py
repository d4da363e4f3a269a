"""Compute what changes with the width n on arithmetic: which widths generalize, and the score at equal fit.

The functions return plain data like findings().
"""

from study.experiments.cells import mean, percents_at_last, rate
from study.experiments.results import first_evaluation_with, right_and_total

NARROWEST = 4  # narrower models learn next to nothing
WINDOW = 0.25  # share of runs that generalize, from which on a width is in the window
FIT = 0.98  # share of the trained samples right that counts as fitted


def window(generalizes):
    """The widths around n14 of which a share of WINDOW or more of the runs generalize; None without n14.

    generalizes: {n: rate}, by n.
    """
    outside = [n for n, cell in generalizes.items()
               if cell["total"] == 0 or cell["right"] < WINDOW * cell["total"]]
    if 14 not in generalizes or 14 in outside:
        return None
    below = max((n for n in outside if n < 14), default=0)
    above = min((n for n in outside if n > 14), default=max(generalizes) + 1)
    widths = [n for n in generalizes if below < n < above]
    return {"low": widths[0], "high": widths[-1], "share": WINDOW}


def at_fit(cells):
    """{width: mean held-out score when its runs first have FIT of the trained samples, and at the end}.

    cells: {n: runs}. Runs that never come to FIT do not count, and widths without another run are left out.
    """
    found = {}
    for n, cell in cells.items():
        first = [first_evaluation_with(run.results, "trained", FIT) for run in cell]
        fitted = [(run, at) for run, at in zip(cell, first) if at is not None]
        if fitted:
            scores = [right_and_total(run.results, "held_out", at) for run, at in fitted]
            found[f"n{n}"] = {
                "fitted": rate(f"n{n}: {FIT:.0%} of the trained samples at some evaluation",
                               [at is not None for at in first]),
                "first": mean(f"n{n}: percent of held_out at the first evaluation with {FIT:.0%} trained",
                              [float(100 * right / total) for right, total in scores if total]),
                "last": mean(f"n{n}: percent of held_out at the last evaluation of the same runs",
                             percents_at_last([run for run, _ in fitted], "held_out"))}
    return found
