"""The code that the scripts share.

study/              trains and scores one run
study/fast/         makes the same updates in less time
study/experiments/  turns many runs into tables, statistics and figures

Scripts import it before torch, which takes a second, so that Ctrl-C ends in one line from the start.
"""

import errno
import os
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]  # absolute(), not resolve(): study/ may be a link


class StudyError(Exception):
    """A user's mistake or a fault of the machine, described in one line, which scripts print.

    status: the script's exit status. of_all: whether every process under torchrun raises it, so that only
    process 0 prints it.
    """

    def __init__(self, message, status=2, of_all=True):
        super().__init__(str(message).replace("\n", " "))
        self.status, self.of_all = status, of_all


def is_out_of_memory(error):
    """Whether an allocation failed: numpy's or the C step's (MemoryError), or one of torch's."""
    torch = sys.modules.get("torch")  # not imported for this
    if isinstance(error, (MemoryError, getattr(torch, "OutOfMemoryError", MemoryError))):
        return True
    text = str(error)  # torch raises a plain RuntimeError for these
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: " in text
        or text.startswith(("MPS backend out of memory", "CUDA error: out of memory")))


def end_in_one_line(kind, error, traceback):
    """sys.excepthook: end in one line on Ctrl-C, a full memory or disk and too long a path.

    A defect keeps its traceback.
    """
    if isinstance(error, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    elif isinstance(error, BrokenPipeError):
        pass  # as `| head` ends other programs
    elif is_out_of_memory(error):
        reason = str(error).split("\n")[0] or kind.__name__
        print(f"error: out of memory ({reason}): ask for less at once, such as a smaller --batch_size or "
              "--num_samples", file=sys.stderr)
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        print(f"error: cannot write {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
    elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        print(f"error: the path ...{str(error.filename)[-40:]} is too long: give a shorter name",
              file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = end_in_one_line
# A script whose output was closed (>&-) has none of these.
sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))
