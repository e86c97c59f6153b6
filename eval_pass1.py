"""pass@1 of a model folder and an adapter: statistics → grader → problems and prompts → the run.

    python eval_pass1.py                           the base and the newest adapter under out/, on data/equations
    python eval_pass1.py --adapter out/NAME --data FOLDER_OR_FILE

A problem counts as solved if the one greedy answer equals the gold answer. The interval takes problems as the sampling
unit (Miller 2024, "Adding Error Bars to Evals").
"""

import argparse
import json
import math
import re
import sys
import time
from fractions import Fraction
from pathlib import Path

import tiktoken
import torch

from hf import load_adapter, load_model, load_tokenizer
from lora_alpha import GPT, GPTConfig

HERE = Path(__file__).resolve().parent

# ---- Statistics ------------------------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k)/C(n, k): the chance that k of n samples, c of them right, hold a right one (Chen et al. 2021)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n = {n}, c = {c}, k = {k}: want 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.prod((n - c - i) / (n - i) for i in range(min(k, n - c + 1)))


def pass1_interval(correct: list[int], samples: int = 1) -> tuple[float, float, float]:
    """pass@1 and its 95% interval: (mean, low, high), as fractions. correct[i] of `samples` answers to problem i right.

    One sample a problem: Wilson's interval. Several: mean ± 1.96·√(Σ(p_i - mean)²/(N-1)/N), problems as the unit.
    """
    N = len(correct)
    if N == 0 or samples < 1 or not all(0 <= c <= samples for c in correct):
        raise ValueError(f"{N} problems of {samples} samples: want at least one of each, and 0 to {samples} correct")
    mean, z = sum(correct) / (N * samples), 1.959963984540054
    if samples == 1:
        middle = (mean + z * z / (2 * N)) / (1 + z * z / N)
        half = z / (1 + z * z / N) * math.sqrt(mean * (1 - mean) / N + z * z / (4 * N * N))
    else:
        middle, half = mean, z * math.sqrt(sum((c / samples - mean) ** 2 for c in correct) / max(N - 1, 1) / N)
    return mean, max(0.0, middle - half), min(1.0, middle + half)


# ---- Grader ----------------------------------------------------------------------------------------------------------


def last_box(text: str) -> str | None:
    """The contents of the last \\boxed{} with its braces balanced; None where there is none or it is cut off."""
    start = text.rfind("\\boxed{")
    depth = 0
    for i in range(start + 6, len(text)) if start >= 0 else ():
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 7 : i]
    return None


def extract_answer(response: str, kind: str = "math") -> str | None:
    """The final answer in a response, or None.

    kind "math": the last \\boxed{}, else what follows the last "answer is".
    kind "gsm8k": the last box, else what follows the last "####", else the last "answer is", else the last number.
    """
    if "\\boxed{" in response:
        return last_box(response)
    marks = ["####", "answer is"] if kind == "gsm8k" else ["answer is"]
    for mark in marks:
        if mark in response:
            return response.rpartition(mark)[2].strip().partition("\n")[0].strip(" :").removesuffix(".") or None
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", response) if kind == "gsm8k" else []
    return numbers[-1] if numbers else None


def exact_number(text: str) -> Fraction | None:
    """The rational that an answer such as -3, 1,234, 0.5, 3/4 or \\frac{3}{4} states, exactly; else None."""
    text = re.sub(r"[\s$]|\\[,!;]|\\left|\\right", "", text).removesuffix(".").replace("\\dfrac", "\\frac")
    text = re.sub(r"^(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}$", r"\1\2/\3", text).replace("--", "")
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    if not re.fullmatch(r"-?\d{1,4000}(\.\d{1,4000}|/-?\d{1,4000})?", text):
        return None
    top, _, bottom = text.partition("/")
    return Fraction(top) / Fraction(bottom or 1) if Fraction(bottom or 1) else None


def is_correct(response: str, gold: str, kind: str = "math") -> bool:
    """Whether the response's answer equals the gold one: as exact rationals, else letter for letter without blanks."""
    answer = extract_answer(response, kind)
    if answer is None:
        return False
    left, right = exact_number(answer), exact_number(gold)
    if left is not None and right is not None:
        return left == right
    return re.sub(r"\s", "", answer) == re.sub(r"\s", "", gold)


# ---- Problems and prompts --------------------------------------------------------------------------------------------

PROMPT = "Problem: {problem}\nSolution:"


def load_problems(path: str | Path) -> list[dict]:
    """Problems of a JSONL file in MATH's fields (problem, solution, answer) or GSM8K's (question, answer with ####).

    Each has problem, solution, answer (None where no gold answer is known), level and kind. Blank lines are passed
    over. ValueError names file and line.
    """
    problems = []
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): U+2028 inside a string ends no line
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error})") from None
        if not isinstance(raw, dict):
            raise ValueError(f"{where}: not a JSON object")
        if "question" in raw and "problem" not in raw:
            kind, problem, solution = "gsm8k", raw["question"], raw.get("answer")
            answer = solution.rpartition("####")[2].strip() if "####" in str(solution) else None
        else:
            kind, problem, solution = "math", raw.get("problem"), raw.get("solution")
            answer = raw.get("answer")
            if answer is None and isinstance(solution, str):
                answer = last_box(solution)
        for name, value in (("problem", problem), ("solution", solution), ("answer", "" if answer is None else answer)):
            if not isinstance(value, str):
                raise ValueError(f"{where}: no text for {name!r}; want MATH's problem, solution (and answer), "
                                 "or GSM8K's question and answer")
        problems.append(dict(problem=problem, solution=solution, answer=answer, kind=kind,
                             level=str(raw.get("level", "all"))))
    if not problems:
        raise ValueError(f"{path}: holds no problem")
    return problems


def end_tokens(encoding: tiktoken.Encoding, config: GPTConfig) -> tuple[int, ...]:
    """The tokens that end an answer: the model's, else the tokenizer's <|endoftext|>; training teaches the first.

    Raises ValueError where there is none, or where model and tokenizer do not belong together.
    """
    ends = config.eos_token_id
    if not ends and "<|endoftext|>" in encoding.special_tokens_set:
        ends = (encoding.eot_token,)
    if not ends:
        raise ValueError("no token ends an answer: set eos_token_id in config.json, or <|endoftext|> in spec.json")
    if max(encoding.max_token_value, *ends) >= config.vocab_size:
        raise ValueError(f"the tokenizer has ids up to {max(encoding.max_token_value, *ends)}, the model only "
                         f"{config.vocab_size} of them: they do not belong together")
    return ends


def encode_prompt(encoding: tiktoken.Encoding, problem: dict, bos: int | None = None) -> list[int]:
    """The prompt's tokens, the same in training and evaluation. Special tokens in a problem's text are just text."""
    return [bos] * (bos is not None) + encoding.encode_ordinary(PROMPT.format(problem=problem["problem"]))


def encode_example(encoding: tiktoken.Encoding, problem: dict, end: int, bos: int | None = None):
    """(prompt ids, answer ids): encoded apart, so that no token spans the border; the end token closes the answer."""
    return encode_prompt(encoding, problem, bos), [*encoding.encode_ordinary(f" {problem['solution']}"), end]


def decode(encoding: tiktoken.Encoding, tokens: list[int]) -> str:
    """Text of the tokens. Models have more ids than their tokenizer has tokens: such an id decodes to nothing."""
    pieces = []
    for token in tokens:
        try:
            pieces.append(encoding.decode_single_token_bytes(token))
        except KeyError:
            continue
    return b"".join(pieces).decode("utf-8", errors="replace")


# ---- The run ---------------------------------------------------------------------------------------------------------


def solve(model: GPT, encoding: tiktoken.Encoding, problems: list[dict], max_new_tokens: int = 256,
          batch_size: int = 100) -> list[str | None]:
    """The greedy answer to each problem, without the end token; None where the prompt leaves no room for one.

    Problems are batched by length.
    """
    config, ends = model.config, end_tokens(encoding, model.config)
    prompts = [encode_prompt(encoding, problem, config.bos_token_id) for problem in problems]
    fits = [i for i, prompt in enumerate(prompts) if len(prompt) < config.max_position_embeddings]
    fits.sort(key=lambda i: len(prompts[i]))
    answers = [None] * len(problems)
    for start in range(0, len(fits), batch_size):
        batch = fits[start : start + batch_size]
        for i, tokens in zip(batch, model.generate([prompts[i] for i in batch], max_new_tokens, ends)):
            if tokens and tokens[-1] in ends:
                tokens = tokens[:-1]
            # A problem that a run-on model invents after its answer is not graded.
            answers[i] = decode(encoding, tokens).partition("\nProblem:")[0]
    return answers


def grade(answers: list[str | None], problems: list[dict]) -> list[int]:
    """1 for each right answer, 0 for a wrong or missing one. Every problem must have a gold answer."""
    return [int(a is not None and is_correct(a, p["answer"], p["kind"])) for a, p in zip(answers, problems)]


def by_level(problems: list[dict], *columns: list[int]) -> list[tuple[str, int, list[tuple[float, float, float]]]]:
    """(level, number of problems, pass1_interval of each column of grades), a row a level and one for all."""
    levels = sorted({problem["level"] for problem in problems})
    table = []
    for level in [*levels, "all levels"] if len(levels) > 1 else ["all levels"]:
        chosen = [i for i, problem in enumerate(problems) if level in (problem["level"], "all levels")]
        table.append((level, len(chosen), [pass1_interval([column[i] for i in chosen]) for column in columns]))
    return table


def print_table(problems: list[dict], columns: dict[str, list[int]]) -> None:
    """pass@1 in per cent with its 95% interval, a row a level, a column a model."""
    width = max(20, *(len(name) + 2 for name in columns))
    print(f"{'pass@1, %':14}{'problems':>8}" + "".join(f"{name:>{width}}" for name in columns))
    for level, count, cells in by_level(problems, *columns.values()):
        texts = [f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for mean, low, high in cells]
        print(f"{level:14}{count:8}" + "".join(f"{text:>{width}}" for text in texts))


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line on stderr and exit status 2, without the usage above it."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def plain_output() -> None:
    """Characters that the console's encoding lacks are replaced instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def main():
    plain_output()
    parser = Parser(description=__doc__)
    parser.add_argument("--base", metavar="FOLDER", default=HERE / "data/base",
                        help="model folder (default: data/base)")
    parser.add_argument("--adapter", metavar="FOLDER", help="PEFT adapter folder (default: the newest under out/)")
    parser.add_argument("--data", metavar="PATH", default=HERE / "data/equations",
                        help="folder with test.jsonl, or a JSONL file (default: data/equations)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N problems only")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    parser.add_argument("--batch-size", type=int, default=100, metavar="N", help="prompts at a time (default: 100)")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        for name in ("limit", "max_new_tokens", "batch_size"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: want 1 or more")
        newest = sorted(Path("out").glob("*/adapter_config.json"), key=lambda path: path.stat().st_mtime)
        adapter = Path(args.adapter) if args.adapter else newest[-1].parent if newest else None
        data = Path(args.data)
        problems = load_problems(data / "test.jsonl" if data.is_dir() else data)[: args.limit]
        if not all(problem["answer"] for problem in problems):
            raise ValueError(f"{data}: a problem has no answer to grade against")
        encoding, model = load_tokenizer(args.base), load_model(args.base, dtype, device)
        columns = {"base": None, **({f"with {adapter}": None} if adapter else {})}
        for name in columns:
            start = time.time()
            if name != "base":
                load_adapter(model, adapter)
            columns[name] = grade(solve(model, encoding, problems, args.max_new_tokens, args.batch_size), problems)
            print(f"{name}: {len(problems)} problems in {time.time() - start:.1f} s")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print_table(problems, columns)


if __name__ == "__main__":
    main()
