"""All that a run needs to go on exactly where it stopped, as one object."""

import os

import torch
import torch.distributed as dist

from study import StudyError
from study.batches import Batches, load_splits
from study.dataset import read_meta
from study.identity import FREE, digest_of_windows
from study.run_folder import read_checkpoint, read_run_json
from study.tasks import ProblemTable, table_of, tasks_spelled_by
from study.update import begin_moments, build

# Settings that may differ when a run is resumed. resume() compares what dtype comes to.
FREE_ON_RESUME = FREE - {"dataset"} | {"max_iters", "eval_interval", "dtype", "cuda_graph"}


class TrainingState:
    """Weights, optimizer, loss scale, batch order, random states, evaluations so far and iteration.

    rows: the evaluations, those of results.csv. With several processes each has its own random state
    (dropout), and all of them call state_dict together.
    """

    def __init__(self, model, optimizer, scaler, batches, device):
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.batches, self.device = batches, device
        self.rows, self.iter_num, self.stopped_by = [], 0, None

    def state_dict(self):
        """Return plain values and tensors, which torch.load reads with weights_only=True."""
        random_states = [random_state(self.device)]
        if dist.is_initialized():
            random_states = [None] * dist.get_world_size()
            dist.all_gather_object(random_states, random_state(self.device))
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "loss_scale": self.scaler.state_dict(),
            "batch_order": self.batches.generator.get_state(),
            "random_states": random_states,
            "rows": self.rows,
            "iter_num": self.iter_num,
        }

    def load_state_dict(self, state):
        """Must be called before training begins, since it replaces AdamW's tensors.

        Raises KeyError, ValueError or RuntimeError.
        """
        rank = dist.get_rank() if dist.is_initialized() else 0
        if len(state["random_states"]) != (dist.get_world_size() if dist.is_initialized() else 1):
            raise StudyError(f"this run was made by {len(state['random_states'])} processes: "
                             "resume it with as many")
        self.model.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]  # from the config, for this device
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        begin_moments(self.optimizer)  # a run that was stopped before its first update may have none
        self.scaler.load_state_dict(state["loss_scale"])
        self.batches.generator.set_state(state["batch_order"])
        set_random_state(state["random_states"][rank], self.device)
        self.rows, self.iter_num = state["rows"], state["iter_num"]


def set_up(cfg, device, dtype, rank=0, world_size=1):
    """Return (TrainingState before the first update, splits of load_splits(), tasks, resolved).

    cfg: settings of train_with_eval.py. resolved: what dataset and dtype resolve to (chars, the fields of
    ProblemTable, data, dtype), which must be the same when the run is resumed.
    """
    chars, meta = read_meta(cfg.dataset)
    splits = load_splits(cfg.dataset, cfg.block_size, device)
    model, optimizer = build(cfg, len(chars), device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    batches = Batches(len(splits["train"]), cfg, device, rank, world_size)
    table = table_of(meta)
    resolved = {"chars": chars, **table._asdict(), "data": digest_of_windows(splits), "dtype": dtype}
    state = TrainingState(model, optimizer, scaler, batches, device)
    if rank > 0:
        torch.manual_seed(cfg.seed + rank)  # its own dropout
    return state, splits, tasks_spelled_by(chars, table), resolved


def random_state(device):
    """The random states that training draws from (dropout), of this process."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state, device):
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def require_same_settings(cfg, config):
    """Raise StudyError unless a run that was started with `config` can go on with cfg."""
    for key, value in config.items():
        if key not in FREE_ON_RESUME and getattr(cfg, key, None) != value:
            raise StudyError(f"the run in {cfg.out_dir} was started with {key}={value}, not "
                             f"{getattr(cfg, key, None)}: resume it as it was")


def drop_end_of_shorter_run(rows, config, cfg):
    """Remove the evaluation at the end of a run that was started with `config`, if cfg makes it longer.

    Between two multiples of eval_interval a run is evaluated only where it ends. Without that evaluation a
    run that was made longer equals one that was made without a stop. A best checkpoint that came from it
    stays until a later evaluation is better than all that are left.
    """
    end = config["max_iters"]
    if rows and rows[-1]["iter"] == end < cfg.max_iters and end % cfg.eval_interval:
        rows.pop()


def resume(state, cfg, resolved):
    """Load out_dir/ckpt_last.pt into the state and return what run.json says of the run.

    A run that was killed before its first ckpt_last.pt starts at 0. Raises StudyError.
    """
    path, info = f"{cfg.out_dir}/ckpt_last.pt", read_run_json(cfg.out_dir)
    if not os.path.exists(path):
        require_same_settings(cfg, info.get("config", {}))
        if info.get("saved_iter_num"):  # it had one
            raise StudyError(f"{cfg.out_dir} holds a run at iteration {info['iter_num']} without the "
                             "ckpt_last.pt to resume from: --overwrite=True starts it again")
        return info
    last = ProblemTable()._asdict() | read_checkpoint(path)  # an older one has not all of these keys
    if not {"config", "chars", "optimizer", "batch_order", "random_states", "rows"} <= last.keys():
        raise StudyError(f"{path} holds a model but not what resuming needs: --overwrite=True starts the run "
                         "again")
    require_same_settings(cfg, last["config"])
    for key in ("chars", *ProblemTable._fields, "dtype"):
        if last[key] != resolved[key]:
            raise StudyError(f"the run in {cfg.out_dir} was made with {key} {last[key]!r}, not "
                             f"{resolved[key]!r}: resume it as it was")
    if last.get("data", resolved["data"]) != resolved["data"]:  # older checkpoints have no digest
        raise StudyError(f"data/{cfg.dataset} no longer holds the text that the run in {cfg.out_dir} was "
                         "trained on: prepare that text again")
    try:
        state.load_state_dict(last)
        drop_end_of_shorter_run(state.rows, last["config"], cfg)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise StudyError(f"{path} does not fit the run: {str(error).splitlines()[0]}")
    if state.iter_num > cfg.max_iters:
        raise StudyError(f"the run in {cfg.out_dir} is at iteration {state.iter_num} already: "
                         f"max_iters={cfg.max_iters} must be at least that")
    return info
