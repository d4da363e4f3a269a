# The paper's six runs of the MLT, which need a GPU to end in time.
from study.experiments import grid

runs = grid(config=[
    f"{task}_mini_mlt{suffix}" for task in ("both", "facts", "math") for suffix in ("", "_wd")
])
