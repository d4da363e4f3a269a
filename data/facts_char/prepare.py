"""Writes the capital cities dataset: 50 statements."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run from any directory

from data.dataset import write_dataset
from data.tasks import capitals_text
from study.settings import configure

folder = ""  # where to write; beside this file unless set


def text():
    return capitals_text()


if __name__ == "__main__":
    cfg = configure(globals())
    write_dataset(cfg.folder or Path(__file__).resolve().parent, text())
