"""Compute whether the window of widths moves with the optimizer: learning rates, weight decay, length."""

import math

from study.experiments.cells import corrected, mean, paired_scores, percents_at_last, rate_of, score
from study.experiments.results import right_and_total
from study.experiments.select import N14, random_tables, seeds_of

# The schedule of experiments/long.py: the paper's, ten times as long.
TENFOLD = {"max_iters": 300_000, "warmup_iters": 20_000, "lr_decay_iters": 250_000, "eval_interval": 2_500}
WIDE = ("n28", "n56")  # of the predictions that no setting makes them generalize
SEEDS = 5  # of a rate and weight decay, and of experiments/long.py; the paper's cells have more


def key_of(value):
    """The key of a rate or a weight decay: 0_03, since a template has dots between keys."""
    return f"{value:g}".replace(".", "_")


def by_rate(runs, *axes):
    """{(values of the axes, peak rate): {seed: Run}} where the final rate is a hundredth of it."""
    return {(*key, rate): of_seed
            for (*key, rate, least), of_seed in seeds_of(runs, N14, *axes, "learning_rate", "min_lr").items()
            if math.isclose(least, rate / 100)}


def rates(runs):
    """{n: {rate: cell}} of learning rates (experiments/optimizer.py)."""
    cells, found = {}, {}
    for (n, rate), of_seed in by_rate(runs, "n_embd").items():
        cells.setdefault(n, {})[rate] = of_seed
    random = {(n, rate): cell
              for (n, rate, least), cell in random_tables(runs, "n_embd", "learning_rate", "min_lr").items()
              if math.isclose(least, rate / 100)}
    for n, of_rate in cells.items():
        if len(of_rate) < 2:
            continue
        against = corrected({rate: paired_scores(f"n{n}: {rate:g} minus 0.01", cell, of_rate.get(0.01, {}))
                             for rate, cell in of_rate.items() if rate != 0.01})
        found[f"n{n}"] = {key_of(rate): {
            "rate": rate, "runs": len(cell), "against": against.get(rate),
            "score": score(f"n{n} at {rate:g}", [[run] for run in cell.values()]),
            **{what: mean(f"n{n} at {rate:g}: percent of {what}", percents_at_last(cell.values(), what))
               for what in ("held_out", "trained")},
            "table": mean(f"n{n} at {rate:g}: percent of a random table",
                          percents_at_last(random.get((n, rate), []), "trained")),
            "generalizes": rate_of(f"n{n} at {rate:g}", cell.values(), "generalizes"),
        } for rate, cell in of_rate.items()}
    return found


def with_runs(found):
    """What a figure can show of rates(): widths of two or more rates that have three or more runs each."""
    cells = {n: {key: cell for key, cell in of_rate.items() if cell["runs"] > 2}
             for n, of_rate in found.items()}
    return {n: of_rate for n, of_rate in cells.items() if len(of_rate) > 1}


def decays(runs):
    """{n: {weight decay: its rates, and all of them against none}} (experiments/optimizer.py)."""
    cells, found = {}, {}
    for (n, decay, rate), of_seed in by_rate(runs, "n_embd", "weight_decay").items():
        cells.setdefault((n, decay), {})[rate] = of_seed
    widths = [n for n in dict.fromkeys(n for n, _ in cells)  # the paper has one cell with weight decay
              if sum(len(of_rate) for (width, decay), of_rate in cells.items() if width == n and decay) > 1]
    cells = {key: of_rate for key, of_rate in cells.items() if key[0] in widths}
    pooled = {key: pool(of_rate) for key, of_rate in cells.items()}
    against = corrected({(n, decay): paired_scores(f"n{n}: weight decay {decay:g} minus none", of_both,
                                                   pooled.get((n, 0), {}))
                         for (n, decay), of_both in pooled.items() if decay})
    for (n, decay), of_rate in cells.items():
        what = f"n{n}, weight decay {decay:g}"
        found.setdefault(f"n{n}", {})[key_of(decay)] = {
            "decay": decay, "against": against.get((n, decay)),
            "rates": {key_of(rate): {
                "rate": rate, "runs": len(cell), "first_runs": sum(seed <= SEEDS for seed in cell),
                "score": score(f"{what}, rate {rate:g}", [[run] for run in cell.values()]),
                "first": score(f"{what}, rate {rate:g}, seeds to {SEEDS}",
                               [[run] for seed, run in cell.items() if seed <= SEEDS]),
                "later": score(f"{what}, rate {rate:g}, later seeds",
                               [[run] for seed, run in cell.items() if seed > SEEDS]),
            } for rate, cell in of_rate.items()}}
    return found


def pool(cells):
    """{(key, seed): Run} of {key: {seed: Run}}, the first SEEDS seeds of each."""
    return {(key, seed): run for key, of_seed in cells.items() for seed, run in of_seed.items()
            if seed <= SEEDS}


def rates_of(found):
    """All peak rates of decays()."""
    return sorted({cell["rate"] for of_decay in found.values() for of_rate in of_decay.values()
                   for cell in of_rate["rates"].values()})


def best_pairs(found, widths, least_rate=0.0):
    """{a width, with rate and weight decay: the highest score that decays() has with weight decay}.

    It is that of the first SEEDS seeds; cells of fewer runs do not count. The highest of many means is likely
    too high, and its interval does not allow for that. So the score of the later seeds comes second, if there
    are any.
    """
    best = {}
    for name, of_decay in found.items():
        if name not in widths:
            continue
        pairs = [(cell, f"{name} (rate {cell['rate']:g}, weight decay {of_rate['decay']:g})")
                 for of_rate in of_decay.values() if of_rate["decay"]
                 for cell in of_rate["rates"].values()
                 if cell["rate"] >= least_rate and cell["first_runs"] == SEEDS]
        if pairs:
            cell, pair = max(pairs, key=lambda pair: pair[0]["first"]["value"])
            best[pair] = cell["first"]
            if cell["later"]["value"] is not None:
                best[f"{pair}, seeds from {SEEDS + 1} on"] = cell["later"]
    return best


def longer(runs):
    """{n: {weight decay: runs of 300,000 iterations against those of 30,000}} (experiments/long.py)."""
    usual, tenfold = {}, {}
    for cells, schedule in ((usual, {}), (tenfold, TENFOLD)):
        for (n, decay), of_seed in seeds_of(runs, N14, "n_embd", "weight_decay", **schedule).items():
            cells.setdefault(n, {})[decay] = of_seed
    each = corrected({(n, decay): paired_scores(f"n{n}, weight decay {decay:g}: 300,000 minus 30,000", cell,
                                                usual.get(n, {}).get(decay, {}))
                      for n, of_decay in tenfold.items() for decay, cell in of_decay.items()})
    pooled = corrected({n: paired_scores(f"n{n}: 300,000 iterations minus 30,000", pool(of_decay),
                                         pool(usual.get(n, {})))
                        for n, of_decay in tenfold.items()})
    return {f"n{n}": {
        "against": pooled[n],
        "by_decay": {key_of(decay): {
            "decay": decay, "runs": len(cell), "against": each[n, decay],
            "score": score(f"n{n}, weight decay {decay:g}, 300,000 iterations",
                           [[run] for run in cell.values()]),
            "most": max(most_held_out(run) for run in cell.values()),
        } for decay, cell in of_decay.items()},
    } for n, of_decay in tenfold.items()}


def most_held_out(run):
    """The highest held-out score of a run at any evaluation, in percent."""
    right, total = right_and_total(run.results, "held_out", slice(None))
    return float(100 * (right / total).max())
