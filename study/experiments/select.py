"""Select runs by their settings: seeds of a cell, widths, orders of the lines, held-out pairs."""

import functools

from study.experiments.runs import DATA_DEFAULTS, config_file, config_of, data_settings
from study.tasks import table_of

N14 = "math_mini_14"  # whose settings the runs on why have but for their axes
PAPER_SEED = 1337  # of the paper's runs and of the configs; "the seeds" are all others
AUTO_DTYPES = {"cpu": ["float32"], "mps": ["float32"], "cuda": ["bfloat16", "float16"]}  # of setup_device()


def varied(runs, config, *axes, **settings):
    """{values of the axes: Run} of the runs that differ from a config's run in `axes` alone, sorted.

    runs: {name: Run} of the tables.
    settings: over those of the config. "auto" there matches any value, but as dtype only what it stands for.
    If two runs have the same settings, the first one counts.
    """
    if not config_file({"config": config}).exists():
        return {}
    wanted = DATA_DEFAULTS | config_of({"config": config} | settings) | settings
    if "held_out" in settings:
        wanted["held_out"] = table_of(wanted).held_out
    found = {}
    for run in runs.values():
        row = settings_of_row(run.info["config"], tuple(run.info.items()))
        if all(key in axes or matches(key, value, row) for key, value in wanted.items()):
            found.setdefault(tuple(row[axis] for axis in axes), run)
    return dict(sorted(found.items()))


def matches(key, value, row):
    """Whether a row of settings_of_row() has a value of a setting."""
    if (key, value) == ("dtype", "auto"):
        return row.get("dtype") in AUTO_DTYPES.get(row.get("device"), [])
    return value in ("auto", row.get(key))


@functools.cache  # each selection goes through all rows
def settings_of_row(config, columns):
    """{setting: value} of a row of runs.csv, given as pairs; where it has no column, the config's value."""
    if not config_file({"config": config}).exists():
        return {}  # matches nothing
    settings = DATA_DEFAULTS | config_of({"config": config})
    known = settings.keys() - (DATA_DEFAULTS.keys() - data_settings({"config": config}).keys())
    columns = {key: text for key, text in columns if key in known and text != ""}
    row = settings | {key: as_type_of(settings[key], text) for key, text in columns.items()}
    if row["data_seed"] == row["seed"]:
        row["data_seed"] = -1
    return row


def as_type_of(default, text):
    """A column's text as the type of the setting's default; "auto" stands for any type."""
    if text in ("True", "False"):
        return text == "True"
    return type(default)(text)


def random_tables(runs, *axes):
    """{values of the axes: runs} of the runs on random tables that differ from N14 in the axes and seeds."""
    cells = {}
    for (*key, answer_seed, _), run in varied(runs, N14, *axes, "answer_seed", "seed").items():
        if answer_seed >= 0:
            cells.setdefault(tuple(key), []).append(run)
    return cells


def seeds_of(runs, config, *axes, **settings):
    """{values of the axes: {seed: Run}} of varied(), without the paper's seed."""
    cells = {}
    for (*key, seed), run in varied(runs, config, *axes, "seed", **settings).items():
        if seed != PAPER_SEED:
            cells.setdefault(tuple(key), {})[seed] = run
    return cells


def by_seed(runs, config, **settings):
    """{seed: Run} of the runs that differ from a config's in their seed alone, without the paper's seed."""
    return seeds_of(runs, config, **settings).get((), {})


def seeds(runs, config, **settings):
    """The runs of by_seed()."""
    return list(by_seed(runs, config, **settings).values())


def seeds_by(axis, runs, config, **settings):
    """{value of an axis: the runs of its seeds}."""
    return {value: list(of_seed.values())
            for (value,), of_seed in seeds_of(runs, config, axis, **settings).items()}
