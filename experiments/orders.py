# The order of the lines: n14 on arithmetic in 20 orders of the text, each with the same five seeds.
from study.experiments import grid

runs = grid(line_seed=range(1, 21), seed=range(1, 6), config="math_mini_14")
