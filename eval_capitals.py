"""Scores a trained model on the 50 capital cities: every statement ten times, then the total.

    python eval_capitals.py --out_dir=facts_mini_28
"""

from configurator import configure
from data.tasks import capitals
from evaluation import answer_by, print_total, report, tally

out_dir = "out"  # folder of the trained model
ckpt = ""  # checkpoint in out_dir; by default ckpt_best_facts.pt, else ckpt.pt
seed = 1337  # of the sampling
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # auto (bfloat16 on CUDA, else float32), float32, bfloat16, float16


if __name__ == "__main__":
    cfg = configure(globals())
    task = capitals()
    answers = answer_by(cfg, task, "ckpt_best_facts.pt", task.problems)
    report(task.problems, answers)
    print_total("facts", *tally(task.problems, answers))
