"""Made-up runs, as read from the tables of experiments."""

from study.experiments.results import Run, columns
from study.experiments.runs import DATA_DEFAULTS, config_of, run_name

ANSWERS = {20: "5+7=12 7+5=12 5-7=-1 7-5=1", 40: "5+7=12 7+5=12 5-7=-2 7-5=2",
           30: "5+7=12 7+5=12 5-7=-1 7-5=2", 0: "5+7=13 7+5=13 5-7=-1 7-5=3"}


def a_run(*evaluations, **info):
    """A Run of evaluations: iteration, sums right, differences, capitals or None, held out, loss."""
    rows = [
        {"iter": it, "add_correct": add, "add_total": 1000, "sub_correct": sub, "sub_total": 1000,
         "facts_correct": facts or 0, "facts_total": 0 if facts is None else 500, "val_loss": loss,
         "held_out_correct": held_out, "held_out_total": 40, "held_out_answers": ANSWERS[held_out]}
        for it, add, sub, facts, held_out, loss in evaluations
    ]
    made = {"num_params": "1456", "made_on": "Some CPU", "step": "C step (cc, AVX2)",
            "beyond_add": "", "beyond_sub": ""}
    return Run(made | info, rows, columns(rows))


def made(run, config, **settings):
    """{name: a copy of the run} with the columns that the tables have for these settings."""
    settings = {"config": config} | settings
    data = DATA_DEFAULTS | settings
    row = {key: str(value) for key, value in (config_of(settings) | data).items()}
    row |= {"dtype": settings.get("dtype", "float32"), "device": "cpu"}
    if data["answer_seed"] >= 0:
        row |= {"stored_bits": "100.0", "table_bits": "784.0"}
    step = "PyTorch" if settings.get("fast") is False else run.info["step"]
    name = run_name({key: value for key, value in settings.items() if (key, value) != ("seed", 1337)})
    return {name: run._replace(info=row | run.info | {"run": name, "step": step})}


def seeds(run, config, numbers, **settings):
    return {name: each for seed in numbers for name, each in made(run, config, seed=seed, **settings).items()}


WHOLE = a_run((0, 0, 0, None, 0, 2.8), (20000, 1000, 1000, None, 40, 0.8), (30000, 1000, 1000, None, 40, 0.7),
              beyond_add="0", beyond_sub="180")
PASSING = a_run((0, 0, 0, None, 0, 2.8), (20000, 1000, 1000, None, 40, 0.9),
                (30000, 1000, 990, None, 30, 0.8))
MEMORY = a_run((0, 0, 0, None, 0, 2.8), (20000, 980, 980, None, 0, 0.6), (30000, 980, 980, None, 0, 0.5))
RUNS = {
    **seeds(PASSING, "math_mini_14", [1337, 2, 10]), **seeds(WHOLE, "math_mini_14", [1]),
    **seeds(WHOLE, "math_mini_14_wd", [1]), **seeds(MEMORY, "math_mini_28", [1]),
    **seeds(WHOLE, "math_mini_14", [1], n_embd=13), **seeds(MEMORY, "math_mini_14", [1], n_embd=2),
    **seeds(MEMORY, "math_mini_14", [1, 2], line_seed=1), **seeds(WHOLE, "math_mini_14", [1, 2], line_seed=2),
    **seeds(MEMORY, "math_mini_14", [1], held_out="1,3"),
    **seeds(PASSING, "math_mini_14", [1, 2], dtype="float32", fast=False),
    **seeds(PASSING, "math_mini_14", [1, 2], dtype="bfloat16", fast=False),
}
