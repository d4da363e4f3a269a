"""Scores a trained model on arithmetic: every problem ten times, then the totals.

    python eval_as_math.py --grid                                     (the repository's n14, its answers as tables)
    python eval_as_math.py --out_dir=math_mini_14
    python eval_as_math.py --out_dir=math_mini_14 --max_operand=19    (paper, section 5.1)
"""

import re
from pathlib import Path

from study import StudyError
from study.tasks import GROUPS, arithmetic
from study.scoring import ask, open_model, print_problems, print_total, tally
from study.settings import run_script

out_dir = "out"  # folder of the trained model; without one, the repository's n14
ckpt = ""  # checkpoint in out_dir; by default ckpt_best_math.pt, else ckpt.pt
operation = "both"  # addition, subtraction or both
max_operand = 9  # the operands go from 0 to this
grid = False  # show the most frequent answers as a table for each operation instead of a list
plot = ""  # file for a picture of these tables, such as grid.png
seed = 1337  # of the sampling
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # auto (what the model was trained in), float32, bfloat16, float16


def answer_table(problems, answers, group):
    """{(a, b): (most frequent answer, whether it is right, whether the problem is held out)} of an operation."""
    table = {}
    for problem, given in zip(problems, answers):
        if problem.group == group:
            said = given.most_common(1)[0][0]
            operands = tuple(map(int, re.findall(r"\d+", problem.prompt)))
            table[operands] = said or "?", said == problem.answer, problem.held_out
    return table


def print_table(table):
    """Rows a, columns b; a wrong answer has a star, a held-out problem brackets."""
    cells = {at: f"[{said}]" if held_out else said for at, (said, _, held_out) in table.items()}
    cells = {at: text + ("" if table[at][1] else "*") for at, text in cells.items()}
    operands = sorted({a for a, _ in table})
    width = max(map(len, cells.values())) + 1
    print("a\\b".ljust(4) + "".join(f"{b:>{width}}" for b in operands))
    for a in operands:
        print(f"{a:<4}" + "".join(f"{cells[a, b]:>{width}}" for b in operands))


def main(cfg):
    if cfg.plot and (Path(cfg.plot).suffix not in (".png", ".pdf") or not Path(cfg.plot).parent.is_dir()):
        raise StudyError(f"plot='{cfg.plot}' must be a .png or .pdf file in a folder that is there")
    model = open_model(cfg, "ckpt_best_math.pt", "math_mini_14")
    task = arithmetic(model.held_out, cfg.max_operand)
    asked = [group for group in ("add", "sub") if cfg.operation in (GROUPS[group], "both")]
    problems = [problem for problem in task.problems if problem.group in asked]
    answers = ask(model, task, problems, cfg.seed)
    tables = {GROUPS[group]: answer_table(problems, answers, group) for group in asked}
    if cfg.grid:
        for name, table in tables.items():
            print(f"\n{name} (* wrong, [] held out, ? no number)")
            print_table(table)
        print()
    else:
        print_problems(problems, answers)
    for group in asked:
        print_total(GROUPS[group], *tally(problems, answers, lambda problem: problem.group == group))
        if cfg.max_operand > 9:
            beyond = tally(problems, answers, lambda problem: problem.group == group and problem.beyond)
            print_total(f"{GROUPS[group]} beyond single digits", *beyond)
    print_total(f"held out ({model.held_out})", *tally(problems, answers, lambda problem: problem.held_out))
    if cfg.plot:
        from study.experiments.figures import draw_answers, save_figure  # matplotlib takes its time

        save_figure(draw_answers(tables), Path(cfg.plot))


if __name__ == "__main__":
    run_script(main, globals())
