# Capacity: how much of a random table a model of width n holds. The 196 problems of the paper keep their
# lines; their answers are shuffled within addition and within subtraction, so there is no rule to find.
#
# Written before the runs were looked at. A pilot of one table and one seed: n10 29%, n14 62%, n20 99.5%.
# Primary outcome: share of the table right at the last evaluation, mean over five tables (each its seed).
# Question: does the width that holds half of a random table lie below the width at which the held-out score
# of the true table has fallen by half (experiments/map.py)? If models generalize because they cannot
# memorize, n14 must not hold the random table, and the two widths must be close: within a factor of 1.5.
# Secondary: bits stored and bits a parameter; iterations to 90%.
#
# Then n11 to n13, where half of a table is held, with ten tables each. Written after the runs before: two of
# the five tables of n12 were held worse than those of n10, so n_mem hung on n12. Both ratios are reported.
from study.experiments import grid

_widths = [4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 40, 56]

runs = [run for seed in range(1, 6)
        for run in grid(seed=seed, answer_seed=seed, config="math_mini_14", n_embd=_widths)]
runs += [run for seed in range(1, 11)
         for run in grid(seed=seed, answer_seed=seed, config="math_mini_14", n_embd=[11, 12, 13])
         if run not in runs]
