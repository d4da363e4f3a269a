# What computes the updates: PyTorch in float32 and, as in the paper, in bfloat16.
# experiments/seeds.py has the runs of the C step.
from study.experiments import grid

runs = grid(seed=range(1, 31), config="math_mini_14", fast=False, dtype=["float32", "bfloat16"])
