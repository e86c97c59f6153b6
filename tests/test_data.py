"""The embedded data: python -m pytest tests/test_data.py"""

import itertools
import json
import random
import re
from fractions import Fraction
from pathlib import Path

from data.base import prepare as base
from data.equations import prepare as equations
from eval_pass1 import is_correct

FOLDER = Path(__file__).parents[1] / "data/equations"


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


def test_the_base_was_never_shown_an_equation_to_solve():
    """No problem of data/equations stands in the base's corpus, and no unknown is ever asked for there."""
    problems = {p["problem"] for name in equations.COUNTS for p in read(name)}
    stream = base.corpus(random.Random(base.SEED))
    for problem, _ in itertools.islice(stream, 200_000):  # as many as the base's training goes through
        assert problem not in problems
        assert not re.match(r"Solve|Find \$[a-z]\$|What value of|If ", problem)
