"""Scores a trained model on arithmetic: every problem ten times, then the totals.

    python eval_as_math.py --out_dir=math_mini_14
    python eval_as_math.py --out_dir=math_mini_14 --max_operand=19    (paper, section 5.1)
"""

from data.tasks import GROUPS, arithmetic
from study.scoring import open_model, print_total, report, score, tally
from study.settings import configure

out_dir = "out"  # folder of the trained model
ckpt = ""  # checkpoint in out_dir; by default ckpt_best_math.pt, else ckpt.pt
operation = "both"  # addition, subtraction or both
max_operand = 9  # the operands go from 0 to this
seed = 1337  # of the sampling
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # auto (on CUDA bfloat16, or float16 on a GPU without it, else float32), float32, bfloat16, float16


if __name__ == "__main__":
    cfg = configure(globals())
    model = open_model(cfg, "ckpt_best_math.pt")
    task = arithmetic(model.held_out, cfg.max_operand)
    asked = [group for group in ("add", "sub") if cfg.operation in (GROUPS[group], "both")]
    problems = [problem for problem in task.problems if problem.group in asked]
    answers = score(model, task, problems, cfg.seed)
    report(problems, answers)
    for group in asked:
        print_total(GROUPS[group], *tally(problems, answers, lambda problem: problem.group == group))
        if cfg.max_operand > 9:
            beyond = tally(problems, answers, lambda problem: problem.group == group and problem.beyond)
            print_total(f"{GROUPS[group]} beyond single digits", *beyond)
    print_total(f"held out ({model.held_out})", *tally(problems, answers, lambda problem: problem.held_out))
