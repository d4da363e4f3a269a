"""The windows of a dataset on the device, and the order in which training draws them."""

import torch

from study.dataset import read_tokens


def load_splits(dataset, block_size, device):
    """{"train": windows, "val": windows}: int64 (tokens - block_size, block_size + 1) on the device.

    A window is block_size inputs and, moved by one, their targets. Where both splits hold the same
    text, as in the study, they are the same tensor.
    """
    splits = {}
    for split in ("train", "val"):
        tokens = torch.from_numpy(read_tokens(dataset, split, block_size))
        splits[split] = windows_of(tokens, block_size).to(device)
    if torch.equal(splits["train"], splits["val"]):
        splits["val"] = splits["train"]
    return splits


def windows_of(tokens, block_size):
    """All windows of a text's ids: (tokens - block_size, block_size + 1)."""
    return tokens.unfold(0, block_size + 1, 1).contiguous()


class Batches:
    """Draws batches of window indices, uniformly with replacement, from a generator of its own.

    The order depends on the seed alone: not on how many are drawn at once, and with several
    processes each takes every world_size-th window of the same batches.
    """

    def __init__(self, n_windows, cfg, device, rank=0, world_size=1):
        self.n_windows, self.device, self.share = n_windows, device, slice(rank, None, world_size)
        self.shape = (cfg.gradient_accumulation_steps, cfg.batch_size)
        self.generator = torch.Generator().manual_seed(cfg.seed if cfg.data_seed == -1 else cfg.data_seed)

    def draw(self, updates):
        """Window indices (updates, gradient_accumulation_steps, windows of this process) on the device."""
        indices = torch.randint(self.n_windows, (updates, *self.shape), generator=self.generator)
        return indices[:, :, self.share].to(self.device)
