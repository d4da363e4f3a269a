"""The plain update as torch.compile makes it: model, gradient and clipping as one graph.

This has not run on a GPU yet; study/steps.py compares it with the plain update before a run trains.
"""

from study.update import hold_lr_in_tensor, make_eager_step


def compile_update(update):
    """The update by torch.compile; AdamW keeps PyTorch's own fused kernel."""
    import torch._dynamo  # takes seconds, with inductor
    from torch._inductor.decomposition import decompositions
    from torch._inductor.lowering import make_fallback

    torch._dynamo.config.trace_autograd_ops = True  # else the graph ends at backward()
    # Keep PyTorch's own kernel for the gradient of an embedding. Inductor makes it an index_put_, which adds
    # up all rows of a token one by one on CUDA if it must be deterministic. warn=False: else it is an error
    # where CI is set.
    embedding_gradient = torch.ops.aten.embedding_dense_backward.default
    decompositions.pop(embedding_gradient, None)
    make_fallback(embedding_gradient, warn=False)
    return torch.compile(update)


def make_compiled_step(update, optimizer, device):
    """The Step of the compiled update."""
    hold_lr_in_tensor(optimizer, device)
    return make_eager_step(compile_update(update), optimizer, "PyTorch, compiled")
