"""Scores a trained model on arithmetic: every problem ten times, then the totals.

    python eval_as_math.py --out_dir=math_mini_14
    python eval_as_math.py --out_dir=math_mini_14 --max_operand=19    (paper, section 5.1)
"""

from configurator import configure, fail
from data.tasks import arithmetic
from evaluation import answer_by, print_total, report, tally

out_dir = "out"  # folder of the trained model
ckpt = ""  # checkpoint in out_dir; by default ckpt_best_math.pt, else ckpt.pt
operation = "both"  # addition, subtraction or both
max_operand = 9  # the operands go from 0 to this
seed = 1337  # of the sampling
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # auto (bfloat16 on CUDA, else float32), float32, bfloat16, float16

GROUPS = {"addition": ["add"], "subtraction": ["sub"], "both": ["add", "sub"]}


if __name__ == "__main__":
    cfg = configure(globals())
    if cfg.operation not in GROUPS:
        fail(f"operation '{cfg.operation}' is not one of {', '.join(GROUPS)}")
    if cfg.max_operand < 0:
        fail(f"max_operand={cfg.max_operand} must be at least 0")

    task = arithmetic(cfg.max_operand)
    problems = [problem for problem in task.problems if problem.group in GROUPS[cfg.operation]]
    answers = answer_by(cfg, task, "ckpt_best_math.pt", problems)
    report(problems, answers)
    for name, [group] in list(GROUPS.items())[:2]:
        if group in GROUPS[cfg.operation]:
            print_total(name, *tally(problems, answers, lambda problem: problem.group == group))
            if cfg.max_operand > 9:
                beyond = tally(problems, answers, lambda problem: problem.group == group and problem.beyond)
                print_total(f"{name} beyond single digits", *beyond)
    print_total("held out (5,7)", *tally(problems, answers, lambda problem: problem.held_out))
