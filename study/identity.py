"""What makes a run that run: all that can change its results, and a digest of it. A name is for people."""

import functools
import hashlib
import json

import numpy as np
import torch

from study import StudyError
from study.batches import windows_of
from study.dataset import encode

# Settings of train_with_eval.py that change no result. The dataset's name is one: its text's digest counts.
FREE = {"out_dir", "init_from", "overwrite", "dataset", "log_interval", "save_interval", "wandb_log",
        "wandb_project", "wandb_run_name", "device"}


def kind_of(step):
    """"C step" of "C step (cc, AVX2)": it rounds the same with every compiler and processor."""
    return step.split(" (")[0]


def identity_of(info):
    """{name: value} of all that can change a run's results, from its run.json; None where it does not say.

    The step is its kind and the device is its type. Of the settings of prepare.py only held_out is here: the
    digest of the text covers the others.
    """
    settings = {key: value for key, value in info.get("config", {}).items() if key not in FREE}
    if settings.get("data_seed") == -1:
        settings["data_seed"] = settings["seed"]
    return settings | {key: info.get(key) for key in ("dtype", "held_out", "data", "processes")} | {
        "step": kind_of(info.get("step", "")), "device": info["device"].split(":")[0]}


def digest_of(identity):
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def digest_of_windows(splits):
    """Digest of the windows of load_splits(), as checkpoints hold it."""
    windows = (splits[split].cpu().numpy().tobytes() for split in ("train", "val"))
    return hashlib.sha256(b"".join(windows)).hexdigest()


def digest_of_data(chars, windows_digest):
    """Digest of the windows and of the characters that their ids stand for."""
    return hashlib.sha256((chars + windows_digest).encode()).hexdigest()[:16]


@functools.cache  # many runs of an experiment have the same text
def digest_of_text(text, block_size, val_text=None):
    """digest_of_data() of the dataset that write_dataset() makes of a text."""
    splits = {}
    for split, of_split in (("val", val_text or text), ("train", text)):
        chars, ids = encode(of_split)
        if len(ids) <= block_size:
            raise StudyError(f"a text of {len(ids)} characters is too short for block_size={block_size}")
        splits[split] = windows_of(torch.from_numpy(ids.astype(np.int64)), block_size)
    return digest_of_data(chars, digest_of_windows(splits))
