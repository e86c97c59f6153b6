"""Arithmetic with four options, in GPQA's columns. Writes test.csv (200 questions) and train.csv (200). Seed 1337, 1 s.

The wrong options are usual mistakes: one of method (a carry forgotten, the order of operations ignored, a sign slip,
fractions added top and bottom, a percentage of the wrong base), one off, and both: two pairs, so that the options say
little without the question. No question stands in both files, nor its numbers in another order with the same answer.
tests/test_prepare.py works each answer out anew.
"""

import argparse
import csv
import os
import random
import re
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

HERE = Path(__file__).parent
OPTIONS = ["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]
COLUMNS = ["Record ID", "Question", *OPTIONS, "Explanation", "Subdomain"]
ASK = ["What is {}?", "Evaluate:\n{}", "Worked out, what is {}?"]  # a newline, a comma: CSV must quote them


def addition(rng: random.Random):
    """An expression or a question; [answer, what mistakes of method make of it]; the working. So do the four below."""
    a, b, ones = rng.randint(1, 4), rng.randint(1, 4), rng.randint(2, 9)
    more = rng.randint(10 - ones, 9)
    x, y = 10 * a + ones, 10 * b + more
    working = f"{ones} + {more} = {ones + more}, carry 1.\n{a} + {b} + 1 = {a + b + 1}, so {x + y}."
    return f"{x} + {y}", [x + y, x + y - 10, x + y + 10], working  # the carry forgotten, or taken twice


def order(rng: random.Random):
    a, b, c, sign = rng.randint(2, 30), rng.randint(2, 9), rng.randint(2, 9), rng.choice(["+", "-"])
    if rng.random() < 0.3:  # the bracket ignored, or multiplied into its first number alone
        working = f"{a} + {c} = {a + c}.\n{b} * {a + c} = {b * (a + c)}."
        return f"{b} * ({a} + {c})", [b * (a + c), b * a + c, a + b * c], working
    s = 1 if sign == "+" else -1  # from left to right, or both signs as the first
    working = f"{b} * {c} = {b * c}.\n{a} {sign} {b * c} = {a + s * b * c}."
    return f"{a} {sign} {b} * {c}", [a + s * b * c, (a + s * b) * c, a + s * b + s * c], working


def negative(rng: random.Random):
    a, b = rng.randint(2, 40), rng.randint(2, 40)
    text, plain, answer = rng.choice([(f"-{a} - {b}", f"-({a} + {b})", -a - b), (f"-{a} + {b}", f"{b} - {a}", b - a),
                                      (f"{a} - (-{b})", f"{a} + {b}", a + b), (f"-{a} - (-{b})", f"{b} - {a}", b - a)])
    return text, [answer, a + b, a - b, b - a, -a - b], f"{text} = {plain} = {answer}."


def fractions(rng: random.Random):
    p, q = (Fraction(rng.randint(1, n - 1), n) for n in rng.sample(range(2, 10), 2))
    (a, b), (c, d) = p.as_integer_ratio(), q.as_integer_ratio()
    top = a * d + c * b  # (top, bottom): added top and bottom, only the bottom multiplied, only the top widened
    return (f"{p} + {q}", [(top, b * d), (a + c, b + d), (a + c, b * d), (top, b + d), (top, max(b, d))],
            f"{a * d}/{b * d} + {c * b}/{b * d} = {top}/{b * d}.\nIn lowest terms: {p + q}.")


def percentages(rng: random.Random):
    n, p = rng.choice([5, 10, 20, 25, 30, 40, 50, 60, 75]), rng.randrange(20, 201, 20)
    part = p * n // 100  # no remainder: n is a multiple of 5, p of 20
    wrong_base = [q * (100 - n) // 100 for q in [p + part] if q * n % 100 == 0]  # the percentage of the new price
    return rng.choice([
        (f"What is {n}% of {p}?", [part, p - part, part * 10], f"{p} * {n}/100 = {part}."),
        (f"A coat costs {p} and is sold at {n}% off. What is its new price?", [p - part, part, p - n, p + part],
         f"{n}% of {p} is {part}.\n{p} - {part} = {p - part}."),
        (f"After a rise of {n}%, a price is {p + part}. What was it before?", [p, *wrong_base, p + part - n],
         f"{p + part} is {100 + n}% of the old price.\n{p + part} * 100/{100 + n} = {p}.")])


KINDS = {"Addition with carry": addition, "Order of operations": order, "Negative numbers": negative,
         "Fractions": fractions, "Percentages": percentages}


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                            usage=argparse.SUPPRESS, allow_abbrev=False).parse_args()  # --help writes nothing
    rng, seen, made = random.Random(1337), set(), []
    while len(made) < 400:
        name = list(KINDS)[len(made) % len(KINDS)]
        text, ways, working = KINDS[name](rng)
        pairs = [way if name == "Fractions" else (way, 1) for way in (ways[0], rng.choice(ways[1:]))]
        one = rng.choice([1, -1])
        options = [Fraction(top + off, bottom) for off in (0, one) for top, bottom in pairs]
        same = (name, options[0], *sorted(re.findall(r"\d+", text)))
        if same in seen or len(set(options)) < 4:
            continue
        seen.add(same)
        question = text if text.endswith("?") else rng.choice(ASK).format(text)
        made.append(dict(zip(COLUMNS, [f"choice-{len(made):03}", question, *map(str, options), working, name])))
    files = {"test.csv": made[:200], "train.csv": made[200:]}
    assert all(len({Fraction(row[option]) for option in OPTIONS}) == 4 for row in made), "two options are equal"
    assert all(len(row["Question"]) <= 120 and row["Question"].isascii() for row in made), "a question is too long"
    assert len({row["Question"] for row in made}) == 400, "a question stands twice"
    assert all(sum(row["Subdomain"] == kind for row in rows) == 40 for kind in KINDS for rows in files.values())

    with tempfile.TemporaryDirectory(dir=HERE, suffix=".tmp") as unfinished:  # a stopped run leaves the old files
        for name, rows in files.items():
            with open(Path(unfinished, name), "w", newline="", encoding="ascii") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        for name in files:
            os.replace(Path(unfinished, name), HERE / name)
    print(f"{', '.join(f'{name} {len(rows)} questions' for name, rows in files.items())}, none in both")
    print(f"in each 40 of every kind: {', '.join(KINDS)}\n\n  python eval_pass1.py --data data/choice")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:  # a full disk
        print(f"prepare.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nprepare.py: interrupted", file=sys.stderr)
        sys.exit(130)
