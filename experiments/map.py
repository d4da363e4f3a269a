# The map of capacity: what a model of one layer and width n learns, without weight decay.
from study.experiments import grid

_widths = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20, 22, 24, 28, 32, 40, 48, 56, 64]
_some = [2, 4, 6, 8, 10, 12, 14, 16, 20, 28, 40, 56]

# Every point gets its first seeds before any gets its last.
runs = grid(seed=range(1, 6), config="math_mini_14", n_embd=_widths)
runs += grid(seed=range(1, 4), config=["facts_mini_14", "both_mini_14"], n_embd=_some)
runs += grid(seed=range(6, 21), config="math_mini_14", n_embd=_widths)
