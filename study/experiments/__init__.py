"""What many runs become: lists of runs, tables, statistics, figures."""

from study.experiments.runs import grid  # noqa: F401, for the files in experiments/
