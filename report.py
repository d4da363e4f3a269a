"""Writes RESULTS.md: what the runs in the tables of the experiments say about each claim of the paper.

    python report.py                       (RESULTS.md)
    python report.py --readme=README.md    (and the README's table)
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from data.tasks import HELD_OUT
from study.files import write_files
from study.results import SIZES, all_right, best_evaluation, late_evaluations, orders_of, pairs_of, read_runs, right_and_total, seeds_of, widths_of
from study.settings import configure, fail
from study.statistics import difference, fisher_exact, permutation_p, quartiles, two_way_shares, wilson
from study.tables import TABLES, correct_and_total, markdown

root_dir = "results"  # folder of the experiments' tables
path = "RESULTS.md"  # where to write
readme = ""  # file whose table of the claims is brought up to date too, such as README.md

SMALL = ("n14", "n28", "n56")


def generalizes(run):
    return all_right(run.results, "held_out")


def rate(right, total):
    """A share of runs with its 95% interval: 17 of 20 (85%, 64 to 95)."""
    if not total:
        return "no seeds yet"
    low, high = (100 * bound for bound in wilson(right, total))
    return f"{right} of {total} ({100 * right / total:.0f}%, {low:.0f} to {high:.0f})"


def rate_of(runs, holds):
    return rate(sum(map(holds, runs)), len(runs))


def at_best(run):
    return all_right(run.results, "held_out", best_evaluation(run.results))


def number(value):
    """A percentage or a count without zeros that say nothing: 99.0 is 99, 98.43 is 98.4."""
    return f"{value:.1f}".removesuffix(".0")


def spread(values, unit=""):
    """Median (first to third quartile), one number if they are the same."""
    low, median, high = (number(value) for value in quartiles(values))
    return f"{median}{unit}" + f" ({low} to {high})" * (low != high)


def at_its_best(run, column):
    """A score at the best evaluation of a run: held-out samples that are right, other samples in percent."""
    correct, total = correct_and_total(run.results, column, best_evaluation(run.results))
    return correct if column == "held_out" else 100 * correct / total


def cell_runs(runs, task, panel, suffix):
    return seeds_of(runs, f"{task}_mini_{SIZES[panel]}{suffix}")


def paper_table(runs, grid, task, suffix):
    """A table of the paper with, in each cell, the paper's number, our run with the paper's seed, and many seeds."""
    titles, columns, paper = TABLES[grid]
    names = {"add": "addition, %", "sub": "subtraction, %", "facts": "capitals, %", "combined": "combined, %", "held_out": f"({HELD_OUT}), of 40"}
    heading = ["model", "seeds", *(names[column] for column in columns)]
    if "held_out" in columns:
        heading += ["all 40 at the best evaluation", "all 40 at the last: generalizes", "share of late evaluations with all 40"]
    rows = [heading]
    for panel in SIZES:
        theirs = paper[panel][1:][suffix == "_wd"].split()
        seeds, ours = cell_runs(runs, task, panel, suffix), runs.get(f"{task}_mini_{SIZES[panel]}{suffix}")
        cells = []
        for column, their in zip(columns, theirs):
            one = number(at_its_best(ours, column)) if ours else "–"
            many = spread([at_its_best(run, column) for run in seeds]) if seeds else "–"
            cells.append(f"{number(float(their.rstrip('%').split('/')[0]))} / {one} / {many}")
        if "held_out" in columns:
            late = [right / of for right, of in (late_evaluations(run.results) for run in seeds)]
            cells += [rate_of(seeds, at_best), rate_of(seeds, generalizes), f"{100 * np.mean(late):.0f}%" if late else "–"]
        rows.append([panel, str(len(seeds)), *cells])
    return markdown(f"{titles[suffix == '_wd']}. At the best evaluation: paper / our run with seed 1337 / median of the seeds (quartiles)", rows)


def tables(runs):
    grids = (("math", "math"), ("facts", "facts"), ("combined", "both"))
    parts = [paper_table(runs, grid, task, suffix) for suffix in ("", "_wd") for grid, task in grids]
    return "## The paper's tables with many seeds\n\n" + "\n\n".join(parts)


def compared(seeds_a, seeds_b, holds):
    """The difference of two shares: -10 points (-33 to +14; Fisher's exact test p = 0.59)."""
    a, b = ((sum(map(holds, seeds)), len(seeds)) for seeds in (seeds_a, seeds_b))
    low, high = (100 * bound for bound in difference(*a, *b))
    return f"{100 * (a[0] / a[1] - b[0] / b[1]):+.0f} points ({low:+.0f} to {high:+.0f}; Fisher's exact test p = {fisher_exact(*a, *b):.2g})"


def all_problems(run):
    """Whether a run has all 200 sums and differences right at its last evaluation."""
    return all_right(run.results, "held_out") and all_right(run.results, "trained")


def in_words(right, total):
    """How many runs of all there could be, as far as a share's interval tells."""
    low, high = wilson(right, total)
    return "none" if right == 0 else "all" if right == total else "most" if low > 0.5 else "fewer than half" if high < 0.5 else "some"


def cells_of(runs):
    """{(task, panel, suffix): runs that differ in their seed} of the small models' cells."""
    return {(task, panel, suffix): cell_runs(runs, task, panel, suffix)
            for task in ("math", "facts", "both") for panel in SMALL for suffix in ("", "_wd")}


def all_capitals(run):
    return all_right(run.results, "facts", best_evaluation(run.results))


def summary(runs):
    """The claims of the paper in one table."""
    cells = cells_of(runs)
    rows = [["trained on", "what a run has", "model", "the paper's", "ours without weight decay", "ours with weight decay 0.1"]]
    for task, trained_on, what, holds, theirs in (
        ("math", "arithmetic", "all held-out problems right at its best evaluation, as the paper counts", at_best, ("yes", "no", "no")),
        ("math", "arithmetic", "all held-out problems right at its last evaluation: it generalizes", generalizes, ("not told",) * 3),
        ("facts", "capitals", "all capitals right at its best evaluation", all_capitals, ("no", "yes", "yes")),
        ("both", "both", "all held-out problems right at its best evaluation, as the paper counts", at_best, ("no", "no", "no")),
        ("both", "both", "all held-out problems right at its last evaluation: it generalizes", generalizes, ("not told",) * 3),
    ):
        for panel, their in zip(SMALL, theirs):
            rows.append([trained_on, what, panel, their, *(rate_of(cells[task, panel, suffix], holds) for suffix in ("", "_wd"))])
    return markdown("In how many of our runs it is so (share, 95% interval)", rows)


def claims(runs):
    """A paragraph for each claim of the paper."""
    cells = cells_of(runs)

    def both_ways(task, panel, holds):
        return f"{rate_of(cells[task, panel, ''], holds)}, with weight decay 0.1 {rate_of(cells[task, panel, '_wd'], holds)}"

    def some(task, panels, holds):
        return "; ".join(f"{panel} {both_ways(task, panel, holds)}" for panel in panels)

    def words(task, panels, holds):
        held = [holds(run) for panel in panels for suffix in ("", "_wd") for run in cells[task, panel, suffix]]
        return in_words(sum(held), len(held)) if held else "(none run yet)"

    if not any(cells["math", "n14", suffix] for suffix in ("", "_wd")):
        return ""
    n14, decayed, n28 = cells["math", "n14", ""], cells["math", "n14", "_wd"], cells["math", "n28", ""]
    regularization = "Not run yet."
    if n14 and decayed:
        regularization = (
            f"With weight decay 0.1 instead of 0 the share of the runs of n14 that have all 40 changes by {compared(decayed, n14, at_best)} at the best evaluation, "
            f"by {compared(decayed, n14, generalizes)} at the last. (A large p does not say that there is no difference. The two have their seeds in common; the tests "
            f"take them as independent.) Of the larger models' runs with weight decay {rate_of(cells['math', 'n28', '_wd'] + cells['math', 'n56', '_wd'], generalizes)} generalize.")
    between = {w: seeds_of(runs, f"math_mini_{w}") for w in (16, 18, 20, 22, 24)}
    capitals = [run.results["facts_correct"].max() / 5 for suffix in ("", "_wd") for run in cells["facts", "n14", suffix]]
    one = runs.get("math_mini_14")
    lines = [
        ("A model of 1.5k parameters extrapolates to the held-out sums and differences",
         f"Of the runs of n14, {words('math', ('n14',), at_best)} have all 40 held-out samples right at the evaluation with the most right answers: "
         f"{both_ways('math', 'n14', at_best)}. That is how the paper counts; it is the best of 121 looks, and the held-out problems take part in the choice. "
         f"At the last evaluation {words('math', ('n14',), generalizes)} do: {both_ways('math', 'n14', generalizes)}; all 200 problems are right in "
         f"{both_ways('math', 'n14', all_problems)}. The paper's run has 40 of 40 with weight decay and without"
         + (f"; ours with the paper's seed, without, has {at_its_best(one, 'held_out'):.0f} at its best." if one else ".")),
        ("Larger models do not",
         f"At the last evaluation {words('math', ('n28', 'n56'), generalizes)} of the runs of n28 and n56 have all 40: {some('math', ('n28', 'n56'), generalizes)}. "
         f"At the best one: {some('math', ('n28', 'n56'), at_best)}." + (f" From n14 to n28 the share changes by {compared(n28, n14, generalizes)}." if n14 and n28 else "")
         + "".join(" Between: " * (i == 0) + f"n{w} {rate_of(seeds, generalizes)}" + ("; " if i < len(between) - 1 else ".") for i, (w, seeds) in enumerate(between.items()))),
        ("Small models cannot memorize the capitals, larger ones do",
         f"All 50 capitals at the best evaluation: {words('facts', ('n14',), all_capitals)} of the runs of n14, {words('facts', ('n28', 'n56'), all_capitals)} of the others "
         f"({some('facts', SMALL, all_capitals)})." + (f" The most that a run of n14 ever had is {max(capitals):.0f}% of them." if capitals else "")),
        ("Trained on both, none extrapolates",
         f"At the last evaluation {words('both', SMALL, generalizes)} of the runs have all 40: {some('both', SMALL, generalizes)}. At the best one: {some('both', SMALL, at_best)}."),
        ("The effect is not one of regularization", regularization),
        ("n14 is the smallest model that learns arithmetic", smallest(runs)),
        ("The rules do not reach beyond single digits (section 5.1)", beyond(cells)),
    ]
    empty = {task: not any(cells[task, panel, suffix] for panel in SMALL for suffix in ("", "_wd")) for task in ("facts", "both")}
    lines = [(title, "No seeds yet." if (empty["facts"] and "capitals" in title) or (empty["both"] and "both" in title) else text) for title, text in lines]
    return "## The claims of the paper, one by one\n\n" + "\n\n".join(f"**{title}.** {text}" for title, text in lines)


def smallest(runs):
    """How the widths below 14 fare."""
    widths = {w: seeds_of(runs, f"math_mini_{w}") for w in range(1, 15)}
    widths = {w: seeds for w, seeds in widths.items() if seeds}
    if set(widths) <= {14}:
        return "The widths below 14 are not run yet with many seeds."

    def everything(run):
        return any(all_right(run.results, "trained", at) and all_right(run.results, "held_out", at) for at in range(len(run.results["iter"])))

    can = [f"n{w} {rate_of(seeds, everything)}" for w, seeds in widths.items() if any(map(everything, seeds))]
    cannot = [f"n{w}" for w, seeds in widths.items() if not any(map(everything, seeds))]
    numbers = sorted({len(seeds) for seeds in widths.values()})
    smaller = [w for w, seeds in widths.items() if w < 14 and any(map(everything, seeds))]
    verdict = f"n{min(smaller)} can too. " if smaller else "No smaller one has been seen to. "
    return (verdict + f"Runs that have all 200 problems right at one of their evaluations at least, held-out ones included: {'; '.join(can) or 'none'}. "
            f"Of {', '.join(cannot) or 'no width'} none has (from {numbers[0]} to {numbers[-1]} seeds a width).")


def beyond(cells):
    """How n14s that generalize answer operands from 10 to 19."""
    runs = [run for suffix in ("", "_wd") for run in cells["math", "n14", suffix] if run.info.get("beyond_add")]
    if not runs:
        return "Not run yet."
    add, sub = ([100 * int(run.info[f"beyond_{group}"]) / 3000 for run in runs] for group in ("add", "sub"))
    return (f"Asked for operands up to 19, the single-digit problems left out, the {len(runs)} runs of n14 that generalize, with weight decay and without, have {spread(add, '%')} of the additions right "
            f"and {spread(sub, '%')} of the subtractions (median and quartiles), at most {max(add):.2f}% and {max(sub):.2f}%; {sum(share > 4.75 for share in sub)} of them have more than the paper's "
            "4.75% of the subtractions (the paper: 0% of the additions).")


def capacity(runs):
    """The map as a table."""
    by_task = {task: widths_of(runs, task) for task in ("math", "facts", "both")}
    widths = sorted({w for cells in by_task.values() for w in cells})
    cells = {(task, w): by_task[task].get(w, []) for task in by_task for w in widths}
    columns = [("math", "trained"), ("math", "held_out"), ("facts", "facts"), ("both", "trained"), ("both", "held_out"), ("both", "facts")]
    rows = [["n", "arithmetic: trained, mean %", "held out, mean %", "all trained problems", "all held-out ones", "capitals: all", "both: all trained problems", "all held-out ones", "all capitals"]]
    for w in widths:
        shares = []
        for task, what in columns:
            seeds = cells[task, w]
            shares.append(f"{sum(all_right(run.results, what) for run in seeds)} of {len(seeds)}" if seeds else "–")
        means = [number(np.mean([100 * np.divide(*right_and_total(run.results, what)) for run in cells["math", w]])) if cells["math", w] else "–"
                 for what in ("trained", "held_out")]
        rows.append([str(w), *means, *shares])
    return ("## The map of capacity\n\nOne layer of width n, no weight decay: the accuracy at the last evaluation, and how many runs have every sample right; "
            "the figure has the 95% intervals, and the median of the lowest losses below.\n\n![The map of capacity](results/map.png)\n\n"
            "The mean accuracy at the end, with its 95% interval:\n\n![Accuracy at the end of training against the width](results/accuracy.png)\n\n"
            + markdown("At the last evaluation: mean accuracy on arithmetic, and runs that have everything right", rows)
            + "\n\nWhich of the held-out problems fail, and how:\n\n![Held-out problems by width](results/held_out.png)")


def orders(runs):
    named = orders_of(runs)
    if not named:
        return ""
    lines, seeds = (sorted({key[i] for key in named}) for i in (0, 1))
    whole = [line for line in lines if all((line, seed) in named for seed in seeds)]
    text = (f"## Does the order of the lines decide?\n\nn14 on arithmetic in {len(lines)} orders of the text's lines, each with the seeds {seeds[0]} to {seeds[-1]}: "
            f"{rate_of(list(named.values()), generalizes)} generalize. Of the {len(whole)} orders "
            f"with all {len(seeds)} seeds " + ", ".join(f"{count} {'has' if count == 1 else 'have'} {right}" for right, count in sorted(Counter(
                sum(generalizes(named[line, seed]) for seed in seeds) for line in whole).items())) + " of these.")
    if len(whole) > 1:
        cells = len(whole) * len(seeds) - 1
        text += (f" By chance alone {len(whole)} orders would explain about {100 * (len(whole) - 1) / cells:.0f}% of the variance, {len(seeds)} seeds about "
                 f"{100 * (len(seeds) - 1) / cells:.0f}%.")
        for what, table in (("whether a run generalizes", [[generalizes(named[line, seed]) for seed in seeds] for line in whole]),
                            ("how many held-out samples are right", [[named[line, seed].results["held_out_correct"][-1] for seed in seeds] for line in whole])):
            by_line, by_seed, rest = two_way_shares(table)
            p_line, p_seed = permutation_p(table)
            text += (f" Of the variance of {what}, the order explains {100 * by_line:.0f}% (p = {p_line:.2g}, by permutation), the seed, which is of the initial weights "
                     f"and the batches, {100 * by_seed:.0f}% (p = {p_seed:.2g}), and what is left, their meeting and chance, {100 * rest:.0f}%.")
    paper = seeds_of(runs, "math_mini_14")
    if paper:
        text += f" In the paper's order {rate_of(paper, generalizes)} generalize: from the other orders a difference of {compared(paper, list(named.values()), generalizes)}."
    return text + "\n\n![Held-out problems by order and seed](results/orders.png)"


def pairs(runs):
    cells = pairs_of(runs)
    if not cells:
        return ""
    paper, others = seeds_of(runs, "math_mini_14"), [run for seeds in cells.values() for run in seeds]
    rows = [["held-out pair", "generalizes", "all 40 at the best evaluation", "all trained problems at the last"]]
    for pair, seeds in [*cells.items(), (f"{HELD_OUT} (the paper's)", paper)]:
        rows.append([pair, rate_of(seeds, generalizes), rate_of(seeds, at_best), rate_of(seeds, lambda run: all_right(run.results, "trained"))])
    text = ("## Is (5,7) easy?\n\nn14 on arithmetic with another pair of digits held out; the pairs are the first ten of the 44 other pairs of different digits in an order "
            "that `experiments/pairs.py` draws.\n\n" + markdown("Held-out pairs", rows))
    if paper:
        for when, holds in (("at the last evaluation", generalizes), ("at the best one", at_best)):
            share = {pair: np.mean([holds(run) for run in seeds]) for pair, seeds in cells.items()}
            ours = np.mean([holds(run) for run in paper])
            text += (f"\n\nAll four held-out problems right {when}: {rate_of(paper, holds)} of the runs with the paper's pair, {rate_of(others, holds)} of those with the "
                     f"others, a difference of {compared(paper, others, holds)}, as if the runs of a pair were independent. Of the {len(cells)} other pairs "
                     f"{sum(value > ours for value in share.values())} have a larger share.")
    return text + "\n\n![Shares of runs that generalize, by held-out pair](results/pairs.png)"


def steps(runs):
    kinds = {"C step, float32": seeds_of(runs, "math_mini_14")[:30], "PyTorch, float32": seeds_of(runs, "math_mini_14_dtype_float32_fast_False"),
             "PyTorch, bfloat16": seeds_of(runs, "math_mini_14_dtype_bfloat16_fast_False")}
    if not kinds["PyTorch, float32"]:
        return ""
    rows = [["step", "generalizes", "all 40 at the best evaluation"], *([kind, rate_of(seeds, generalizes), rate_of(seeds, at_best)] for kind, seeds in kinds.items())]
    text = "## Does the step matter?\n\nn14 on arithmetic, the same seeds.\n\n" + markdown("What computes the updates", rows)
    plain = kinds["PyTorch, float32"]
    for kind in ("C step, float32", "PyTorch, bfloat16"):
        seeds = kinds[kind][: len(plain)]
        if seeds:
            shares = [(sum(map(generalizes, some)), len(some)) for some in (seeds, plain)]
            low, high = (100 * bound for bound in difference(*shares[0], *shares[1]))
            text += (f"\n\n{kind}, less PyTorch, float32: {100 * (shares[0][0] / shares[0][1] - shares[1][0] / shares[1][1]):+.0f} points of runs that generalize "
                     f"({low:+.0f} to {high:+.0f}, Fisher's exact test p = {fisher_exact(*shares[0], *shares[1]):.2g}).")
    return text


def introduction(runs):
    many = [name for name in runs if "_seed_" in name]
    machines = Counter(machine for run in runs.values() for machine in run.info["made_on"].split("; ") if machine)
    kept = len(runs) - len(many)
    return f"""# What many runs say

*Too Big to Think* (Barron and White, 2025, [arXiv:2506.09099](https://arxiv.org/abs/2506.09099)) trains tiny character-level GPTs of one
layer and width 14, 28 and 56 (n14, n28, n56: 1.5, 5.3 and 19.9 thousand parameters on arithmetic; a fourth, the MLT of 10 million, needs a
GPU and is not run yet) on all sums and differences of two digits but 5+7, 7+5, 5-7 and 7-5, on 50 capital cities, or on both, each with
weight decay 0.1 and without. It has one run for each. Here are {len(many):,} runs with other seeds, widths, orders of the lines and held-out
pairs, and {kept} with the paper's seed, 1337: its cells and its search for the smallest model. `python report.py` wrote this page from the tables in
[results/](results), and a test holds it to them; [study/experiments.py](study/experiments.py) says what their columns mean.

- Each problem is asked ten times at a temperature of 0.01, so that the ten answers are nearly always the same: 40 held-out samples
  are four problems.
- A run **generalizes** if all 40 are right at its last evaluation, at iteration 30,000.
  The paper counts the evaluation with the most right answers over all problems among 121; we give both, and the share of the 41
  evaluations from iteration 20,000 on that have all 40.
- The held-out problems count among the additions and subtractions: a model that has all others right and these wrong has 98%.
- A seed is of the initial weights, the batches and the sampling; the text is the paper's unless said otherwise. Seeds are the first
  ones, 1, 2, 3 and so on, none chosen. A cell says how many runs it has so far, and with few its interval is wide.
- `17 of 20 (85%, 64 to 95)` is a share with its 95% interval (Wilson); differences have Newcombe's.
- {"; ".join(f"{number:,} runs were made on {machine}" for machine, number in machines.most_common())}. The C step is our own
  implementation of the update, tested against PyTorch's; whether it gives the same shares, `experiments/steps.py` asks.

{summary(runs)}

![Arithmetic: accuracy over iterations](results/seeds_math.png)

(Medians and quartiles over the runs. The dashed line is the share of the runs that have all held-out samples right.)"""


def again():
    return """## Make it again

```
python run_experiment.py experiments/seeds.py
python run_experiment.py experiments/map.py
python run_experiment.py experiments/orders.py
python run_experiment.py experiments/pairs.py
python run_experiment.py experiments/steps.py
python plot_experiment.py
python report.py
```

Each goes on with what the tables in `results/` lack; `--root_dir=again` behind each makes all anew, in another folder."""


def report(runs):
    figures = "\n\n".join(f"![{what}: accuracy over iterations](results/seeds_{task}.png)"
                          for task, what in (("facts", "Capitals"), ("both", "Both"))
                          if any(cell_runs(runs, task, panel, suffix) for panel in SMALL for suffix in ("", "_wd")))
    parts = [introduction(runs), claims(runs), tables(runs), figures, capacity(runs), orders(runs), pairs(runs), steps(runs), again()]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    cfg = configure(globals())
    runs = read_runs(cfg.root_dir)
    if not runs:
        fail(f"{cfg.root_dir} holds no runs: python run_experiment.py experiments/seeds.py makes some")
    files = {Path(cfg.path): report(runs)}
    if cfg.readme:
        table = summary(runs)
        title = re.escape(table.splitlines()[0])
        try:
            text, found = re.subn(title + r"\n\n(\|.*\n)+", table + "\n", Path(cfg.readme).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            fail(f"cannot read {cfg.readme}: {getattr(error, 'strerror', 'it is not text')}")
        if not found:
            fail(f"{cfg.readme} has no table to bring up to date: one under the line {table.splitlines()[0]}")
        files[Path(cfg.readme)] = text
    write_files({path: text.encode() for path, text in files.items()})
    print(f"wrote {' and '.join(map(str, files))}")
