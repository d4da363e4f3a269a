# Does the window of widths move with the learning rate? n28 on arithmetic, then n14, n20 and n56.
#
# Written before the runs were looked at. A pilot of three runs of n28 at 3e-2 had 20, 20 and 10 of 40.
# Primary outcome: mean share of held-out samples right at the last evaluation.
# Question: does another rate than 1e-2 make n28 generalize? If capacity alone decides, none does:
# the prediction is that no rate lifts the mean of n28 above 25%.
# Test: each rate against 1e-2 on the same 20 seeds, paired permutation, Holm's correction over the rates.
# Secondary: how many runs have every held-out sample right, the trained share, the other widths.
# The smallest rate is always a hundredth of the largest. experiments/seeds.py and map.py have the rate 1e-2.
from study.experiments import grid

_rates = [2e-2, 3e-2, 5e-2, 3e-3, 1e-3]


def _runs(**axes):
    return [settings | {"min_lr": settings["learning_rate"] / 100} for settings in grid(**axes)]


runs = _runs(seed=range(1, 21), config="math_mini_28", learning_rate=_rates)
runs += _runs(seed=range(1, 6), config="math_mini_14", n_embd=[14, 20, 56], learning_rate=_rates)
