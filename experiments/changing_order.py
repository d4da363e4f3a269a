# Is it the order of the lines? A text of 50 orders, one after the other: far more to learn than one order.
#
# Written before the runs were looked at. A pilot of two seeds of n28 had 0 of 40.
# Primary outcome: mean share of held-out samples right at the last evaluation.
# Question: do wide models that have no order to memorize find the rule? Prediction: if the capacity that the
# order takes is what counts, the score falls off at a larger width; if that for the answers, it does not.
# Test: n_gen, the width at which the mean has fallen to half of its maximum, with changing order over that
# with the paper's text on the same 20 seeds (experiments/map.py, seeds.py), bootstrap over runs.
# Secondary: the difference at each width, paired permutation, Holm's correction over the nine widths; the
# lowest validation loss, which is over the first order: 0.767 and more if no order is known.
from study.experiments import grid

runs = grid(seed=range(1, 21), shuffles=50, config="math_mini_14",
            n_embd=[14, 28, 20, 16, 18, 22, 24, 40, 56])
