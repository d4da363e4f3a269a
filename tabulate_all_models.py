"""Prints the study's tables as Markdown, in each cell the paper's number and ours.

    python tabulate_all_models.py --root_dir results                  (paper, tables 2 to 4, and the search of section 3.2)
    python tabulate_all_models.py --root_dir results --suffix _wd     (controlled regularization, tables 5 to 7)
"""

from pathlib import Path

from study.device import describe
from study.results import LATE, best_evaluation, find_runs, held_out_in, late_share, num_params, read_results
from study.run_folder import read_run_json
from study.settings import configure

root_dir = "results"  # folder that holds the runs' folders
suffix = ""  # of the runs' folders: _wd for controlled regularization

HEADINGS = {"add": "addition", "sub": "subtraction", "facts": "facts", "combined": "combined"}
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
}  # fmt: skip


def score(results, column, at):
    """A score of one evaluation as the paper prints it: held-out samples as a fraction, the others in percent."""
    groups = ("add", "sub", "facts") if column == "combined" else (column,)
    correct, total = (sum(results[f"{group}_{kind}"][at] for group in groups) for kind in ("correct", "total"))
    if not total:
        return "not asked"
    return f"{correct:.0f}/{total:.0f}" if column == "held_out" else f"{100 * correct / total:.1f}%"


def row_of_ours(folder, columns):
    """Our cells for a run: scores of its best evaluation, its iteration, and the late share if the run has held-out problems."""
    late = [late_share] if "held_out" in columns else []
    if not (folder / "results.csv").exists():
        return ["not run yet"] * (len(columns) + 1 + len(late))
    results = read_results(folder)
    at, last = best_evaluation(results), results["iter"][-1]
    best_at = f"{results['iter'][at]:,.0f}"
    if last < read_run_json(folder).get("config", {}).get("max_iters", last):
        best_at += f" (so far, at {last:,.0f})"
    return [score(results, column, at) for column in columns] + [best_at, *(share(results) for share in late)]


def headings(columns, of_ours, folders):
    """folders: of the runs, for the pairs that these hold out."""
    held_out = f"({' and '.join(dict.fromkeys(map(held_out_in, folders)))})"
    late = [f"{of_ours}all of {held_out} right from {LATE:,} on"] if "held_out" in columns else []
    return [HEADINGS.get(column, held_out) for column in columns] + [f"{of_ours}best at iteration", *late]


def markdown(title, rows):
    """A title and a table whose first row is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"**{title}**", "", lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def made_on(folders):
    """A line that says on which machine which runs were made; "" if no folder has a run.json."""
    runs = {}  # machine -> names of its runs
    for folder in folders:
        info = read_run_json(folder)
        for part in [*info.get("earlier_parts", []), info] if info else []:
            runs.setdefault(describe(part), {})[folder.name] = None
    where = "; ".join(f"{', '.join(names)}: {machine}" for machine, names in runs.items())
    return f"\n\nMade on: {where}." if where else ""


def table(grid, runs, suffix):
    """A table of the paper: {size: run folder} of one grid."""
    titles, columns, paper = TABLES[grid]
    rows = [["model", "parameters", *headings(columns, "ours: ", runs.values())]]
    for size, folder in runs.items():
        params, *scores = paper[size]
        theirs = scores[suffix == "_wd"].split()
        ours = row_of_ours(folder, columns)
        both = [f"{their} / {our}" for their, our in zip(theirs, ours)]
        counted = num_params(folder)
        rows.append([size, f"{params} / {'not known' if counted is None else f'{counted:,}'}", *both, *ours[len(columns):]])
    return markdown(f"{titles[suffix == '_wd']}: paper / ours", rows) + made_on(runs.values())


def search_table(root):
    """The search for the smallest model (section 3.2), of which the paper tells only the outcome: ours alone."""
    columns = TABLES["math"][1]
    folders = {n: root / f"math_mini_{n}" for n in range(1, 15)}
    rows = [["n", *headings(columns, "", folders.values())], *([str(n), *row_of_ours(folder, columns)] for n, folder in folders.items())]
    return markdown("Section 3.2. Arithmetic with one layer of width n: ours", rows) + made_on(folders.values())


if __name__ == "__main__":
    cfg = configure(globals())
    grids = find_runs(cfg.root_dir, cfg.suffix)
    tables = [table(grid, runs, cfg.suffix) for grid, runs in grids.items()]
    if not cfg.suffix:
        tables.append(search_table(Path(cfg.root_dir)))
    print("\n\n".join(tables))
