"""Linear equations in five levels, MATH's fields. Writes train.jsonl (4,000), val.jsonl (300), test.jsonl (500).

Seed 1337, 1 s.

Level 1: x + a = b.  2: ax + b = c and x/a = b.  3: ax + b = cx + d.  4: with brackets.  5: with brackets and fractions.
No equation stands in two of the files, under any letter. tests/test_data.py puts each answer back into its equation.
"""

import argparse
import json
import os
import random
import re
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

COUNTS = {"train": 4000, "val": 300, "test": 500}
HERE = Path(__file__).parent


def linear(a: int, b: int, x: str = "x") -> str:
    """a·x + b as MATH writes it: 3x - 4, -x, 7."""
    term = {0: "", 1: x, -1: f"-{x}"}.get(a, f"{a}{x}")
    if not term:
        return str(b)
    return term if b == 0 else f"{term} + {b}" if b > 0 else f"{term} - {-b}"


def bracket(k: int, a: int, b: int, x: str = "x") -> str:
    return f"{k}({linear(a, b, x)})"


def signed(n: int) -> str:
    return f"({n})" if n < 0 else str(n)


def plus(second: str) -> str:
    """+ second, written without "+ -"."""
    return f"- {second[1:]}" if second.startswith("-") else f"+ {second}"


def join(first: int | str, second: int | str) -> str:
    return f"{first} {plus(str(second))}"


def whole(n: int, k: int) -> int:
    if n % k:
        raise ValueError(f"{n}/{k} is not a whole number")
    return n // k


def nonzero(rng: random.Random, low: int, high: int) -> int:
    return rng.choice([n for n in range(low, high + 1) if n])


def two_sides(a: int, b: int, c: int, d: int, x: str) -> list[str]:
    """The steps from ax + b = cx + d to x, one sentence each, every sum written out: a small model needs it."""
    steps = []
    if c:
        if a == c:
            raise ValueError("no unknown is left")
        word = f"Subtracting ${linear(c, 0, x)}$" if c > 0 else f"Adding ${linear(-c, 0, x)}$"
        steps.append(f"{word}, with ${join(a, -c)} = {a - c}$, gives ${linear(a - c, b, x)} = {d}$.")
        a -= c
    if b:
        word = f"Subtracting ${b}$" if b > 0 else f"Adding ${-b}$"
        steps.append(f"{word} gives ${linear(a, 0, x)} = {join(d, -b)} = {d - b}$.")
        d -= b
    if a != 1:
        steps.append(f"Dividing by ${a}$ gives ${x} = \\frac{{{d}}}{{{a}}} = {Fraction(d, a)}$.")
    return steps


def make(level: int, rng: random.Random) -> tuple[str, list[str], int, str]:
    """One equation, the steps of its solution, its root, and the unknown's name. ValueError: an unlucky draw."""
    x, root = rng.choice("xxxyzntk"), rng.randint(-12, 12)
    a, b, c, k = rng.randint(2, 9), nonzero(rng, -20, 20), nonzero(rng, -5, 7), rng.randint(2, 6)
    if level == 1:
        root, b = rng.randint(-30, 30), nonzero(rng, -50, 50)
        left = f"{b} + {x}" if b > 0 and rng.random() < 0.3 else linear(1, b, x)
        return f"{left} = {root + b}", two_sides(1, b, 0, root + b, x), root, x
    if level == 2 and rng.random() < 0.25:
        quotient = nonzero(rng, -10, 10)
        steps = [f"Multiplying by ${a}$ gives ${x} = {a} \\cdot {signed(quotient)} = {a * quotient}$."]
        return f"\\frac{{{x}}}{{{a}}} = {quotient}", steps, a * quotient, x
    if level == 2:
        a, b = a * rng.choice([1, 1, 1, -1]), b * rng.choice([0, 1, 1])
        return f"{linear(a, b, x)} = {a * root + b}", two_sides(a, b, 0, a * root + b, x), root, x
    if level == 3:
        d = (a - c) * root + b
        return f"{linear(a, b, x)} = {linear(c, d, x)}", two_sides(a, b, c, d, x), root, x
    b = nonzero(rng, -9, 9)
    if level == 4 and rng.random() < 0.5:  # k(ax + b) = cx + d
        a = rng.choice([1, 1, 2, 3])
        d = k * (a * root + b) - c * root
        steps = [f"Expanding gives ${linear(k * a, k * b, x)} = {linear(c, d, x)}$."]
        return f"{bracket(k, a, b, x)} = {linear(c, d, x)}", steps + two_sides(k * a, k * b, c, d, x), root, x
    if level == 4:  # k(x + b) + c(x + e) = d
        c, e = rng.randint(2, 6), nonzero(rng, -9, 9)
        d = k * (root + b) + c * (root + e)
        steps = [f"Expanding gives ${join(linear(k, k * b, x), linear(c, c * e, x))} = {d}$.",
                 f"Combining like terms, with ${join(k, c)} = {k + c}$ and ${join(k * b, c * e)} = {k * b + c * e}$, "
                 f"gives ${linear(k + c, k * b + c * e, x)} = {d}$."]
        left = f"{bracket(k, 1, b, x)} + {bracket(c, 1, e, x)}"
        return f"{left} = {d}", steps + two_sides(k + c, k * b + c * e, 0, d, x), root, x
    if rng.random() < 0.5:  # (ax + b)/k = d
        d = whole(a * root + b, k)
        steps = [f"Multiplying by ${k}$ gives ${linear(a, b, x)} = {k} \\cdot {signed(d)} = {k * d}$."]
        return f"\\frac{{{linear(a, b, x)}}}{{{k}}} = {d}", steps + two_sides(a, b, 0, k * d, x), root, x
    c = rng.randint(1, 3)  # a(x + b)/k = cx + d
    d = whole(a * (root + b), k) - c * root
    steps = [f"Multiplying by ${k}$ gives ${bracket(a, 1, b, x)} = {bracket(k, c, d, x)}$.",
             f"Expanding gives ${linear(a, a * b, x)} = {linear(k * c, k * d, x)}$."]
    left = f"\\frac{{{bracket(a, 1, b, x)}}}{{{k}}}"
    return f"{left} = {linear(c, d, x)}", steps + two_sides(a, a * b, k * c, k * d, x), root, x


ASK = ["Solve for ${x}$: ${e}$.", "Find ${x}$ if ${e}$.", "If ${e}$, what is the value of ${x}$?",
       "What value of ${x}$ satisfies the equation ${e}$?"]


def problems(rng: random.Random) -> list[dict]:
    """Every problem of the data set, the levels in turn, no equation twice."""
    seen, made = set(), []
    while len(made) < sum(COUNTS.values()):
        level = len(made) % 5 + 1
        try:
            equation, steps, root, x = make(level, rng)
        except ValueError:
            continue
        if any(len(number) > 2 for number in re.findall(r"\d+", equation + " ".join(steps))):
            continue  # numbers up to 99, the range that the base knows well
        same = equation.replace("frac", "").replace(x, "x")
        if same in seen:
            continue
        seen.add(same)
        ask = rng.choice(ASK).replace("{x}", x).replace("{e}", equation)
        made.append(dict(problem=ask, solution=" ".join([*steps, f"The answer is $\\boxed{{{root}}}$."]),
                         answer=str(root), level=f"Level {level}", type="Algebra"))
    return made


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                            usage=argparse.SUPPRESS, allow_abbrev=False).parse_args()  # --help writes nothing
    made = problems(random.Random(1337))
    for name, count in COUNTS.items():
        part, made = made[:count], made[count:]
        text = "".join(json.dumps(problem) + "\n" for problem in part)
        (HERE / f"{name}.jsonl.tmp").write_bytes(text.encode())  # a stopped run leaves the old file
        os.replace(HERE / f"{name}.jsonl.tmp", HERE / f"{name}.jsonl")
        levels = Counter(problem["level"] for problem in part)
        print(f"{name}.jsonl {len(part):,} problems, " + ", ".join(f"{k}: {n}" for k, n in sorted(levels.items())))


if __name__ == "__main__":
    try:
        main()
    except OSError as error:  # a full disk
        print(f"prepare.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nprepare.py: interrupted", file=sys.stderr)
        sys.exit(130)
