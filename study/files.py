"""Files that are written whole or not at all, whatever kills the writer or fills the disk; and text that is appended to one."""

import contextlib
import os

from study import StudyError


def temporary_of(path, writer):
    """Where a process writes a file before it is whole; writer: its number, "*" for a pattern of all."""
    return path.with_name(f".{path.name}.{writer}.tmp")


def write_files(files):
    """Writes {path: bytes}: each file is whole or as it was before.

    Each goes to a temporary file beside its path and is synced; when all are on the disk they are renamed,
    one after the other in this order. Ends the program on OSError. What a kill leaves, remove_leftovers() removes.
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
    """Removes the temporary files of writers that were killed; only for a caller that holds the lock on these files."""
    for path in paths:
        for leftover in path.parent.glob(temporary_of(path, "*").name):
            leftover.unlink()


def append_to_file(path, text):
    """Appends text; ends the program on OSError. A kill or a full disk in the middle of it leaves a part of the text."""
    try:
        with open(path, "ab") as file:
            file.write(text.encode())
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror}")
