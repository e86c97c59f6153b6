"""What the README and the docstrings say of the code is true: python -m pytest tests/test_readme.py"""

import ast
import csv
import importlib.util
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from hf import load_model, save_adapter
from lora_alpha import inject_lora

ROOT = Path(__file__).parents[1]
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


@pytest.mark.parametrize("name, most", [("lora_alpha.py", 550), ("hf.py", 450)])
def test_the_line_budgets_are_kept(name, most):
    """lora_alpha.py and hf.py keep their sizes, with no line over 120 characters and no two statements on a line."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= most and max(map(len, lines)) <= 120
    assert not [line for line in lines if re.search(r";\s*\w+ = ", line) and "#" not in line and '"' not in line]


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


def test_the_first_command_comes_soon():
    """Fewer than 120 words stand before the first command, and the CI runs exactly the test command."""
    before, _, rest = README.partition("\n    ")
    assert len(before.split()) < 120
    commands = [line.strip() for line in README.splitlines() if line.startswith("    python3 -m venv")]
    assert commands[0].endswith("python train.py --rank 16") and commands[1].endswith("python -m pytest")
    assert commands[1] in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


def test_every_flag_in_the_readme_exists(capsys):
    """Flags of train.py and eval_pass1.py that the README shows are in train.py's --help or eval_pass1.py."""
    with pytest.raises(SystemExit):
        train.parse_args(["--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    known |= set(re.findall(r"\"(--[a-z][a-z-]*)\"", (ROOT / "eval_pass1.py").read_text(encoding="utf-8")))
    shown = re.findall(r"(?:train|eval_pass1)\.py((?: +-{0,2}[\w./-]+)*)", README)
    flags = set(re.findall(r"--[a-z][a-z-]*", " ".join(shown)))
    assert flags and flags <= known


@pytest.mark.parametrize("who, flags", [("I have a PEFT adapter", ""), ("I want to check my implementation", ""),
                                        ("I have a Llama folder", " --steps 2 --eval-problems 4")])
def test_the_snippets_run(who, flags, tmp_path, monkeypatch):
    """What the README tells a user to type works as it stands, on a small base, adapter, file and module."""
    monkeypatch.chdir(tmp_path)
    for name in ("BASE", "FOLDER"):
        (tmp_path / name).symlink_to(ROOT / "data/base")
    save_adapter(inject_lora(load_model("BASE"), 4), "ADAPTER")
    problems = (ROOT / "data/equations/test.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "FILE").write_text("".join(problems[:20]))
    (tmp_path / "mymodule.py").write_text((ROOT / "tests/conformance/examples/numpy_only.py").read_text())
    text = README[README.index(f"**{who}"):]
    text = text[:re.search(r"\n(\*\*|###|An adapter)", text).start()]
    commands = re.findall(r"^    python (.*)$", text, flags=re.M)
    assert len(commands) == (2 if "adapter" in who else 1)
    for command in commands:
        done = subprocess.run(f"{sys.executable} {ROOT}/{command}{flags}", shell=True, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": "."})
        assert done.returncode == 0, done.stdout + done.stderr
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        names = {"idx": torch.tensor([[1, 2, 3]])}
        exec(code, names)
        assert names["logits"].shape == (1, 3, names["model"].config.vocab_size)
    for folder in (name for name in ("MERGED", "OUT/merged") if name in text):
        load_model(folder)


def test_the_table_is_what_the_experiment_wrote():
    """The README's first table is the one that experiments/first_table.py makes of its CSV."""
    spec = importlib.util.spec_from_file_location("first_table", ROOT / "experiments/first_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with open(ROOT / "experiments/first_table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert module.markdown(rows) in README
    # The shared rate, train.py's default, is full fine-tuning's best by validation loss.
    tried = [row for row in rows if row["method"] == "full" and not row["pass1_after"]]
    best = float(min(tried, key=lambda row: float(row["val_loss_after"]))["lr"])
    assert len(tried) == 4 and best == module.SHARED_RATE == train.parse_args([])[1].lr


def test_the_speeds_are_what_the_experiment_wrote():
    """The README's two ratios of medians are those of experiments/speed.csv."""
    with open(ROOT / "experiments/speed.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    full, ours, peer = (statistics.median(float(row["ms"]) for row in rows if row["method"] == name)
                        for name in ("full fine-tuning", "LoRA", "PEFT + transformers"))
    written = re.search(r"takes ([\d.]+) of full fine-tuning's time, and PEFT \+ transformers ([\d.]+)", README)
    assert written.groups() == (f"{ours / full:.2f}", f"{peer / full:.2f}")


def test_the_linter_is_content():
    """ruff finds nothing, under pyproject.toml's rules."""
    done = subprocess.run([sys.executable, "-m", "ruff", "check", str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
