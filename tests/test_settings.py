"""Settings come from the script, config files and arguments, and each config is the paper's."""

import ast

import pytest
from conftest import ROOT
from errors import SCRIPTS

import train_with_eval
from study import StudyError
from study.device import setup_device
from study.settings import configure, run_script


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """settings(*arguments) -> what the training script would use; files go to the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Ctrl-C stays pytest's

    def settings(*arguments):
        monkeypatch.setattr("sys.argv", ["train_with_eval.py", *map(str, arguments)])
        return configure(vars(train_with_eval))

    return settings


# Table 1 of the paper, and the shapes of section 3.1.
N_MODELS = dict(n_layer=1, n_head=1, mlp_expansion=1, dropout=0.0, weight_decay=0.0, learning_rate=1e-2,
                min_lr=1e-4)
MLT = dict(n_layer=6, n_head=6, n_embd=384, mlp_expansion=4, dropout=0.2, weight_decay=0.1,
           learning_rate=1e-5, min_lr=1e-6)
TASKS = {
    "math": dict(dataset="as_math", block_size=9, batch_size=882),
    "facts": dict(dataset="facts_char", block_size=24, batch_size=576),
    "both": dict(dataset="both_math_and_facts", block_size=24, batch_size=576),
}
COMMON = dict(max_iters=30_000, lr_decay_iters=25_000, warmup_iters=2000, beta1=0.9, beta2=0.99,
              grad_clip=1.0, eval_interval=250, seed=1337, data_seed=-1, bias=False,
              gradient_accumulation_steps=1)


@pytest.mark.parametrize("suffix", ["", "_wd"])
@pytest.mark.parametrize("size", ["14", "28", "56", "mlt"])
@pytest.mark.parametrize("task", TASKS)
def test_each_config_is_the_papers(settings, task, size, suffix):
    expected = COMMON | TASKS[task] | (MLT if size == "mlt" else N_MODELS | {"n_embd": int(size)})
    if suffix:
        expected |= {"weight_decay": 0.1, "dropout": 0.0}
    name = f"{task}_mini_{size}{suffix}"
    cfg = settings(ROOT / "config" / f"train_{name}.py")
    assert {key: getattr(cfg, key) for key in expected} == expected
    assert cfg.out_dir == name


def test_the_grokking_config_is_appendix_b(settings):
    cfg = settings(ROOT / "config" / "train_math_mini_mlt_gk.py")
    expected = COMMON | TASKS["math"] | MLT
    expected |= dict(learning_rate=1e-6, min_lr=1e-7, lr_decay_iters=10_000_000, max_iters=1_500_000)
    assert {key: getattr(cfg, key) for key in expected} == expected


def test_the_papers_25_configs_are_there():
    names = {f"train_{task}_mini_{size}{suffix}.py"
             for task in TASKS for size in ("14", "28", "56", "mlt") for suffix in ("", "_wd")}
    names.add("train_math_mini_mlt_gk.py")
    assert names <= {path.name for path in (ROOT / "config").glob("train_*.py")}


def test_later_arguments_win(settings, tmp_path):
    (tmp_path / "train_mine.py").write_text("n_embd = 20\nmax_iters = 5\n")
    cfg = settings("--n_embd=30", "train_mine.py", "--max_iters=7", "--max_iters=8")
    assert (cfg.n_embd, cfg.max_iters, cfg.out_dir) == (20, 8, "mine")
    assert settings("--out_dir=elsewhere", "train_mine.py").out_dir == "elsewhere"


def test_values_are_read_as_what_they_are(settings):
    cfg = settings("--learning_rate=1", "--out_dir=a=b", "--overwrite", "--compile=False", "--n_embd", "28",
                   "--seed=1_000")
    assert cfg.learning_rate == 1.0 and type(cfg.learning_rate) is float
    assert (cfg.out_dir, cfg.overwrite, cfg.compile, cfg.n_embd, cfg.seed) == ("a=b", True, False, 28, 1000)
    assert settings().compile == "auto" and settings("--overwrite", "False").overwrite is False
    assert settings("--compile", "True", "--overwrite").compile is True


@pytest.mark.parametrize("argument", [
    "--max_iters=0", "--dropout=0.999999", "--save_interval=0", "--grad_clip=0", "--seed=4294967295",
    "--data_seed=-1", "--data_seed=4294967295", "--dtype=float16", "--cuda_graph=False", "--n_layer=1000",
])
def test_the_ends_of_a_range_belong_to_it(settings, argument):
    key, value = argument.removeprefix("--").split("=")
    assert str(getattr(settings(argument), key)) in (value, f"{value}.0")


def test_a_config_may_begin_with_a_byte_order_mark(settings, tmp_path):
    (tmp_path / "train_windows.py").write_bytes(b"\xef\xbb\xbfn_embd = 20\r\n")
    assert settings("train_windows.py").n_embd == 20


def test_a_config_may_include_the_same_file_twice(settings, tmp_path):
    (tmp_path / "base.py").write_text("n_embd = 20\n")
    (tmp_path / "mine.py").write_text("include('base.py')\nn_embd += 1\ninclude('base.py')\nmax_iters = 3\n")
    cfg = settings("mine.py")
    assert (cfg.n_embd, cfg.max_iters) == (20, 3)


def test_a_script_may_compute_and_annotate_its_settings(call, tmp_path):
    (tmp_path / "mine.py").write_text('''"""Mine."""
from study.settings import run_script
batch_size = 5 * 8  # windows
seed: int = 3  # of everything # and more
beta1, beta2 = 0.9, 0.99  # decays
out_dir = "a#b"  # folder
limit: int  # without a value
no_comment = 1
def main(cfg):
    print(cfg)
run_script(main, globals())
''')
    result = call(tmp_path / "mine.py", "--seed=4")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "namespace(batch_size=40, seed=4, beta1=0.9, beta2=0.99, out_dir='a#b')\n"
    meanings = call(tmp_path / "mine.py", "--help").stdout
    assert "--batch_size=40" in meanings and "of everything # and more" in meanings


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_lists_every_setting_with_its_default_and_meaning(call, name):
    result = call(name, "--help")
    assert result.returncode == 0 and result.stderr == ""
    listed = [line.split(None, 1) for line in result.stdout.splitlines() if line.startswith("  --")]
    assert listed and all(setting.count("=") >= 1 and meaning.strip() for setting, meaning in listed)
    keys = {setting[2:].split("=")[0] for setting, _ in listed}
    body = ast.parse((ROOT / name).read_text()).body
    assigned = {node.targets[0].id for node in body if isinstance(node, ast.Assign)}
    assert {name for name in assigned if name.islower()} <= keys  # one without a comment would be missing
    if name == "train_with_eval.py":
        assert {"out_dir", "seed", "data_seed", "n_embd", "mlp_expansion", "overwrite", "eval_interval",
                "save_interval", "min_lr", "device", "fast"} <= keys
        assert "--max_iters=30000" in result.stdout
    if name in ("data/as_math/prepare.py", "data/both_math_and_facts/prepare.py"):
        assert keys == {"line_seed", "held_out", "operations", "max_operand", "answer_seed", "shuffles",
                        "folder"}


def test_process_0_speaks_for_all_and_each_for_an_error_of_its_own(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("sys.argv", ["a script"])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # Ctrl-C stays pytest's

    def fails(cfg):
        raise StudyError("of all")

    for main in (fails, lambda cfg: setup_device("cuda:99")):
        with pytest.raises(SystemExit) as stop:
            run_script(main, vars(train_with_eval))
        assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "cuda:99" in line
