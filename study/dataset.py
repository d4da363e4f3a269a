"""Read and write a dataset in nanoGPT's layout, in a folder of data/.

train.bin, val.bin  uint16 token ids
meta.pkl            vocabulary and ProblemTable
train.txt           the text

A missing or damaged file raises StudyError.
"""

import functools
import pickle
import runpy
from pathlib import Path

import numpy as np

from study import ROOT, StudyError
from study.files import make_folder, write_files
from study.tasks import ProblemTable, table_of

DATA_DIR = ROOT / "data"


def encode(text):
    """(characters of a text in the order of their ids, the text's ids as a uint16 array)."""
    chars = "".join(sorted(set(text)))
    ids = {char: i for i, char in enumerate(chars)}
    return chars, np.array([ids[char] for char in text], dtype=np.uint16)


def write_arithmetic(cfg, text, folder):
    """Write the text of a prepare.py that has the settings of arithmetic_text().

    text: the script's text(). folder: where to write unless cfg.folder is set.
    """
    settings = {key: value for key, value in vars(cfg).items() if key != "folder"}
    try:
        table, (content, val_text) = table_of(settings), texts_of(text, settings)
    except ValueError as error:
        raise StudyError(error)
    write_dataset(cfg.folder or folder, content, table, val_text)


def texts_of(text, settings):
    """Return (training text, validation text) that a prepare.py's text() makes with these settings.

    They are the same (paper, section 3.1). Of several orders of the lines the first is for validation, so
    that its loss compares with that of other runs.
    """
    first = {key: 1 if key == "shuffles" else value for key, value in settings.items()}
    return text(**settings), text(**first)


def write_dataset(folder, text, table=ProblemTable("none"), val_text=None):
    """Write `text` as a dataset into `folder`; create the folder if needed.

    table: of the arithmetic in the text. val_text: of the same characters; the training text unless given.
    """
    folder = Path(folder)
    if not text:
        raise StudyError(f"the text of {folder.name} is empty: hold out fewer pairs")
    make_folder(folder)
    val_text = val_text or text
    (chars, ids), (_, val_ids) = encode(text), encode(val_text)
    meta = {
        "vocab_size": len(chars),
        "itos": dict(enumerate(chars)),
        "stoi": {char: i for i, char in enumerate(chars)},
        "tokens": {"train": len(text), "val": len(val_text)},  # to notice a truncated .bin
        **table._asdict(),
    }
    write_files({
        folder / "train.bin": ids.tobytes(),
        folder / "val.bin": val_ids.tobytes(),
        folder / "meta.pkl": pickle.dumps(meta, protocol=4),
        folder / "train.txt": text.encode(),
    })
    print(f"{folder.name}: {len(text):,} characters")
    print(f"vocabulary: {len(chars)} ({chars!r})")
    same = "the same " if text == val_text else ""
    print(f"tokens: {len(text):,} for training, {same}{len(val_text):,} for validation")


def _prepare_again(dataset):
    """Return what to do about a damaged dataset."""
    if (DATA_DIR / dataset / "prepare.py").exists():
        return f"run python data/{dataset}/prepare.py"
    return f"run the prepare.py that wrote it again, with --folder=data/{dataset}"


class _PlainUnpickler(pickle.Unpickler):
    """Read dicts, strings and numbers only, so that no file can run code."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


@functools.cache  # many runs of an experiment have the same text
def text_of(dataset, **settings):
    """Return the text that data/<dataset>/prepare.py writes with these settings."""
    script = _prepare_script(dataset)
    if "text" not in script:
        raise StudyError(f"data/{dataset}/prepare.py needs a function text() that returns its text")
    return script["text"](**settings)


@functools.cache
def _prepare_script(dataset):
    return runpy.run_path(str(ROOT / "data" / dataset / "prepare.py"))


def read_meta(dataset):
    """Return (chars, meta): the characters in the order of their ids as a string, and meta.pkl."""
    folder = DATA_DIR / dataset
    if not folder.is_dir() or dataset in ("", "."):
        files = [*DATA_DIR.glob("*/prepare.py"), *DATA_DIR.glob("*/meta.pkl")]
        known = ", ".join(sorted({path.parent.name for path in files}))
        raise StudyError(f"there is no dataset '{dataset}' in {DATA_DIR}; there are {known}")
    if not (folder / "meta.pkl").exists():
        raise StudyError(f"dataset '{dataset}' is not prepared: {_prepare_again(dataset)}")
    try:
        with open(folder / "meta.pkl", "rb") as file:
            meta = _PlainUnpickler(file).load()
        chars = "".join(meta["itos"][i] for i in range(meta["vocab_size"]))
        if meta["stoi"] != {char: i for i, char in enumerate(chars)}:
            raise ValueError("stoi and itos disagree")
        meta |= table_of(meta)._asdict()  # the paper's, as in nanoGPT's meta.pkl, where it does not say
    except Exception as error:  # a damaged pickle can raise almost anything
        raise StudyError(f"data/{dataset}/meta.pkl is damaged ({type(error).__name__}: {error}): "
                         f"{_prepare_again(dataset)}")
    return chars, meta


def read_tokens(dataset, split, block_size):
    """Return the token ids of "train" or "val" as an int64 array of more than block_size."""
    _, meta = read_meta(dataset)
    name = f"data/{dataset}/{split}.bin"
    again = _prepare_again(dataset)
    try:
        raw = (DATA_DIR / dataset / f"{split}.bin").read_bytes()
    except OSError as error:
        raise StudyError(f"cannot read {name} ({error.strerror}): {again}")
    if len(raw) % 2:
        raise StudyError(f"{name} has an odd number of bytes ({len(raw)}), not of two per token: {again}")
    tokens = np.frombuffer(raw, dtype=np.uint16).astype(np.int64)
    written = meta.get("tokens", {}).get(split, len(tokens))
    if len(tokens) != written:
        raise StudyError(f"{name} has {len(tokens)} tokens but was written with {written}: {again}")
    if len(tokens) <= block_size:
        raise StudyError(f"{name} has {len(tokens)} tokens, too few for one window of "
                         f"block_size={block_size}: use a block_size of at most {max(len(tokens) - 1, 0)}")
    if tokens.max() >= meta["vocab_size"]:
        raise StudyError(f"{name} has the id {tokens.max()}, outside its vocabulary of {meta['vocab_size']}: "
                         f"{again}")
    return tokens
