"""Writes RESULTS.md: docs/results_template.md with the findings of the experiments' tables in its places.

    python report.py                                            (RESULTS.md)
    python report.py --readme=README.md                         (and the README's table)
    python report.py --root_dir=again --path=RESULTS_again.md   (of other tables)
"""

import os
import re
from pathlib import Path

from study import ROOT, StudyError
from study.files import write_files
from study.experiments.findings import drawn, findings
from study.experiments.results import published_runs, read_runs
from study.experiments.tables import tables_of
from study.experiments.text import text_of, wrapped
from study.settings import run_script

root_dir = "results"  # folder of the experiments' tables
path = "RESULTS.md"  # where to write
readme = ""  # file whose table of the claims is brought up to date too, such as README.md

TEMPLATE = ROOT / "docs" / "results_template.md"
FIGURES = {  # of plot_experiment.py
    "seeds_math": "Arithmetic: accuracy over iterations",
    "seeds_facts": "Capitals: accuracy over iterations",
    "seeds_both": "Both: accuracy over iterations",
    "map": "The map of capacity",
    "accuracy": "Accuracy at the end of training against the width",
    "held_out": "Held-out problems by width",
    "orders": "Held-out problems by order and seed",
    "pairs": "Shares of runs that generalize, by held-out pair",
}


def report(found, root):
    """RESULTS.md with findings(); root: the folder of the tables and figures, as seen from the page."""
    figures = {name: f"![{title}]({root}/{name}.png)" if name in drawn(found) else None
               for name, title in FIGURES.items()}
    places = found | {"root": root, "figures": figures, "tables": tables_of(found)}
    lines = [fill(line, places) for line in TEMPLATE.read_text(encoding="utf-8").splitlines()]
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
    text = report(findings(runs, unfinished), Path(os.path.relpath(root, Path(cfg.path).parent)).as_posix())
    files = {Path(cfg.path): text}
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
