# How often: each cell of the paper with many seeds.
from study.experiments import grid

others = [f"{task}_mini_{size}{suffix}" for task in ("facts", "both") for size in (14, 28, 56) for suffix in ("", "_wd")]

runs = grid(seed=range(1, 51), config=["math_mini_14", "math_mini_14_wd", "math_mini_28", "math_mini_28_wd"])
runs += grid(seed=range(1, 11), config=["math_mini_56", "math_mini_56_wd", *others])
runs += grid(seed=range(51, 101), config=["math_mini_14", "math_mini_14_wd"])
runs += grid(seed=range(11, 51), config=["math_mini_56", "math_mini_56_wd"])
