"""Compute the lowest loss that a model can have on a training text, by what it knows of the text.

The validation loss is the mean over a text's windows and their positions. At a position a model sees the
characters of the window up to there. A model that knows how often each window occurs gives the next character
its conditional probability, and its loss is the conditional entropy. Summed over the positions, that is the
entropy of the windows minus the entropy of their first characters.
"""

import functools
from collections import Counter
from itertools import product

import numpy as np

from study.dataset import text_of
from study.experiments.results import GRIDS
from study.experiments.runs import config_of


@functools.cache  # the same for all runs
def floors():
    """{task: {what a model knows: finding}} in nats per character."""
    found = {}
    for task in GRIDS.values():
        config = config_of({"config": f"{task}_mini_14"})
        text, block_size = text_of(config["dataset"]), config["block_size"]
        found[task] = {"by_heart": floor(f"{task}, the text by heart", windows_of(text, block_size))}
        if task == "math":
            found[task]["order_unknown"] = floor(f"{task}, all but the order of the lines",
                                                 windows_of_any_order(text, block_size))
    return found


def windows_of(text, block_size):
    """The windows that the loss is the mean over: block_size characters and the next one."""
    return [text[start:][:block_size + 1] for start in range(len(text) - block_size)]


def windows_of_any_order(text, block_size):
    """The windows of an endless text whose every line is one of the text's lines, drawn at random."""
    lines = text.splitlines(keepends=True)
    if min(map(len, lines)) < block_size:
        raise ValueError(f"a window of {block_size} characters and the next one can reach into a third line")
    return [(first + second)[start:][:block_size + 1]
            for first, second in product(lines, lines) for start in range(len(first))]


def floor(what, windows):
    characters = len(windows[0]) - 1
    nats = (entropy(windows) - entropy(window[0] for window in windows)) / characters
    return {"what": f"lowest loss: {what}", "value": nats, "interval": None}


def entropy(items):
    """In nats, of a list whose items are equally likely."""
    shares = np.array(list(Counter(items).values()), dtype=float)
    shares /= shares.sum()
    return float(-(shares * np.log(shares)).sum())
