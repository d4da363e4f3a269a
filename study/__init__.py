"""The code that the scripts share; nothing here is run by itself.

Scripts import it before torch, whose import takes a second: from here on a Ctrl-C ends in one line.
"""

import errno
import sys


def end_in_one_line(kind, error, traceback):
    """sys.excepthook: what is no defect of the program, a Ctrl-C or a full memory or disk, gets a line and no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    elif issubclass(kind, BrokenPipeError):
        pass  # as `| head` ends other programs
    elif issubclass(kind, MemoryError) or any(words in str(error) for words in ("out of memory", "can't allocate memory")):
        reason = str(error).split("\n")[0]
        print(f"error: out of memory ({reason}): ask for less at once, as with a smaller --batch_size", file=sys.stderr)
    elif issubclass(kind, OSError) and error.errno == errno.ENOSPC:
        print(f"error: cannot write {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = end_in_one_line
