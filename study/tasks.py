"""The two tasks of the study: arithmetic, of single digits unless set, and 50 capital cities.

The problems of a task define both the training text, which the prepare.py scripts write, and the prompts
and answers of every evaluation.
"""

import random
import re
from collections.abc import Callable
from itertools import combinations
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
    beyond: bool = False  # has an operand larger than those of the training text (paper, section 5.1)


class Task(NamedTuple):
    name: str  # "math" or "facts"
    problems: list[Problem]
    max_new_tokens: int  # limit of characters sampled for an answer
    stop: str  # sampling may end at this character, since nothing after it changes the answer
    read_answer: Callable[[str], str]  # extracts the answer from a sampled text


class ProblemTable(NamedTuple):
    """The arithmetic problems of a training text; the fields are settings of the prepare.py scripts.

    meta.pkl, checkpoints and run.json hold the fields under their names.
    """

    held_out: str = HELD_OUT  # pairs whose sums and differences are left out: "3,4;1,8", or "none"
    operations: str = "both"  # "add", "sub" or "both"
    max_operand: int = 9  # operands go from 0 to this
    answer_seed: int = -1  # shuffles the answers of the trained problems; -1: the true answers


def table_of(values):
    """Return the ProblemTable in a dict of settings, a checkpoint, a meta.pkl or a run.json.

    A missing key has its default. A held_out such as "3 pairs of seed 1" draws three pairs of different
    operands; the table has these pairs. Raises ValueError.
    """
    table = ProblemTable(**{key: values[key] for key in ProblemTable._fields if key in values})
    if not 1 <= table.max_operand <= 99:
        raise ValueError(f"max_operand={table.max_operand} of a text must be from 1 to 99")
    if drawn := re.fullmatch("([0-9]{1,9}) pairs? of seed ([0-9]{1,9})", table.held_out):
        pairs = list(combinations(range(table.max_operand + 1), 2))
        count, seed = map(int, drawn.groups())
        if count > len(pairs):
            raise ValueError(f"held_out='{table.held_out}' is too many: operands from 0 to "
                             f"{table.max_operand} make {len(pairs)} pairs")
        pairs = sorted(shuffled(pairs, random.Random(seed))[:count])
        table = table._replace(held_out=";".join(f"{a},{b}" for a, b in pairs) or "none")
    parse_pairs(table.held_out, table.max_operand)
    return table


def shuffled(items, rng):
    """Return a list of the items in an order that is the same in all versions of Python."""
    return sorted(items, key=lambda _: rng.random())  # rng.shuffle() may change


def parse_pairs(held_out, max_operand):
    """Return {(3, 4), (4, 3), (1, 8), (8, 1)} for "3,4;1,8", an empty set for "none". Raises ValueError."""
    if held_out == "none":
        return set()
    pair = "(0|[1-9][0-9]?),(0|[1-9][0-9]?)"
    pairs = [(int(a), int(b)) for a, b in re.findall(pair, held_out)]
    if not re.fullmatch(f"{pair}(;{pair})*", held_out) or max(map(max, pairs)) > max_operand:
        raise ValueError(f"held_out='{held_out}' must be pairs of operands from 0 to {max_operand}, such as "
                         "1,2 or 3,4;1,8, a number of them, such as 3 pairs of seed 1, or none")
    return {pair for a, b in pairs for pair in ((a, b), (b, a))}


def arithmetic(table=ProblemTable(), max_operand=None):
    """Return the task of a table's problems, or of all with operands from 0 to another max_operand.

    With an answer_seed, the answers of the trained sums are shuffled among each other, and so are those of
    the trained differences. Held-out problems have no right answer then and are left out; operands beyond the
    table raise ValueError.
    """
    largest = table.max_operand if max_operand is None else max_operand
    if table.answer_seed >= 0 and largest > table.max_operand:
        raise ValueError(f"max_operand={largest} must be at most {table.max_operand}: beyond that a table of "
                         "shuffled answers has none")
    held_out = parse_pairs(table.held_out, table.max_operand)
    operands = range(max(largest, table.max_operand) + 1)
    rng = random.Random(table.answer_seed)
    problems = []
    for group, sign in (("add", "+"), ("sub", "-")):
        if table.operations not in (group, "both"):
            continue
        answers = {(a, b): str(a + b if sign == "+" else a - b) for a in operands for b in operands}
        if table.answer_seed >= 0:
            answers = {pair: answer for pair, answer in answers.items() if pair not in held_out}
            answers = dict(zip(answers, shuffled(answers.values(), rng)))
        problems += [
            Problem(f"<{a}{sign}{b}=", answer, group, (a, b) in held_out, max(a, b) > table.max_operand)
            for (a, b), answer in answers.items() if max(a, b) <= largest]
    # The paper's limit is 4; answers of four characters need a fifth for ">".
    max_new_tokens = max([4, *(len(problem.answer) + 1 for problem in problems)])
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


def arithmetic_text(line_seed=-1, shuffles=1, **table):
    """Return a line for each arithmetic problem that is not held out, padded to 8 characters or more.

    line_seed: -1 is the published order, followed by the problems it lacks; any other seed shuffles all
    problems before the held-out ones are removed, so these are the only difference between two texts of a
    seed. shuffles: how many orders of the lines the text has, one after the other; those after the first are
    drawn next. table: settings for table_of(). Raises ValueError.
    """
    table = table_of(table)
    asked = arithmetic(table).problems
    trained = {problem.prompt: problem for problem in asked if not problem.held_out}
    if not trained:
        return ""
    prompts = [problem.prompt for problem in arithmetic(table._replace(answer_seed=-1)).problems]
    rng = random.Random(max(line_seed, 0))
    orders = [shuffled(prompts, rng) for _ in range(shuffles if line_seed >= 0 else shuffles - 1)]
    if line_seed == -1:
        if table.max_operand > 9:
            raise ValueError(f"max_operand={table.max_operand} has no published order of lines: give a "
                             "--line_seed of 0 or more")
        orders.insert(0, dict.fromkeys([*(f"<{name}=" for name in PUBLISHED_ORDER.split()), *prompts]))
    # Of the longest prompt with the longest answer: no longer with shuffled answers than with the true ones.
    longest = [max(map(len, texts)) for texts in ([p.prompt for p in asked], [p.answer for p in asked])]
    width = max(8, sum(longest) + len(">"))
    lines = [trained[prompt] for order in orders for prompt in order if prompt in trained]
    text = "".join(f"{problem.prompt}{problem.answer}>".ljust(width) + "\n" for problem in lines)
    lacking = set("".join(problem.prompt + problem.answer for problem in asked)) - set(text)
    if lacking:
        raise ValueError(f"held_out='{table.held_out}' leaves no line with {''.join(sorted(lacking))!r}, "
                         "which held-out problems have: hold out other pairs")
    return text


def capitals_text():
    """Return the 50 statements, one per line, in the order of the paper's data."""
    return "".join(f"{problem.prompt}{problem.answer} \n" for problem in capitals().problems)


def tasks_spelled_by(chars, table=ProblemTable()):
    """Return the tasks whose prompts and answers consist of these characters."""
    return [
        task
        for task in (arithmetic(table), capitals())
        if task.problems and all(set(p.prompt + p.answer + task.stop) <= set(chars) for p in task.problems)
    ]
