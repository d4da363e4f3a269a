"""Writes RESULTS.md: what the runs in the tables of the experiments say about each claim of the paper.

    python report.py                                            (RESULTS.md)
    python report.py --readme=README.md                         (and the README's table)
    python report.py --root_dir=again --path=RESULTS_again.md   (of other tables)
"""

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from study import StudyError
from study.tasks import HELD_OUT
from study.files import write_files
from study.experiments.results import (
    GRIDS, SIZES, all_right, best_evaluation, by_seed, how_far, late_evaluations, orders_of, pairs_of, published_runs, read_runs,
    right_and_total, seeds_of, widths_of,
)
from study.settings import run_script
from study.experiments.statistics import difference, fisher_exact, permutation_p, quartiles, two_way_shares, wilson
from study.experiments.tables import HEADINGS, TABLES, markdown, of_the_paper, percent

root_dir = "results"  # folder of the experiments' tables
path = "RESULTS.md"  # where to write
readme = ""  # file whose table of the claims is brought up to date too, such as README.md

SMALL = ("n14", "n28", "n56")
WD = "with weight decay 0.1"


# What a run can have.


def generalizes(run):
    """All held-out samples right at the last evaluation."""
    return all_right(run.results, "held_out")


def at_best(run):
    """All held-out samples right at the best evaluation: what the paper counts."""
    return all_right(run.results, "held_out", best_evaluation(run.results))


def at_best_of_trained(run, latest=False):
    """All held-out samples right at the evaluation with the most trained ones right, which is chosen without a look at them."""
    return all_right(run.results, "held_out", best_evaluation(run.results, "trained", latest))


def at_latest_best_of_trained(run):
    return at_best_of_trained(run, latest=True)


def all_capitals(run):
    """All capitals right at the last evaluation."""
    return all_right(run.results, "facts")


def all_capitals_at_best(run):
    """All capitals right at the best evaluation."""
    return all_right(run.results, "facts", best_evaluation(run.results))


def trained(run):
    """All trained sums and differences right at the last evaluation."""
    return all_right(run.results, "trained")


def once(run, *scored):
    """All samples of what is named right at one evaluation at least; of the held-out ones if nothing is."""
    return any(all(all_right(run.results, what, at) for what in scored or ("held_out",)) for at in range(len(run.rows)))


def always_late(run):
    """All held-out samples right at every late evaluation."""
    right, total = late_evaluations(run.results)
    return right == total


def everything_once(run):
    """All 200 sums and differences right at one evaluation at least."""
    return once(run, "trained", "held_out")


def everything(run):
    """All 200 sums and differences right at the last evaluation."""
    return trained(run) and generalizes(run)


def held_out_right(run):
    """Held-out samples right at the last evaluation."""
    return run.results["held_out_correct"][-1]


# How many runs have it, and how numbers are written.


def rate(right, total):
    """A share of runs with its 95% interval: 17 of 20 (85%, 64 to 95)."""
    if not total:
        return "no seeds yet"
    low, high = (100 * bound for bound in wilson(right, total))
    return f"{right} of {total} ({percent(right, total)}%, {low:.0f} to {high:.0f})"


def rate_of(runs, holds):
    return rate(sum(map(holds, runs)), len(runs))


def rates_of(cells, holds):
    """The rates of {name: runs}, each of which may have none: n28 0 of 30 (...); n56 0 of 2 (...)."""
    return "; ".join(f"{name} {rate_of(seeds, holds)}" for name, seeds in cells.items())


def in_words(right, total):
    """How many runs of all there could be, as far as a share's interval tells."""
    low, high = wilson(right, total)
    return "none" if right == 0 else "all" if right == total else "most" if low > 0.5 else "fewer than half" if high < 0.5 else "some"


def words_of(runs, holds):
    return in_words(sum(map(holds, runs)), len(runs)) if runs else "(no seeds yet)"


def counts(seeds_a, seeds_b, holds):
    """How many of the runs have it and how many there are, of two cells in one."""
    return tuple(count for seeds in (seeds_a, seeds_b) for count in (sum(map(holds, seeds)), len(seeds)))


def compared(seeds_a, seeds_b, holds):
    """The difference of two shares: -10 points (-33 to +14; Fisher's exact test p = 0.59)."""
    right_a, total_a, right_b, total_b = both = counts(seeds_a, seeds_b, holds)
    low, high = (100 * bound for bound in difference(*both))
    points = 100 * (right_a / total_a - right_b / total_b)
    return f"{points:+.{int(0 < abs(points) < 1)}f} points ({low:+.0f} to {high:+.0f}; Fisher's exact test p = {fisher_exact(*both):.2g})"


def number(value, digits=1):
    """A percentage, a count or a loss without zeros that say nothing: 99.0 is 99, 98.43 is 98.4."""
    return f"{value:.{digits}f}".removesuffix("." + digits * "0")


def mean_accuracy(runs, what):
    """Mean accuracy of runs at their last evaluation, in percent; with digits enough not to read as 0 or 100 if it is not: 99.97."""
    mean = np.mean([100 * np.divide(*right_and_total(run.results, what)) for run in runs])
    return next(text for text in (number(mean, digits) for digits in range(1, 9)) if text not in ("0", "100") or mean in (0, 100))


def spread(values, unit="", digits=1):
    """Median (first to third quartile), one number if they are the same."""
    low, median, high = (number(value, digits) for value in quartiles(values))
    return f"{median}{unit}" + f" ({low} to {high})" * (low != high)


def at_its_best(run, column):
    """A score at the best evaluation of a run: held-out samples that are right, other samples in percent."""
    correct, total = right_and_total(run.results, column, best_evaluation(run.results))
    return correct if column == "held_out" else 100 * correct / total


# The sections of the page; runs: {name: Run}, cells: cells_of(runs).


def cells_of(runs):
    """{(task, panel, suffix): runs that differ in their seed} of the paper's cells."""
    return {(task, panel, suffix): seeds_of(runs, f"{task}_mini_{size}{suffix}")
            for task in ("math", "facts", "both") for panel, size in SIZES.items() for suffix in ("", "_wd")}


def with_and_without(cells, task, *panels):
    """The runs of some models on a task, of both regularizations."""
    return [run for panel in panels for suffix in ("", "_wd") for run in cells[task, panel, suffix]]


def summary(runs):
    """The claims of the paper in one table."""
    cells = cells_of(runs)
    rows = [["trained on", "model", "the paper, at best", "ours without weight decay, at best", "at last", f"ours {WD}, at best", "at last"]]
    for task, trained_on, holds, paper in (
        ("math", "arithmetic", (at_best, generalizes), ("yes", "no", "no")),
        ("facts", "capitals", (all_capitals_at_best, all_capitals), ("no", "yes", "yes")),
        ("both", "both", (at_best, generalizes), ("no", "no", "no")),
    ):
        for panel, theirs in zip(SMALL, paper):
            rates = [rate_of(cells[task, panel, suffix], each) for suffix in ("", "_wd") for each in holds]
            rows.append([trained_on, panel, theirs, *rates])
    return markdown("Runs that have every held-out problem right or, trained on capitals alone, every capital (share, 95% interval)", rows)


def claims(runs, unfinished):
    """A paragraph for each claim of the paper."""
    cells, every = cells_of(runs), unfinished | runs
    if not cells["math", "n14", ""]:
        return ""
    paragraphs = [
        ("a model of 1.5k parameters extrapolates to the held-out sums and differences", extrapolates(runs, cells)),
        ("larger models do not", [*larger(runs, cells), of_mlt(every, "math", "held_out")]),
        ("small models cannot memorize the capitals, larger ones do", [*memorize(cells), of_mlt(every, "facts", "facts")]),
        ("trained on both, none extrapolates", [*together(cells), of_mlt(every, "both", "held_out")]),
        ("the effect is not one of regularization", regularization(cells)),
        ("n14 is the smallest model that learns arithmetic", smallest(runs)),
        ("the rules do not reach beyond single digits (section 5.1)", beyond(cells)),
    ]
    answered = [f"**The paper: {claim}.** Here: {' '.join(filter(None, says))}" for claim, says in paragraphs]
    return "\n\n".join(["## The claims of the paper, one by one", *answered])


def extrapolates(runs, cells):
    """How often n14 has all held-out problems right, by each way of counting."""
    n14, decayed = cells["math", "n14", ""], cells["math", "n14", "_wd"]
    ours = [f"{at_its_best(runs[name], 'held_out'):.0f}" if name in runs else "not run yet"
            for name in ("math_mini_14", "math_mini_14_wd")]
    return [
        f"as the paper counts, at the evaluation with the most right answers, {words_of(n14, at_best)} of the runs of n14 have all 40",
        f"held-out samples right: {rate_of(n14, at_best)}; {WD}, {words_of(decayed, at_best)}: {rate_of(decayed, at_best)}.",
        "That is the best of 121 looks, and the held-out problems take part in the choice.",
        f"At the evaluation with the most trained problems right {rate_of(n14, at_best_of_trained)} have all 40;",
        f"{WD}, {rate_of(decayed, at_best_of_trained)}.",
        "Many evaluations are equal in that; at the latest of them, not the earliest,",
        f"it is {rate_of(n14, at_latest_best_of_trained)} and {rate_of(decayed, at_latest_best_of_trained)}.",
        f"At the last evaluation {words_of(n14, generalizes)} have: {rate_of(n14, generalizes)};",
        f"{WD}, {words_of(decayed, generalizes)}: {rate_of(decayed, generalizes)}.",
        f"All 200 problems, the trained ones included, {rate_of(n14, everything)} have then; {WD}, {rate_of(decayed, everything)}.",
        f"They come and go: {rate_of(n14, once)} have all 40 at one of the 121 at least,",
        f"{rate_of(n14, always_late)} at each of the 41 from iteration 20,000 on;",
        f"{WD}, {rate_of(decayed, once)} and {rate_of(decayed, always_late)}.",
        f"At their best evaluations the paper's two runs have 40 of 40; ours with the same seed: {ours[0]}, and {ours[1]} {WD}.",
    ]


def larger(runs, cells):
    """How often n28, n56 and the widths between n14 and n28 have."""
    n14, n28 = cells["math", "n14", ""], cells["math", "n28", ""]
    every = with_and_without(cells, "math", "n28", "n56")
    between = {n: seeds for n, seeds in widths_of(runs, "math").items() if 14 < n < 28}
    change = [f"From n14 to n28 the share of runs that generalize changes by {compared(n28, n14, generalizes)}."] if n28 else []
    fades = [f"n{n} {rate_of(seeds, generalizes)}" for n, seeds in between.items()]
    return [
        f"of the runs of n28 and n56, {WD} and without, {rate_of(every, generalizes)} have all 40 at the last evaluation,",
        f"{rate_of(every, at_best)} at the best one and {rate_of(every, once)} at one of the 121 at least.",
        *change,
        f"Of the widths between them do: {'; '.join(fades)}." if fades else "",
    ]


def memorize(cells):
    """How often each size has all capitals."""
    small = with_and_without(cells, "facts", "n14")
    large = {panel: with_and_without(cells, "facts", panel) for panel in ("n28", "n56")}
    if not small:
        return ["no seeds yet."]
    most = max(run.results["facts_correct"].max() / run.results["facts_total"].max() for run in small)
    return [
        f"runs, {WD} and without, that have all 50 capitals",
        f"at their best evaluation: {rates_of({'n14': small} | large, all_capitals_at_best)};",
        f"at the last one: {rates_of(large, all_capitals)}.",
        f"At the last evaluation the runs of n28 have on average {mean_accuracy(large['n28'], 'facts')}% of the capitals."
        if large["n28"] else "",
        f"The most that a run of n14 ever had is {100 * most:.0f}%.",
    ]


def together(cells):
    """How often a model that is trained on both has all held-out problems right."""
    every = {panel: with_and_without(cells, "both", panel) for panel in SMALL}
    pooled = with_and_without(cells, "both", *SMALL)
    if not pooled:
        return ["no seeds yet."]
    n14_alone = with_and_without(cells, "math", "n14")
    alone, large = (with_and_without(cells, task, "n28", "n56") for task in ("math", "both"))
    low, high = difference(*counts(large, alone, generalizes)) if alone and large else (0, 0)
    learned = [f"{panel} {mean_accuracy(seeds, 'trained')}%" for panel, seeds in every.items() if seeds]
    return [
        f"of the runs, {WD} and without, {rate_of(pooled, generalizes)} have all 40 at the last evaluation;",
        f"at the best one {rates_of(every, at_best)}.",
        f"The most that a run ends with is {max(map(held_out_right, pooled)):.0f} of the 40.",
        f"Of the trained sums and differences the runs have at the end, on average: {', '.join(learned)}.",
        *([
            f"On arithmetic alone {rate_of(n14_alone, generalizes)} of n14 generalize,",
            "but beside the capitals n14 learns little of the trained problems either.",
        ] if n14_alone and every["n14"] else []),
        *([
            f"Of the runs of n28 and n56 {rate_of(alone, generalizes)} generalize on arithmetic alone and {rate_of(large, generalizes)}",
            f"on both, a change of {compared(large, alone, generalizes)}:",
            f"whether the capitals keep a model from it, these sizes {'cannot tell' if low <= 0 <= high else 'can tell'}.",
        ] if alone and large else []),
    ]


def of_mlt(runs, task, what):
    """How many samples the MLT has right, as far as it is trained; what: held_out or facts."""
    says = []
    for suffix, regularized in (("", "with dropout"), ("_wd", "without")):
        name = f"{task}_mini_mlt{suffix}"
        if run := runs.get(name):
            right, total = right_and_total(run.results, what, best_evaluation(run.results))
            says.append(f"{right:.0f} of {total:.0f} {regularized}" + f" ({how_far(run)})" * bool(how_far(run)))
    samples = {"held_out": "Held-out samples", "facts": "Samples of the capitals"}[what]
    return f"{samples} that the MLT has right at its best evaluation, with the paper's seed: {', '.join(says)}." if says else ""


def regularization(cells):
    """What weight decay changes."""
    n14, decayed = cells["math", "n14", ""], cells["math", "n14", "_wd"]
    if not decayed:
        return ["no seeds yet."]
    larger = cells["math", "n28", "_wd"] + cells["math", "n56", "_wd"]
    return [
        "with weight decay 0.1 instead of 0 the share of the runs of n14 that have all 40",
        f"changes by {compared(decayed, n14, at_best)} at the best evaluation, by {compared(decayed, n14, generalizes)} at the last.",
        "(A large p does not say that there is no difference.",
        "The two have their seeds in common; the tests take them as independent.)",
        f"Of the larger models' runs {WD}, {rate_of(larger, generalizes)} generalize.",
    ]


def smallest(runs):
    """Which widths have all 200 sums and differences right."""
    widths = {n: seeds for n, seeds in widths_of(runs, "math").items() if n <= 14}
    can = [n for n, seeds in widths.items() if any(map(everything_once, seeds))]
    if min(widths) == 14:
        return ["the widths below 14 are not run yet with many seeds."]
    if not can:
        return [f"no run of n{min(widths)} to n14 has all 200 problems right at any of its evaluations."]
    ours = [n for n in widths if f"math_mini_{n}" in runs and everything_once(runs[f"math_mini_{n}"])]
    rest = {n: seeds for n, seeds in widths.items() if n < can[0]}
    above = {f"n{n}": seeds for n, seeds in widths.items() if n >= can[0]}
    return [
        f"n{can[0]} has been seen to, if one evaluation of its 121 is enough." if can[0] < 14 else "no smaller one has been seen to do so.",
        "Runs that have all 200 problems right, held-out ones included, at one of their evaluations at least:",
        f"{rates_of(above, everything_once)}.",
        f"With the paper's seed, of n1 to n14: {', '.join(f'n{n}' for n in ours)}." if ours else "",
        f"At the last evaluation: {rates_of(above, everything)}.",
        f"Of the {sum(map(len, rest.values()))} runs of smaller widths, n{min(rest)} to n{max(rest)}, none." if rest else "",
    ]


def beyond(cells):
    """How runs of n14 that generalize answer operands from 10 to 19."""
    runs = [run for run in with_and_without(cells, "math", "n14") if run.info.get("beyond_add")]
    if not runs:
        return ["not run yet."]
    add, sub = ([100 * int(run.info[f"beyond_{group}"]) / 3000 for run in runs] for group in ("add", "sub"))
    return [
        "asked at the end of training for operands up to 19, the single-digit problems left out,",
        f"the {len(runs)} runs of n14 that generalize, {WD} and without,",
        f"have {spread(add, '%')} of the additions right and {spread(sub, '%')} of the subtractions (median and quartiles),",
        f"at most {max(add):.2f}% and {max(sub):.2f}%.",
        f"The paper has 0% and 4.75%; {sum(share > 4.75 for share in sub)} of the runs have more of the subtractions.",
    ]


def tables(runs, unfinished):
    """The paper's tables 2 to 7."""
    parts = [paper_table(runs, unfinished, grid, task, suffix) for suffix in ("", "_wd") for grid, task in GRIDS.items()]
    return "## The paper's tables with many seeds\n\n" + "\n\n".join(parts)


def paper_table(runs, unfinished, grid, task, suffix):
    """A table of the paper with, in each cell, the paper's number, our run with the paper's seed, and many seeds.

    unfinished: {name: Run} that may stand in for such a run with the paper's seed, if each cell says so.
    """
    titles, columns, _ = TABLES[grid]
    names = {column: f"{what}, %" for column, what in HEADINGS.items()} | {"held_out": f"({HELD_OUT}), of 40"}
    heading = ["model", "seeds", *(names[column] for column in columns)]
    if "held_out" in columns:
        heading += ["all 40 at the best evaluation", "all 40 at the last: generalizes", "late evaluations with all 40, mean"]
    rows = [heading]
    for panel in SIZES:
        _, *theirs = of_the_paper(grid, panel, suffix)
        name = f"{task}_mini_{SIZES[panel]}{suffix}"
        seeds, ours = seeds_of(runs, name), runs.get(name, unfinished.get(name))
        part = f" ({how_far(ours)})" if ours and how_far(ours) else ""
        cells = []
        for column, their in zip(columns, theirs):
            one = number(at_its_best(ours, column)) + part if ours else "–"
            many = spread([at_its_best(run, column) for run in seeds]) if seeds else "–"
            their = their if their == "–" else number(float(their.rstrip("%").split("/")[0]))
            cells.append(f"{their} / {one} / {many}")
        if "held_out" in columns:
            cells += [rate_of(seeds, at_best), rate_of(seeds, generalizes), late_percent(seeds) if seeds else "–"]
        rows.append([panel, str(len(seeds)), *cells])
    return markdown(f"{titles[suffix == '_wd']}{' (weight decay 0.1)' * bool(suffix)}. At the best evaluation: paper / "
                    "our run with seed 1337 / median of the seeds (quartiles, where they differ)", rows)


def late_percent(runs):
    """Mean share of the late evaluations of runs that have all held-out samples right."""
    return f"{100 * np.mean([right / total for right, total in (late_evaluations(run.results) for run in runs)]):.0f}%"


def nearly_all(widths):
    """How many samples the runs of n14 and wider lack that do not have all trained problems at the end."""
    without = [run for n, seeds in widths.items() if n >= 14 for run in seeds if not trained(run)]
    lacking = [total - right for right, total in (right_and_total(run.results, "trained") for run in without)]
    if not lacking:
        return []
    return [f"From n14 on the {len(lacking)} runs that do not have all trained problems at the end lack "
            f"{np.median(lacking):g} of 1,960 samples at the median, {max(lacking):g} at most."]


def capacity(runs):
    """The map as a table."""
    by_task = {task: widths_of(runs, task) for task in ("math", "facts", "both")}
    if not by_task["math"]:
        return ""
    rows = [["n", "arithmetic: trained, mean %", "held out, mean %", "all trained problems", "all held-out ones", "(at the best evaluation)",
             "capitals: all", "both: all trained problems", "both: all held-out ones", "both: all capitals"]]
    for n in sorted({n for cells in by_task.values() for n in cells}):
        math, facts, both = (cells.get(n, []) for cells in by_task.values())
        means = [mean_accuracy(math, what) if math else "–" for what in ("trained", "held_out")]
        counted = [(math, trained), (math, generalizes), (math, at_best), (facts, all_capitals),
                   (both, trained), (both, generalizes), (both, all_capitals)]
        shares = [f"{sum(map(holds, seeds))} of {len(seeds)}" if seeds else "–" for seeds, holds in counted]
        rows.append([str(n), *means, *shares])
    return "\n\n".join([
        "## The map of capacity",
        "One layer of width n, no weight decay: the share of runs that have every sample right at the last evaluation, with its 95% interval,\n"
        "and below the runs' lowest losses on the text that they are trained on, median and quartiles.",
        "![The map of capacity](results/map.png)",
        *nearly_all(by_task["math"]),
        *([
            "The accuracy at the end: the mean of a width's runs as a line, each run as a dot, darker where several are:",
            "![Accuracy at the end of training against the width](results/accuracy.png)",
        ] if len(by_task["math"]) > 1 else []),
        markdown("At the last evaluation: mean accuracy on arithmetic, and runs that have everything right", rows),
        "Which of the held-out problems fail, and how:",
        "![Held-out problems by width](results/held_out.png)",
    ])


def orders(runs):
    """n14 in other orders of the lines: how often it generalizes, and what decides."""
    named = orders_of(runs)
    if not named:
        return ""
    lines, seeds = (sorted({key[i] for key in named}) for i in (0, 1))
    whole = [line for line in lines if all((line, seed) in named for seed in seeds)]  # orders with every seed
    every, paper = list(named.values()), seeds_of(runs, "math_mini_14")
    per_order = Counter(sum(generalizes(named[line, seed]) for seed in seeds) for line in whole)
    says = [
        f"n14 on arithmetic in {len(lines)} orders of the text's lines, each with the seeds {seeds[0]} to {seeds[-1]}:",
        f"{rate_of(every, generalizes)} generalize. How many of an order's {len(seeds)} runs do:",
        ", ".join(f"{right} of {len(seeds)} in {count} orders" for right, count in sorted(per_order.items())) + ".",
    ]
    if paper:
        says.append(f"In the paper's order {rate_of(paper, generalizes)} do,")
        says.append(f"that is {compared(paper, every, generalizes)} against the other orders.")
        says.append("(Interval and test take the runs as independent; those of other orders have few seeds and few texts in common.)")
    parts = ["## Does the order of the lines decide?", "\n".join(says)]
    if len(whole) > 1:
        parts += variances([[named[line, seed] for seed in seeds] for line in whole])
    return "\n\n".join([*parts, "![Held-out problems by order and seed](results/orders.png)"])


def variances(table):
    """Whether the order or the seed decides: a table and what it says, of runs [order][seed]."""
    verdicts = []
    rows = [["variance of", "the order of the lines", "the seed (initial weights, places of the windows)",
             "the rest: their interaction, and chance"]]
    for what, of_run in (("whether a run generalizes", generalizes), ("how many held-out samples are right", held_out_right)):
        values = [[of_run(run) for run in row] for row in table]
        *shares, rest = two_way_shares(values)
        ps = permutation_p(values)
        explained = [f"{100 * share:.0f}% (p = {p:.2g})" for share, p in zip(shares, ps)]
        verdicts.append(f"{'an' if ps[0] < 0.05 else 'no'} effect of the order on {what}")
        rows.append([what, *explained, f"{100 * rest:.0f}%"])
    n_orders, n_seeds = len(table), len(table[0])
    orders_share, seeds_share = ((groups - 1) / (n_orders * n_seeds - 1) for groups in (n_orders, n_seeds))  # degrees of freedom, of all
    by_chance = [orders_share, seeds_share, 1 - orders_share - seeds_share]
    rows.append(["to be expected by chance alone", *(f"{100 * share:.0f}%" for share in by_chance)])
    return [
        markdown("How much of the variance each explains (p by permutation)", rows),
        f"These runs show {', and '.join(verdicts)}. (With so few runs only a large effect would show.)",
    ]


def pairs(runs):
    """n14 with other pairs of digits held out, and the paper's beside them."""
    cells = pairs_of(runs)
    if not cells:
        return ""
    paper = seeds_of(runs, "math_mini_14")
    p_of = {pair: fisher_exact(*counts(seeds, paper, generalizes)) for pair, seeds in cells.items()} if paper else {}
    rows = [["held-out pair", "generalizes", "against the paper's pair, p", "all 40 at the best evaluation",
             "all trained problems at the last"]]
    for pair, seeds in [*cells.items(), (f"{HELD_OUT} (the paper's)", paper)]:
        p = f"{p_of[pair]:.2g}" if pair in p_of else "–"
        rows.append([pair, rate_of(seeds, generalizes), p, rate_of(seeds, at_best), rate_of(seeds, trained)])
    return "\n\n".join([
        f"## Is ({HELD_OUT}) easy?",
        "n14 on arithmetic with another pair of digits held out: the first ten of the 44 other pairs of different digits, in an order that\n"
        "`experiments/pairs.py` draws.",
        markdown("Held-out pairs (p of Fisher's exact test, each for itself)", rows),
        *([against_the_papers_pair(cells, paper, p_of)] if paper else []),
        how_far_apart(cells, "At the last evaluation", generalizes),
        how_far_apart(cells, "At the best one", at_best),
        "![Shares of runs that generalize, by held-out pair](results/pairs.png)",
    ])


def against_the_papers_pair(cells, paper, p_of):
    """With how many of the {pair: runs} fewer generalize than with the paper's, and with how many more; p_of: {pair: p} of that."""
    share_of = {pair: np.mean([generalizes(run) for run in seeds]) for pair, seeds in cells.items()}
    share_of_paper = np.mean([generalizes(run) for run in paper])
    differing = [pair for pair, p in p_of.items() if p < 0.05]
    fewer = sum(share_of[pair] < share_of_paper for pair in differing)
    more = len(differing) - fewer
    corrected = sum(p < 0.05 / len(p_of) for p in p_of.values())
    return (f"With the paper's pair runs generalize more often than with {fewer or 'none'} of the others, "
            f"and more rarely than with {more or 'none'} "
            f"(p < 0.05, each by itself; {corrected} of them with Bonferroni's correction for {len(p_of)} tests);\n"
            "of the rest these runs cannot tell.")


def how_far_apart(cells, when, holds):
    """How much the {pair: runs} differ in the share that has something, and whether chance would do as much."""
    percents = [100 * np.mean([holds(run) for run in seeds]) for seeds in cells.values()]
    right, total = (sum(count) for count in zip(*((sum(map(holds, seeds)), len(seeds)) for seeds in cells.values())))
    fewest = min(map(len, cells.values()))  # the permutation test takes as many of each
    p, _ = permutation_p([[holds(run) for run in seeds[:fewest]] for seeds in cells.values()])
    return (f"{when} the share of runs with all 40 goes from {min(percents):.0f}% to {max(percents):.0f}% among the other "
            f"pairs; {sum(map(bool, percents))} of {len(cells)} have such a run,\nand of all their runs "
            f"{right} of {total} have. Were they all alike, shares this far apart would come with p = {p:.2g} "
            "(permutation test; 0.0001 is the least that it can give).")


def made_by(run):
    """What computed a run's updates, in which precision: C step, float32."""
    return f"{run.info['step'].split(' (')[0]}, {run.info['dtype']}"


def steps(runs):
    """What computes the updates: the C step, PyTorch in its place, and PyTorch in the paper's precision."""
    names = {"C step, float32": "math_mini_14", "PyTorch, float32": "math_mini_14_dtype_float32_fast_False",
             "PyTorch, bfloat16": "math_mini_14_dtype_bfloat16_fast_False"}
    made = {step: {seed: run for seed, run in by_seed(runs, name).items() if made_by(run) == step} for step, name in names.items()}
    shared = sorted(set.intersection(*map(set, made.values())))
    if not shared:
        return ""
    every = list(made["C step, float32"].values())
    made = {step: [seeds[seed] for seed in shared] for step, seeds in made.items()}
    fast, plain, bfloat16 = made.values()
    intervals = [difference(*counts(seeds, plain, holds)) for seeds in (fast, bfloat16) for holds in (generalizes, at_best)]
    told = any(not low <= 0 <= high for low, high in intervals)
    rows = [["step", "generalizes", "against PyTorch in float32", "all 40 at the best evaluation", "against PyTorch in float32",
             "late evaluations with all 40, mean", "lowest loss, nats per character: median (quartiles)"]]
    for step, seeds in made.items():
        cells = [cell for holds in (generalizes, at_best)
                 for cell in (rate_of(seeds, holds), "–" if seeds is plain else compared(seeds, plain, holds))]
        rows.append([step, *cells, late_percent(seeds), spread([run.results["val_loss"].min() for run in seeds], digits=3)])
    alike = sum(generalizes(a) == generalizes(b) for a, b in zip(fast, plain))
    a, b = (np.mean([generalizes(run) for run in seeds]) for seeds in (fast, plain))
    by_chance = len(shared) * (a * b + (1 - a) * (1 - b))
    return "\n\n".join([
        "## Does the step matter?",
        f"n14 on arithmetic, with the {len(shared)} seeds that all three have. "
        "A seed gives all three the same initial weights and the same batches: they differ\n"
        "in rounding, which training amplifies. The C step and PyTorch in float32 agree on whether a seed generalizes for\n"
        f"{alike} of the {len(shared)}; by chance it would be {by_chance:.1f}. "
        f"With all seeds that the C step has, {rate_of(every, generalizes)} generalize.",
        "In float32 the gradient of a trained model is off from that in float64 by a few parts in 100,000, the C step's less than three times as\n"
        "far as PyTorch's; a test in `tests/test_c_step.py` holds it to that.",
        markdown("What computes the updates", rows),
        "(The three have their seeds in common; the intervals and tests take them as independent.)",
        "An interval of the differences leaves out 0: the step or the precision matters." if told else
        "Each interval of the differences holds 0: these shares tell no difference between the steps or the precisions, "
        "and rule out only large ones.",
        "(The losses of the runs in bfloat16 are computed in bfloat16 too, so they do not compare with the others'.)",
    ])


def introduction(runs, unfinished):
    """What this is about, how to read it, and the claims in one table."""
    many = [name for name in runs if "_seed_" in name]
    every = unfinished | runs
    mlts = {name: every[name] for task in GRIDS.values() for suffix in ("", "_wd") if (name := f"{task}_mini_mlt{suffix}") in every}
    machines = Counter(machine for run in (runs | mlts).values() for machine in run.info["made_on"].split("; ") if machine)
    partly = sum(bool(how_far(run)) for run in mlts.values())
    complete = len(mlts) - partly
    begun = f"has six runs, of which {complete} are complete and {partly} have begun"
    mlt = begun if mlts else "needs a GPU and is not run yet"
    made = "; ".join(f"{count:,} {'run was' if count == 1 else 'runs were'} made on {machine}" for machine, count in machines.most_common())
    return f"""# Results: how often the paper's findings come about again

*Too Big to Think* (Barron and White, 2025, [arXiv:2506.09099](https://arxiv.org/abs/2506.09099)) trains tiny
character-level GPTs of one layer and width 14, 28 and 56 (n14, n28, n56: 1.5, 5.3 and 19.9 thousand parameters on
arithmetic; a fourth, the MLT of 10 million, {mlt}) on all sums and differences of two single
digits but 5+7, 7+5, 5-7 and 7-5, on 50 capital cities, or on both, each with weight decay 0.1 and without (the MLT always with it, but
with dropout and without). It has one run for each. Here are {len(many):,} runs with other seeds, widths, orders of the lines and
held-out pairs, and {len(runs) - len(many)} with the paper's seed, 1337: its cells and its search for the smallest model. `python report.py`
wrote this page from the tables and the unfinished runs in [results/](results), and a test fails if it does not agree with them;
[study/experiments/runs.py](study/experiments/runs.py) says what the tables' columns mean.

- Each problem is asked ten times at a temperature of 0.01, so that the ten answers are nearly always the same: 40
  held-out samples right are four problems right.
- A run **generalizes** if all 40 are right at its last evaluation, at iteration 30,000, whatever it has of the problems
  that it was trained on. The paper counts the best evaluation of 121: the one with the most right answers over all problems,
  the earliest if several have as many. (A run can have all 40 at another.) We give both, and the share of the 41
  evaluations from iteration 20,000 on that have all 40.
- The held-out problems count among the additions and subtractions: a model that has all others right and these wrong
  has 98%.
- A seed is of the initial weights, the batches and the sampling; the text is the paper's unless said otherwise. Seeds
  are the first ones, 1, 2, 3 and so on, none chosen. A cell says how many runs it has so far, and with few its interval
  is wide.
- `17 of 20 (85%, 64 to 95)` is a share with its 95% interval (Wilson); differences have Newcombe's.
- Most runs were made by our own implementation of the update in C, the C step, which is tested against PyTorch's; whether it gives
  the same shares, {"[a section below](#does-the-step-matter)" if steps(runs) else "`experiments/steps.py`"} asks. {made}.
  A run that was made in parts counts under each.
- n14, n28 and n56 have no dropout. The MLT always has weight decay 0.1; in tables 2 to 4 it has dropout 0.2 too, in 5 to 7 none.
- A number with `(at 1,250 of 30,000)` is of a run that has come to that iteration and not to its end: what it had at its best
  evaluation so far.

{summary(runs)}"""


SEEDS_MATH = """![Arithmetic: accuracy over iterations](results/seeds_math.png)

(Medians and quartiles over the runs; for the held-out problems the mean, since with four of them a median would jump. The dashed line is the
share of the runs that have all held-out samples right. Curves that stay at 98% lack the held-out problems alone.)"""


AGAIN = """## Make it again

```
python run_experiment.py experiments/paper.py
python run_experiment.py experiments/seeds.py
python run_experiment.py experiments/map.py
python run_experiment.py experiments/orders.py
python run_experiment.py experiments/pairs.py
python run_experiment.py experiments/steps.py
python run_experiment.py experiments/mlt.py    # needs a GPU
python plot_experiment.py
python report.py
```

Each goes on with what the tables in `results/` lack. In another folder, `again`, they make all anew with `--root_dir=again` after each
and `--path=RESULTS_again.md` after the last."""


def report(runs, unfinished, results="results"):
    """RESULTS.md of {name: Run}, and of runs that are not complete, of which it has those with the names of the paper's.

    results: where the tables and figures are, as seen from the page.
    """
    drawn = {task for (task, panel, _), seeds in cells_of(runs).items() if seeds and panel in SMALL}  # by plot_experiment.py
    figures = [f"![{what}: accuracy over iterations](results/seeds_{task}.png)"
               for task, what in (("facts", "Capitals"), ("both", "Both")) if task in drawn]
    parts = [
        introduction(runs, unfinished), SEEDS_MATH if "math" in drawn else "", claims(runs, unfinished),
        tables(runs, unfinished), *figures, capacity(runs), orders(runs), pairs(runs), steps(runs), AGAIN,
    ]
    return "\n\n".join(part for part in parts if part).replace("](results", f"]({results}") + "\n"


def main(cfg):
    root = Path(cfg.root_dir)
    runs = published_runs(root)
    if not runs:
        raise StudyError(f"{cfg.root_dir} holds no runs: python run_experiment.py experiments/seeds.py makes some")
    unfinished = {name: run for name, run in read_runs(root).items() if name not in runs}
    files = {Path(cfg.path): report(runs, unfinished, Path(os.path.relpath(root, Path(cfg.path).parent)).as_posix())}
    if cfg.readme:
        table = summary(runs)
        title = re.escape(table.splitlines()[0])
        try:
            text, found = re.subn(title + r"\n\n(\|.*\n)+", table + "\n", Path(cfg.readme).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(f"cannot read {cfg.readme}: {getattr(error, 'strerror', 'it is not text')}")
        if not found:
            raise StudyError(f"{cfg.readme} has no table to bring up to date: one under the line {table.splitlines()[0]}")
        files[Path(cfg.readme)] = text
    write_files({path: text.encode() for path, text in files.items()})
    print(f"wrote {' and '.join(map(str, files))}")


if __name__ == "__main__":
    run_script(main, globals())
