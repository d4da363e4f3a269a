"""Write files whole or not at all, whatever kills the writer or fills the disk; append text to a file."""

import contextlib
import os

from study import StudyError


def temporary_of(path, writer):
    """Return the path that a process writes a file to first; writer: its id, or "*" for a glob pattern."""
    return path.with_name(f".{path.name}.{writer}.tmp")


def write_files(files):
    """Write {path: bytes} so that each file is complete or unchanged, whatever happens.

    Write and sync all of them to temporary files, then rename these in the order of the dict. A kill may
    leave temporary files, which remove_leftovers() deletes. Raises StudyError on OSError.
    """
    temporary = {path: temporary_of(path, os.getpid()) for path in files}
    try:
        for path, content in files.items():
            with open(temporary[path], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in files:
            os.replace(temporary[path], path)
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror}; it is left unchanged")
    finally:
        for name in temporary.values():
            with contextlib.suppress(OSError):
                name.unlink()


def remove_leftovers(paths):
    """Delete the temporary files of killed writers. The caller must have the lock on these files."""
    for path in paths:
        for leftover in path.parent.glob(temporary_of(path, "*").name):
            leftover.unlink()


def append_to_file(path, text):
    """Append text; a kill or a full disk may leave only a part of it. Raises StudyError on OSError."""
    try:
        with open(path, "ab") as file:
            file.write(text.encode())
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror}")
