"""The study's tables as Markdown: the paper's number, that of our run with the paper's seed, and many seeds."""

from study.tasks import GROUPS, HELD_OUT
from study.experiments.results import LATE, best_evaluation, config_params, how_far, late_evaluations, right_and_total

HEADINGS = GROUPS | {"combined": "combined"}
# Grid -> its title and columns, and the paper's rows under the study's regularization and the controlled one.
TABLES = {
    "math": (("Table 2. Arithmetic", "Table 5. Arithmetic, controlled regularization"), ["add", "sub", "held_out"], {
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
    "combined": (("Table 4. Both", "Table 7. Both, controlled regularization"), ["add", "sub", "facts", "combined", "held_out"], {
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
    """A score of one evaluation as the paper prints it: held-out samples as a fraction, the others in percent."""
    correct, total = right_and_total(results, column, at)
    if not total:
        return "not asked"
    return f"{correct:.0f}/{total:.0f}" if column == "held_out" else f"{100 * correct / total:.1f}%"


def percent(right, total):
    """A share in percent; a digit more where it would read as none or all: 1 of 200 is 0.5."""
    value = 100 * right / total
    return f"{value:.{int(0 < value < 1 or 99 < value < 100)}f}"


def share(right, total):
    """A share of some runs or evaluations: 17 of 20 (85%)."""
    return f"{right} of {total} ({percent(right, total)}%)" if total else "none made"


def of_one_run(runs, name, columns):
    """Our cells for a run: scores of its best evaluation, its iteration, and the late share if held-out problems are asked."""
    held_out = "held_out" in columns
    if name not in runs:
        return ["not run yet"] * (len(columns) + 1 + held_out)
    results = runs[name].results
    at, unfinished = best_evaluation(results), how_far(runs[name])
    best_at = f"{results['iter'][at]:,.0f}" + f" (so far, {unfinished})" * bool(unfinished)
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


def made_on(runs, names):
    """A line that says on which machine which runs were made; "" if none of them tells."""
    machines = {}  # -> names of their runs
    for name in names:
        for machine in runs[name].info["made_on"].split("; ") if name in runs else []:
            if machine:
                machines.setdefault(machine, []).append(name)
    where = "; ".join(f"{', '.join(names)}: {machine}" for machine, names in machines.items())
    return f"\n\nMade on: {where}." if where else ""


def table(grid, panels, runs, suffix):
    """A table of the paper, of {panel: name of its run} among {name: Run}."""
    titles, columns, _ = TABLES[grid]
    rows = [["model", "parameters", *headings(columns, runs, panels.values(), "ours: ")]]
    for panel, name in panels.items():
        params, *theirs = of_the_paper(grid, panel, suffix)
        ours = of_one_run(runs, name, columns)
        both = [f"{their} / {our}" for their, our in zip(theirs, ours)]
        counted = runs[name].info["num_params"] if name in runs else config_params(name)
        rows.append([panel, f"{params} / {int(counted):,}" if counted else f"{params} / not known", *both, *ours[len(columns):]])
    return markdown(f"{titles[suffix == '_wd']}: paper / ours", rows) + made_on(runs, panels.values())


def search_table(runs):
    """The search for the smallest model (section 3.2), of which the paper tells only the outcome: ours alone."""
    columns = TABLES["math"][1]
    names = {n: f"math_mini_{n}" for n in range(1, 15)}
    rows = [["n", *headings(columns, runs, names.values(), "")]]
    rows += [[str(n), *of_one_run(runs, name, columns)] for n, name in names.items()]
    return markdown("Section 3.2. Arithmetic with one layer of width n: ours", rows) + made_on(runs, names.values())
