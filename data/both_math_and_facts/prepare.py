"""Writes the joint dataset: the arithmetic lines, then the capital cities."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to run from any directory

from data.dataset import write_dataset
from data.tasks import arithmetic_text, capitals_text

TEXT = arithmetic_text() + capitals_text()

if __name__ == "__main__":
    write_dataset(Path(__file__).resolve().parent, TEXT)
