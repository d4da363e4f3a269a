"""Compute what decides whether a model finds the rule: random tables, sizes, orders, pairs, shares.

why() returns nested dicts of plain data like findings(). Each function is the analysis that the comment of
its file in experiments/ names. Its outcome is the share of held-out samples right at the last evaluation.
why_optimizer.py has the analyses of the optimizer.
"""

import math

import numpy as np

from study.experiments.cells import corrected, mean, paired_scores, percents_at_last, spread
from study.experiments.problems import is_pair
from study.experiments.results import first_evaluation_with
from study.experiments.select import N14, seeds_by, seeds_of, varied
from study.experiments.statistics import bootstrap, half_width
from study.experiments.why_optimizer import SEEDS, best_pairs, decays, longer, rates
from study.experiments.widths import NARROWEST
from study.tasks import table_of


def why(runs):
    """All findings of {name: Run} on why; those without runs are empty or None."""
    of_rates, of_decays, of_longer = rates(runs), decays(runs), longer(runs)
    others = [cell for cell in of_rates.get("n28", {}).values() if cell["against"] and cell["runs"] >= SEEDS]
    return {"capacity": capacity(runs), "times": times(runs), "tables": tables(runs), "rates": of_rates,
            "best_rate": max(others, key=lambda cell: cell["held_out"]["mean"], default=None),
            "decays": of_decays, "best_pairs": best_pairs(of_decays),
            "best_pairs_from_0_003": best_pairs(of_decays, least_rate=0.003),
            "longer": of_longer, "longer_against": {n: cell["against"] for n, cell in of_longer.items()},
            "order": order(runs), "pairs": pairs(runs), "shares": shares(runs)}


def random_tables(runs):
    """{n: runs} of random tables with the paper's settings."""
    cells = {}
    for (n, answer_seed, _), run in varied(runs, N14, "n_embd", "answer_seed", "seed").items():
        if answer_seed >= 0:
            cells.setdefault(n, []).append(run)
    return cells


def at_last(cells, what):
    """{key: shares of samples right at the last evaluation, one a run} of {key: runs}."""
    return {key: [percent / 100 for percent in percents_at_last(cell, what)] for key, cell in cells.items()}


def estimate(what, statistic, groups):
    """statistic(groups) with its bootstrap interval; None where it is not defined or a group has few runs."""
    value = statistic(groups) if groups else math.nan
    low = high = math.nan
    if value == value and min(map(len, groups)) > 2:
        low, high = bootstrap(statistic, groups)
    return {"what": what, "value": value if value == value else None,
            "interval": (low, high) if low == low else None}


def widths_at_half(*curves):
    """A statistic of groups: half_width() of each curve, given as ({n: shares}, whether it falls)."""
    def of(groups):
        groups = iter(groups)
        return [half_width(list(cells), [np.mean(next(groups)) for _ in cells], falling)
                for cells, falling in curves]

    return of


def half(what, cells, falling=False):
    """The width at which the mean of {n: shares} passes a half."""
    width = widths_at_half((cells, falling))
    return estimate(f"{what}: width at half", lambda groups: width(groups)[0], list(cells.values()))


def ratio(what, memory, rule):
    """The width at which the rule is lost over that at which the random table is held."""
    widths = widths_at_half((memory, False), (rule, True))
    groups = [*memory.values(), *rule.values()] if memory and rule else []

    def of(groups):
        n_mem, n_gen = widths(groups)
        return n_gen / n_mem

    return estimate(f"{what}: n_gen / n_mem", of, groups)


def capacity(runs):
    """What models hold of a random table, beside what they have of the true one (experiments/capacity.py)."""
    cells = random_tables(runs)
    true = {n: cell for n, cell in seeds_by("n_embd", runs, N14).items() if n >= NARROWEST}
    by_width = {}
    for n, cell in cells.items():
        measured = [run.info for run in cell if run.info.get("stored_bits")]
        bits = [float(info["stored_bits"]) for info in measured]
        each = [float(info["stored_bits"]) / int(info["num_params"]) for info in measured]
        by_width[f"n{n}"] = {
            "runs": len(cell),
            "table": mean(f"n{n}: percent of a random table", percents_at_last(cell, "trained")),
            "bits": spread(f"n{n}: bits of a random table stored", bits, "bits"),
            "each": spread(f"n{n}: bits stored a parameter", each, "bits a parameter"),
            "held_out": mean(f"n{n}: percent of held_out", percents_at_last(true.get(n, []), "held_out")),
        }
    memory, rule = at_last(cells, "trained"), at_last(true, "held_out") if cells else {}
    table_bits = [float(run.info["table_bits"]) for cell in cells.values() for run in cell
                  if run.info.get("table_bits")]
    return {
        "by_width": by_width,
        "table_bits": spread("bits of a random table", table_bits, "bits"),
        "n_mem": half("random tables", memory), "n_gen": half("held-out problems", rule, falling=True),
        "ratio": ratio("the paper's table", memory, rule),
    }


def times(runs):
    """{width: iterations until 90% of the random table, the trained and the held-out problems} at the median.

    A run that does not get there counts as one that takes longer than all others.
    """
    true = seeds_by("n_embd", runs, N14)
    return {f"n{n}": {"random": until(f"n{n}, random table", cell, "trained"),
                      "trained": until(f"n{n}, trained problems", true.get(n, []), "trained"),
                      "held_out": until(f"n{n}, held-out problems", true.get(n, []), "held_out")}
            for n, cell in random_tables(runs).items()}


def until(what, cell, column):
    """Median over the runs of the first evaluation with 90% right; None if fewer than half get there."""
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
    for (operations, most, answers, pairs, lines, _, n, seed), run in varied(
            runs, N14, *axes, "seed").items():
        rule = f"{pairs.count(';') + 1} pairs of seed {seed}"  # one that the experiment drew, unlike 5,7
        drawn = table_of({"held_out": rule, "max_operand": most}).held_out
        if lines == seed and pairs == drawn and answers in (-1, seed):
            table = cells.setdefault((operations, most), {"memory": {}, "rule": {}})
            table["rule" if answers == -1 else "memory"].setdefault(n, []).append(run)
    found = {}
    for (operations, most), table in cells.items():
        name = f"{operations} to {most}"
        memory, rule = at_last(table["memory"], "trained"), at_last(table["rule"], "held_out")
        found[name] = {
            "problems": (most + 1) ** 2 * (1 + (operations == "both")),
            "runs": sum(map(len, (*memory.values(), *rule.values()))),
            "n_mem": half(f"{name}, random", memory), "n_gen": half(f"{name}, held out", rule, falling=True),
            "ratio": ratio(name, memory, rule),
            "most": max((float(100 * np.mean(of_width)) for of_width in rule.values()), default=None),
            "memory": memory, "rule": rule,
        }
    return {"by_table": found, "slope": slope_of(found)}


def whole(found):
    """The tables that have both widths, with their intervals."""
    return {name: table for name, table in found.items()
            if table["n_mem"]["interval"] and table["n_gen"]["interval"]}


def slope_of(found):
    """Slope of log n_gen over log n_mem, over the tables of whole()."""
    of_both = whole(found).values()
    curves = [(table[kind], kind == "rule") for table in of_both for kind in ("memory", "rule")]
    widths = widths_at_half(*curves)

    def of(groups):
        at = np.log(widths(groups))
        return math.nan if np.isnan(at).any() else float(np.polyfit(at[::2], at[1::2], 1)[0])

    groups = [group for cells, _ in curves for group in cells.values()] if len(of_both) > 2 else []
    return estimate("slope of log n_gen over log n_mem", of, groups) | {"tables": len(of_both)}


def order(runs):
    """{n: the paper's text against lines in changing order} (experiments/changing_order.py)."""
    paper, changing = seeds_of(runs, N14, "n_embd"), seeds_of(runs, N14, "n_embd", shuffles=50)
    tests = corrected({n: paired_scores(f"n{n}: changing order minus the paper's", cell, paper.get((n,), {}))
                       for (n,), cell in changing.items()})
    return {f"n{n}": {
        "runs": len(cell), "against": tests[n],
        "paper": mean(f"n{n}, the paper's text", percents_at_last(
            [run for seed, run in paper.get((n,), {}).items() if seed in cell], "held_out")),
        "changing": mean(f"n{n}, changing order", percents_at_last(cell.values(), "held_out")),
    } for (n,), cell in changing.items()}


def pairs(runs):
    """{n: held-out pairs at the edge against those inside}, once all have runs (experiments/all_pairs.py)."""
    found = {}
    for n, most in ((14, 10), (20, 5)):
        cells = {pair: [run for seed, run in of_seed.items() if seed <= most]
                 for (pair,), of_seed in seeds_of(runs, N14, "held_out", n_embd=n).items() if is_pair(pair)}
        means = {pair: np.mean(scores) for pair, scores in at_last(cells, "held_out").items() if scores}
        if len(means) == 45:
            found[f"n{n}"] = edge(f"n{n}", means)
    return found


def edge(what, means, draws=10_000):
    """Mean of the pairs with a 0 or 9 minus that of the others, and p by permutation over pairs."""
    at_edge = np.array([bool({"0", "9"} & set(pair.split(","))) for pair in means])
    values, rng = np.array(list(means.values())), np.random.default_rng(0)
    observed = values[at_edge].mean() - values[~at_edge].mean()
    shuffled = rng.permuted(np.repeat(at_edge[None], draws, axis=0), axis=1)
    counts = at_edge.sum(), (~at_edge).sum()
    differences = (shuffled @ values) / counts[0] - (~shuffled @ values) / counts[1]
    p = (1 + (np.abs(differences) >= abs(observed) - 1e-12).sum()) / (1 + draws)
    groups = [values[at_edge], values[~at_edge]]
    interval = bootstrap(lambda groups: groups[0].mean() - groups[1].mean(), groups)
    return {"what": f"{what}: pairs with 0 or 9 minus the others", "difference": float(observed),
            "interval": interval, "p": float(p), "test": "permutation over pairs",
            "at_edge": float(100 * values[at_edge].mean()), "inside": float(100 * values[~at_edge].mean())}


def shares(runs):
    """{n: {pairs held out: mean}, and the slope over their number} (experiments/held_out_share.py)."""
    counts = (1, 2, 5, 10, 15, 22)
    found = {}
    for n in (10, 14, 20, 28, 56):
        cells = {count: [] for count in counts}
        for (drawn,), of_seed in seeds_of(runs, N14, "held_out", n_embd=n).items():
            for seed, run in of_seed.items():
                for count in counts:
                    if drawn == table_of({"held_out": f"{count} pairs of seed {seed}"}).held_out:
                        cells[count].append(run)
        cells = {count: of_count for count, of_count in at_last(cells, "held_out").items() if of_count}
        if len(cells) > 1:
            def slope(groups):
                x = np.repeat(list(cells), [len(group) for group in groups])
                return float(np.polyfit(x, 100 * np.concatenate(groups), 1)[0])

            groups = list(cells.values())
            found[f"n{n}"] = {
                "by_count": {count: float(100 * np.mean(of_count)) for count, of_count in cells.items()},
                "runs": sum(map(len, groups)),
                "slope": estimate(f"n{n}: points a held-out pair", slope, groups)}
    return found
