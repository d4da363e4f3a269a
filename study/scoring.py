"""The study's evaluation: sample answers, count the correct ones, make a row of results.csv."""

import math
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from model import GPT
from study import StudyError
from study.device import setup_device, to_host
from study.run_folder import find_model, load_model
from study.tasks import COUNTED, GROUPS, ProblemTable

# Paper, section 3.3, and the published code.
NUM_SAMPLES = 10  # of each problem
TEMPERATURE = 0.01
TOP_K = 10

PROMPTS_PER_BATCH = 1000  # bounds the memory of large evaluations (operands beyond one digit)


def next_token_probabilities(logits, temperature, top_k=None):
    """Probabilities (B, vocab_size) of the next token as it is sampled, from logits of that shape."""
    logits = logits.float() / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.size(1))).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    return logits.softmax(dim=1)


@torch.no_grad()
def sample(model, chars, prompts, num_samples, max_new_tokens, temperature, top_k, generator, stop=None):
    """num_samples continuations of each prompt, sampled in one batch.

    Returns a list of num_samples strings for each prompt, without the prompt; one that reaches the
    character `stop` ends with it. The prompts must be spelled by `chars` and not be empty. A context
    longer than the model's block is cropped to its last block_size characters, as in nanoGPT.
    """
    stoi = {char: i for i, char in enumerate(chars)}
    device, block_size = model.lm_head.weight.device, model.config.block_size
    starts = np.array([len(prompt) for prompt in prompts])
    tokens = np.zeros((len(prompts), starts.max() + max_new_tokens), dtype=np.int64)
    for row, prompt in zip(tokens, prompts):
        row[: len(prompt)] = [stoi[char] for char in prompt]
    # Samples with the same context share one forward pass: near temperature 0 that is most of them.
    _, context = np.unique(np.array(prompts), return_inverse=True)  # equal numbers: equal contexts
    tokens, starts, context = (array.repeat(num_samples, axis=0) for array in (tokens, starts, context))
    ends = starts.copy()
    going = np.arange(len(tokens))  # the samples that have not ended
    for _ in range(max_new_tokens):
        _, index, inverse = np.unique(context, return_index=True, return_inverse=True)
        lengths = ends[going[index]]
        first = np.maximum(lengths - block_size, 0)
        width = np.arange((lengths - first).max())  # padding past the end is harmless: attention is causal
        columns = np.minimum(first[:, None] + width, tokens.shape[1] - 1)
        idx = torch.tensor(tokens[going[index][:, None], columns], device=device)
        at = torch.arange(len(idx), device=device), torch.tensor(lengths - first - 1, device=device)
        logits = model.lm_head(model.hidden(idx)[at])
        probabilities = next_token_probabilities(logits, temperature, top_k)
        probabilities = probabilities[torch.tensor(inverse, device=device)]
        drawn = to_host(torch.multinomial(probabilities, 1, generator=generator)[:, 0])
        tokens[going, ends[going]] = drawn
        ends[going] += 1
        context = inverse * len(chars) + drawn
        if stop is not None:
            open_ended = drawn != stoi[stop]
            going, context = going[open_ended], context[open_ended]
            if not len(going):
                break
    texts = ["".join(chars[i] for i in row[a:b]) for row, a, b in zip(tokens.tolist(), starts, ends)]
    return [texts[i : i + num_samples] for i in range(0, len(texts), num_samples)]


def sample_answers(model, chars, task, problems, generator):
    """Return a Counter of 10 sampled answers for each problem of a task, by the study's protocol."""
    answers = []
    for i in range(0, len(problems), PROMPTS_PER_BATCH):
        prompts = [problem.prompt for problem in problems[i : i + PROMPTS_PER_BATCH]]
        completions = sample(
            model, chars, prompts, NUM_SAMPLES, task.max_new_tokens, TEMPERATURE, TOP_K, generator, task.stop)
        answers += [Counter(map(task.read_answer, texts)) for texts in completions]
    return answers


def tally(problems, answers, counts=lambda problem: True):
    """Return (correct, total) samples of the problems for which counts(problem) is true."""
    counted = [(problem, samples) for problem, samples in zip(problems, answers) if counts(problem)]
    return sum(samples[problem.answer] for problem, samples in counted), NUM_SAMPLES * len(counted)


@torch.no_grad()
def mean_loss(model, windows, batch_size):
    """Return the mean cross-entropy (nats per token) of all windows."""
    batches = windows.split(batch_size)
    losses = to_host(torch.stack([model(batch[:, :-1], batch[:, 1:])[1].float() for batch in batches]))
    return float(np.average(losses.astype(np.float64), weights=[len(batch) for batch in batches]))


def evaluate(model, splits, chars, tasks, iter_num, cfg, autocast, callback=None):
    """Return a row of results.csv: both losses and all tasks' scores. Leaves random states unchanged.

    callback(iter_num, task, answers) is called with the sample_answers() of each task.
    """
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(cfg.seed + iter_num)
    model.eval()
    count, held_out_answers = {name: (0, 0) for name in COUNTED}, ""
    with autocast:
        train, val = splits["train"], splits["val"]
        val_loss = train_loss = mean_loss(model, val, cfg.batch_size)
        if val is not train:
            most = min(len(train), len(val))
            spaced = torch.arange(most, device=train.device) * len(train) // most
            train_loss = mean_loss(model, train[spaced], cfg.batch_size)
        require_finite(train_loss + val_loss, iter_num)
        for task in tasks:
            answers = sample_answers(model, chars, task, task.problems, generator)
            if callback:
                callback(iter_num, task, answers)
            for group in {problem.group for problem in task.problems}:
                count[group] = tally(task.problems, answers, lambda problem: problem.group == group)
            if task.name == "math":
                count["held_out"] = tally(task.problems, answers, lambda problem: problem.held_out)
                held_out_answers = most_frequent_answers(task.problems, answers)
    model.train()
    return row_of(iter_num, count, train_loss, val_loss, held_out_answers)


@torch.no_grad()
def stored_bits(model, chars, task):
    """Return (bits of a table's answers that a model has stored, bits of them all).

    task: arithmetic() with shuffled answers. Summed over its trained problems,
        bits of all answers = -log2(share of the answer among the answers of its operation)
        bits stored = bits of all answers - (-log2 p(characters of the answer, then ">" | prompt))
    The first is what the answers cost somebody who knows how often each one occurs. A model that does not
    know even that has stored less than 0 bits. p is the model's, without temperature and top-k.
    """
    problems = [problem for problem in task.problems if not problem.held_out]
    of_group = Counter(problem.group for problem in problems)
    of_answer = Counter((problem.group, problem.answer) for problem in problems)
    table_bits = sum(math.log2(of_group[p.group] / of_answer[p.group, p.answer]) for p in problems)
    stoi = {char: i for i, char in enumerate(chars)}
    contexts, targets = [], []
    for problem in problems:
        ids = [stoi[char] for char in problem.prompt + problem.answer + task.stop]
        for end in range(len(problem.prompt), len(ids)):
            contexts.append(ids[max(0, end - model.config.block_size) : end])
            targets.append(ids[end])
    lengths = torch.tensor(list(map(len, contexts)))
    width = max(map(len, contexts))  # padding past the end is harmless: attention is causal
    idx = torch.tensor([context + [0] * (width - len(context)) for context in contexts])
    hidden = model.hidden(idx.to(model.lm_head.weight.device))
    logits = model.lm_head(hidden[range(len(idx)), lengths - 1]).cpu().double()
    cost = F.cross_entropy(logits, torch.tensor(targets), reduction="sum") / math.log(2)
    return table_bits - float(cost), table_bits


def most_frequent_answers(problems, answers):
    """Return the held-out problems with their most frequent answers: "5+7=12 7+5=?", "?" for no number."""
    return " ".join(
        f"{problem.prompt.lstrip('<')}{samples.most_common(1)[0][0] or '?'}"
        for problem, samples in zip(problems, answers) if problem.held_out
    )


def require_finite(number, iter_num):
    """Raise StudyError if a loss or the sum of the weights is not finite."""
    if not math.isfinite(number):
        raise StudyError(f"the loss or a weight at iteration {iter_num} is not finite: try a lower "
                         "--learning_rate; what was saved before is intact", status=1)


def row_of(iter_num, count, train_loss, val_loss, held_out_answers):
    """Return a row of results.csv from {group or "held_out": (correct, total)} samples.

    iter                                updates made
    <group>_correct, <group>_total      samples, ten per problem; group: add, sub or facts (capitals);
                                        0 of 0 in a run without the task
    math_acc, facts_acc, combined_acc   correct / total, from 0 to 1
    train_loss, val_loss                nats per character, over all windows; if the training text is longer,
                                        over as many of its windows as validation has, evenly spaced
    held_out_correct, held_out_total    samples of held-out problems, which add and sub include
    held_out_answers                    most_frequent_answers()
    """

    def accuracy(*groups):
        return sum(count[g][0] for g in groups) / max(1, sum(count[g][1] for g in groups))

    return {
        "iter": iter_num,
        "add_correct": count["add"][0], "add_total": count["add"][1],
        "sub_correct": count["sub"][0], "sub_total": count["sub"][1], "math_acc": accuracy("add", "sub"),
        "facts_correct": count["facts"][0], "facts_total": count["facts"][1], "facts_acc": accuracy("facts"),
        "train_loss": train_loss, "val_loss": val_loss,
        "held_out_correct": count["held_out"][0], "held_out_total": count["held_out"][1],
        "combined_acc": accuracy(*GROUPS), "held_out_answers": held_out_answers,
    }


def accuracies(row):
    """Return {name: accuracy} of a row as text, without the tasks that the run does not have."""
    parts = {}
    for name, column in ({group: group for group in GROUPS} | {"held out": "held_out"}).items():
        correct, total = row[f"{column}_correct"], row[f"{column}_total"]
        if total:
            parts[name] = f"{correct}/{total}" if name == "held out" else f"{100 * correct / total:.1f}%"
    return parts


class TrainedModel(NamedTuple):
    path: Path  # of the checkpoint
    model: GPT
    chars: str  # vocabulary
    table: ProblemTable  # that it was trained on
    autocast: AbstractContextManager


def open_model(cfg, best_ckpt, published):
    """Load the checkpoint cfg.ckpt, else best_ckpt, else ckpt.pt of cfg.out_dir.

    published: the repository's model to use if out_dir has its default and does not exist. With dtype auto
    the model computes in the precision of its training: near temperature 0 rounding changes answers.
    """
    device, _, _ = setup_device(cfg.device)
    names = [cfg.ckpt] if cfg.ckpt else list(dict.fromkeys([best_ckpt, "ckpt.pt"]))
    path = find_model(cfg.out_dir, names, "" if cfg.ckpt else published)
    model, chars, table, trained_in = load_model(path, device)
    if trained_in == "float16" and device.type != "cuda":
        trained_in = "float32"
    _, _, autocast = setup_device(cfg.device, trained_in if cfg.dtype == "auto" else cfg.dtype)
    return TrainedModel(path, model, chars, table, autocast)


def answer_problems(trained, task, problems, seed):
    """Return sample_answers() of a TrainedModel; raise StudyError if its vocabulary cannot spell the task."""
    needed = set("".join(problem.prompt + problem.answer for problem in problems) + task.stop)
    lacking = "".join(sorted(needed - set(trained.chars)))
    if lacking:
        raise StudyError(f"{trained.path} was not trained on this task: its vocabulary lacks {lacking!r}")
    print(f"{trained.path}, {NUM_SAMPLES} samples of each problem")
    generator = torch.Generator(trained.model.lm_head.weight.device).manual_seed(seed)
    with trained.autocast:
        return sample_answers(trained.model, trained.chars, task, problems, generator)


def print_problems(problems, answers):
    """Print each problem's score and its wrong answers with their counts."""
    width = max(len(problem.prompt + problem.answer) for problem in problems)
    for problem, samples in zip(problems, answers):
        wrong = [f"{answer or 'no answer'} ({count})" for answer, count in samples.most_common()
                 if answer != problem.answer]
        line = f"{problem.prompt + problem.answer:{width}}  {samples[problem.answer]:2}/{NUM_SAMPLES}"
        line += "  held out" if problem.held_out else ""
        print(line + (f"  wrong: {', '.join(wrong)}" if wrong else ""))


def print_total(name, correct, total):
    if total:
        print(f"{name}: {correct} of {total} ({100 * correct / total:.2f}%)")
