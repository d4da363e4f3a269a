# How often: each cell of the paper with many seeds.
from study.experiments import grid

n14, n28, n56 = ([f"math_mini_{size}{suffix}" for suffix in ("", "_wd")] for size in (14, 28, 56))
others = [f"{task}_mini_{size}{suffix}" for task in ("facts", "both") for size in (14, 28, 56) for suffix in ("", "_wd")]

# Every cell gets its first seeds before any gets its last.
runs = grid(seed=range(1, 31), config=n14 + n28)
runs += grid(seed=range(1, 11), config=n56 + others)
runs += grid(seed=range(31, 51), config=n14 + n28)
runs += grid(seed=range(51, 101), config=n14)
runs += grid(seed=range(11, 51), config=n56)
