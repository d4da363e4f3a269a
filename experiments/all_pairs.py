# Every pair held out: n14 on arithmetic without one of the 45 pairs of different digits, then n20.
#
# Written before the runs were looked at. Ten of the pairs were known (experiments/pairs.py).
# Primary outcome: mean share of a pair's held-out samples right at the last evaluation.
# Question: is a pair with an operand 0 or 9, at the edge of the table, harder than one inside it?
# The ten and the paper's 5,7 raised the question, so they do not answer it.
# Test: difference of the means over the 34 other pairs, edge minus inside, permutation over pairs, n14.
# Prediction: negative.
# Secondary: all 45 pairs; those whose answers other lines have too (no other sum is 1, no difference 9 or -9:
# without 0,1 and 0,9 and 8,9, which lie at the edge); n20; sums and differences apart.
# experiments/seeds.py and map.py have the paper's pair.
from itertools import combinations

from study.experiments import grid

_pairs = [f"{a},{b}" for a, b in combinations(range(10), 2) if (a, b) != (5, 7)]

runs = grid(seed=range(1, 11), held_out=_pairs, config="math_mini_14")
runs += grid(seed=range(1, 6), held_out=_pairs, config="math_mini_14", n_embd=20)
