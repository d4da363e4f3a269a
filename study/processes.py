"""Several processes that train one model together, as torchrun starts them; and the command that resumes."""

import contextlib
import os
import shlex
import signal
import sys

import torch
import torch.distributed as dist

from study import StudyError


@contextlib.contextmanager
def process_group(cfg, device):
    """Yield (rank, number of processes); inside, they can talk to each other. Raises StudyError."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if cfg.batch_size % world_size:
        raise StudyError(f"batch_size={cfg.batch_size} is not divisible by the {world_size} processes")
    if world_size == 1:
        yield rank, world_size
        return
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a socket that another end closed is an error then
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield rank, world_size
    dist.destroy_process_group()  # not after an error: it would wait for the others


def in_any_process(condition, device):
    """Whether the condition is true in one of the processes: they must agree on when to save and to stop."""
    if not dist.is_initialized():
        return condition
    true = torch.tensor(float(condition), device=device)
    dist.all_reduce(true, dist.ReduceOp.MAX)
    return bool(true)


def launcher(processes):
    """What starts a script with this number of processes."""
    return "python" if processes == 1 else f"torchrun --standalone --nproc_per_node={processes}"


def resume_command():
    """The command that resumes this run, with as many processes and threads."""
    arguments, threads = [], os.environ.get("OMP_NUM_THREADS")
    for before, argument in zip(["", *sys.argv], sys.argv):
        value = before == "--init_from" or (before == "--overwrite" and argument in ("True", "False"))
        if not value and argument.partition("=")[0] not in ("--init_from", "--overwrite"):
            arguments.append(argument)
    script = f"{launcher(int(os.environ.get('WORLD_SIZE', 1)))} {shlex.join(arguments)}"
    return (f"OMP_NUM_THREADS={threads} " if threads else "") + f"{script} --init_from=resume"
