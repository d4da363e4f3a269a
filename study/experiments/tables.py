"""The study's tables as Markdown: the paper's number, that of our run with its seed, and many seeds."""

from study.scoring import NUM_SAMPLES
from study.tasks import GROUPS, HELD_OUT
from study.experiments.problems import problems_of
from study.experiments.results import (
    GRIDS, LATE, SIZES, best_evaluation, config_params, unfinished_note, late_evaluations, right_and_total,
)
from study.experiments.select import PAPER_SEED
from study.experiments.text import number, percent, progress, text_of
from study.experiments.widths import FIT

HEADINGS = GROUPS | {"combined": "combined"}
# Grid -> its titles and columns, and the paper's rows; under the study's regularization and the controlled.
TABLES = {
    "math": (("Table 2. Arithmetic", "Table 5. Arithmetic, controlled regularization"),
             ["add", "sub", "held_out"], {
        "n14": ("1.46k", "100.0% 100.0% 40/40", "100.0% 100.0% 40/40"),
        "n28": ("5.26k", "98% 98% 0/40", "98% 98% 0/40"),
        "n56": ("19.94k", "98% 98% 0/40", "98% 98% 0/40"),
        "MLT": ("10.63M", "98% 98% 0/40", "98% 98% 0/40"),
    }),
    "facts": (("Table 3. Capital cities", "Table 6. Capital cities, controlled regularization"), ["facts"], {
        "n14": ("1.93k", "8.2%", "12.4%"),
        "n28": ("6.22k", "100.0%", "100.0%"),
        "n56": ("21.84k", "100.0%", "100.0%"),
        "MLT": ("10.64M", "100.0%", "100.0%"),
    }),
    "combined": (("Table 4. Both", "Table 7. Both, controlled regularization"),
                 ["add", "sub", "facts", "combined", "held_out"], {
        "n14": ("2.14k", "31.2% 39.4% 2.0% 28.6% 0/40", "33.4% 28.5% 6.6% 26.1% 0/40"),
        "n28": ("6.64k", "95.0% 97% 87.6% 94.3% 0/40", "96.3% 88.7% 90.0% 92.0% 0/40"),
        "n56": ("22.68k", "98% 98% 100.0% 98.4% 0/40", "98% 98% 100.0% 98.4% 0/40"),
        "MLT": ("10.65M", "98% 98% 100.0% 98.4% 0/40", "98% 98% 100.0% 98.4% 0/40"),
    }),
}


def of_the_paper(grid, panel, suffix):
    """The paper's cells for a model, parameters first; a dash each for a model that it does not have."""
    _, columns, paper = TABLES[grid]
    params, *scores = paper.get(panel, ("–", *[" ".join("–" for _ in columns)] * 2))
    return [params, *scores[suffix == "_wd"].split()]


def score(results, column, at):
    """A score of one evaluation as the paper prints it: held-out samples as a fraction, others in percent."""
    correct, total = right_and_total(results, column, at)
    if not total:
        return "not asked"
    return f"{correct:.0f}/{total:.0f}" if column == "held_out" else f"{100 * correct / total:.1f}%"


def share(right, total):
    """A share of some runs or evaluations: 17 of 20 (85%)."""
    return f"{right} of {total} ({percent(right, total)}%)" if total else "none made"


def of_one_run(runs, name, columns):
    """Our cells for a run: the scores of its best evaluation, its iteration, and the late share."""
    held_out = "held_out" in columns
    if name not in runs:
        return ["not run yet"] * (len(columns) + 1 + held_out)
    results = runs[name].results
    at, unfinished = best_evaluation(results), unfinished_note(runs[name])
    best_at = f"{results['iter'][at]:,.0f}" + (f" (so far, {unfinished})" if unfinished else "")
    late = [share(*late_evaluations(results))] if held_out else []
    return [score(results, column, at) for column in columns] + [best_at, *late]


def headings(columns, runs, names, of_ours):
    """names: of the runs, for the pairs that these hold out."""
    pairs = dict.fromkeys(runs[name].info["held_out"] if name in runs else HELD_OUT for name in names)
    held_out = f"({' and '.join(pairs)})"
    late = [f"{of_ours}all of {held_out} right from {LATE:,} on"] if "held_out" in columns else []
    return [HEADINGS.get(column, held_out) for column in columns] + [f"{of_ours}best at iteration", *late]


def markdown(title, rows):
    """A title and a table whose first row is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"**{title}**", "", lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def table(grid, panels, runs, suffix):
    """A table of the paper, of {panel: name of its run} among {name: Run}."""
    titles, columns, _ = TABLES[grid]
    rows = [["model", "parameters", *headings(columns, runs, panels.values(), "ours: ")]]
    for panel, name in panels.items():
        params, *theirs = of_the_paper(grid, panel, suffix)
        ours = of_one_run(runs, name, columns)
        both = [f"{their} / {our}" for their, our in zip(theirs, ours)]
        counted = runs[name].info["num_params"] if name in runs else config_params(name)
        params += f" / {int(counted):,}" if counted else " / not known"
        rows.append([panel, params, *both, *ours[len(columns):]])
    return markdown(f"{titles[suffix == '_wd']}: paper / ours", rows)


def search_table(runs):
    """Our search for the smallest model (section 3.2); the paper gives only its outcome."""
    columns = TABLES["math"][1]
    names = {n: f"math_mini_{n}" for n in range(1, 15)}
    rows = [["n", *headings(columns, runs, names.values(), "")]]
    rows += [[str(n), *of_one_run(runs, name, columns)] for n, name in names.items()]
    return markdown("Section 3.2. Arithmetic with one layer of width n: ours", rows)


def tables_of(found):
    """The tables of findings() whose rows are not written out in docs/results_template.md."""
    grids = [(grid, suffix) for suffix in ("", "_wd") for grid in GRIDS]
    return {f"table_{i}": seeds_table(found, grid, suffix) for i, (grid, suffix) in enumerate(grids, 2)} | {
        "by_width": table_by_width(found["by_width"]), "pairs": table_of_pairs(found["pairs"]),
        "at_fit": table_at_fit(found["at_fit"]), "held_out": table_of_held_out(found["held_out"])}


def seeds_table(found, grid, suffix):
    """A table of the paper with, in each cell, the paper's number, our run with its seed, and many seeds."""
    titles, columns, _ = TABLES[grid]
    heading = ["model", "seeds", *(f"{HEADINGS[column]}, %" if column in HEADINGS else f"({HELD_OUT}), of 4"
                                   for column in columns)]
    if "held_out" in columns:
        heading += ["all 4 at the best evaluation", "all 4 at the last: generalizes",
                    "late evaluations with all 4, mean"]
    rows = [heading]
    for panel in SIZES:
        cell, one = (part[GRIDS[grid]][panel + suffix] for part in (found, found["paper_seed"]))
        _, *theirs = of_the_paper(grid, panel, suffix)
        row = [panel, str(cell["runs"])]
        for column, their in zip(columns, theirs):
            if their != "–":
                right = float(their.rstrip("%").split("/")[0])
                their = number(right / NUM_SAMPLES if column == "held_out" else right)
            row.append(f"{their} / {score_of_one(one, column)} / {text_of(cell['best'][column]) or '–'}")
        if "held_out" in columns:
            row += [text_of(cell[name]) or "–" for name in ("at_best", "generalizes", "late")]
        rows.append(row)
    title = titles[1] + " (weight decay 0.1)" if suffix else titles[0]
    return markdown(f"{title}. At the best evaluation: paper / our run with seed {PAPER_SEED} / "
                    "median of the seeds (quartiles, where they differ)", rows)


def score_of_one(scores, column):
    """One run's score: held-out problems as their number, others in percent."""
    if not scores or not scores[column]["total"]:
        return "–"
    score = scores[column]
    value = (score["right"] / NUM_SAMPLES if column == "held_out" else
             100 * score["right"] / score["total"])
    return number(value) + progress(score)


def table_by_width(by_width):
    """The map of capacity as a table; None without runs."""
    columns = [("math", "trained"), ("math", "generalizes"), ("math", "at_best"), ("facts", "all_capitals"),
               ("both", "trained"), ("both", "generalizes"), ("both", "all_capitals")]
    rows = [["n", "arithmetic: trained, mean %", "held out, mean %",
             "all trained problems", "all held-out ones", "(at the best evaluation)", "capitals: all",
             "both: all trained problems", "both: all held-out ones", "both: all capitals"]]
    for n in sorted(set().union(*by_width.values())):
        last = by_width["math"][n]["last"] if n in by_width["math"] else {"trained": None, "held_out": None}
        rates = [by_width[task][n][name] if n in by_width[task] else None for task, name in columns]
        rows.append([str(n), *(text_of(last[what]) or "–" for what in ("trained", "held_out")),
                     *(f"{rate['right']} of {rate['total']}" if rate else "–" for rate in rates)])
    title = "At the last evaluation: mean accuracy on arithmetic, and runs that have everything right"
    return markdown(title, rows) if len(rows) > 1 else None


def table_of_pairs(pairs):
    """n14 with other pairs held out, and the paper's beside them; None without runs of other pairs."""
    rows = [["held-out pair", "held-out score", "generalizes", "against the paper's pair, p",
             "all 4 at the best evaluation", "all trained problems at the last"]]
    for pair, cell in [*pairs["cells"].items(), (f"{HELD_OUT} (the paper's)", pairs["paper"])]:
        p = pairs["against_paper"][pair]["p"] if pair in pairs["against_paper"] else None
        texts = [text_of(cell[name]) or "–" for name in ("score", "generalizes", "at_best", "trained")]
        rows.append([pair, *texts[:2], text_of(p, ".2g") or "–", *texts[2:]])
    title = "Held-out pairs (p of Fisher's exact test with Holm's correction)"
    return markdown(title, rows) if pairs["cells"] else None


def table_at_fit(at_fit):
    """The held-out score when the trained problems are first fitted and at the end; None without runs."""
    rows = [["n", "runs that get there", f"held out at the first evaluation with {FIT:.0%}, mean %",
             "at the last evaluation, mean %"]]
    for name, cell in at_fit.items():
        scores = (text_of(cell[when]) or "–" for when in ("first", "last"))
        rows.append([name, f"{cell['fitted']['right']} of {cell['fitted']['total']}", *scores])
    title = f"Held-out score of the runs that have {FIT:.0%} of the trained problems right at some evaluation"
    return markdown(title, rows) if at_fit else None


def table_of_held_out(held_out):
    """Each held-out problem by width, with the usual error; None without runs."""
    problems = problems_of(HELD_OUT)
    rows = [["n", *(f"{problem} = {answer}" for problem, answer in problems.items())]]
    rows += [[name, *map(text_of_problem, of_width.values())] for name, of_width in held_out.items()]
    title = ("Held-out problems at the last evaluation: runs that are right, and the most frequent wrong "
             "answer (how many runs give it; ? is no number)")
    return markdown(title, rows) if held_out else None


def text_of_problem(cell):
    """66 of 100, -1 (34)."""
    right = f"{cell['right']} of {cell['total']}"
    if not cell["wrong"]:
        return right
    each = " each" if len(cell["wrong"]) > 1 else ""
    return f"{right}, {' or '.join(cell['wrong'])} ({cell['wrong_runs']}{each})"
