"""Write RESULTS.md and the pages of docs/ with numbers: templates filled with what the tables show.

    python report.py                       (and the README's table of the claims)
    python report.py --root_dir=again      (of other tables, into their folder)
"""

import os
import re
from pathlib import Path

from study import ROOT, StudyError
from study.files import make_folder, why_unreadable, write_files
from study.experiments.embeddings import embeddings_of
from study.experiments.findings import findings
from study.experiments.results import other_runs, published_runs
from study.experiments.tables import tables_of
from study.experiments.text import text_of, wrapped
from study.experiments.titles import titles
from study.experiments.why_tables import tables_of_why
from study.settings import run_script

root_dir = "results"  # folder of the experiments' tables
out_dir = ""  # folder of the pages; this one for results, else root_dir. A README.md there gets its table

PAGES = {"results": "RESULTS.md", "tables": "docs/tables.md", "why": "docs/why.md",
         "figures": "docs/figures.md"}  # of docs/<key>_template.md


def report(found, root, repo, page):
    """A page filled with findings(). root, repo: folders of the figures and the repository, seen from it."""
    figures = {name: title and f"![{title}]({root}/{name}.png)" for name, title in titles(found).items()}
    tables = tables_of(found) | {"why": tables_of_why(found["why"])}
    values = found | {"root": root, "repo": repo, "figures": figures, "tables": tables}
    template = (ROOT / "docs" / f"{page}_template.md").read_text(encoding="utf-8")
    text = "\n".join(fill(line, values) for line in template.splitlines())
    return wrapped(re.sub(r"\n{3,}", "\n\n", text)) + "\n"  # where a figure is not drawn


def fill(line, values):
    """A line of the template with its {keys} filled in: {mlt.begun}, or {lacking.median:g} with a format.

    Where there are no runs it says "no runs yet", in a table a dash. Raises KeyError for an unknown key.
    """
    def text(match):
        value = values
        for key in match[1].split("."):
            if value and (key in value or not re.fullmatch(r"n\d+", key)):
                value = value[key]  # a misspelled key is a KeyError
            else:
                value = None  # no runs, or none of this width
        if value == "":
            return ""
        return text_of(value, match[2] or ",") or ("–" if line.startswith("|") else "no runs yet")

    return re.sub(r"\{([\w.+-]+)(?::([^}]+))?\}", text, line)


def with_table(readme, page):
    """The text of a README whose table of the claims, the first of a page, is brought up to date."""
    table = re.search(r"^\*\*.*\*\*\n\n(?:\|.*\n)+", page, re.MULTILINE)[0]
    title = table.splitlines()[0]
    text, found = re.subn(re.escape(title) + r"\n\n(\|.*\n)+", lambda _: table, readme)
    if not found:
        raise StudyError(f"README.md has no table to bring up to date: one under the line {title}")
    return text


def main(cfg):
    root = Path(cfg.root_dir)
    out = Path(cfg.out_dir or ("." if root == Path("results") else root))
    runs = published_runs(root)
    if not runs:
        raise StudyError(f"{cfg.root_dir} holds no runs: "
                         "python run_experiment.py experiments/seeds.py makes some")
    found = findings(runs, other_runs(root, runs))
    found["why"]["embeddings"] = embeddings_of(root)
    paths = {page: out / path for page, path in PAGES.items()}
    pages = {page: report(found, *(Path(os.path.relpath(folder, path.parent)).as_posix()
                                   for folder in (root, ".")), page) for page, path in paths.items()}
    files = {paths[page]: text for page, text in pages.items()}
    readme = out / "README.md"
    if readme.exists():
        try:
            files[readme] = with_table(readme.read_text(encoding="utf-8"), pages["results"])
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(f"cannot read {readme}: {why_unreadable(error)}")
    make_folder(out / "docs")
    write_files({path: text.encode() for path, text in files.items()})
    print(f"wrote {', '.join(map(str, files))}")


if __name__ == "__main__":
    run_script(main, globals())
