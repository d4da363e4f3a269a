"""Write the arithmetic dataset: 196 problems, without the four held-out ones.

    python data/as_math/prepare.py
    python data/as_math/prepare.py --line_seed=3 --held_out="3,4;1,8" --folder=data/as_math_other
    python data/as_math/prepare.py --answer_seed=1 --folder=data/as_math_random
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))  # to run from any directory

from study.dataset import write_arithmetic
from study.tasks import arithmetic_text
from study.settings import run_script

line_seed = -1  # shuffles the lines; -1: the published order
held_out = "5,7"  # pairs whose sums and differences are left out: 3,4 or 3,4;1,8 or 3 pairs of seed 1 or none
operations = "both"  # add, sub or both
max_operand = 9  # operands go from 0 to this
answer_seed = -1  # shuffles the answers of the sums, and of the differences; -1: the true answers
shuffles = 1  # orders of the lines that the text has, one after the other
folder = ""  # where to write; beside this file unless set


def text(**settings):
    return arithmetic_text(**settings)


def main(cfg):
    write_arithmetic(cfg, text, Path(__file__).absolute().parent)


if __name__ == "__main__":
    run_script(main, globals())
