"""Writes RESULTS.md: docs/results_template.md with the findings of the experiments' tables in its places.

    python report.py                                            (RESULTS.md)
    python report.py --page=why                                 (docs/why.md, from docs/why_template.md)
    python report.py --readme=README.md                         (and the README's table)
    python report.py --root_dir=again --path=RESULTS_again.md   (of other tables)
"""

import os
import re
from pathlib import Path

from study import ROOT, StudyError
from study.files import write_files
from study.experiments.embeddings import embeddings_of
from study.experiments.findings import drawn, findings
from study.experiments.results import published_runs, read_runs
from study.experiments.tables import tables_of
from study.experiments.text import text_of, wrapped
from study.experiments.why_tables import tables_of_why
from study.settings import run_script

root_dir = "results"  # folder of the experiments' tables
page = "results"  # results or why
path = ""  # where to write; RESULTS.md or docs/why.md unless set
readme = ""  # file whose table of the claims is brought up to date too, such as README.md

PAGES = {"results": "RESULTS.md", "why": "docs/why.md"}
FIGURES = {  # of plot_experiment.py
    "seeds_math": "Arithmetic: accuracy over iterations",
    "seeds_facts": "Capitals: accuracy over iterations",
    "seeds_both": "Both: accuracy over iterations",
    "map": "The map of capacity",
    "accuracy": "Accuracy at the end of training against the width",
    "held_out": "Held-out problems by width",
    "orders": "Held-out problems by order and seed",
    "pairs": "Shares of runs that generalize, by held-out pair",
    "capacity": "What a width holds of a random table, and what it has of the held-out problems",
    "tables": "The width at which generalization ends over the width that holds half of a random table",
    "changing_order": "Held-out score with the paper's text and with changing orders",
    "all_pairs": "Held-out problems by pair",
    "held_out_share": "Held-out score over the number of held-out pairs",
    "rates": "Held-out score over the learning rate",
    "times": "Iterations until 90% are right",
    "embeddings": "Digits' embeddings in the plane of their first two principal components",
}


def report(found, root, page="results"):
    """A page with findings(); root: the folder of the tables and figures, as seen from it."""
    figures = {name: f"![{title}]({root}/{name}.png)" if name in drawn(found) else None
               for name, title in FIGURES.items()}
    tables = tables_of(found) | {"why": tables_of_why(found["why"])}
    places = found | {"root": root, "figures": figures, "tables": tables}
    template = (ROOT / "docs" / f"{page}_template.md").read_text(encoding="utf-8")
    lines = [fill(line, places) for line in template.splitlines()]
    return wrapped("\n".join(lines)) + "\n"


def fill(line, places):
    """A line of the template with its places filled: {mlt.begun}, or {lacking.median:g} with a format."""
    def text(match):
        value = places
        for key in match[1].split("."):
            value = value and value[key]  # a misspelled place is a KeyError
        return text_of(value, match[2] or ",") or ("–" if line.startswith("|") else "no runs yet")

    return re.sub(r"\{([\w.]+)(?::([^}]+))?\}", text, line)


def with_table(text, table, name):
    """A text whose table of the same title is replaced."""
    title = table.splitlines()[0]
    text, found = re.subn(re.escape(title) + r"\n\n(\|.*\n)+", lambda _: table, text)
    if not found:
        raise StudyError(f"{name} has no table to bring up to date: one under the line {title}")
    return text


def main(cfg):
    root = Path(cfg.root_dir)
    runs = published_runs(root)
    if not runs:
        raise StudyError(f"{cfg.root_dir} holds no runs: "
                         "python run_experiment.py experiments/seeds.py makes some")
    unfinished = {name: run for name, run in read_runs(root).items() if name not in runs}
    if cfg.readme and cfg.page != "results":
        raise StudyError("readme is brought up to date with --page=results: leave --page out")
    path = Path(cfg.path or PAGES[cfg.page])
    found = findings(runs, unfinished)
    found["why"]["embeddings"] = embeddings_of(root)
    text = report(found, Path(os.path.relpath(root, path.parent)).as_posix(), cfg.page)
    files = {path: text}
    if cfg.readme:
        first_table = re.search(r"^\*\*.*\*\*\n\n(?:\|.*\n)+", text, re.MULTILINE)[0]
        try:
            before = Path(cfg.readme).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(f"cannot read {cfg.readme}: {getattr(error, 'strerror', 'it is not text')}")
        files[Path(cfg.readme)] = with_table(before, first_table, cfg.readme)
    write_files({path: text.encode() for path, text in files.items()})
    print(f"wrote {' and '.join(map(str, files))}")


if __name__ == "__main__":
    run_script(main, globals())
