# How often: each cell of the paper with many seeds.
from study.experiments import grid

_n14, _n28, _n56 = ([f"math_mini_{size}{suffix}" for suffix in ("", "_wd")] for size in (14, 28, 56))
_others = [
    f"{task}_mini_{size}{suffix}"
    for task in ("facts", "both") for size in (14, 28, 56) for suffix in ("", "_wd")
]

# Every cell gets its first seeds before any gets its last.
runs = grid(seed=range(1, 31), config=_n14 + _n28)
runs += grid(seed=range(1, 11), config=_n56 + _others)
runs += grid(seed=range(31, 51), config=_n14 + _n28)
runs += grid(seed=range(51, 101), config=_n14)
runs += grid(seed=range(11, 51), config=_n56)
