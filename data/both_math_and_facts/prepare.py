"""Write the joint dataset: the arithmetic lines, then the capital cities.

    python data/both_math_and_facts/prepare.py
    python data/both_math_and_facts/prepare.py --line_seed=3 --held_out="3,4;1,8" --folder=data/other
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))  # to run from any directory

from study import StudyError
from study.dataset import write_dataset
from study.tasks import arithmetic_text, capitals_text
from study.settings import run_script

line_seed = -1  # shuffles the lines; -1: the published order
held_out = "5,7"  # pairs whose sums and differences are left out, like 3,4 or 3,4;1,8, or none
folder = ""  # where to write; beside this file unless set


def text(line_seed=line_seed, held_out=held_out):
    return arithmetic_text(line_seed, held_out) + capitals_text()


def main(cfg):
    try:
        content = text(cfg.line_seed, cfg.held_out)
    except ValueError as error:
        raise StudyError(error)
    write_dataset(cfg.folder or Path(__file__).absolute().parent, content, cfg.held_out)


if __name__ == "__main__":
    run_script(main, globals())
