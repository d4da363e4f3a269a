"""How a model's embeddings of the ten digits lie: along a line in the digit's value, or on a circle."""

import csv
import math
from pathlib import Path

import numpy as np

from study import StudyError
from study.experiments.cells import mean

DIGITS = np.arange(10)
COLUMNS = ("config", "seed", "iter", "held_out_correct", "line", "circle", "frequency", "line_chance",
           "circle_chance")


def digit_embeddings(model, chars):
    """Embeddings of 0 to 9, centred: (10, n_embd) as a numpy array."""
    ids = [chars.index(str(digit)) for digit in DIGITS]
    rows = model.transformer.wte.weight[ids].detach().cpu().double().numpy()
    return rows - rows.mean(axis=0)


def explained(embeddings, features):
    """Share of the variance of centred embeddings (10, n) that features (10, k) explain linearly."""
    features = features - features.mean(axis=0)
    fitted = features @ np.linalg.lstsq(features, embeddings, rcond=None)[0]
    return float((fitted**2).sum() / (embeddings**2).sum())


def on_line(embeddings):
    return explained(embeddings, DIGITS[:, None].astype(float))


def on_circle(embeddings):
    """(share, frequency) of the circle, 1 to 4 turns over the ten digits, that explains most."""
    shares = []
    for frequency in range(1, 5):
        angles = 2 * math.pi * frequency * DIGITS / 10
        shares.append((explained(embeddings, np.stack([np.cos(angles), np.sin(angles)], axis=1)), frequency))
    return max(shares)


def measures(embeddings, draws=200):
    """The columns from "line" on of COLUMNS; chance: the mean over digits in shuffled order."""
    rng = np.random.default_rng(0)
    shuffled = [rng.permutation(embeddings) for _ in range(draws)]
    circle, frequency = on_circle(embeddings)
    return {"line": on_line(embeddings), "circle": circle, "frequency": frequency,
            "line_chance": float(np.mean([on_line(each) for each in shuffled])),
            "circle_chance": float(np.mean([on_circle(each)[0] for each in shuffled]))}


def groups_of(rows):
    """{name: rows} of embeddings.csv: n14 by its held-out problems, n28 at its two iterations."""
    groups = {"n14, all four right": [], "n14, fewer right": []}
    for row in rows:
        n = row["config"].rsplit("_", 1)[-1]
        name = f"n{n} at {int(row['iter']):,}"
        if n == "14":
            name = "n14, all four right" if int(row["held_out_correct"]) == 40 else "n14, fewer right"
        groups.setdefault(name, []).append(row)
    return {name: of_group for name, of_group in groups.items() if of_group}


def embeddings_of(root):
    """The findings of root/embeddings.csv, which plot_embeddings.py writes; {} without it."""
    try:
        with open(Path(root) / "embeddings.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: {"runs": len(of_group), **{
            column: mean(f"{name}: percent on a {column}", [100 * float(row[column]) for row in of_group])
            for column in ("line", "circle", "line_chance", "circle_chance")}}
            for name, of_group in groups_of(rows).items()}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{root}/embeddings.csv is damaged ({type(error).__name__}: {error}): "
                         "run plot_embeddings.py again")
