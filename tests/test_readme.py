"""What the README and the docstrings say of the code is true: python -m pytest tests/test_readme.py"""

import ast
import csv
import itertools
import re
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import eval_pass1
import train
from hf import copy_tokenizer, load_adapter, load_config, load_model, save_model
from lora_alpha import GPT

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
import first_table  # noqa: E402

READMES = [ROOT / name for name in ("README.md", "data/README.md", "data/base/README.md", "experiments/README.md",
                                    "tests/conformance/README.md")]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LORA_ALPHA = (ROOT / "lora_alpha.py").read_text(encoding="utf-8").splitlines()


def test_the_map_of_lora_alpha_is_true():
    """The README's line ranges are those between the banners of lora_alpha.py, the first from line 1, none missing."""
    starts = [1, *(n for n, line in enumerate(LORA_ALPHA, 1) if line.startswith("# ---- "))]
    names = ["docstring", *(LORA_ALPHA[n - 1].strip("#- ") for n in starts[1:])]
    ends = [n - 1 for n in starts[1:]] + [len(LORA_ALPHA)]
    written = re.findall(r"^\| (\d+)-(\d+) \| ([^|]+) \|", README, flags=re.MULTILINE)
    assert [(int(a), int(b), name.lower()) for a, b, name in written] == \
        [(a, b, name.lower()) for a, b, name in zip(starts, ends, names)]


def test_lora_alpha_needs_torch_alone():
    """lora_alpha.py imports torch and the standard library, nothing else."""
    found = set()
    for node in ast.walk(ast.parse("\n".join(LORA_ALPHA))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
            [node.module] if isinstance(node, ast.ImportFrom) else []
        found |= {name.split(".")[0] for name in names}
    assert found - {"torch"} <= sys.stdlib_module_names and "torch" in found


def test_every_test_that_is_named_exists():
    """Each test_x.py::test_y in the code's comments and docstrings is a test of that file."""
    named = set()
    for path in ROOT.glob("*.py"):
        named |= set(re.findall(r"(test_\w+\.py)::(test_\w+)", path.read_text(encoding="utf-8")))
    assert len(named) >= 8
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_the_readme_is_short():
    """At most 150 lines, at most 120 words before the first command, and the CI runs exactly the test command."""
    assert len(README.splitlines()) <= 150
    assert len(README.partition("\n    ")[0].split()) <= 120
    first, second = [line.strip() for line in README.splitlines() if line.startswith("    python3 -m venv")]
    assert first.endswith(" && pip install -r requirements.txt && python train.py --rank 16")
    assert second.endswith(" && pip install -r requirements-dev.txt && python -m pytest")
    assert second in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


# ---- Links -----------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """GitHub's names of a file's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_has_a_target(path):
    """Files, pictures and headings that a README links to are there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            file = (path.parent / file).resolve() if file else path
            assert file.exists() and (not anchor or anchor in anchors(file)), target


# ---- Commands and code -----------------------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """[script, argument, ...] of each python command in an indented block or between backticks."""
    lines = [line for line in text.splitlines() if line.startswith("    ")] + re.findall(r"`(python [^`]+)`", text)
    found = [part.strip() for line in lines for part in re.split(r"&&|;|\s{3,}", line)]
    return [shlex.split(part, comments=True)[1:] for part in found if re.match(r"python \S+\.py\b", part)]


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_can_be_typed(path):
    """Each script is there and has each flag; the arguments of train.py and eval_pass1.py are accepted."""
    for script, *arguments in commands(path.read_text(encoding="utf-8")):
        source = (ROOT / script).read_text(encoding="utf-8")
        source += (ROOT / "experiments/grid.py").read_text(encoding="utf-8") if "grid.command" in source else ""
        for flag in (argument for argument in arguments if argument.startswith("--")):
            assert f'"{flag}"' in source or flag == "--help", f"{script} {flag}"
        if script == "train.py" and "--resume" in arguments:  # its checks want a run that is there
            train.make_parser().parse_args(arguments)
        elif script == "train.py" and arguments[:1] != ["merge"]:
            train.parse_args(arguments)
        elif script == "eval_pass1.py" and arguments != ["--help-prompts"]:  # which prints them and ends
            eval_pass1.parse_args(arguments)


def test_every_placeholder_is_explained():
    """What stands in capitals in the README's commands and code is named in its text."""
    code = "\n".join(re.findall(r"^    [^\n]*$|```python\n.*?```", README, flags=re.M | re.S))
    text = re.sub(r"^    [^\n]*$|```.*?```", "", README, flags=re.M | re.S)
    found = set(re.findall(r"\S+\.tar|gpqa\S+\.csv|Llama-\S+|(?<![\w.-])[A-Z]{3,}\b", code))
    assert {"FOLDER", "FILE", "OUT", "MERGED", "MATH.tar", "gpqa_main.csv", "Llama-3.2-1B"} <= found
    assert not [name for name in found if name not in text]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with what the README's commands need: a tiny data/base and data/equations, FOLDER, FILE."""
    config = replace(load_config(ROOT / "data/base"), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    torch.manual_seed(0)
    save_model(GPT(config), tmp_path / "data/base")
    copy_tokenizer(ROOT / "data/base", tmp_path / "data/base")
    (tmp_path / "data/equations").mkdir()
    for name in ("train", "val", "test"):
        lines = (ROOT / f"data/equations/{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"data/equations/{name}.jsonl").write_text("".join(lines[:4]))
    (tmp_path / "FOLDER").symlink_to("data/base")
    (tmp_path / "FILE").write_text("".join(lines[:20]))
    shutil.copy(ROOT / "tests/conformance/examples/numpy_only.py", tmp_path / "mymodule.py")
    monkeypatch.chdir(tmp_path)
    for module in (train, eval_pass1):
        monkeypatch.setattr(module, "HERE", tmp_path)
    return tmp_path


def command(script: str, *contained: str) -> list[str]:
    """The arguments of the README's one command of the script that has these arguments."""
    found = [c[1:] for c in commands(README) if c[0] == script and all(word in c for word in contained)]
    return min(found, key=len)


def test_the_commands_and_the_code_work(place, capsys):
    """In the README's order: train, merge, the Python code, evaluate. Fewer steps, on a tiny model."""
    train.main([*command("train.py", "FOLDER", "FILE"), "--steps", "2", "--eval-problems", "2"])
    train.main(command("train.py", "merge"))
    before, merged, again = (load_model(folder).state_dict() for folder in ("FOLDER", "OUT/merged", "MERGED"))
    assert all(torch.equal(merged[name], again[name]) for name in merged)
    assert not all(torch.equal(merged[name], before[name]) for name in merged)

    names = {"batches": itertools.repeat((torch.tensor([[1, 2, 3]]), torch.tensor([[-100, 3, 4]])))}
    code, = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    exec(code, names)
    assert len(names["rows"]) == 500 and names["rows"][-1]["loss"] < names["rows"][0]["loss"]
    idx = torch.tensor([[5, 6, 7]])
    ours = load_adapter(load_model("FOLDER", torch.float32), "OUT")(idx)[0]
    assert torch.allclose(names["model"](idx).logits, ours, atol=1e-4)

    eval_pass1.main(command("eval_pass1.py", "--ask", "OUT"))
    assert "\nOUT:\n" in capsys.readouterr().out
    eval_pass1.main(command("eval_pass1.py"))
    said = capsys.readouterr().out.splitlines()
    assert f"    {said[0]}" in README.splitlines() and said[0].startswith("protocol ")
    table = next(line for line in said if line.startswith("pass@1"))
    assert "base" in table and "out/mine" in table  # the adapter that the code has saved


def test_the_conformance_command_works(place, capsys):
    runner = runpy.run_path(str(ROOT / "tests/conformance/run.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(place), *sys.path])
        assert runner["main"](command("tests/conformance/run.py", "mymodule")) == 0
    assert "FAIL" not in capsys.readouterr().out


@pytest.mark.thorough
def test_calibrate_works_as_shown(place):
    done = subprocess.run([sys.executable, ROOT / "experiments/calibrate.py", *command("experiments/calibrate.py")],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "To use it:\n  python train.py" in done.stdout, done.stderr


@pytest.mark.thorough
def test_the_first_run_teaches_equations(tmp_path):
    """The README's first command and its evaluation as they stand: pass@1 is 1.6% before (on a CPU), and high after."""
    for name in ("train.py", "eval_pass1.py"):
        done = subprocess.run([sys.executable, ROOT / name, *command(name)], cwd=tmp_path, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("all "))
    before, after = (float(value) for value in re.findall(r"([\d.]+) \[", row))
    assert (before == 1.6 or torch.cuda.is_available()) and after > 60


# ---- Figures ---------------------------------------------------------------------------------------------------------


def test_the_table_is_what_the_experiment_wrote():
    """The README's first table is the one that experiments/first_table.py makes of its CSV."""
    rows = first_table.read()
    assert f"\n{first_table.markdown(rows)}\n" in README
    # The shared rate, train.py's default, is full fine-tuning's best by validation loss.
    tried = [row for row in rows if row["method"] == "full" and not row["pass1_after"]]
    best = float(min(tried, key=lambda row: float(row["val_loss_after"]))["lr"])
    assert len(tried) == 4 and best == first_table.SHARED_RATE == train.parse_args([])[1].lr


def test_the_speeds_are_what_the_experiment_wrote():
    """The two ratios of medians in experiments/README.md are those of experiments/speed.csv."""
    with open(ROOT / "experiments/speed.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    full, ours, peer = (statistics.median(float(row["ms"]) for row in rows if row["method"] == name)
                        for name in ("full fine-tuning", "LoRA", "PEFT + transformers"))
    text = " ".join((ROOT / "experiments/README.md").read_text(encoding="utf-8").split())
    written = re.search(r"takes ([\d.]+) of full fine-tuning's time, and PEFT with transformers ([\d.]+)", text)
    assert written.groups() == (f"{ours / full:.2f}", f"{peer / full:.2f}")


def test_the_linter_is_content():
    """ruff finds nothing, under pyproject.toml's rules."""
    done = subprocess.run([sys.executable, "-m", "ruff", "check", str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
