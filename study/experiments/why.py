"""Compute what decides whether a model finds the rule: random tables, sizes, orders, pairs, shares.

why() returns nested dicts of plain data like findings(). Each function is the analysis that the comment of
its file in experiments/ names. Its outcome is the share of held-out samples right at the last evaluation.
why_optimizer.py has the analyses of the optimizer.
"""

import functools
import itertools
import math

import numpy as np

from study.experiments.cells import (
    corrected, mean, paired, paired_scores, percents_at_last, score, span, spread,
)
from study.experiments.problems import is_pair, problems_of, share_seen
from study.experiments.results import first_evaluation_with, right_and_total
from study.experiments.select import N14, random_tables, seeds_by, seeds_of, varied
from study.experiments.statistics import bootstrap, half_width
from study.experiments.why_optimizer import SEEDS, WIDE, best_pairs, decays, longer, rates
from study.experiments.widths import NARROWEST
from study.scoring import NUM_SAMPLES
from study.tasks import HELD_OUT, arithmetic_text, table_of

# Settings of the runs in experiments/, which a test holds to its files.
SHUFFLES = 50  # changing_order.py
EVERY_PAIR = {14: 10, 20: 5}  # all_pairs.py: width -> number of seeds
# held_out_share.py
SHARES, SHARE_WIDTHS, SHARE_SEEDS = (1, 2, 5, 10, 15, 22), (10, 14, 20, 28, 56), range(1, 11)
LEAST_PEAK = 0.5  # mean held-out score that a width of a table must reach for its n_gen to have a meaning
# The paper's pair and those of experiments/pairs.py: the question about the edge came from their runs.
KNOWN_PAIRS = (HELD_OUT, "0,1", "0,9", "1,2", "1,6", "2,5", "2,6",
               "3,6", "5,6", "6,8", "7,9")


def why(runs):
    """All findings of {name: Run} on why; those without runs are empty or None."""
    of_rates, of_decays, of_longer = rates(runs), decays(runs), longer(runs)
    others = [cell for cell in of_rates.get("n28", {}).values() if cell["against"] and cell["runs"] >= SEEDS]
    return {"capacity": capacity(runs), "times": times(runs), "tables": tables(runs), "rates": of_rates,
            "best_rate": max(others, key=lambda cell: cell["held_out"]["mean"], default=None),
            "decays": of_decays, "best_pairs": best_pairs(of_decays, of_decays),
            "best_pairs_from_0_003": best_pairs(of_decays, WIDE, least_rate=0.003),
            "longer": of_longer, "longer_against": {n: cell["against"] for n, cell in of_longer.items()},
            "longer_scores": {f"{n}, weight decay {cell['decay']:g},": cell["score"]
                              for n, of_width in of_longer.items() for cell in of_width["by_decay"].values()},
            "order": order(runs), "pairs": pairs(runs), "shares": shares(runs)}


def at_last(cells, what):
    """{key: shares of samples right at the last evaluation, one a run} of {key: runs}."""
    return {key: [percent / 100 for percent in percents_at_last(cell, what)] for key, cell in cells.items()}


def of_widths(what, function, *curves, censored=False):
    """function(half_width() of each curve), with its bootstrap interval over the runs.

    curves: ({n: shares}, whether it falls). In a draw, a curve that does not pass the half counts as passing
    it at the end of its widths. If censored, it does so in the value too; else the value is None then. The
    interval is None if a width has fewer than three runs.
    """
    def of(groups, censored=True):
        groups = iter(groups)
        return function(*(half_width(list(cells), [next(groups).mean() for _ in cells], falling, censored)
                          for cells, falling in curves))

    groups = [np.array(group) for cells, _ in curves for group in cells.values()]
    value = of(groups, censored) if all(cells for cells, _ in curves) else math.nan
    if math.isnan(value):
        return {"what": what, "value": None, "interval": None}
    return {"what": what, "value": value,
            "interval": bootstrap(of, groups) if min(map(len, groups)) > 2 else None}


def half(what, cells, falling=False):
    """The width at which the mean of {n: shares} passes a half."""
    return of_widths(f"{what}: width at half", lambda width: width, (cells, falling))


def ratio(what, memory, rule):
    """The width at which the rule is lost over that at which the random table is held."""
    return of_widths(f"{what}: n_gen / n_mem", lambda n_mem, n_gen: n_gen / n_mem,
                     (memory, False), (rule, True))


def capacity(runs):
    """What models hold of a random table, beside what they have of the true one (experiments/capacity.py)."""
    cells = {n: cell for (n,), cell in random_tables(runs, "n_embd").items()}
    true = {n: cell for n, cell in seeds_by("n_embd", runs, N14).items() if n >= NARROWEST}
    by_width = {}
    for n, cell in cells.items():
        bits = [float(run.info["stored_bits"]) for run in cell]
        each = [float(run.info["stored_bits"]) / int(run.info["num_params"]) for run in cell]
        by_width[f"n{n}"] = {
            "runs": len(cell),
            "table": mean(f"n{n}: percent of a random table", percents_at_last(cell, "trained")),
            "bits": spread(f"n{n}: bits of a random table stored", bits, "bits"),
            "each": spread(f"n{n}: bits stored a parameter", each, "bits a parameter"),
            "held_out": mean(f"n{n}: percent of held_out", percents_at_last(true.get(n, []), "held_out")),
        }
    memory, rule = at_last(cells, "trained"), at_last(true, "held_out") if cells else {}
    table_bits = [float(run.info["table_bits"]) for cell in cells.values() for run in cell]
    # What was planned at first: five tables a width, without n11 and n13.
    planned = {n: shares[:5] for n, shares in memory.items() if n not in (11, 13)}
    return {
        "by_width": by_width,
        "table_bits": spread("bits of a random table", table_bits, "bits"),
        "order_each": order_each(cells.get(14, [])),
        "n_mem": half("random tables", memory), "n_gen": half("held-out problems", rule, falling=True),
        "ratio": ratio("the paper's table", memory, rule),
        "ratio_planned": ratio("the paper's table, as planned", planned, rule),
    }


def order_each(runs):
    """Bits a parameter that it takes to know the order of a text's lines: any of their permutations."""
    what = "bits a parameter of the order of the lines"
    if not runs:
        return {"what": what, "value": None, "interval": None}
    lines = right_and_total(runs[0].results, "trained")[1] // NUM_SAMPLES
    bits = math.lgamma(lines + 1) / math.log(2)
    return {"what": what, "value": bits / int(runs[0].info["num_params"]), "interval": None}


def times(runs):
    """{width: iterations until 90% of the random table, the trained and the held-out problems} at the median,
    and the mean held-out score by iteration.

    A run that does not get there counts as one that takes longer than all others.
    """
    true = seeds_by("n_embd", runs, N14)
    return {f"n{n}": {"random": until(f"n{n}, random table", cell, "trained"),
                      "trained": until(f"n{n}, trained problems", true.get(n, []), "trained"),
                      "held_out": until(f"n{n}, held-out problems", true.get(n, []), "held_out"),
                      **learning_curve(true.get(n, []))}
            for (n,), cell in random_tables(runs, "n_embd").items()}


def learning_curve(cell):
    """{"curve": {iteration: mean held-out percent}, "peak": its largest, with its iteration} of runs."""
    if not cell:
        return {"curve": {}, "peak": None}
    shares = [np.divide(*right_and_total(run.results, "held_out", slice(None))) for run in cell]
    means = zip(cell[0].results["iter"], np.mean(shares, axis=0))
    curve = {str(int(it)): float(100 * share) for it, share in means}
    peak = max(curve, key=curve.get)
    return {"curve": curve, "peak": {"iteration": int(peak), "percent": curve[peak]}}


def until(what, cell, column):
    """Median over the runs of the first evaluation with 90% right; None unless more than half get there."""
    first = []
    for run in cell:
        at = first_evaluation_with(run.results, column, 0.9)
        first.append(math.inf if at is None else float(run.results["iter"][at]))
    median = float(np.median(first)) if first else math.inf
    return {"what": f"{what}: iterations until 90%", "median": median if math.isfinite(median) else None,
            "right": sum(map(math.isfinite, first)), "total": len(first)}


def tables(runs):
    """n_mem and n_gen of tables of several sizes, and the slope of one over the other
    (experiments/table_size.py)."""
    axes = ("operations", "max_operand", "answer_seed", "held_out", "line_seed", "block_size", "n_embd")
    cells = {}
    for (operations, most, answers, pairs, lines, block_size, n, seed), run in varied(
            runs, N14, *axes, "seed").items():
        count = pairs.count(";") + 1
        if lines != seed or answers not in (-1, seed) or count > math.comb(most + 1, 2):
            continue
        drawn = table_of({"held_out": f"{count} pairs of seed {seed}", "max_operand": most}).held_out
        if pairs == drawn and block_size == line_length(operations, most):  # as in the experiment
            table = cells.setdefault((operations, most), {"memory": {}, "rule": {}})
            table["rule" if answers == -1 else "memory"].setdefault(n, []).append(run)
    found = {}
    for (operations, most), table in cells.items():
        name = f"{operations} to {most}"
        memory, rule = at_last(table["memory"], "trained"), at_last(table["rule"], "held_out")
        peak = max((float(np.mean(of_width)) for of_width in rule.values()), default=None)
        falls = rule if peak is not None and peak >= LEAST_PEAK else {}
        n_gen = half(f"{name}, held out", falls, falling=True)
        trained = at_last(table["rule"], "trained")
        next_width = min((n for n in trained if n >= (n_gen["value"] or math.inf)), default=None)
        found[name] = {
            "problems": (most + 1) ** 2 * (1 + (operations == "both")),
            "runs": sum(map(len, (*memory.values(), *rule.values()))),
            "n_mem": half(f"{name}, random", memory), "n_gen": n_gen,
            "above_half": max(falls) if falls and n_gen["value"] is None else None,  # the widest that was run
            "trained": mean(f"{name}: percent of the trained problems at the first width from n_gen on",
                            [100 * share for share in trained.get(next_width, [])]),
            "ratio": ratio(name, memory, falls), "most": None if peak is None else 100 * peak,
            "memory": memory, "rule": rule,
        }
    widest = {name.replace(" to ", "_"): at_widest(name, table) for name, table in found.items()}
    of_both = whole(found)
    return {
        "by_table": found, "widest": widest, **slopes(found), "censored": slopes(found, censored=True),
        "ratios": ends("n_gen / n_mem", [table["ratio"]["value"] for table in of_both.values()]),
        "problems": ends("problems of a table with both", [table["problems"] for table in of_both.values()]),
    }


def slopes(found, censored=False):
    """slope_of() of all tables, and what it is when one of them is left out."""
    slope, tables = slope_of(found, censored), whole(found, censored)
    others = [slope_of({name: table for name, table in found.items() if name != left_out}, censored)
              for left_out in tables] if len(tables) > 3 else []
    bounds = [bound for other in others for bound in other["interval"]]
    return {"slope": slope, "intervals_without_one": ends("ends of its intervals", bounds),
            "slope_without_one": ends("slope without one of the tables", [each["value"] for each in others])}


def at_widest(name, table):
    """What the widest width of a table has of its random one and of the held-out problems.

    n, memory, rule: the widest width that was trained on both. last_n, last: the widest on the true table.
    peak: the largest mean of a width.
    """
    def percent(what, n, cells):
        return mean(f"{name}, n{n}: percent of {what}", [100 * share for share in cells.get(n, [])])

    memory, rule = table["memory"], table["rule"]
    n, last_n = max(memory.keys() & rule.keys(), default=None), max(rule, default=None)
    peak = max(rule, key=lambda n: np.mean(rule[n]), default=None)
    return {
        "n_mem": table["n_mem"], "peak": percent("the held-out problems", peak, rule),
        "n": n and f"n{n}", "memory": percent("the random table", n, memory),
        "rule": percent("the held-out problems", n, rule),
        "last_n": last_n and f"n{last_n}", "last": percent("the held-out problems", last_n, rule),
    }


@functools.cache
def line_length(operations, max_operand):
    """Characters of a line of a table, with its newline."""
    return arithmetic_text(0, operations=operations, max_operand=max_operand, held_out="none").index("\n") + 1


def ends(what, numbers):
    """The least and the largest number, to two decimals."""
    return {"what": what, "values": [round(bound(numbers), 2) for bound in (min, max) if numbers]}


def whole(found, censored=False):
    """The tables that have both widths, with their intervals.

    censored: also those whose score stays above half. If they have an n_gen, it is above their widest width.
    """
    return {name: table for name, table in found.items() if table["n_mem"]["interval"]
            and (table["n_gen"]["interval"] or censored and table["above_half"])}


def slope_of(found, censored=False):
    """Slope of log n_gen over log n_mem, over the tables of whole(), if there are three or more.

    censored: with the widest width as n_gen of those whose score stays above half.
    """
    of_both = whole(found, censored).values()
    curves = [(table[kind], kind == "rule") for table in of_both for kind in ("memory", "rule")]

    def slope(*widths):
        return float(np.polyfit(np.log(widths[::2]), np.log(widths[1::2]), 1)[0])

    what = "slope of log n_gen over log n_mem"
    finding = {"what": what, "value": None}
    if len(of_both) > 2:
        finding = of_widths(what, slope, *curves, censored=censored)
    return {"interval": None} | finding | {"tables": len(of_both)}


def order(runs):
    """The paper's text against lines in changing order, on the same seeds: {n: cell}, the mean over all
    widths, and where the held-out score has fallen to half (experiments/changing_order.py)."""
    changing = {n: of_seed for (n,), of_seed in seeds_of(runs, N14, "n_embd", shuffles=SHUFFLES).items()}
    paper = {n: {seed: run for seed, run in of_seed.items() if seed in changing.get(n, {})}
             for (n,), of_seed in seeds_of(runs, N14, "n_embd").items() if n in changing}
    tests = corrected({n: paired_scores(f"n{n}: changing order minus the paper's", cell, paper.get(n, {}))
                       for n, cell in changing.items()})
    shares = [(at_last({n: cells[n].values() for n in sorted(cells) if cells[n]}, "held_out"), True)
              for cells in (paper, changing)]
    seeds = [set(cells.get(n, {})) for cells in (paper, changing) for n in changing]
    of_all = sorted(set.intersection(*seeds)) if seeds else []  # the seeds that every width has
    means = [[np.mean(percents_at_last([cells[n][seed] for n in changing], "held_out")) for seed in of_all]
             for cells in (changing, paper)]
    return {
        "all_widths": paired("all widths: changing order minus the paper's", *means),
        "by_width": {f"n{n}": {
            "runs": len(cell), "against": tests[n],
            "paper": mean(f"n{n}, the paper's text",
                          percents_at_last(paper.get(n, {}).values(), "held_out")),
            "changing": mean(f"n{n}, changing order", percents_at_last(cell.values(), "held_out")),
            "lowest_loss": spread(f"n{n}, changing order: lowest validation loss",
                                  [float(run.results["val_loss"].min()) for run in cell.values()],
                                  "nats per character"),
        } for n, cell in changing.items()},
        "paper": half("the paper's text", *shares[0]), "changing": half("changing order", *shares[1]),
        "ratio": of_widths("n_gen with changing order over that with the paper's text",
                           lambda paper, changing: changing / paper, *shares),
    }


def pairs(runs):
    """{n: {which pairs: those at the edge against those inside, "score" of all but the paper's}}, once all
    have runs (experiments/all_pairs.py).

    Sums and differences apart are of the new pairs: shares of runs whose most frequent answer is right.
    """
    found = {}
    for n, most in EVERY_PAIR.items():
        cells = {pair: [run for seed, run in of_seed.items() if seed <= most]
                 for (pair,), of_seed in seeds_of(runs, N14, "held_out", n_embd=n).items() if is_pair(pair)}
        means = {pair: np.mean(scores) for pair, scores in at_last(cells, "held_out").items() if scores}
        if len(means) == 45:
            sets = {"new": [pair for pair in means if pair not in KNOWN_PAIRS], "all": list(means),
                    "seen": [pair for pair in means if share_seen(pair) == 1]}
            found[f"n{n}"] = {
                name: edge(f"n{n}, {name} pairs", {pair: means[pair] for pair in of_set})
                | {"runs": span(f"n{n}, {name} pairs: runs of a pair", [len(cells[pair]) for pair in of_set])}
                for name, of_set in sets.items()}
            runs_of_new = found[f"n{n}"]["new"]["runs"]
            for name, sign in (("sums", "+"), ("differences", "-")):
                shares = {pair: share_of_operation(cells[pair], pair, sign) for pair in sets["new"]}
                found[f"n{n}"][name] = edge(f"n{n}, {name} of new pairs", shares) | {"runs": runs_of_new}
            found[f"n{n}"]["score"] = score(f"n{n} without other pairs",
                                            [cells[pair] for pair in means if pair != HELD_OUT])
    return found


def share_of_operation(cell, pair, sign):
    """The share of a pair's two sums ("+") or differences ("-") that are right, over its runs."""
    answers = {problem: answer for problem, answer in problems_of(pair).items() if sign in problem}
    return np.mean([run.results["held_out_answers"][-1].get(problem) == answer
                    for run in cell for problem, answer in answers.items()])


def edge(what, means):
    """Mean of the pairs with a 0 or 9 minus that of the others, and p by permutation over pairs."""
    at_edge = np.array([bool({"0", "9"} & set(pair.split(","))) for pair in means])
    values, rng = np.array(list(means.values())), np.random.default_rng(0)
    observed = values[at_edge].mean() - values[~at_edge].mean()
    shuffled = rng.permuted(np.repeat(at_edge[None], 10_000, axis=0), axis=1)
    counts = at_edge.sum(), (~at_edge).sum()
    differences = (shuffled @ values) / counts[0] - (~shuffled @ values) / counts[1]
    p = (1 + (np.abs(differences) >= abs(observed) - 1e-12).sum()) / (1 + len(shuffled))
    groups = [values[at_edge], values[~at_edge]]
    interval = bootstrap(lambda groups: groups[0].mean() - groups[1].mean(), groups)
    return {"what": f"{what}: those with 0 or 9 minus the others", "difference": float(observed),
            "interval": interval, "p": float(p), "test": "permutation over pairs", "pairs": len(means),
            "at_edge": float(100 * values[at_edge].mean()), "inside": float(100 * values[~at_edge].mean())}


def shares(runs):
    """{n: {pairs held out: score}, and the slope over their number}, and n10 against n14 on the same pairs
    (experiments/held_out_share.py)."""
    drawn = {(table_of({"held_out": f"{count} pairs of seed {seed}"}).held_out, seed): count
             for count in SHARES for seed in SHARE_SEEDS}
    cells, found = {}, {}
    for (n, held_out), of_seed in seeds_of(runs, N14, "n_embd", "held_out").items():
        for seed, run in of_seed.items():
            if n in SHARE_WIDTHS and (held_out, seed) in drawn:
                cells.setdefault(n, {}).setdefault(drawn[held_out, seed], {})[seed] = run
    for n, of_count in sorted(cells.items()):
        if len(of_count) > 1:
            of_count = {count: list(of_count.get(count, {}).values()) for count in SHARES}
            with_runs = {count: cell for count, cell in of_count.items() if cell}
            groups = list(at_last(with_runs, "held_out").values())

            def slope(groups):
                x = np.repeat(list(with_runs), [len(group) for group in groups])
                return float(np.polyfit(x, 100 * np.concatenate(groups), 1)[0])

            found[f"n{n}"] = {
                "by_count": {str(count): score(f"n{n}, {count} pairs held out", [[run] for run in cell])
                             for count, cell in of_count.items()},
                "seen": {str(count): mean(f"{count} pairs held out: percent of answers that other lines have",
                                          [100 * share_seen(run.info["held_out"]) for run in cell])
                         for count, cell in of_count.items()},
                "trained": mean(f"n{n}: percent of the trained problems",
                                percents_at_last(itertools.chain(*of_count.values()), "trained")),
                "runs": sum(map(len, groups)),
                "slope": {"what": f"n{n}: points a held-out pair", "value": slope(groups),
                          "interval": bootstrap(slope, groups) if min(map(len, groups)) > 2 else None}}
    both = [cells.get(n, {}) for n in (10, 14)]
    whole = [seed for seed in SHARE_SEEDS
             if all(seed in of_count.get(count, {}) for of_count in both for count in SHARES)]
    means = [[np.mean(percents_at_last([of_count[count][seed] for count in SHARES], "held_out"))
              for seed in whole] for of_count in both]
    against = paired("n10 minus n14: mean over all numbers of pairs", *means)
    return {"by_width": found, "n10_against_n14": against}
