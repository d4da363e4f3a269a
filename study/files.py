"""Write files whole or not at all, whatever kills the writer or fills the disk; make and check folders."""

import contextlib
import os
from pathlib import Path

from study import StudyError


def temporary_of(path, writer):
    """Return the path that a process writes a file to first; writer: its id, or "*" for a glob pattern."""
    return path.with_name(f".{path.name}.{writer}.tmp")


def write_files(files):
    """Write {path: bytes} so that each file is complete or unchanged, whatever happens.

    Write and sync all of them to temporary files, then rename these in the order of the dict. A kill may
    leave temporary files, which remove_leftovers() deletes in folders of runs. Raises StudyError on OSError.
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


def make_folder(folder):
    """Make a folder and those above it, if need be. Raises StudyError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot make the folder {folder}: {error.strerror}")


def folder_to_write_into(root_dir):
    """The Path of root_dir, a setting. Raises StudyError if there is no such folder."""
    if not Path(root_dir).is_dir():
        raise StudyError(f"folder {root_dir} does not exist: --root_dir must name one to write into")
    return Path(root_dir)


def why_unreadable(error):
    """What is wrong with a text file, from the OSError or UnicodeDecodeError of reading it."""
    return getattr(error, "strerror", "it is not text")


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
