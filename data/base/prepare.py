"""The small base model, from scratch. Writes config.json, generation_config.json, model.safetensors (bfloat16),
base.tiktoken and spec.json. Seed 1337, 40 minutes on 2 cores. With --measure: measures the base that is here. With
--preset gpu: a wider, deeper base for experiments/gpu.py instead, with the same tokenizer, into out/base-gpu.

Its corpus is made here: worked arithmetic and algebra in MATH's wording, a problem, steps, a final \\boxed{}. It
teaches what solving an equation is built of (signed arithmetic, like terms, brackets, fractions), and no equation is
ever solved in it: that is left for data/equations.
"""

import base64
import itertools
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

if __name__ == "__main__":  # torch takes seconds to import: Ctrl-C is one line then as well
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"\nprepare.py: interrupted\n"), os._exit(130)))

import tiktoken
import torch
from tiktoken._educational import bpe_train

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository, so that this runs as a script

from data.equations.prepare import bracket, join, linear, nonzero, signed  # noqa: E402
from eval_pass1 import Parser, pass1, plain_output, solve, within  # noqa: E402
from hf import copy_tokenizer, load_model, save_model, write_json  # noqa: E402
from lora_alpha import GPT, GPTConfig, evaluate, train  # noqa: E402
from problems import load_problems  # noqa: E402
from tokens import load_tokenizer  # noqa: E402

SEED = 1337
ROW = 256  # tokens a training row: whole problems one after the other
VOCABULARY = 512
PRESETS = {"small": dict(steps=5000, lr=2e-3, width=256, layers=4, batch_size=16),
           "gpu": dict(steps=2500, lr=1e-3, width=1024, layers=6, batch_size=32)}
# Digits one by one, as Llama 2 and Qwen do: arithmetic then has columns to carry between.
PATTERN = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def frac(q: Fraction) -> str:
    if q.denominator == 1:
        return str(q.numerator)
    return f"{'-' if q < 0 else ''}\\frac{{{abs(q.numerator)}}}{{{q.denominator}}}"


# The kinds of problem. Each returns the problem, the steps of its solution, and the answer.


def add(rng):
    a, b = small_pair(rng)
    left, total = rng.choice([(join(a, b), a + b), (join(a, b), a + b), (f"{a} + {signed(b)}", a + b),
                              (f"{a} - {signed(b)}", a - b)])
    ask = rng.choice(["Compute ${}$.", "What is ${}$?", "Find the value of ${}$."]).format(left)
    return ask, f"We have ${left} = {total}$.", total


def small_pair(rng):
    size = rng.choice([20, 50, 99])
    return rng.randint(-size, size), rng.randint(-size, size)


def multiply(rng):
    a, b = nonzero(rng, -12, 12), nonzero(rng, -20, 20)
    left = rng.choice([f"{a} \\cdot {signed(b)}", f"{a} \\times {signed(b)}"])
    return rng.choice([f"Compute ${left}$.", f"What is ${left}$?"]), f"We have ${left} = {a * b}$.", a * b


def divide(rng):
    b, q = nonzero(rng, -14, 14), rng.randint(-20, 20)
    left = rng.choice([f"\\frac{{{b * q}}}{{{b}}}", f"{b * q} \\div {signed(b)}"])
    ask = rng.choice([f"Compute ${left}$.", f"Simplify ${left}$."])
    return ask, f"Since ${b} \\cdot {signed(q)} = {b * q}$, we have ${left} = {q}$.", q


def order_of_operations(rng):
    a, b, c = rng.randint(2, 9), nonzero(rng, -9, 12), nonzero(rng, -20, 20)
    if rng.random() < 0.5:
        result = c + a * b
        return (f"Evaluate ${c} + {a} \\cdot {signed(b)}$.",
                f"First, ${a} \\cdot {signed(b)} = {a * b}$. Then ${join(c, a * b)} = {result}$.", result)
    result = a * (b + c)
    return (f"Evaluate ${a}({join(b, c)})$.",
            f"First, ${join(b, c)} = {b + c}$. Then ${a} \\cdot {signed(b + c)} = {result}$.", result)


def like_terms(rng):
    x = unknown(rng)
    a, c = nonzero(rng, -12, 15), nonzero(rng, -12, 15)
    b, d = rng.randint(-40, 40), rng.choice([0, rng.randint(-40, 40)])
    left, result = join(linear(a, b, x), linear(c, d, x)), linear(a + c, b + d, x)
    ask = rng.choice([f"Simplify ${left}$.", f"Combine like terms: ${left}$."])
    return ask, f"Combining like terms gives ${result}$.", result


def expand(rng):
    x, k = unknown(rng), rng.choice([-1, 1, 1]) * rng.randint(2, 9)
    a, b = rng.choice([1, 1, 1, 2, 3, 4]), nonzero(rng, -12, 12)
    left, result = bracket(k, a, b, x), linear(k * a, k * b, x)
    ask = rng.choice([f"Expand ${left}$.", f"Write ${left}$ without brackets."])
    return ask, f"Expanding the bracket gives ${result}$.", result


def expand_two(rng):
    x, k, m = unknown(rng), rng.randint(2, 9), rng.randint(2, 9)
    a, b = nonzero(rng, -9, 9), nonzero(rng, -9, 9)
    middle, result = join(linear(k, k * a, x), linear(m, m * b, x)), linear(k + m, k * a + m * b, x)
    return (f"Expand and simplify ${bracket(k, 1, a, x)} + {bracket(m, 1, b, x)}$.",
            f"Expanding the brackets gives ${middle}$. Combining like terms gives ${result}$.", result)


def add_to_expression(rng):
    """What is done to each side of an equation, without the equation."""
    x, a, b = unknown(rng), nonzero(rng, -12, 12), rng.randint(-50, 50)
    p, q = rng.choice([(0, nonzero(rng, -50, 50)), (0, b or 1), (nonzero(rng, -12, 12), 0), (a, 0),
                       (nonzero(rng, -12, 12), rng.randint(-40, 40))])
    before, change = linear(a, b, x), linear(p, q, x)
    if rng.random() < 0.5:
        after = linear(a + p, b + q, x)
        return f"Add ${change}$ to ${before}$.", f"Adding ${change}$ to ${before}$ gives ${after}$.", after
    after = linear(a - p, b - q, x)
    return f"Subtract ${change}$ from ${before}$.", f"Subtracting ${change}$ from ${before}$ gives ${after}$.", after


def multiply_expression(rng):
    x, k = unknown(rng), rng.choice([-1, 1]) * rng.randint(2, 9)
    a, b = nonzero(rng, -9, 9), rng.choice([0, rng.randint(-12, 12)])
    small, large = linear(a, b, x), linear(k * a, k * b, x)
    if rng.random() < 0.4:
        return f"Multiply ${small}$ by ${k}$.", f"Multiplying ${small}$ by ${k}$ gives ${large}$.", large
    return f"Divide ${large}$ by ${k}$.", f"Dividing ${large}$ by ${k}$ gives ${small}$.", small


def fraction_of_expression(rng):
    x, k, a, b = unknown(rng), rng.randint(2, 9), nonzero(rng, -9, 9), rng.randint(-12, 12)
    result = linear(a, b, x)
    if rng.random() < 0.5:
        return (f"Simplify $\\frac{{{linear(k * a, k * b, x)}}}{{{k}}}$.",
                f"Dividing each term by ${k}$ gives ${result}$.", result)
    return (f"Simplify ${k} \\cdot \\frac{{{result}}}{{{k}}}$.",
            f"The factors ${k}$ cancel, which leaves ${result}$.", result)


def substitute(rng):
    x, a, b, n = unknown(rng), nonzero(rng, -9, 9), nonzero(rng, -40, 40), rng.randint(-12, 12)
    value, result = linear(a, b, x), a * n + b
    ask = rng.choice([f"Evaluate ${value}$ when ${x} = {n}$.", f"What is the value of ${value}$ at ${x} = {n}$?",
                      f"Let $f({x}) = {value}$. What is $f({n})$?"])
    return ask, f"First, ${a} \\cdot {signed(n)} = {a * n}$. Then ${join(a * n, b)} = {result}$.", result


def simplify_fraction(rng):
    k, a, b = rng.randint(2, 9), nonzero(rng, -9, 9), rng.randint(2, 9)
    result = frac(Fraction(a, b))
    return (f"Simplify $\\frac{{{k * a}}}{{{k * b}}}$.",
            f"Dividing both by ${k * math.gcd(a, b)}$ gives ${result}$.", result)


def add_fractions(rng):
    a, b, c, d, sign = rng.randint(1, 5), rng.randint(2, 6), rng.randint(1, 5), rng.randint(2, 6), rng.choice("+-")
    m, result = math.lcm(b, d), frac(Fraction(a, b) + Fraction(c, d) * (1 if sign == "+" else -1))
    left = f"\\frac{{{a}}}{{{b}}} {sign} \\frac{{{c}}}{{{d}}}"
    same = f"\\frac{{{a * m // b}}}{{{m}}} {sign} \\frac{{{c * m // d}}}{{{m}}}"
    return f"Compute ${left}$.", f"With the common denominator ${m}$, ${left} = {same} = {result}$.", result


def percent(rng):
    p, n = rng.choice([5, 10, 20, 25, 30, 40, 50, 60, 75]), 20 * rng.randint(1, 10)
    result = frac(Fraction(p * n, 100))
    return f"What is ${p}\\%$ of ${n}$?", f"We have $\\frac{{{p}}}{{100}} \\cdot {n} = {result}$.", result


def remainder(rng):
    b, q = rng.randint(3, 12), rng.randint(1, 15)
    r = rng.randrange(b)
    n = b * q + r
    return f"What is the remainder when ${n}$ is divided by ${b}$?", f"We have ${n} = {b} \\cdot {q} + {r}$.", r


def average(rng):
    ns = [rng.randint(1, 30) for _ in range(rng.randint(2, 3))]
    result = frac(Fraction(sum(ns), len(ns)))
    return (f"Find the average of ${', '.join(map(str, ns))}$.",
            f"The sum is ${' + '.join(map(str, ns))} = {sum(ns)}$. Dividing by ${len(ns)}$ gives ${result}$.", result)


def sequence(rng):
    a, d = rng.randint(-30, 40), nonzero(rng, -12, 12)
    result = a + 4 * d
    return (f"What is the next term of the sequence ${a}, {a + d}, {a + 2 * d}, {a + 3 * d}, \\ldots$?",
            f"Each term is ${d}$ more than the one before, so the next is ${join(a + 3 * d, d)} = {result}$.", result)


def rectangle(rng):
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    ask = f"The sides of a rectangle are ${a}$ and ${b}$. What is its "
    if rng.random() < 0.5:
        return ask + "area?", f"The area is ${a} \\cdot {b} = {a * b}$.", a * b
    return (ask + "perimeter?", f"Both sides together are ${a} + {b} = {a + b}$. "
            f"The perimeter is $2 \\cdot {a + b} = {2 * (a + b)}$.", 2 * (a + b))


def powers(rng):
    a, n = rng.randint(2, 9), rng.randint(2, 3)
    product = " \\cdot ".join([str(a)] * n)
    return f"Compute ${a}^{n}$.", f"We have ${a}^{n} = {product} = {a**n}$.", a**n


def compare(rng):
    a, b = rng.randint(-99, 99), rng.randint(-99, 99)
    return (f"Which is larger, ${a}$ or ${b}$?",
            f"Since ${a} - {signed(b)} = {a - b}$, the larger one is ${max(a, b)}$.", max(a, b))


def story(rng):
    name = rng.choice(["Anna", "Ben", "Carla", "David", "Ella", "Farid", "Grace"])
    thing = rng.choice(["apples", "coins", "books", "cards", "stamps", "pens"])
    a, b, c = rng.randint(2, 12), rng.randint(2, 12), rng.randint(1, 20)
    result = a * b + c
    return (f"{name} has ${a}$ boxes of ${b}$ {thing} each and finds ${c}$ more. How many {thing} does {name} have?",
            f"The boxes hold ${a} \\cdot {b} = {a * b}$ {thing}. With ${c}$ more there are ${a * b} + {c} = {result}$.",
            result)


def unknown(rng):
    return rng.choice("xxxyzntkmpab")


def sums(rng):
    """Several sums in one problem: arithmetic at three times the density of one problem a sum."""
    pairs = [small_pair(rng) for _ in range(rng.randint(4, 7))]
    worked = ", ".join(f"${join(a, b)} = {a + b}$" for a, b in pairs)
    return (f"Compute {', '.join(f'${join(a, b)}$' for a, b in pairs)}.", f"We have {worked}.",
            ", ".join(str(a + b) for a, b in pairs))


def quotients(rng):
    pairs = [(nonzero(rng, -14, 14), rng.randint(-12, 12)) for _ in range(rng.randint(3, 5))]
    lefts = [f"\\frac{{{b * q}}}{{{b}}}" for b, q in pairs]
    worked = ", ".join(f"${left} = {q}$" for left, (_, q) in zip(lefts, pairs))
    return (f"Simplify {', '.join(f'${left}$' for left in lefts)}.", f"We have {worked}.",
            ", ".join(str(q) for _, q in pairs))


def assignment(rng):
    """A name for a number: nothing is to be solved for."""
    x = unknown(rng)
    if rng.random() < 0.6:
        a, b = small_pair(rng)
        left, value = join(a, b), a + b
    else:
        b, value = nonzero(rng, -14, 14), rng.randint(-12, 12)
        left = f"\\frac{{{b * value}}}{{{b}}}"
    ask = rng.choice([f"Let ${x} = {left}$. Compute ${x}$.", f"Compute ${x} = {left}$."])
    return ask, f"This gives ${x} = {left} = {value}$.", value


def two_assignments(rng):
    x, y = rng.sample("xyzntkmpab", 2)
    b, q = nonzero(rng, -12, 12), rng.randint(-12, 12)
    second = rng.randint(-40, 40)
    first = b * q - second
    return (f"Let ${x} = {join(first, second)}$ and ${y} = \\frac{{{x}}}{{{b}}}$. Compute ${y}$.",
            f"Adding gives ${x} = {join(first, second)} = {b * q}$. "
            f"Dividing by ${b}$ gives ${y} = \\frac{{{b * q}}}{{{b}}} = {q}$.", q)


# How often each kind comes: mostly what a step of algebra is made of.
KINDS = {sums: 9, quotients: 4, assignment: 6, two_assignments: 5, add: 3, multiply: 3, divide: 2,
         order_of_operations: 2, like_terms: 4, expand: 4, expand_two: 4, add_to_expression: 7,
         multiply_expression: 3, fraction_of_expression: 2, substitute: 2, simplify_fraction: 1, add_fractions: 1,
         percent: 1, remainder: 1, average: 1, sequence: 1, rectangle: 1, powers: 1, compare: 1, story: 1}


def corpus(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Problems and solutions without end."""
    while True:
        for kind in rng.choices(list(KINDS), list(KINDS.values()), k=1000):
            problem, steps, answer = kind(rng)
            yield problem, f"{steps} The answer is $\\boxed{{{answer}}}$."


def text(problem: str, solution: str) -> str:
    return f"Problem: {problem}\nSolution: {solution}"


def learn_tokenizer(sample: str, folder: Path) -> None:
    """Byte-level BPE from a sample of the corpus, as a rank file, with the end token after the ranks."""
    ranks = bpe_train(sample, VOCABULARY - 1, PATTERN, visualise=None)
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (folder / "base.tiktoken").write_bytes(b"".join(lines))
    write_json(folder / "spec.json", {"pat_str": PATTERN, "special_tokens": {"<|endoftext|>": len(ranks)}})


def rows(problems: Iterator[tuple[str, str]], encoding: tiktoken.Encoding, batch_size: int):
    """Batches (idx, targets) of ROW tokens, each row filled with whole problems, the next token as target."""
    end, queue = encoding.eot_token, []
    while True:
        idx, targets = torch.zeros(batch_size, ROW, dtype=torch.long), torch.full((batch_size, ROW), -100)
        for row in range(batch_size):
            tokens = []
            while len(tokens) <= ROW:
                tokens += queue
                queue = [*encoding.encode_ordinary(text(*next(problems))), end]
                if len(tokens) + len(queue) > ROW + 1:
                    break
            idx[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            targets[row, : len(tokens) - 1] = torch.tensor(tokens[1:])
        yield idx, targets


def val_batches(encoding: tiktoken.Encoding) -> list:
    return list(itertools.islice(rows(corpus(random.Random(SEED + 2)), encoding, 16), 8))


def pretrain(steps: int, lr: float, folder: Path, width: int, layers: int, batch_size: int = 16) -> None:
    """Writes a model to the folder, whose tokenizer is there. width: of the residual stream, a multiple of 64."""
    encoding = load_tokenizer(folder)
    config = GPTConfig(vocab_size=VOCABULARY, hidden_size=width, intermediate_size=16 * math.ceil(width / 6),
                       num_hidden_layers=layers, num_attention_heads=width // 32, num_key_value_heads=width // 64,
                       tie_word_embeddings=True, eos_token_id=(encoding.eot_token,))
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT(config).to(device)
    start = time.time()

    def log(row):
        if row["step"] % 50 == 0 or row["val_loss"]:
            val_loss = f"  val {row['val_loss']:.4f}" if row["val_loss"] else ""
            print(f"step {row['step']}/{steps}  loss {row['loss']:.4f}{val_loss}  "
                  f"{row['tokens_per_s']:,.0f} tok/s  {time.time() - start:.0f} s", flush=True)

    train(model, rows(corpus(random.Random(SEED)), encoding, batch_size), steps, lr, warmup=100, betas=(0.9, 0.95),
          weight_decay=0.1, grad_clip=1.0, val_batches=val_batches(encoding), eval_every=500, log=log,
          autocast=torch.bfloat16 if device == "cuda" else None)
    save_model(model.to(torch.bfloat16), folder)


def measure(folder: Path) -> None:
    """The figures of the model card: parameters, loss, and pass@1 on 200 fresh problems of each kind."""
    model = load_model(folder, torch.float32, "cuda" if torch.cuda.is_available() else "cpu")
    encoding = load_tokenizer(folder)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, validation loss "
          f"{evaluate(model, val_batches(encoding)):.4f}")
    rng = random.Random(SEED + 3)
    for kind in KINDS:
        made = [kind(rng) for _ in range(200)]
        problems = [dict(id=i, problem=problem, answer=str(answer), kind="math", level="all", subject="all")
                    for i, (problem, _, answer) in enumerate(made)]
        share = pass1(solve(model, encoding, problems))["pass1"]
        print(f"| {kind.__name__.replace('_', ' ')} | {made[0][0]} | {100 * share:.1f}% |")
    problems = load_problems(HERE.parent / "equations/test.jsonl")
    share = pass1(solve(model, encoding, problems))["pass1"]
    print(f"| data/equations, never shown | {problems[0]['problem']} | {100 * share:.1f}% |")


def main():
    plain_output()
    parser = Parser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="small",
                        help="small: 4 layers of width 256; gpu: 6 layers of width 1024 (default: small)")
    parser.add_argument("--steps", type=within(1),
                        help="updates (default: 5000 of 16 rows of 256 tokens; gpu: 2500 of 32)")
    parser.add_argument("--lr", type=within(0, 1e30, float), help="peak learning rate (default: 2e-3; gpu: 1e-3)")
    parser.add_argument("--measure", action="store_true", help="train nothing, measure the base that is there")
    args = parser.parse_args()

    given = {name: value for name in ("steps", "lr") if (value := getattr(args, name)) is not None}
    home = HERE if args.preset == "small" else HERE.parents[1] / "out/base-gpu"
    if not args.measure:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as folder:  # a run that is stopped leaves the base as it was
            if args.preset == "small":
                sample = corpus(random.Random(SEED + 1))
                learn_tokenizer("\n".join(text(*next(sample)) for _ in range(2000)), Path(folder))
            else:
                copy_tokenizer(HERE, folder)
            pretrain(folder=Path(folder), **PRESETS[args.preset] | given)
            for path in Path(folder).iterdir():
                os.replace(path, home / path.name)
    measure(home)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("\nprepare.py: interrupted", file=sys.stderr)
        sys.exit(130)
