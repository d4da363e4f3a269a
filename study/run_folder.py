"""The folder of a run: who may write there, results.csv, checkpoints, run.json; and reading them back.

Whatever ends a run, a kill or a full disk, leaves each file as it was or complete, but for the last line of
results.csv, which the resumed run writes again. What a killed run had finished beyond its ckpt_last.pt stays:
when it is resumed it makes the same rows again.
"""

import dataclasses
import fcntl
import io
import json
import os
import pickle
import shlex
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import torch

from study import ROOT, StudyError
from study.dataset import read_meta
from model import GPT, GPTConfig
from study.device import commit_of, machine
from study.files import append_to_file, remove_leftovers, write_files
from study.identity import digest_of, digest_of_data, identity_of
from study.processes import launcher
from study.settings import CHOICES
from study.tasks import ProblemTable, table_of

# Checkpoint of the best evaluation by a column of results.csv, and whether more or less is better.
BEST = {"ckpt.pt": ("val_loss", -1), "ckpt_best_math.pt": ("math_acc", 1),
        "ckpt_best_facts.pt": ("facts_acc", 1), "ckpt_best_combined.pt": ("combined_acc", 1)}
FILES = ("results.csv", "run.json", "ckpt_last.pt", *BEST)  # of a run
MADE_BY = ("dtype", "step", "step_refused", "processes", *ProblemTable._fields)
# Of the code as it was imported: an experiment may run for days while the files change.
COMMIT = commit_of(ROOT)
BUSY = 75  # exit status of a run whose folder is taken, EX_TEMPFAIL of sysexits.h
PUBLISHED = ROOT / "results" / "paper"  # models that are part of the project


def lock_folder(folder):
    """Make a run's folder and lock it. Return an open file that holds the lock, or None if it is taken.

    The kernel releases the lock, however its process ends. Raises StudyError where the folder cannot be
    written or there are no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")
    except OSError as error:
        raise StudyError(f"cannot write into {folder}: {error.strerror}")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    except BlockingIOError:
        lock.close()
        return None
    except OSError as error:
        lock.close()
        raise StudyError(f"cannot lock {folder} ({error.strerror}): choose a folder on another disk")


class RunFolder:
    """cfg.out_dir, made or checked, and locked against other runs as long as this object lives.

    A run has begun where there is a run.json: begin() writes it first of all.
    """

    def __init__(self, cfg):
        self.cfg, self.folder = cfg, Path(cfg.out_dir)
        began = any((self.folder / name).exists() for name in ("run.json", "ckpt_last.pt"))
        if cfg.init_from == "resume" and not began:
            raise StudyError(f"there is no run to resume in {self.folder}; without --init_from=resume a new "
                             "one starts")
        self.lock = lock_folder(self.folder)
        if not self.lock:
            raise StudyError(f"another run is writing into {self.folder}; wait for it or set another "
                             "--out_dir", status=BUSY)
        files = [self.folder / name for name in FILES]
        remove_leftovers(files)
        held = [path for path in files if path.exists()]
        if held and cfg.init_from == "scratch":
            if not cfg.overwrite:
                resumes = "--init_from=resume continues it" if began else (
                    "it cannot be resumed without run.json and ckpt_last.pt")
                raise StudyError(f"{self.folder} holds a run ({held[0].name}): {resumes}, --overwrite=True "
                                 "replaces it, another --out_dir leaves it alone")
            for path in held:
                path.unlink()

    def begin(self, model, tasks, device, resolved, seconds, it, rows):
        """Say in run.json how the run is made from iteration `it` on; what it says of earlier parts stays.

        resolved: what dataset and settings resolve to (chars, the fields of ProblemTable, data, dtype, step,
        processes). seconds: wall time from now on by what it is spent on, counted by the caller. rows: the
        evaluations so far, which a results.csv that was cut gets back.
        """
        self.model, self.tasks, self.resolved = model, tasks, resolved
        before = read_run_json(self.folder)
        earlier_parts = before.pop("earlier_parts", [])
        self.info = {
            "command": f"{launcher(resolved['processes'])} {shlex.join(sys.argv)}",
            "start_time": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": COMMIT,
            **machine(device), **{key: resolved[key] for key in MADE_BY},
            "data": digest_of_data(resolved["chars"], resolved["data"]),
            "num_params": model.num_params(),
            "iter_num": it,  # iterations done
            "saved_iter_num": it,  # of these, what ckpt_last.pt holds: a run is complete when that is all
            "seconds": seconds,
            "config": vars(self.cfg),
            "earlier_parts": earlier_parts + ([before] if before else []),
        }
        self.info["digest"] = digest_of(identity_of(self.info))
        self._write(it)
        if rows:
            write_results(self.folder / "results.csv", rows, it)

    def _write(self, it, files=None):
        """Write run.json and, before it, the files {name: bytes} that it describes."""
        self.info["iter_num"] = it
        files = (files or {}) | {"run.json": (json.dumps(self.info, indent=1) + "\n").encode()}
        write_files({self.folder / name: content for name, content in files.items()})

    def checkpoint(self):
        """What every checkpoint holds: enough to sample from and to score the model without the dataset."""
        return {
            "model": self.model.state_dict(), "model_args": dataclasses.asdict(self.model.config),
            "config": vars(self.cfg),
            **{key: self.resolved[key] for key in ("chars", *ProblemTable._fields, "data", "dtype")},
        }

    def save_evaluation(self, rows):
        """Write the last evaluation and the checkpoints that it is best for.

        Returns the names of the columns that it is best in.
        """
        row = rows[-1]
        write_results(self.folder / "results.csv", rows, row["iter"])
        names = best_checkpoints(rows, self.tasks)
        if names:
            scores = {key: value for key, value in row.items() if key != "iter"}
            best = to_bytes(self.checkpoint() | scores | {
                "iter_num": row["iter"], "best_val_loss": min(row["val_loss"] for row in rows)})
            write_files({self.folder / name: best for name in names})
        self._write(row["iter"])
        return [BEST[name][0] for name in names]

    def save_last(self, state):
        """Write ckpt_last.pt from TrainingState.state_dict()."""
        self.info["saved_iter_num"] = state["iter_num"]
        self._write(state["iter_num"], {"ckpt_last.pt": to_bytes(self.checkpoint() | state)})


def best_checkpoints(rows, tasks):
    """Names of the checkpoints whose best evaluation is the last row (the earliest of equals wins)."""
    has = {"val_loss", *(f"{task.name}_acc" for task in tasks), *(["combined_acc"] if tasks else [])}
    return [
        name for name, (column, sign) in BEST.items()
        if column in has
        if all(sign * rows[-1][column] > sign * row[column] for row in rows[:-1])
    ]


def write_results(path, rows, it):
    """Bring results.csv up to date with the evaluations up to iteration `it`.

    The rows of later iterations, which a run that was killed had finished, stay.
    """
    text = "".join(",".join(map(str, values)) + "\n" for values in (rows[0], *(row.values() for row in rows)))
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if before.startswith(text) and not before[len(text):].startswith(f"{it},"):  # of a run that ended here
        return
    if before and text.startswith(before) and before.endswith("\n"):
        append_to_file(path, text[len(before):])
        return
    lines = enumerate(zip(text.splitlines(True), before.splitlines(True)), 1)
    differing = [number for number, (ours, theirs) in lines
                 if ours != theirs and theirs.endswith("\n")]  # a kill may have cut the last line
    if differing:
        print(f"note: line {differing[0]} of {path} is not what the checkpoint says; it is written again",
              file=sys.stderr)
    write_files({path: text.encode()})


def read_run_json(folder):
    """What run.json says of a run; {} if there is none or it is damaged: no result depends on it."""
    try:
        info = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    needed = {"iter_num", "seconds", "device", "device_name", "threads", "dtype", "torch"}
    return info if isinstance(info, dict) and needed <= info.keys() else {}


def to_bytes(checkpoint):
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def read_checkpoint(path):
    """Return the dict saved as a checkpoint; raise StudyError if the file is anything else or damaged."""
    try:
        if zipfile.is_zipfile(path):  # torch saves a checksum for each tensor but does not check it
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
                if damaged:
                    raise ValueError(f"the checksum of {damaged} does not agree")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # cannot run code
    except Exception as error:  # a damaged file can raise almost anything
        refused = refused_objects(path) if isinstance(error, pickle.UnpicklingError) else ""
        if refused:
            raise StudyError(f"{path} has an object that is not loaded, since it could run code: {refused}; "
                             "save the checkpoint without it (drop best_val_loss or make it a float)")
        reason = error if "checksum" in str(error) else type(error).__name__
        raise StudyError(f"{path} is damaged or not a checkpoint ({reason})")
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= checkpoint.keys():
        raise StudyError(f"{path} is not a checkpoint of a model: it lacks 'model' and 'model_args'")
    return checkpoint


def refused_objects(path):
    """Return the names of the classes and functions in a checkpoint that weights_only=True refuses, or ""."""
    try:
        return ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of a damaged file, as above
        return ""


def find_checkpoint(out_dir, *names):
    """Path of the first of these checkpoints that the folder holds; raise StudyError if it holds none."""
    out_dir = Path(out_dir)
    if not out_dir.is_dir():
        raise StudyError(f"folder {out_dir} does not exist: --out_dir must name a trained model's folder")
    path = next((out_dir / name for name in names if (out_dir / name).is_file()), None)
    if path is None:
        held = ", ".join(sorted(p.name for p in out_dir.glob("*.pt"))) or "no checkpoint at all"
        raise StudyError(f"{out_dir} holds no {' and no '.join(names)}; it holds {held}")
    return path


def find_model(out_dir, names, published):
    """Return find_checkpoint(); without a folder out, the repository's model `published`, with a note."""
    ours = sorted((PUBLISHED / published).glob("ckpt*.pt")) if published else []
    if out_dir == "out" and not Path(out_dir).exists() and ours:
        print(f"note: there is no folder out; this is the {published} of the repository, and --out_dir names "
              "another model", file=sys.stderr)
        return Path(os.path.relpath(ours[0]))
    return find_checkpoint(out_dir, *names)


def load_weights(model, state_dict, path):
    """Load weights into a model, nanoGPT's compiled ones included; say what does not fit."""
    try:
        model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in state_dict.items()})
    except (RuntimeError, AttributeError, TypeError) as error:
        details = str(error).splitlines()
        raise StudyError(f"{path} does not fit its model: {details[min(1, len(details) - 1)].strip()}")


def load_model(path, device):
    """Return (model in eval mode, vocabulary, ProblemTable, dtype of its training) of a checkpoint.

    One without a vocabulary, one of nanoGPT's, takes that of its dataset's folder. Where one does not say
    which problems it was trained on, they are the paper's. Without a dtype, it is "auto".
    """
    checkpoint = read_checkpoint(path)
    for key, kind in {"chars": str, "config": dict, "dtype": str}.items():
        if not isinstance(checkpoint.get(key, kind()), kind):
            raise StudyError(f"{path} is damaged: its {key} is {checkpoint[key]!r}")
    dtype = checkpoint.get("dtype", "auto")
    if dtype not in CHOICES["dtype"]:
        raise StudyError(f"{path} is damaged: its dtype {dtype!r} is none of {', '.join(CHOICES['dtype'])}")
    try:
        model = GPT(GPTConfig(**checkpoint["model_args"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise StudyError(f"{path} describes no model that can be built: {error}")
    load_weights(model, checkpoint["model"], path)
    if not all(weights.isfinite().all() for weights in model.parameters()):
        raise StudyError(f"{path} has weights that are not finite numbers: train the model again")
    chars = checkpoint.get("chars")
    if chars is None:
        try:
            chars, _ = read_meta(checkpoint.get("config", {}).get("dataset", ""))
        except StudyError as error:
            raise StudyError(f"{path} has no vocabulary: copy the folder of its dataset, with meta.pkl, into "
                             f"data/ ({error})")
    if len(chars) != model.config.vocab_size:
        raise StudyError(f"{path} has a vocabulary of {len(chars)} characters for a model of "
                         f"{model.config.vocab_size}")
    try:
        table = table_of(checkpoint)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{path} describes no arithmetic problems: {error}")
    return model.eval().to(device), chars, table, dtype
