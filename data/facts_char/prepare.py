"""Write the capital cities dataset: 50 statements."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().parents[2]))  # to run from any directory

from study.dataset import write_dataset
from study.tasks import capitals_text
from study.settings import run_script

folder = ""  # where to write; beside this file unless set


def text():
    return capitals_text()


def main(cfg):
    write_dataset(cfg.folder or Path(__file__).absolute().parent, text())


if __name__ == "__main__":
    run_script(main, globals())
