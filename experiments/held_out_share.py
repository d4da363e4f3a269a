# From how few examples is the rule found? 1 to 22 of the 45 pairs of different digits are held out.
#
# Written before the runs were looked at.
# Primary outcome: mean share of held-out samples right at the last evaluation.
# Question: does a wide model find the rule when more is missing? Prediction: if a model generalizes because
# it cannot memorize, fewer problems help it to memorize: at each width the score falls as more are held out.
# A rise would speak against that. A fall alone does not speak for it: fewer examples are less to learn from.
# Test: slope of the score over the number of pairs, bootstrap over runs, for each width.
# Each seed draws its own pairs. With 22 pairs held out, a tenth of their answers are in no line that is left.
from study.experiments import grid


def _pairs(seed):
    return [f"{count} pairs of seed {seed}" for count in (1, 2, 5, 10, 15, 22)]


runs = [run for seed in range(1, 11)
        for run in grid(seed=seed, held_out=_pairs(seed), config="math_mini_14", n_embd=[10, 14, 20, 28, 56])]
