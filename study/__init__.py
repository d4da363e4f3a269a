"""The code that the scripts share.

study/              trains and scores one run
study/fast/         makes the same updates in less time
study/experiments/  turns many runs into tables, statistics and figures

Scripts import it before torch, whose import takes a second: from then on Ctrl-C ends in one line.
"""

import errno
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]  # of the project; absolute() keeps a link to study/ inside it


class StudyError(Exception):
    """A user's mistake or a fault, told in one line; a script prints it and exits with `status`.

    of_all: whether under torchrun every process meets it, so that process 0 alone prints it.
    """

    def __init__(self, message, status=2, of_all=True):
        super().__init__(" ".join(str(message).split("\n")))
        self.status, self.of_all = status, of_all


def end_in_one_line(kind, error, traceback):
    """sys.excepthook: Ctrl-C, a full memory or a full disk ends in one line, a defect in a traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    elif issubclass(kind, BrokenPipeError):
        pass  # as `| head` ends other programs
    elif issubclass(kind, MemoryError) or any(
            words in str(error) for words in ("out of memory", "can't allocate memory")):
        reason = str(error).split("\n")[0]
        print(f"error: out of memory ({reason}): ask for less at once, as with a smaller --batch_size",
              file=sys.stderr)
    elif issubclass(kind, OSError) and error.errno == errno.ENOSPC:
        print(f"error: cannot write {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = end_in_one_line
