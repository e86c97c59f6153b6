"""Which file may import which, and how long files, lines and functions are: python -m pytest tests/test_layout.py"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {path.stem: path for path in ROOT.glob("*.py")}
# Imports point to the right of an arrow alone:
# train → eval_pass1 → problems → (grader, hf) → tokens → lora_alpha.
FLOORS = {"train": 5, "eval_pass1": 4, "problems": 3, "grader": 2, "hf": 2, "tokens": 1, "lora_alpha": 0}
BUDGETS = {"lora_alpha": 583, "hf": 450, "tokens": 450, "problems": 450,
           "eval_pass1": 704, "train": 968, "grader": 980}
ABOVE = {"experiments", "data", "tests", *(path.stem for path in (ROOT / "experiments").glob("*.py"))} - FILES.keys()
LONG = {"lora_alpha.train"}  # longer than 60 lines


def imports(path):
    """The first word of every module that the file imports, anywhere in it; "." for a relative import."""
    words = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            words |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            words.add("." if node.level else node.module.partition(".")[0])
    return words


def test_the_top_level_is_the_seven_modules():
    """Each has its floor and its budget, and pyproject.toml installs just these."""
    listed = re.search(r"py-modules = (\[[^\]]*\])", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    assert FILES.keys() == FLOORS.keys() == BUDGETS.keys() == set(ast.literal_eval(listed))


@pytest.mark.parametrize("name", FLOORS)
def test_imports_point_one_way(name):
    """A module imports modules of a lower floor alone, and nothing of experiments/, data/ or tests/."""
    found = imports(FILES[name])
    assert {other for other in found & FLOORS.keys() if FLOORS[other] >= FLOORS[name]} == set()
    assert found & (ABOVE | {"."}) == set()


def test_the_grader_needs_python_alone():
    """grader.py imports the standard library and nothing else."""
    assert imports(FILES["grader"]) - sys.stdlib_module_names == set()


@pytest.mark.parametrize("name", BUDGETS)
def test_a_file_is_read_in_an_evening(name):
    """It keeps to its number of lines, its lines to 120 characters and one statement."""
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= BUDGETS[name] and max(map(len, lines)) <= 120
    starts = [node.lineno for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.stmt)]
    assert len(starts) == len(set(starts))


@pytest.mark.parametrize("name", BUDGETS)
def test_a_function_is_read_on_one_screen(name):
    """60 lines at most, but for the loop and the few that are named above."""
    functions = [node for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8")))
                 if isinstance(node, ast.FunctionDef)]
    longer = {f"{name}.{node.name}" for node in functions if node.end_lineno - node.lineno >= 60}
    assert functions and longer <= LONG
