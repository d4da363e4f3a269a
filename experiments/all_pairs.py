# Every pair held out: n14 on arithmetic without one of the 45 pairs of different digits, then n20.
#
# Written before the runs were looked at. Ten of the pairs were known (experiments/pairs.py).
# Primary outcome: mean share of a pair's held-out samples right at the last evaluation.
# Question: is a pair with an operand 0 or 9, at the edge of the table, harder than one inside it?
# Test: difference of the means, edge minus inside, permutation over pairs, n14. Prediction: negative.
# Secondary: sums and differences apart, n20. experiments/seeds.py and map.py have the paper's pair, 5,7.
from itertools import combinations

from study.experiments import grid

_pairs = [f"{a},{b}" for a, b in combinations(range(10), 2) if (a, b) != (5, 7)]

runs = grid(seed=range(1, 11), held_out=_pairs, config="math_mini_14")
runs += grid(seed=range(1, 6), held_out=_pairs, config="math_mini_14", n_embd=20)
