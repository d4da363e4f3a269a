# Does a wide model find the rule when it trains ten times as long? n28 and n56 on arithmetic.
#
# Written before the runs were looked at. In modular arithmetic, models that have long memorized can find
# the rule many iterations later, sooner with weight decay (grokking: Power et al. 2022, arXiv:2201.02177).
# Primary outcome: mean share of held-out samples right at the last evaluation.
# Question: is it larger than after 30,000 iterations? Prediction: no. A model that holds the table has no
# reason to find the rule: no weight decay lifts the mean of n28 or n56 above 25%.
# Test: against the run of 30,000 iterations with the same width, weight decay and seed, paired permutation
# over the 15 pairs of a width, Holm's correction over the two widths. The cells of a width and a weight decay
# have five pairs each: p cannot fall below 0.06 there.
# Secondary: these cells, and the most that a run has right at any evaluation, its early peak included.
# The schedule is the paper's, ten times as long. An evaluation every 2,500 iterations makes 121, as there.
# experiments/seeds.py has the runs of 30,000 iterations, with weight decay 1 experiments/optimizer.py.
from study.experiments import grid

runs = grid(seed=range(1, 6), config="math_mini_14", weight_decay=[1.0, 0.0, 0.1], n_embd=[28, 56],
            max_iters=300_000, warmup_iters=20_000, lr_decay_iters=250_000, eval_interval=2_500)
