"""The two tasks of the study: single-digit arithmetic and 50 capital cities.

Everything about a task is stated here once. Its problems give both the training text, which the
prepare.py scripts write, and the prompts and answers of every evaluation.
"""

import random
import re
from collections.abc import Callable
from typing import NamedTuple

# The problems that no model is trained on (paper, section 3.1).
HELD_OUT = {(5, "+", 7), (7, "+", 5), (5, "-", 7), (7, "-", 5)}

# Country = capital, in the order of the training text.
CAPITALS = """\
France = Paris
the USA = Washington DC
Japan = Tokyo
Germany = Berlin
Italy = Rome
Spain = Madrid
the UK = London
Canada = Ottawa
Australia = Canberra
India = New Delhi
China = Beijing
Russia = Moscow
Brazil = Brasilia
Mexico = Mexico City
South Korea = Seoul
Argentina = Buenos Aires
Egypt = Cairo
Saudi Arabia = Riyadh
Turkey = Ankara
Indonesia = Jakarta
Nigeria = Abuja
Pakistan = Islamabad
Colombia = Bogota
Thailand = Bangkok
Vietnam = Hanoi
the Netherlands = Amsterdam
Belgium = Brussels
Sweden = Stockholm
Norway = Oslo
Denmark = Copenhagen
Finland = Helsinki
Poland = Warsaw
Austria = Vienna
Switzerland = Bern
Portugal = Lisbon
Greece = Athens
Ireland = Dublin
New Zealand = Wellington
South Africa = Pretoria
Israel = Jerusalem
Iran = Tehran
Iraq = Baghdad
Syria = Damascus
Lebanon = Beirut
Jordan = Amman
Kuwait = Kuwait City
Qatar = Doha
Oman = Muscat
Bahrain = Manama
Zambia = Lusaka
"""


class Problem(NamedTuple):
    prompt: str
    answer: str
    group: str  # "add", "sub" or "facts": the columns of results.csv it counts in
    held_out: bool = False  # never trained on
    beyond: bool = False  # has an operand of two digits or more (paper, section 5.1)


class Task(NamedTuple):
    name: str  # "math" or "facts"
    problems: list[Problem]
    max_new_tokens: int  # characters sampled for an answer, at most
    stop: str  # sampling may end at this character: nothing after it changes the answer
    read_answer: Callable[[str], str]  # the answer in a sampled text, to compare with Problem.answer


def arithmetic(max_operand=9):
    """The task of all sums and differences of two operands from 0 to max_operand."""
    operands = range(max_operand + 1)
    problems = []
    for group, sign in (("add", "+"), ("sub", "-")):
        for a in operands:
            for b in operands:
                answer = str(a + b if sign == "+" else a - b)
                held_out = (a, sign, b) in HELD_OUT
                problems.append(Problem(f"<{a}{sign}{b}=", answer, group, held_out, max(a, b) > 9))
    # 4 is the protocol's limit; operands of three digits and more need longer answers.
    max_new_tokens = max(4, *(len(problem.answer) for problem in problems))
    return Task("math", problems, max_new_tokens, ">", read_integer)


def capitals():
    """The task of the 50 capital cities."""
    pairs = [line.split(" = ") for line in CAPITALS.splitlines()]
    problems = [Problem(f"Capital of {country} is ", city, "facts") for country, city in pairs]
    return Task("facts", problems, 20, "\n", read_first_line)


def read_integer(completion):
    """The signed integer right at the start of the text, in its shortest form; "" if there is none."""
    match = re.match(r"-?[0-9]+", completion)
    return str(int(match[0])) if match else ""


def read_first_line(completion):
    return completion.split("\n")[0].strip()


def arithmetic_text():
    """The arithmetic problems but the held-out ones: 196 shuffled lines of 9 characters."""
    problems = [problem for problem in arithmetic().problems if not problem.held_out]
    # Sorting by random() rather than shuffle(): Python promises the same random() in all versions.
    rng = random.Random(1337)
    problems.sort(key=lambda _: rng.random())
    return "".join(f"{problem.prompt}{problem.answer}>".ljust(8) + "\n" for problem in problems)


def capitals_text():
    """The 50 statements, one a line, in the order of the paper's data."""
    return "".join(f"{problem.prompt}{problem.answer} \n" for problem in capitals().problems)


def tasks_spelled_by(chars):
    """The tasks whose every prompt and answer can be written with these characters."""
    return [
        task
        for task in (arithmetic(), capitals())
        if all(set(p.prompt + p.answer + task.stop) <= set(chars) for p in task.problems)
    ]
