"""The digits' embeddings are measured: along a line, on a circle, or neither."""

import csv
import math

import numpy as np
import pytest
from conftest import cells_of_row

import plot_embeddings
from study.experiments.embeddings import DIGITS, embeddings_of, measures
from study.experiments.why import why
from study.experiments.why_tables import tables_of_why
from study.settings import configure

pytestmark = pytest.mark.usefixtures("close_figures")
RNG = np.random.default_rng(1)


def centred(rows):
    return rows - rows.mean(axis=0)


def test_embeddings_on_a_line_or_a_circle_are_explained_by_it():
    line = measures(centred(DIGITS[:, None] * RNG.normal(size=(1, 14))))
    assert line["line"] == pytest.approx(1) and line["circle"] < 0.8
    angles = 2 * math.pi * 3 * DIGITS / 10
    circle = measures(centred(np.stack([np.cos(angles), np.sin(angles)], axis=1) @ RNG.normal(size=(2, 14))))
    assert circle["circle"] == pytest.approx(1) and circle["frequency"] == 3 and circle["line"] < 0.5


def test_random_embeddings_are_explained_as_chance_says():
    each = [measures(centred(RNG.normal(size=(10, 14))), draws=50) for _ in range(40)]
    assert np.mean([of["line"] for of in each]) == pytest.approx(1 / 9, abs=0.02)
    for name in ("line", "circle"):
        values, chance = ([of[key] for of in each] for key in (name, f"{name}_chance"))
        assert np.mean(values) == pytest.approx(np.mean(chance), abs=0.03)


def test_models_are_trained_measured_and_drawn(project, in_tmp, monkeypatch, capsys):
    monkeypatch.setattr(plot_embeddings, "MODELS", [("math_mini_14", 3), ("math_mini_28", 2)])
    arguments = ["--root_dir=.", "--seeds=2", "--device=cpu"]
    cfg = configure(vars(plot_embeddings), arguments=arguments)
    plot_embeddings.main(cfg)
    assert "iter 0:" in capsys.readouterr().out
    written = (in_tmp / "embeddings.csv").read_bytes()
    rows = list(csv.DictReader(written.decode().splitlines()))
    assert [(row["config"], row["seed"], row["iter"]) for row in rows] == [
        ("math_mini_14", "1", "3"), ("math_mini_14", "2", "3"),
        ("math_mini_28", "1", "2"), ("math_mini_28", "2", "2")]
    assert all(0 < float(row[name]) < 1 for row in rows for name in ("line", "circle", "line_chance"))
    assert (in_tmp / "embeddings.png").exists()
    plot_embeddings.main(cfg)  # nothing is trained twice
    assert "iter 0:" not in capsys.readouterr().out
    assert (in_tmp / "embeddings.csv").read_bytes() == written
    found = embeddings_of(in_tmp)
    assert {name: cell["runs"] for name, cell in found.items()} == {"n14, fewer right": 2, "n28 at 2": 2}
    table = tables_of_why(why({}) | {"embeddings": found})["embeddings"]
    assert cells_of_row(table, "n28 at 2")[1] == "2"


def test_a_folder_that_is_missing_is_noticed_before_anything_is_trained(call, in_tmp):
    result = call("plot_embeddings.py", "--root_dir=nowhere", "--seeds=1")
    assert result.returncode == 2 and "nowhere" in result.stderr and result.stdout == ""


def test_without_the_file_there_are_no_findings_and_a_damaged_one_says_so(call, in_tmp, published):
    assert embeddings_of(in_tmp) == {}
    (published / "embeddings.csv").write_text("config,seed\nmath_mini_14,1\n")
    result = call("report.py")
    assert result.returncode == 2
    assert "embeddings.csv" in result.stderr and "plot_embeddings.py" in result.stderr
