"""Check what a row of results.csv counts as right, wrong and held out, for every dataset."""

import contextlib
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from study.dataset import read_meta
from study.tasks import CAPITALS, ProblemTable, arithmetic, table_of, tasks_spelled_by
from study.batches import load_splits
from study.scoring import accuracies, evaluate, stored_bits

CPU = torch.device("cpu")
FACTS = [line.split(" = ") for line in CAPITALS.splitlines()]


class Reciter:
    """Stand in for a model: continue every context with the text that contains it.

    The loss is the mean of the last targets.
    """

    def __init__(self, chars, block_size, texts):
        self.chars, self.texts = chars, [text for text in texts if set(text) <= set(chars)]
        self.config = SimpleNamespace(block_size=block_size)
        self.lm_head = torch.nn.Identity()
        self.lm_head.weight = torch.zeros(1)
        self.training = True

    def hidden(self, idx):
        logits = torch.zeros(*idx.shape, len(self.chars))
        for i, row in enumerate(idx.tolist()):
            for t in range(len(row)):
                context = "".join(self.chars[token] for token in row[: t + 1])
                following = [
                    text[text.find(context) + len(context) :] for text in self.texts if context in text]
                if following and following[0]:
                    logits[i, t, self.chars.index(following[0][0])] = 1.0  # certain near temperature 0
        return logits

    def __call__(self, idx, targets):
        return None, targets[:, -1].float().mean()

    def eval(self):
        self.training = False

    def train(self):
        self.training = True


def solves(text):
    """Tell whether the reciter solves a problem.

    It solves sums with b = 0, differences with a = b, and three of the four held-out problems.
    """
    a, sign, b = text
    return (b == "0" if sign == "+" else a == b) or text in ("5+7", "5-7", "7-5")


def texts():
    """Yield the texts of the reciter: some answers are right, the others wrong in every possible way."""
    wrong = ["99", "-99", "+", "-", "="]
    for a in range(10):
        for sign in "+-":
            for b in range(10):
                answer = a + b if sign == "+" else a - b
                given = answer if solves(f"{a}{sign}{b}") else wrong[(a + b) % 5]
                yield f"<{a}{sign}{b}={given}>"
    for i, (country, city) in enumerate(FACTS):
        # The first 20 are right; the others lack a letter, have one too many, or are in lower case.
        given = city if i < 20 else (city[:-1], city + "s", city.lower())[i % 3]
        yield f"Capital of {country} is {given} \n"


@pytest.mark.parametrize("dataset, block_size, math, facts, combined", [
    ("as_math", 9, True, False, 230 / 2000),
    ("facts_char", 24, False, True, 200 / 500),
    ("both_math_and_facts", 24, True, True, 430 / 2500),
])
def test_a_row_counts_right_answers(project, dataset, block_size, math, facts, combined):
    chars, meta = read_meta(dataset)
    splits = load_splits(dataset, block_size, CPU)
    model = Reciter(chars, block_size, texts())
    cfg = SimpleNamespace(seed=1337, batch_size=500)
    tasks = tasks_spelled_by(chars, table_of(meta))
    row = evaluate(model, splits, chars, tasks, 250, cfg, contextlib.nullcontext())
    loss = splits["train"][:, -1].double().mean().item()
    # The reciter solves 11 of 100 sums: 10 with b = 0, and 5+7.
    # It solves 12 of 100 differences: 10 with a = b, 5-7 and 7-5.
    assert row == {
        "iter": 250,
        "add_correct": 110 * math, "add_total": 1000 * math,
        "sub_correct": 120 * math, "sub_total": 1000 * math, "math_acc": 230 / 2000 * math,
        "facts_correct": 200 * facts, "facts_total": 500 * facts, "facts_acc": 200 / 500 * facts,
        "train_loss": pytest.approx(loss, rel=1e-6), "val_loss": pytest.approx(loss, rel=1e-6),
        "held_out_correct": 30 * math, "held_out_total": 40 * math,
        "combined_acc": pytest.approx(combined),
        "held_out_answers": "5+7=12 7+5=? 5-7=-2 7-5=2" * math,
    }
    assert list(row) == (
        "iter add_correct add_total sub_correct sub_total math_acc facts_correct facts_total facts_acc "
        "train_loss val_loss held_out_correct held_out_total combined_acc held_out_answers").split()
    assert model.training


@pytest.mark.parametrize("held_out, correct, total", [
    ("5,7", 30, 40),
    ("3,3", 10, 20),  # 3-3 is right, 3+3 is not
    ("0,4", 10, 40),  # 4+0
    ("0,4;5,7", 40, 80),
    ("none", 0, 0),
])
def test_held_out_counts_cover_the_pairs_of_the_dataset(project, held_out, correct, total):
    chars, _ = read_meta("as_math")
    splits = load_splits("as_math", 9, CPU)
    model = Reciter(chars, 9, texts())
    cfg = SimpleNamespace(seed=1, batch_size=500)
    tasks = tasks_spelled_by(chars, ProblemTable(held_out))
    row = evaluate(model, splits, chars, tasks, 0, cfg, contextlib.nullcontext())
    assert (row["held_out_correct"], row["held_out_total"]) == (correct, total)
    assert (row["add_correct"], row["sub_correct"]) == (110, 120)


class Lookup:
    """Stand in for a model: give the logits of next(prompt, text so far) for each position."""

    def __init__(self, chars, following, block_size=9):
        self.chars, self.following, self.config = chars, following, SimpleNamespace(block_size=block_size)
        self.lm_head = torch.nn.Identity()
        self.lm_head.weight = torch.zeros(1)

    def hidden(self, idx):
        texts = ["".join(self.chars[token] for token in row) for row in idx.tolist()]
        return torch.stack([
            torch.stack([self.following(text[: t + 1]) for t in range(len(text))]) for text in texts])


RANDOM = arithmetic(ProblemTable(answer_seed=1))
MATH_CHARS = "\n +-0123456789<=>"


def log_shares(counts):
    """Log-probabilities of the characters by how often each occurs."""
    return torch.tensor([float(counts[char]) for char in MATH_CHARS]).log().clamp(min=-1e9)


def cost_in_bits(problems):
    """Bits of the answers by how often each occurs among those of its operation."""
    counts = Counter((problem.group, problem.answer) for problem in problems)
    totals = Counter(problem.group for problem in problems)
    return sum(-math.log2(counts[p.group, p.answer] / totals[p.group]) for p in problems)


def test_a_model_that_knows_nothing_has_stored_less_than_nothing():
    letters = sum(len(problem.answer + ">") for problem in RANDOM.problems)
    stored, in_all = stored_bits(Lookup(MATH_CHARS, lambda text: torch.zeros(17)), MATH_CHARS, RANDOM)
    assert in_all == pytest.approx(cost_in_bits(RANDOM.problems)) and 700 < in_all < 900
    assert stored == pytest.approx(in_all - letters * math.log2(17))


def test_a_model_that_knows_every_answer_has_stored_the_table():
    lines = [problem.prompt + problem.answer + ">" for problem in RANDOM.problems]

    def following(text):
        goes_on = [line for line in lines if line.startswith(text) and line != text]
        return log_shares(Counter(line[len(text)] for line in goes_on))

    stored, in_all = stored_bits(Lookup(MATH_CHARS, following), MATH_CHARS, RANDOM)
    assert stored == pytest.approx(in_all, abs=1e-3)


def test_stored_bits_crop_a_context_that_is_longer_than_the_block():
    seen = set()

    def following(text):
        seen.add(text)
        return torch.zeros(17)

    stored_bits(Lookup(MATH_CHARS, following, block_size=4), MATH_CHARS, RANDOM)
    whole = {problem.prompt + problem.answer for problem in RANDOM.problems}
    assert {text[-4:] for text in whole} <= seen and max(map(len, seen)) == 4


def test_a_model_that_knows_how_often_each_answer_occurs_has_stored_nothing():
    def following(text):
        before, _, begun = text.partition("=")
        group = "add" if "+" in before else "sub"
        answers = [problem.answer + ">" for problem in RANDOM.problems if problem.group == group]
        return log_shares(Counter(answer[len(begun)] for answer in answers
                                  if answer.startswith(begun) and answer != begun))

    stored, _ = stored_bits(Lookup(MATH_CHARS, following), MATH_CHARS, RANDOM)
    assert stored == pytest.approx(0, abs=1e-3)


def test_a_summary_omits_tasks_that_the_run_does_not_have():
    row = dict.fromkeys((
        "add_correct", "add_total", "sub_correct", "sub_total", "held_out_correct", "held_out_total"), 0)
    assert accuracies(row | {"facts_correct": 41, "facts_total": 500}) == {"facts": "8.2%"}
    row = {"add_correct": 990, "add_total": 1000, "sub_correct": 5, "sub_total": 1000, "held_out_correct": 30,
           "held_out_total": 40, "facts_correct": 0, "facts_total": 0}
    assert accuracies(row) == {"add": "99.0%", "sub": "0.5%", "held out": "30/40"}
