"""Print the study's tables as Markdown, with the paper's number and our run's in each cell.

    python tabulate_all_models.py --root_dir results                (paper, tables 2 to 4; section 3.2)
    python tabulate_all_models.py --root_dir results --suffix _wd   (controlled regularization, tables 5 to 7)

docs/tables.md has the same tables with many seeds.
"""

from study.experiments.results import find_runs
from study.settings import run_script
from study.experiments.tables import search_table, table

root_dir = "."  # folder of runs or of experiments
suffix = ""  # of the runs' names: _wd for controlled regularization


def main(cfg):
    grids, runs = find_runs(cfg.root_dir, cfg.suffix)
    tables = [table(grid, panels, runs, cfg.suffix) for grid, panels in grids.items()]
    if not cfg.suffix:
        tables.append(search_table(runs))
    print("\n\n".join(tables))


if __name__ == "__main__":
    run_script(main, globals())
