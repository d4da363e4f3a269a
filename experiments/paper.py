# The paper's 18 runs of the small models (tables 2 to 7) and its search for the smallest one (section 3.2).
# The longest come first: then all cores are busy to the end.
from study.experiments import grid

runs = grid(config=[
    f"{task}_mini_{size}{suffix}"
    for size in (56, 28, 14) for task in ("both", "facts", "math") for suffix in ("", "_wd")
])
runs += grid(config="math_mini_14", n_embd=range(13, 0, -1))
