"""The figures of many runs: their names, their titles, and what each needs to be drawn."""

from study.experiments.why import whole
from study.experiments.why_optimizer import with_runs
from study.experiments.widths import NARROWEST


def _has_runs(task):
    return lambda found: any(cell["runs"] for model, cell in found[task].items() if "MLT" not in model)


def _has_widths(found):
    return sum(n >= NARROWEST for n in found["by_width"]["math"]) > 1


_BY_WIDTH = "Trained and held-out problems and a random table, by width"

# name: (title, whether there are runs for it in findings()). plot_experiment.py draws them.
FIGURES = {
    "seeds_math": ("Arithmetic: accuracy over iterations", _has_runs("math")),
    "seeds_facts": ("Capitals: accuracy over iterations", _has_runs("facts")),
    "seeds_both": ("Both: accuracy over iterations", _has_runs("both")),
    "map": ("The map of capacity", lambda found: any(found["by_width"].values())),
    "accuracy": (_BY_WIDTH, _has_widths),
    "accuracy_wide": (_BY_WIDTH, _has_widths),
    "at_fit": ("Held-out problems when the trained ones are first fitted, and at the end",
               lambda found: len(found["at_fit"]) > 1),
    "held_out": ("Held-out problems by width", lambda found: found["held_out"]),
    "orders": ("Held-out problems by order and seed", lambda found: found["orders"]["held_out_right"]),
    "pairs": ("Held-out problems by pair: sums above the diagonal, differences below",
              lambda found: found["by_pair"]),
}
# The same in why(). plot_embeddings.py draws the last.
FIGURES_OF_WHY = {
    "capacity": ("What a width holds of a random table, and what it has of the held-out problems",
                 lambda why: why["capacity"]["by_width"]),
    "times": ("Iterations until 90% are right, by width, and the mean held-out score by iteration",
              lambda why: why["times"]),
    "tables": ("The width at which generalization ends over the width that holds half of a random table",
               lambda why: whole(why["tables"]["by_table"])),
    "rates": ("Held-out score over the learning rate", lambda why: with_runs(why["rates"])),
    "decays": ("Held-out score by learning rate and weight decay", lambda why: why["decays"]),
    "changing_order": ("Held-out score with the paper's text and with changing orders",
                       lambda why: why["order"]["by_width"]),
    "held_out_share": ("Held-out score over the number of held-out pairs",
                       lambda why: why["shares"]["by_width"]),
    "embeddings": ("Digits' embeddings in the plane of their first two principal components",
                   lambda why: why.get("embeddings")),
}


def drawn(found, figures):
    """The names in FIGURES or FIGURES_OF_WHY that there are runs for."""
    return [name for name, (_, has_runs) in figures.items() if has_runs(found)]


def titles(found):
    """{name: title} of all figures, "" without runs."""
    names = {*drawn(found, FIGURES), *drawn(found["why"], FIGURES_OF_WHY)}
    return {name: title if name in names else "" for name, (title, _) in (FIGURES | FIGURES_OF_WHY).items()}
