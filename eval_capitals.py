"""Score a trained model on the 50 capital cities: ten samples of each statement, then the total.

    python eval_capitals.py                            (the repository's n28)
    python eval_capitals.py --out_dir=facts_mini_28
"""

from study.scoring import answer_problems, open_model, print_problems, print_total, tally
from study.settings import run_script
from study.tasks import GROUPS, capitals

out_dir = "out"  # folder of the trained model; without one, the repository's n28
ckpt = ""  # checkpoint in out_dir; by default ckpt_best_facts.pt, else ckpt.pt
seed = 1337  # of the sampling
device = "auto"  # auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps
dtype = "auto"  # auto (what the model was trained in), float32, bfloat16, float16


def main(cfg):
    task = capitals()
    model = open_model(cfg, "ckpt_best_facts.pt", "facts_mini_28")
    answers = answer_problems(model, task, task.problems, cfg.seed)
    print_problems(task.problems, answers)
    print_total(GROUPS["facts"], *tally(task.problems, answers))


if __name__ == "__main__":
    run_script(main, globals())
