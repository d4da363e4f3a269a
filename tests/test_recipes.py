"""Commands of README.md and docs/ print what the pages show; docs/code.md adds a size, a dataset, a task."""

import ast
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, SHORT, copy_project, rounds_as_published, rows_of, with_device

PAGES = {name: (ROOT / name).read_text()
         for name in ("README.md", "docs/data.md", "docs/training.md", "docs/figures.md", "docs/code.md")}
CODE = PAGES["docs/code.md"]


@pytest.fixture
def project_copy(tmp_path):
    """Return the folder of a copy of the project, which the test may change."""
    return copy_project(tmp_path / "mine")


def run(folder, *command):
    result = subprocess.run([sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def add(path, after, text):
    """Insert text into a file after a string that must occur there exactly once."""
    source = path.read_text()
    assert source.count(after) == 1, f"{path.name} contains this {source.count(after)} times: {after}"
    path.write_text(source.replace(after, after + text))


@rounds_as_published
def test_commands_on_data_and_published_models_print_what_the_pages_show(project_copy):
    (project_copy / "results").symlink_to(ROOT / "results")
    # The demo makes this folder.
    (project_copy / "math_mini_14").symlink_to(ROOT / "results" / "paper" / "math_mini_14")
    needs_no_training = re.compile(r"python (data/\w+/prepare\.py$|eval_\w+\.py|sample\.py)")
    examples = []
    for page in PAGES.values():
        fenced = re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        blocks = [block.replace("\\\n", "").splitlines() for block in fenced]
        examples += [(commands, output) for commands, output in zip(blocks, blocks[1:])
                     if all(needs_no_training.match(command) for command in commands)
                     and not output[0].startswith("python ")]
    assert len(examples) == 6
    for commands, output in examples:
        printed = []
        for command in commands:
            _, script, *arguments = shlex.split(command)
            result = subprocess.run([sys.executable, script, *with_device(script, arguments)],
                                    cwd=project_copy, capture_output=True, text=True)
            printed += [line.rstrip() for line in (result.stderr + result.stdout).splitlines()]
        assert [line for line in output if line != "..." and line not in printed] == []


def test_a_new_model_size_needs_a_config_and_a_panel(project_copy):
    config = re.search(r"`(config/train_math_mini_20\.py)` with\n\n```\n(.*?)```", CODE, re.DOTALL)
    name, content = config.groups()
    (project_copy / name).write_text(content)
    out = run(project_copy, "train_with_eval.py", name, *SHORT, "--device=cpu")
    assert "math_mini_20: 2,800 parameters" in out
    add(project_copy / "study/experiments/results.py", '"n14": "14", ', '"n20": "20", ')
    print_titles = ("import plot_all_models as p; grid = p.plot_grid(p.find_runs('.', '')[0]['math'], {}); "
                    "print([ax.get_title() for ax in grid.axes if ax.axison])")
    titles = ast.literal_eval(run(project_copy, "-c", print_titles))
    assert [title.split(" ")[0] for title in titles] == ["n14", "n20", "n28", "n56", "MLT"]
    table = run(project_copy, "tabulate_all_models.py", "--root_dir=.")
    assert re.search(r"^\| n20 \| – / 2,800 \| – / \d", table, re.MULTILINE)
    run(project_copy, "report.py", f"--root_dir={ROOT / 'results'}", "--out_dir=mine")
    assert "| n20 | 20 | – / – / 100 |" in (project_copy / "mine" / "docs" / "tables.md").read_text()


def test_a_new_dataset_needs_a_prepare_script_with_another_text(project_copy):
    folder = project_copy / "data" / "rhymes"
    folder.mkdir()
    script = (project_copy / "data/facts_char/prepare.py").read_text()
    assert "return capitals_text()" in script
    rhyme = 'return "Humpty Dumpty sat on a wall. \\n" * 40'
    (folder / "prepare.py").write_text(script.replace("return capitals_text()", rhyme))
    assert "rhymes: 1,200 characters" in run(project_copy, "data/rhymes/prepare.py")
    command = re.search(r"`python (train_with_eval\.py .*--dataset=<name> .*?)`", CODE)[1]
    out = run(project_copy, *command.replace("<name>", "rhymes").split(), *SHORT, "--device=cpu")
    assert "rhymes_28: 5,236 parameters, data rhymes, tasks none" in out and "complete at iteration 40" in out
    # The dataset has no task, so no checkpoint is the best at one.
    assert {path.name for path in (project_copy / "rhymes_28").glob("*.pt")} == {"ckpt.pt", "ckpt_last.pt"}
    sample = run(project_copy, "sample.py", "--out_dir=rhymes_28", "--start=Humpty", "--num_samples=1",
                 "--device=cpu")
    assert sample.startswith("Humpty")


MULTIPLICATION = '''

def multiplication():
    """The task of all products of two digits."""
    problems = [Problem(f"<{a}*{b}=", str(a * b), "mul") for a in range(10) for b in range(10)]
    return Task("multiplication", problems, 4, ">", read_integer)


def multiplication_text():
    return "".join(f"{problem.prompt}{problem.answer}>\\n" for problem in multiplication().problems)
'''


def test_a_new_task_needs_problems_a_text_two_columns_and_a_colour(project_copy):
    tasks, scoring = project_copy / "study/tasks.py", project_copy / "study/scoring.py"
    figures = project_copy / "study/experiments/figures.py"
    add(tasks, '"facts": "capitals"', ', "mul": "multiplication"')
    add(tasks, 'return Task("facts", problems, 20, "\\n", read_first_line)\n', MULTIPLICATION)
    add(tasks, "for task in (arithmetic(table), capitals()", ", multiplication()")
    add(scoring, '"facts_acc": accuracy("facts"),\n',
        '        "mul_correct": count["mul"][0], "mul_total": count["mul"][1],\n')
    add(figures, '"held_out": ("held out", "#CC79A7", 0.8),\n',
        '    "mul": (GROUPS["mul"], "#D55E00", 1.0),\n')
    (project_copy / "data/products").mkdir()
    script = (project_copy / "data/facts_char/prepare.py").read_text()
    script = script.replace("capitals_text", "multiplication_text")
    (project_copy / "data/products/prepare.py").write_text(script)

    text = "".join(f"<{a}*{b}={a * b}>\n" for a in range(10) for b in range(10))
    assert f"products: {len(text)} characters" in run(project_copy, "data/products/prepare.py")
    out = run(project_copy, "train_with_eval.py", *SHORT, "--dataset=products", "--out_dir=products",
              "--device=cpu")
    assert "tasks multiplication" in out and re.search(r", mul \d+\.\d%", out)
    row = rows_of(project_copy / "products")[-1]
    assert (row["mul_total"], row["add_total"], row["facts_total"]) == ("1000", "0", "0")
    assert row["combined_acc"] == str(int(row["mul_correct"]) / 1000)
    run(project_copy, "plot_results.py", "--model_folder=products")
    print_labels = ("import plot_results as p; lines = p.plot_run('products', False).axes[0].get_lines(); "
                    "print([line.get_label() for line in lines])")
    assert run(project_copy, "-c", print_labels).strip() == "['multiplication']"
    # The other tasks stay unchanged, and so do the runs made before there was multiplication.
    out = run(project_copy, "train_with_eval.py", *SHORT, "--out_dir=math_mini_14", "--device=cpu")
    assert "tasks math" in out and rows_of(project_copy / "math_mini_14")[-1]["mul_total"] == "0"
    published = run(project_copy, "tabulate_all_models.py", f"--root_dir={ROOT / 'results'}")
    assert published == run(ROOT, "tabulate_all_models.py", f"--root_dir={ROOT / 'results'}")
