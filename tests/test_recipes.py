"""The README: its commands print what it shows, and what it says one has to do to add a model size, a dataset or a task is enough."""

import ast
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, SHORT, copy_project, rounds_as_published, rows_of, with_device

README = (ROOT / "README.md").read_text()


@pytest.fixture
def mine(tmp_path):
    """A copy of the project of one's own, to change."""
    return copy_project(tmp_path / "mine")


def run(folder, *command):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def add(path, after, text):
    """Inserts text into a file, behind a place that occurs once."""
    source = path.read_text()
    assert source.count(after) == 1, f"{path.name} has {source.count(after)} times: {after}"
    path.write_text(source.replace(after, after + text))


@rounds_as_published
def test_commands_on_data_and_published_models_print_what_the_readme_shows(mine):
    (mine / "results").symlink_to(ROOT / "results")
    (mine / "math_mini_14").symlink_to(ROOT / "results" / "paper" / "math_mini_14")  # the demo makes it
    blocks = [block.splitlines() for block in re.findall(r"^```\n(.*?)^```", README, re.DOTALL | re.MULTILINE)]
    shown = [(commands, output) for commands, output in zip(blocks, blocks[1:])
             if all(re.match(r"python (data/\w+/prepare\.py$|eval_\w+\.py|sample\.py)", command) for command in commands)]
    assert len(shown) == 6
    for commands, output in shown:
        asked = [shlex.split(command)[1:] for command in commands]
        done = [subprocess.run([sys.executable, name, *with_device(name, arguments)], cwd=mine, capture_output=True, text=True)
                for name, *arguments in asked]
        printed = [line.rstrip() for each in done for line in (each.stderr + each.stdout).splitlines()]
        assert [line for line in output if line != "..." and line not in printed] == []


def test_a_model_size_is_a_config_and_a_panel(mine):
    name, content = re.search(r"`(config/train_math_mini_20\.py)` with\n\n```\n(.*?)```", README, re.DOTALL).groups()
    (mine / name).write_text(content)
    assert "math_mini_20: 2,800 parameters" in run(mine, "train_with_eval.py", name, *SHORT, "--device=cpu")
    add(mine / "study/experiments/results.py", '"n14": "14", ', '"n20": "20", ')
    panels = "import plot_all_models as p; print([ax.get_title() for ax in p.plot_grid(p.find_runs('.', '')[0]['math'], {}).axes if ax.axison])"
    assert [title.split(" ")[0] for title in ast.literal_eval(run(mine, "-c", panels))] == ["n14", "n20", "n28", "n56", "MLT"]
    assert re.search(r"^\| n20 \| – / 2,800 \| – / \d", run(mine, "tabulate_all_models.py", "--root_dir=."), re.MULTILINE)
    run(mine, "report.py", f"--root_dir={ROOT / 'results'}", "--path=mine.md")
    assert "| n20 | 20 | – / – / 100 |" in (mine / "mine.md").read_text()


def test_a_dataset_is_a_prepare_script_with_another_text(mine):
    folder = mine / "data" / "rhymes"
    folder.mkdir()
    script = (mine / "data/facts_char/prepare.py").read_text()
    assert "return capitals_text()" in script
    (folder / "prepare.py").write_text(script.replace("return capitals_text()", 'return "Humpty Dumpty sat on a wall. \\n" * 40'))
    assert "rhymes: 1,200 characters" in run(mine, "data/rhymes/prepare.py")
    command = re.search(r"`python (train_with_eval\.py .*--dataset=<name> .*?)`", README)[1].replace("<name>", "rhymes")
    out = run(mine, *command.split(), *SHORT, "--device=cpu")
    assert "rhymes_28: 5,236 parameters, data rhymes, tasks none" in out and "complete at iteration 40" in out
    assert {path.name for path in (mine / "rhymes_28").glob("*.pt")} == {"ckpt.pt", "ckpt_last.pt"}  # nothing is asked, so none is best at it
    assert run(mine, "sample.py", "--out_dir=rhymes_28", "--start=Humpty", "--num_samples=1", "--device=cpu").startswith("Humpty")


MULTIPLICATION = '''

def multiplication():
    """The task of all products of two digits."""
    problems = [Problem(f"<{a}*{b}=", str(a * b), "mul") for a in range(10) for b in range(10)]
    return Task("multiplication", problems, 4, ">", read_integer)


def multiplication_text():
    return "".join(f"{problem.prompt}{problem.answer}>\\n" for problem in multiplication().problems)
'''


def test_a_task_is_its_problems_its_text_two_columns_and_a_colour(mine):
    tasks, scoring, figures = mine / "study/tasks.py", mine / "study/scoring.py", mine / "study/experiments/figures.py"
    add(tasks, '"facts": "capitals"', ', "mul": "multiplication"')
    add(tasks, 'return Task("facts", problems, 20, "\\n", read_first_line)\n', MULTIPLICATION)
    add(tasks, "for task in (arithmetic(held_out), capitals()", ", multiplication()")
    add(scoring, '"facts_acc": accuracy("facts"),\n', '        "mul_correct": count["mul"][0], "mul_total": count["mul"][1],\n')
    add(figures, '"held_out": ("held out", "#CC79A7", 0.8),\n', '    "mul": (GROUPS["mul"], "#D55E00", 1.0),\n')
    (mine / "data/products").mkdir()
    script = (mine / "data/facts_char/prepare.py").read_text().replace("capitals_text", "multiplication_text")
    (mine / "data/products/prepare.py").write_text(script)

    text = "".join(f"<{a}*{b}={a * b}>\n" for a in range(10) for b in range(10))
    assert f"products: {len(text)} characters" in run(mine, "data/products/prepare.py")
    out = run(mine, "train_with_eval.py", *SHORT, "--dataset=products", "--out_dir=products", "--device=cpu")
    assert "tasks multiplication" in out and re.search(r", mul \d+\.\d%", out)
    row = rows_of(mine / "products")[-1]
    assert (row["mul_total"], row["add_total"], row["facts_total"]) == ("1000", "0", "0")
    assert row["combined_acc"] == str(int(row["mul_correct"]) / 1000)
    run(mine, "plot_results.py", "--model_folder=products")
    drawn = "import plot_results as p; print([line.get_label() for line in p.plot_run('products', False).axes[0].get_lines()])"
    assert run(mine, "-c", drawn).strip() == "['multiplication']"
    # The other tasks are as they were, and so are the runs that know nothing of multiplication.
    out = run(mine, "train_with_eval.py", *SHORT, "--out_dir=math_mini_14", "--device=cpu")
    assert "tasks math" in out and rows_of(mine / "math_mini_14")[-1]["mul_total"] == "0"
    published = run(mine, "tabulate_all_models.py", f"--root_dir={ROOT / 'results'}")
    assert published == run(ROOT, "tabulate_all_models.py", f"--root_dir={ROOT / 'results'}")
