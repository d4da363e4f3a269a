"""Score a trained model on arithmetic: ten samples of each problem, then the totals.

    python eval_as_math.py --grid                                     (tables of the repository's n14)
    python eval_as_math.py --out_dir=math_mini_14
    python eval_as_math.py --out_dir=math_mini_14 --max_operand=19    (paper, section 5.1)
"""

import re
from pathlib import Path

from study import StudyError
from study.scoring import answer_problems, open_model, print_problems, print_total, tally
from study.settings import run_script
from study.tasks import GROUPS, arithmetic

out_dir = "out"  # folder of the trained model; without one, the repository's n14
ckpt = ""  # checkpoint in out_dir; by default ckpt_best_math.pt, else ckpt.pt
operation = "both"  # addition, subtraction or both
max_operand = 0  # operands go from 0 to this; 0: to the largest of the training text
grid = False  # print a table of the most frequent answers for each operation instead of a list
plot = ""  # file to draw these tables into, such as grid.png
seed = 1337  # of the sampling
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # auto (what the model was trained in), float32, bfloat16, float16


def answer_table(problems, answers, group):
    """Return {(a, b): (most frequent answer, is correct, is held out)} of an operation's problems."""
    table = {}
    for problem, samples in zip(problems, answers):
        if problem.group == group:
            answer = samples.most_common(1)[0][0]
            operands = tuple(map(int, re.findall(r"\d+", problem.prompt)))
            table[operands] = answer or "?", answer == problem.answer, problem.held_out
    return table


def print_table(table):
    """Print rows of a and columns of b. A star marks wrong answers, brackets mark held-out problems.

    The cell of a problem that has no answer is blank: a held-out one of a table of shuffled answers.
    """
    cells = {}
    for operands, (answer, correct, held_out) in table.items():
        cells[operands] = (f"[{answer}]" if held_out else answer) + ("" if correct else "*")
    operands = range(1 + max(map(max, table)))
    width = max(map(len, cells.values())) + 1
    print("a\\b".ljust(4) + "".join(f"{b:>{width}}" for b in operands))
    for a in operands:
        print(f"{a:<4}" + "".join(f"{cells.get((a, b), ''):>{width}}" for b in operands))


def main(cfg):
    if cfg.plot and (Path(cfg.plot).suffix not in (".png", ".pdf") or not Path(cfg.plot).parent.is_dir()):
        raise StudyError(f"plot='{cfg.plot}' must be a .png or .pdf file in a folder that exists")
    model = open_model(cfg, "ckpt_best_math.pt", "math_mini_14")
    try:
        task = arithmetic(model.table, cfg.max_operand or None)
    except ValueError as error:
        raise StudyError(error)
    groups = [group for group in ("add", "sub") if cfg.operation in (GROUPS[group], "both")
              and model.table.operations in (group, "both")]
    if not groups:
        raise StudyError(f"operation={cfg.operation} is not what {model.path} was trained on: "
                         f"its text has operations={model.table.operations}")
    trained = "single digits" if model.table.max_operand == 9 else f"operands to {model.table.max_operand}"
    problems = [problem for problem in task.problems if problem.group in groups]
    answers = answer_problems(model, task, problems, cfg.seed)
    tables = {GROUPS[group]: answer_table(problems, answers, group) for group in groups}
    if cfg.grid:
        for name, table in tables.items():
            print(f"\n{name} (* wrong, [] held out, ? no number)")
            print_table(table)
        print()
    else:
        print_problems(problems, answers)
    for group in groups:
        print_total(GROUPS[group], *tally(problems, answers, lambda problem: problem.group == group))
        beyond = tally(problems, answers, lambda problem: problem.group == group and problem.beyond)
        print_total(f"{GROUPS[group]} beyond {trained}", *beyond)
    held_out = tally(problems, answers, lambda problem: problem.held_out)
    print_total(f"held out ({model.table.held_out})", *held_out)
    if cfg.plot:
        from study.experiments.figures import draw_answers, save_figure  # matplotlib is slow to import

        save_figure(draw_answers(tables), Path(cfg.plot))


if __name__ == "__main__":
    run_script(main, globals())
