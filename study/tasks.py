"""The two tasks of the study: single-digit arithmetic and 50 capital cities.

The problems of a task define both the training text, which the prepare.py scripts write, and the prompts
and answers of every evaluation.
"""

import random
import re
from collections.abc import Callable
from typing import NamedTuple

# The pair whose sums and differences, in both orders, are left out of training (paper, section 3.1).
HELD_OUT = "5,7"

# The order of the lines in the paper's training text, which no known seed produces.
PUBLISHED_ORDER = """\
1-4 7-7 9-1 2+5 7+2 1-3 6+2 7+7 9+9 0+4 3+1 8+3 2-7 3-9 4-9 9-8 4-3 0-7 7-2 4+7 7+9 5+5 9+2 3-0 2-3 7+4 7+3
3-5 7+8 8+2 5+0 4+3 3+2 9+5 9+3 2-0 9-4 8-6 8-3 2+7 8-1 1+1 9+6 0-5 7-0 1+0 8-4 3-6 1+6 6+9 3+5 2-2 3+4 6-8
9+1 6+8 2-1 8-2 7+1 5-1 2-5 8-7 4+4 6+0 1+7 8+4 7-9 2+3 4-0 9-6 0-4 4+1 1-0 6-4 3+6 1-7 0+2 4+6 3-4 0+8 0+9
8+8 4+8 5+2 3-7 7-1 4+9 4-1 1-1 1-9 6-6 0-3 3-3 9-0 9-2 9-9 9-3 0+7 5+4 8+7 3+7 6+1 1-5 0+0 6-3 3-8 0-1 2-8
2+8 5-0 1+5 2+4 8+1 2+1 9-7 7+6 6-7 9-5 1+3 4+2 4-5 9+0 4-4 5+9 6+3 4-8 2+6 5-3 4-2 6+5 8-0 0+6 6-0 7-3 4-7
6+4 8-5 6-1 5-2 1+8 5+1 1-6 5+3 3+9 5+6 0+5 2-4 1-8 8-9 2-9 6-2 2+0 0-9 2+9 5-6 6+7 4+0 0-8 5-4 7+0 5-9 5-8
0-2 0-6 8-8 7-4 5-5 3+0 8+9 6-5 0+3 7-6 1-2 0+1 4-6 3+3 1+2 8+6 6-9 3-1 3-2 6+6 1+9 1+4 8+5 7-8 0-0 9+4 9+8
5+8 9+7 4+5 2+2 2-6 8+0 3+8
"""

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

# The groups of problems: prefix of their columns in results.csv -> name for people to read.
GROUPS = {"add": "addition", "sub": "subtraction", "facts": "capitals"}
COUNTED = (*GROUPS, "held_out")  # held-out problems count in their group too


class Problem(NamedTuple):
    prompt: str
    answer: str
    group: str  # one of GROUPS
    held_out: bool = False  # never trained on
    beyond: bool = False  # has an operand of two digits or more (paper, section 5.1)


class Task(NamedTuple):
    name: str  # "math" or "facts"
    problems: list[Problem]
    max_new_tokens: int  # limit of characters sampled for an answer
    stop: str  # sampling may end at this character, since nothing after it changes the answer
    read_answer: Callable[[str], str]  # extracts the answer from a sampled text


def parse_pairs(held_out):
    """Return {(3, 4), (4, 3), (1, 8), (8, 1)} for "3,4;1,8", an empty set for "none". Raises ValueError."""
    if held_out == "none":
        return set()
    if not re.fullmatch(r"[0-9],[0-9](;[0-9],[0-9])*", held_out):
        raise ValueError(f"held_out='{held_out}' must be pairs of digits such as 5,7 or 3,4;1,8, or none")
    pairs = [(int(pair[0]), int(pair[2])) for pair in held_out.split(";")]
    return {pair for a, b in pairs for pair in ((a, b), (b, a))}


def arithmetic(held_out=HELD_OUT, max_operand=9):
    """Return the task of all sums and differences of two operands from 0 to max_operand.

    Raises ValueError for held_out as parse_pairs() does.
    """
    held_out_pairs = parse_pairs(held_out)
    operands = range(max_operand + 1)
    problems = []
    for group, sign in (("add", "+"), ("sub", "-")):
        for a in operands:
            for b in operands:
                answer = str(a + b if sign == "+" else a - b)
                beyond = max(a, b) > 9
                problems.append(Problem(f"<{a}{sign}{b}=", answer, group, (a, b) in held_out_pairs, beyond))
    # The paper's limit is 4; operands of three digits need longer answers.
    max_new_tokens = max(4, *(len(problem.answer) for problem in problems))
    return Task("math", problems, max_new_tokens, ">", read_integer)


def capitals():
    """Return the task of the 50 capital cities."""
    pairs = [line.split(" = ") for line in CAPITALS.splitlines()]
    problems = [Problem(f"Capital of {country} is ", city, "facts") for country, city in pairs]
    return Task("facts", problems, 20, "\n", read_first_line)


def read_integer(completion):
    """Return the signed integer at the start of the text without leading zeros, or "" if there is none."""
    match = re.match(r"-?[0-9]+", completion)
    return str(int(match[0])) if match else ""


def read_first_line(completion):
    return completion.split("\n")[0].strip()


def arithmetic_text(line_seed=-1, held_out=HELD_OUT):
    """Return a line of 9 characters for each arithmetic problem that is not held out.

    line_seed: -1 is the published order, followed by the problems it lacks; any other seed shuffles all
    200 before the held-out ones are removed, so these are the only difference between two texts of a seed.
    Raises ValueError for held_out as parse_pairs() does.
    """
    problems = {problem.prompt[1:-1]: problem for problem in arithmetic(held_out).problems}
    if line_seed == -1:
        order = dict.fromkeys([*PUBLISHED_ORDER.split(), *problems])
    else:
        rng = random.Random(line_seed)  # random() is the same in all versions of Python, shuffle() may change
        order = sorted(problems, key=lambda _: rng.random())
    lines = [problems[name] for name in order if not problems[name].held_out]
    return "".join(f"{problem.prompt}{problem.answer}>".ljust(8) + "\n" for problem in lines)


def capitals_text():
    """Return the 50 statements, one per line, in the order of the paper's data."""
    return "".join(f"{problem.prompt}{problem.answer} \n" for problem in capitals().problems)


def tasks_spelled_by(chars, held_out=HELD_OUT):
    """Return the tasks whose prompts and answers consist of these characters.

    Raises ValueError for held_out as parse_pairs() does.
    """
    return [
        task
        for task in (arithmetic(held_out), capitals())
        if all(set(p.prompt + p.answer + task.stop) <= set(chars) for p in task.problems)
    ]
