"""An update as one CUDA graph, for GPUs, where launching the kernels of a small model takes most of the time.

This has not run on a GPU yet; study/steps.py compares it with the plain update before a run trains.
"""

import torch

from study.update import BLOCK, Step, copy_of, hold_lr_in_tensor, put_back


def make_captured_step(update, parameters, optimizer, shape, device, name):
    """The Step that launches update() as one CUDA graph.

    What changes between updates is read from tensors that stay in place: a block of batches and learning
    rates, moved there together, and the position of the next update in it. shape: of the indices of an
    update.
    """
    hold_lr_in_tensor(optimizer, device)
    block = torch.zeros(BLOCK, *shape, dtype=torch.int64, device=device)
    block_lrs = torch.zeros(BLOCK, dtype=torch.float32, device=device)
    next_in_block = torch.zeros(1, dtype=torch.int64, device=device)

    def next_update():
        for group in optimizer.param_groups:
            group["lr"].copy_(block_lrs[next_in_block][0])
        loss = update(block[next_in_block][0])
        next_in_block.add_(1)
        return loss

    launch = capture(next_update, list(parameters), optimizer, device)

    def run(indices, lrs):
        block[: len(indices)] = indices
        block_lrs[: len(lrs)] = torch.tensor(lrs, dtype=torch.float32)
        next_in_block.zero_()
        for _ in range(len(indices)):
            loss = launch()
        return loss

    return Step(name, run, BLOCK)


def capture(function, parameters, optimizer, device):
    """Capture function() as a CUDA graph and return a function that launches it.

    Puts back weights, moments and random state after the calls that warm it up.
    """
    copies = copy_of(parameters, optimizer)
    random_before = torch.cuda.get_rng_state(device)
    main_stream, side_stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side_stream.wait_stream(main_stream)
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            function()
    main_stream.wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    # torch.cuda.graph alone would stay on its own stream if the capture failed.
    with torch.cuda.stream(main_stream), torch.cuda.graph(graph):
        loss = function()
    put_back(parameters, optimizer, copies)
    torch.cuda.set_rng_state(random_before, device)

    def launch():
        graph.replay()
        return loss

    return launch
