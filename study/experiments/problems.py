"""Compute how many runs have single held-out problems right, by width and by the pair that is held out.

A run has a problem right if its most frequent answer at the last evaluation is. The functions return plain
data like findings().
"""

from collections import Counter

import numpy as np

from study.experiments.cells import rate, span
from study.experiments.select import N14, seeds_by
from study.tasks import HELD_OUT, arithmetic, table_of


def held_out(cells):
    """{width: {problem of the paper's pair: of_problem()}} of {n: runs}."""
    return {f"n{n}": {problem: of_problem(f"n{n}", cell, problem, answer)
                      for problem, answer in problems_of(HELD_OUT).items()}
            for n, cell in cells.items()}


def by_pair(runs):
    """{width: the problems of all pairs that some of its runs lack} of n14 and n20.

    A width that has runs of the paper's pair alone is left out.
    """
    found = {}
    for n in (14, 20):
        cells = {pair: cell for pair, cell in seeds_by("held_out", runs, N14, n_embd=n).items()
                 if is_pair(pair)}
        if cells.keys() - {HELD_OUT}:
            found[f"n{n}"] = {
                "pairs": len(cells),
                "runs": span(f"n{n}: runs of a pair", [len(cell) for cell in cells.values()]),
                "problems": {problem: of_problem(f"n{n}", cell, problem, answer)
                             for pair, cell in cells.items()
                             for problem, answer in problems_of(pair).items()}}
    return found


def is_pair(held_out):
    """Whether one pair of two different digits is held out, the smaller one first."""
    return len(held_out) == 3 and held_out[0] < held_out[2]


def share_seen(held_out, **table):
    """The share of the held-out problems whose answer some trained problem of the operation has too.

    table: other settings of the text, as for table_of().
    """
    problems = arithmetic(table_of(table | {"held_out": held_out})).problems
    trained = {(problem.group, problem.answer) for problem in problems if not problem.held_out}
    return float(np.mean([(problem.group, problem.answer) in trained
                          for problem in problems if problem.held_out]))


def problems_of(pair):
    """{"5+7": "12", "7+5": "12", "5-7": "-2", "7-5": "2"} of "5,7"."""
    a, b = map(int, pair.split(","))
    both = ((a, b), (b, a))
    return {f"{x}+{y}": str(x + y) for x, y in both} | {f"{x}-{y}": str(x - y) for x, y in both}


def of_problem(width, runs, problem, correct):
    """The rate of runs that are right, with the most frequent wrong answers and how many runs give each."""
    given = (run.results["held_out_answers"][-1].get(problem) for run in runs)
    answers = Counter(filter(None, given))
    wrong = {answer: count for answer, count in answers.items() if answer != correct}
    most = max(wrong.values(), default=0)
    right = rate(f"{width}: {problem} right at the last evaluation",
                 [answer == correct for answer in answers.elements()])
    return right | {"wrong": sorted(answer for answer, count in wrong.items() if count == most),
                    "wrong_runs": most}
