# Does the end of generalization move with the table? Tables of other sizes, random and true.
#
# Written before the runs were looked at.
# For each table: n_mem is the width at which half of the random table is right, n_gen the width at which the
# mean held-out score of the true table has fallen to half of its maximum, both at the last evaluation.
# Primary outcome: the mean share of held-out samples right at the last evaluation, which gives n_gen.
# Prediction: capacity decides. Then n_gen grows with n_mem: the slope of log n_gen over log n_mem is 1.
# If the window is fixed, it is 0. The interval of the slope (bootstrap over runs) says which is excluded.
# n_gen has a meaning only where some width scores 50% or more. Tables without such a width do not count.
# Secondary: the ratio n_gen / n_mem of each table, the maximum of the held-out score, operations apart, and
# the slopes without one of the tables.
# Also different: every update sees 882 windows, so a line of a small table more often; a longer line needs a
# larger block; the most frequent sum alone is 20% of a table to 4, 10% of one to 9 and 5% of one to 19.
# About one pair in 45 is held out, in small tables one pair, which is more. Each seed draws its own pairs and
# order of the lines. Seeds are 1 to 5; with operands to 4 and 6 they are the first five that draw different
# pairs with answers that other lines have too.
from study.experiments import grid

# operations, max_operand -> pairs held out, block size (a line), widths
_tables = {
    ("add", 9): (1, 9, [4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24]),
    ("both", 12): (2, 12, [8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40]),
    ("both", 6): (1, 9, [4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24]),
    ("both", 9): (1, 9, [6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32]),
    ("both", 4): (1, 9, [3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]),
    ("sub", 9): (1, 9, [4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24]),
    ("add", 19): (4, 11, [8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48]),
    ("both", 19): (4, 12, [10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64]),
}
_seeds = {4: [2, 3, 4, 7, 10], 6: [1, 3, 4, 5, 7]}


def _runs(operations, max_operand, seed, widths, **answers):
    pairs, block_size, _ = _tables[operations, max_operand]
    return grid(seed=seed, line_seed=seed, **answers, held_out=f"{pairs} pairs of seed {seed}",
                operations=operations, max_operand=max_operand, block_size=block_size, config="math_mini_14",
                n_embd=widths)


runs = [
    run
    for (_operations, _max_operand), (*_, _widths) in _tables.items()
    for _seed in _seeds.get(_max_operand, range(1, 6))
    for _answers in ({}, {"answer_seed": _seed})
    for run in _runs(_operations, _max_operand, _seed, _widths, **_answers)
]
# Written after those runs: at the widest width the score of the tables to 19 was still above half of its
# maximum. So the true tables have these widths too.
for _operations, _width in (("add", 64), ("add", 96), ("both", 96)):
    runs += [run for _seed in range(1, 6) for run in _runs(_operations, 19, _seed, _width)]
