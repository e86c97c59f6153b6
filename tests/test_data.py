"""The embedded data: python -m pytest tests/test_data.py"""

import itertools
import json
import random
import re
import shutil
from fractions import Fraction
from pathlib import Path

import pytest

from data.base import prepare as base
from data.equations import prepare as equations
from grader import is_correct
from hf import load_model

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "data/equations"


def read(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def equation(problem):
    """The equation in a problem's text, its unknown renamed to x."""
    text = max(re.findall(r"\$([^$]*)\$", problem["problem"]), key=len)
    return re.sub(r"(?<![\\a-z])[a-z](?![a-z])", "x", text)


def side(text, value):
    """The exact value of one side of an equation at x = value: LaTeX's fractions and juxtaposition made Python's."""
    text = re.sub(r"\\frac\{([^{}]*)\}\{(\d+)\}", r"((\1)/\2)", text)
    text = re.sub(r"(\d|\))(?=[x(])", r"\1*", text)
    return eval(re.sub(r"\d+", r"Fraction(\g<0>)", text), {"x": Fraction(value), "Fraction": Fraction})


def test_every_answer_solves_its_equation():
    """Put into its equation, the answer makes both sides equal; the solution is graded right against it."""
    for problem in itertools.chain(*map(read, equations.COUNTS)):
        left, right = equation(problem).split("=")
        assert side(left, problem["answer"]) == side(right, problem["answer"]), problem
        assert is_correct(problem["solution"], problem["answer"])


def test_no_equation_stands_in_two_files():
    """Training, validation and test share no equation, under any letter, and none stands twice."""
    seen = [equation(problem) for name in equations.COUNTS for problem in read(name)]
    assert len(seen) == len(set(seen)) == 4800


def test_the_files_are_what_the_script_writes():
    """Counts, levels and content of the committed files are those that prepare.py makes."""
    made = equations.problems(random.Random(1337))
    assert made == read("train") + read("val") + read("test")
    assert {len([p for p in read("test") if p["level"] == f"Level {n}"]) for n in range(1, 6)} == {100}


@pytest.mark.parametrize("flags, layers, width", [([], 4, 256), (["--preset", "gpu"], 6, 1024)])
def test_a_preset_writes_its_own_folder(flags, layers, width, monkeypatch, tmp_path):
    """A small model of one step in the place of the preset, which asked for its own sizes; no file of another preset is
    written, both have data/base's tokenizer, learnt or copied, and a flag is taken at its word, 0 as well."""
    pretrain, sizes = base.pretrain, []
    monkeypatch.setattr(base, "HERE", tmp_path / "data/base")
    shutil.copytree(ROOT / "data/base", base.HERE)
    before = (base.HERE / "model.safetensors").read_bytes()
    ranks = (base.HERE / "base.tiktoken").read_bytes()
    monkeypatch.setattr(base, "learn_tokenizer", lambda sample, folder: [
        shutil.copy(base.HERE / name, folder) for name in ("base.tiktoken", "spec.json")])

    def small(steps, lr, folder, width, layers, batch_size):
        assert (steps, lr) == (1, 0.0)
        sizes.append((layers, width))
        pretrain(steps, 1e-3, folder, 64, 1, 2)

    monkeypatch.setattr(base, "pretrain", small)
    monkeypatch.setattr(base, "measure", lambda folder: None)
    monkeypatch.setattr("sys.argv", ["prepare.py", "--steps", "1", "--lr", "0", *flags])
    base.main()
    home = tmp_path / ("out/base-gpu" if flags else "data/base")
    assert sizes == [(layers, width)] and (home / "base.tiktoken").read_bytes() == ranks
    assert load_model(home).config.hidden_size == 64 and (home / "config.json").is_file()
    assert ((base.HERE / "model.safetensors").read_bytes() == before) == bool(flags)


@pytest.mark.parametrize("shown", [20_000, pytest.param(200_000, marks=pytest.mark.thorough)])
def test_the_base_was_never_shown_an_equation_to_solve(shown):
    """No problem of data/equations stands in the base's corpus, and no unknown is ever asked for there."""
    problems = {p["problem"] for name in equations.COUNTS for p in read(name)}
    stream = base.corpus(random.Random(base.SEED))
    for problem, _ in itertools.islice(stream, shown):  # the base's training goes through 200,000
        assert problem not in problems
        assert not re.match(r"Solve|Find \$[a-z]\$|What value of|If ", problem)
