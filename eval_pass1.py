"""pass@1 of a model folder and adapters: statistics → the run → tables → command line.

    python eval_pass1.py                           the base and the newest adapter under out/, on data/equations
    python eval_pass1.py --adapter out/NAME --data FOLDER_OR_FILE --prompt PROTOCOL
    python eval_pass1.py --ask "Solve 3x + 4 = 19."       what the base and the newest adapter answer; - reads questions
    python eval_pass1.py --regrade FILE            grades stored answers anew, without a model

Answers are graded exactly; problems are the unit of every interval (Miller 2024, "Adding Error Bars to Evals").
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

with contextlib.suppress(ImportError):  # Windows has none
    import fcntl

if __name__ == "__main__":  # torch takes seconds to import: Ctrl-C is one line then as well
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"\neval_pass1.py: interrupted\n"), os._exit(130)))

import torch

from grader import KINDS, extract_answer, is_correct, matches  # noqa: F401  (is_correct: for those who import it here)
from hf import load_adapter, load_model, read_json, resolve, write_json
from lora_alpha import GPT, lora_layers
from problems import (PROTOCOLS, Protocol, chat_for, data_file, draw, encode_prompt, help_prompts, level_name,
                      load_tests, read_rows)
from tokens import Encoding, begin_token, decode, end_tokens, load_chat, load_tokenizer

HERE = Path(__file__).resolve().parent

# ---- Statistics ------------------------------------------------------------------------------------------------------

Z = 1.959963984540054  # of the normal distribution, 95% lie within ±Z


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k)/C(n, k): the chance that k of n samples, c of them right, hold a right one (Chen et al. 2021)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n = {n}, c = {c}, k = {k}: want 0 <= c <= n and 1 <= k <= n")
    if k > n - c:
        return 1.0
    few, many = sorted((c, k))  # C(n-c, k)/C(n, k) is the product over i < c of 1 - k/(n-i), and c and k may be swapped
    return -math.expm1(math.fsum(math.log1p(-many / (n - i)) for i in range(few)))


def wilson(mean: float, n: float) -> tuple[float, float]:
    """Wilson's 95% interval (1927) for the share `mean` of n independent trials."""
    middle = (mean + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(mean * (1 - mean) / n + Z * Z / (4 * n * n))
    return max(0.0, middle - half) if mean else 0.0, min(1.0, middle + half) if mean < 1 else 1.0


def pass1_interval(correct: list[int], samples: int = 1) -> tuple[float, float, float]:
    """pass@1 and its 95% interval: (mean, low, high), as fractions. correct[i] of `samples` answers to problem i right.

    One sample each: Wilson's interval. Several: mean ± Z·SE, SE = √(Σ(p_i - mean)²/(N-1)/N); near 0 and 1 Wilson's of
    the mean(1 - mean)/SE² problems of this SE. Checked by test_eval.py::test_the_interval_covers_the_truth."""
    N = len(correct)
    if N == 0 or samples < 1 or not all(0 <= c <= samples for c in correct):
        raise ValueError(f"{N} problems of {samples} samples: want at least one of each, and 0 to {samples} correct")
    mean = sum(correct) / (N * samples)
    error = math.sqrt(sum((c / samples - mean) ** 2 for c in correct) / max(N - 1, 1) / N)
    if samples > 1 and error > 0 and 0.2 < mean < 0.8:
        return mean, max(0.0, mean - Z * error), min(1.0, mean + Z * error)
    return mean, *wilson(mean, N if samples == 1 or error == 0 else min(mean * (1 - mean) / error**2, N * samples))


def paired_difference(first: list[int], other: list[int], samples: int = 1) -> tuple[float, float, float, float]:
    """other's pass@1 minus first's on the same problems: (difference, low, high, p), the first three as fractions.

    The interval is of the differences by problem (Miller 2024); for one sample each Agresti and Min's (2005), with half
    a problem more in each of four cells. p is McNemar's exact one, two-sided."""
    N = len(first)
    differences = [(b - a) / samples for a, b in zip(first, other, strict=True)]
    up, down, mean = sum(d > 0 for d in differences), sum(d < 0 for d in differences), sum(differences) / N
    middle, error = mean, math.sqrt(sum((d - mean) ** 2 for d in differences) / max(N - 1, 1) / N)
    if samples == 1:
        middle = (up - down) / (N + 2)
        error = math.sqrt((up + down + 1) / (N + 2) - middle**2) / math.sqrt(N + 2)
    tail = sum(math.comb(up + down, i) for i in range(min(up, down) + 1))
    low, high = max(-1.0, middle - Z * error), min(1.0, middle + Z * error)
    return mean, low, high, min(1.0, 2 * tail / 2 ** (up + down))


# ---- The run ---------------------------------------------------------------------------------------------------------


def answers(model: GPT, encoding: Encoding, problems: list[dict], prompts: list[list[int]], cut: str,
            ends: tuple[int, ...], max_new_tokens: int = 256, batch_size: int = 100, samples: int = 1,
            temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, adapter: str = "none",
            records: list[dict] = (), keep=None, progress=None) -> list[dict]:
    """Completes and grades: the records of all samples, those given among them, which are not made again.

    A completion ends before an end token, or where it begins a next problem of its own invention: at cut. Batches are
    the same in a run that goes on after a stop, and random numbers are a sample's own, by seed, problem and number.
    After each batch keep(its records) is called, and progress(how many there are, the share that is right in words)."""
    records, done = list(records), {(record["id"], record["sample"]) for record in records}
    rows = sorted(((i, n) for i in range(len(problems)) for n in range(samples)), key=lambda row: len(prompts[row[0]]))
    for batch in (rows[start : start + batch_size] for start in range(0, len(rows), batch_size)):
        if all((problems[i]["id"], n) in done for i, n in batch):
            continue
        began, context, new = time.time(), model.config.max_position_embeddings, []
        seeds = [f"{seed} {problems[i]['id']} {n}".encode() for i, n in batch]
        generators = [torch.Generator().manual_seed(int(hashlib.sha256(s).hexdigest()[:15], 16)) for s in seeds]
        outputs = model.generate([prompts[i][:context] for i, _ in batch], max_new_tokens, ends, temperature, top_p,
                                 generators)  # nothing for what fills the context
        seconds = round((time.time() - began) / len(batch), 4)
        for (i, n), tokens in zip(batch, outputs):
            problem, asked = problems[i], len(prompts[i]) < context
            completion, ended, invented = read_answer(encoding, tokens, ends, cut)
            if (problem["id"], n) not in done:
                new.append(dict(
                    id=problem["id"], adapter=adapter, sample=n, kind=problem["kind"], level=problem["level"],
                    subject=problem["subject"], prompt=decode(encoding, prompts[i]), completion=completion,
                    tokens=len(tokens), truncated=asked and not ended and not invented, seconds=seconds,
                    **graded(completion, problem["answer"], problem["kind"], asked)))
        records += new
        if keep:
            keep(new)
        if progress:
            progress(len(records), f"{100 * sum(record['correct'] for record in records) / len(records):.1f}% right")
    return records


def read_answer(encoding: Encoding, tokens: list[int], ends: tuple[int, ...], cut: str) -> tuple[str, bool, bool]:
    """The text before an end token and before cut; whether the one ends it, and whether the other does."""
    ended = bool(tokens) and tokens[-1] in ends
    text = decode(encoding, tokens[:-1] if ended else tokens)
    invented = bool(cut) and cut in text
    return text.partition(cut)[0] if invented else text, ended, invented


def graded(completion: str, gold: str, kind: str, asked: bool = True) -> dict:
    """What the grader says of a completion; asked is False where the prompt was longer than the context."""
    extracted = None
    try:
        extracted = extract_answer(completion, kind) if asked else None
        correct = matches(extracted, gold, kind)
        reason = "right" if correct else "wrong" if extracted else "no answer" if asked else "prompt too long"
    except Exception:  # a mistake of the grader's ends no run: the text is kept, to be graded anew
        correct, reason = False, "grader"
    return dict(extracted=extracted, gold=gold, correct=correct, reason=reason)


def solve(model: GPT, encoding: Encoding, problems: list[dict], chat=None, max_new_tokens: int = 256,
          progress=None) -> list[dict]:
    """The graded greedy answer to each problem, in the order of their ids, asked as training asks."""
    bos, ends = begin_token(encoding, model.config), end_tokens(encoding, model.config, chat is not None)
    prompts = [encode_prompt(encoding, problem, bos, chat) for problem in problems]
    cut = "\nProblem:" if all(problem.get("form", "problem") == "problem" for problem in problems) else ""
    records = answers(model, encoding, problems, prompts, cut, ends, max_new_tokens, progress=progress)
    return sorted(records, key=lambda record: record["id"])


# ---- Tables ----------------------------------------------------------------------------------------------------------


def by_problem(records: list[dict]) -> list[list[bool]]:
    """Whether each sample is right: a list a problem, in the order of the ids."""
    samples = {}
    for record in sorted(records, key=lambda record: (record["id"], record["sample"])):
        samples.setdefault(record["id"], []).append(record["correct"])
    return list(samples.values())


def pass1(records: list[dict]) -> dict:
    """n problems, their pass@1 with its 95% interval."""
    samples = by_problem(records)
    least, most = min(map(len, samples)), max(map(len, samples))
    if least < most:
        raise ValueError(f"problems have {least} to {most} answers each: an unfinished run, or a mixture")
    mean, low, high = pass1_interval([sum(s) for s in samples], most)
    return dict(n=len(samples), pass1=mean, low=low, high=high)


def summarize(records: list[dict], ks: list[int] = ()) -> dict:
    """The figures of one model: pass@1 in all, by level and by subject, and what the answers were like."""
    summary, samples, N = pass1(records), by_problem(records), len(records)
    for name in ("level", "subject"):
        groups = sorted({record[name] for record in records})
        if len(groups) > 1:
            summary[name] = {group: pass1([r for r in records if r[name] == group]) for group in groups}
    if ks:
        summary["pass_at_k"] = {k: sum(pass_at_k(len(s), sum(s), k) for s in samples) / len(samples) for k in ks}
    seconds = sum(record["seconds"] for record in records)
    return dict(summary, samples=N // len(samples), mean_tokens=sum(record["tokens"] for record in records) / N,
                no_answer=sum(record["extracted"] is None for record in records) / N,
                truncated=sum(record["truncated"] for record in records) / N,
                too_long=sum(record["reason"] == "prompt too long" for record in records) / N,
                problems_per_s=len(samples) / seconds if seconds else None)


def print_table(columns: dict[str, list[dict]], ks: list[int] = (), details: bool = False) -> None:
    """pass@1 in per cent with its 95% interval: a row a level and a subject, a column a model. The records of each."""
    columns = {printable(name): records for name, records in columns.items()}
    first, *_ = summaries = [summarize(records, ks) for records in columns.values()]
    rows = [(printable(group), first[by][group]["n"], [s.get(by, {}).get(group) for s in summaries])
            for by in ("level", "subject") for group in first.get(by, {})]
    left, width = max([14, *(len(row[0]) + 2 for row in rows)]), max([20, *(len(name) + 2 for name in columns)])

    def line(name, count, cells):
        print(f"{name:{left}}{count:>8}" + "".join(f"{cell:>{width}}" for cell in cells))

    line("pass@1, %", "problems", columns)
    for name, n, cells in [*rows, ("all", first["n"], summaries)]:
        line(name, n, [f"{100 * c['pass1']:.1f} [{100 * c['low']:.1f}, {100 * c['high']:.1f}]" if c else "-"
                       for c in cells])
    if not details:
        return
    for k in ks:
        line(f"pass@{k}, %", "", [f"{100 * s['pass_at_k'][k]:.1f}" for s in summaries])
    if any(record["kind"] == "choice" for record in next(iter(columns.values()))):
        line("chance, %", "", ["25.0"] * len(columns))
    for name, key, factor in (("mean tokens", "mean_tokens", 1), ("no answer, %", "no_answer", 100),
                              ("truncated, %", "truncated", 100), ("too long, %", "too_long", 100),
                              ("problems/s", "problems_per_s", 1)):
        if key != "too_long" or any(s[key] for s in summaries):
            line(name, "", [f"{factor * (s[key] or 0):.1f}" for s in summaries])
    (name, *others), (counts, *theirs) = columns, [[sum(s) for s in by_problem(r)] for r in columns.values()]
    for other, its in zip(others, theirs):
        mean, low, high, p = paired_difference(counts, its, first["samples"])
        print(f"{other} - {name}: {100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], paired by problem; "
              f"{'McNemar' if first['samples'] == 1 else 'sign test'}'s exact p = {p:.2g}")


# ---- The command line ------------------------------------------------------------------------------------------------


class Once(argparse.Action):
    """Stores a flag's value, and refuses the flag where it stands twice."""

    def __call__(self, parser, namespace, values, option=None):
        if self.dest in parser.given:
            parser.error(f"{option} is given twice: give it once")
        parser.given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line on stderr and exit status 2, without the usage above it."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.register("action", None, Once)  # for every flag that has a value, and no action of its own

    def parse_known_args(self, args=None, namespace=None):
        self.given, args = set(), sys.argv[1:] if args is None else args
        if bare := [word for word in args if word.partition("=")[2] == "--"]:  # of which argparse makes an empty list
            self.error(f"{bare[0]}: that is no value")
        return super().parse_known_args(args, namespace)

    def error(self, error: str | Exception):
        if isinstance(error, OSError) and error.filename:
            error = f"{error.filename}: {error.strerror}"
        self.exit(2, printable(f"{self.prog}: {' '.join(str(error).split())}") + "\n")


def within(low: float, high: float = 10**9, kind: type = int):
    """The type of a flag that takes an int, or a float, from low to high."""
    def read(text: str):
        with contextlib.suppress(ValueError):
            if low <= kind(text) <= high:  # NaN is not
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text[:40]}: want {kind.__name__} from {low:g} to {high:g}")
    return read


def check_paths(**paths) -> None:
    """ValueError for the first flag whose path is not there; a flag that was not given is None."""
    for flag, path in paths.items():
        if path is not None and not Path(path).exists():
            raise ValueError(f"--{flag.replace('_', '-')} {path}: there is no such file or folder")


def plain_output() -> None:
    """Neither characters that the console lacks, bytes that are none, a closed stream nor | head ends the run."""
    sys.stdin = sys.stdin or open(os.devnull)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    sys.stdout, sys.stderr = (Lasting(stream or open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr))


class Lasting:
    """A stream that control characters of data do not steer, and whose reader may go: what is printed then is lost."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            self.stream.write(text if text == "\r" else printable(text))  # a bar's, which is written alone
            self.stream.flush()
        except OSError:  # a closed pipe, a dead terminal
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        return len(text)


class Progress:
    """How far a loop of size steps is: one line redrawn on a terminal, a plain line each tenth in a log file.

    file: stdout or stderr. quiet: seconds in which a log file gets none. first: done before. always: a line there."""

    def __init__(self, what: str, size: int, file, quiet: float = 0.0, first: int = 0):
        self.what, self.size, self.file, self.start, self.first = printable(what), size, file, time.time(), first
        self.quiet, self.terminal, self.shown = quiet, file.isatty(), 10 * first // size
        self.full, self.empty = "━─" if (file.encoding or "").lower().startswith("utf") else "#."

    def __call__(self, done: int, text: str = "", always: bool = False) -> None:
        tenth, last, spent = 10 * done // self.size, done == self.size, time.time() - self.start
        if self.terminal or spent >= self.quiet and (always or last or tenth > self.shown):
            left = spent / max(1, done - self.first) * (self.size - done)
            bar = self.full * (20 * done // self.size)
            line = (f"{self.what} {done:>{len(str(self.size))}}/{self.size} {bar:{self.empty}<20} "
                    f"{left // 60:.0f}:{left % 60:02.0f} left  {text}").rstrip()
            if self.terminal:  # a longer line would be broken, and no longer redrawn
                width = shutil.get_terminal_size().columns - 1
                line = f"{line[:width]:<{width}}"
                print(end="\r", file=self.file)
            print(line, end="" if self.terminal and not last else "\n", file=self.file, flush=True)
        self.shown = tenth


def printable(text: str) -> str:
    """The text with control characters as their escapes: what a model wrote must not steer the terminal."""
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs") else repr(c)[1:-1] for c in text)


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    what = parser.add_argument_group("what is evaluated")
    what.add_argument("--base", metavar="MODEL", help="folder or hub name (default: the adapter's, else data/base)")
    what.add_argument("--adapter", metavar="FOLDER", action="append", help="PEFT folder or hub name, or none for the "
                      "base alone; may be given several times (default: none and the newest under out/)")
    what.add_argument("--data", metavar="PATH", help="folder with test.jsonl or test.csv, or a JSONL or CSV file, of a "
                      "kind in data/README.md (default: the adapter's folder, else data/equations)")
    what.add_argument("--kind", choices=KINDS, help="how answers are graded (default: told by the fields)")
    what.add_argument("--ask", metavar="QUESTION", help="what base and adapters answer to it, asked in the words of "
                      "the training; - reads questions from standard input, one a line")
    what.add_argument("--limit", type=within(1), metavar="N", help="a random N of the problems: a smoke test")
    ask = parser.add_argument_group("how it is asked")
    ask.add_argument("--prompt", metavar="P",
                     help=f"{', '.join(PROTOCOLS)}, or a text with {{problem}} in it; \\n in it is a line feed, but "
                          "in LaTeX's commands (\\neq, \\nu) (default: as train.py asks such data)")
    ask.add_argument("--help-prompts", action="version", version=help_prompts(), help="print every protocol, and end")
    ask.add_argument("--few-shot", type=within(0), metavar="K", help="worked examples first (default: the protocol's)")
    ask.add_argument("--few-shot-from", metavar="FILE", help="where they are from (default: --data's train file)")
    ask.add_argument("--max-new-tokens", type=within(1), metavar="N", help="longest answer (default: the protocol's)")
    ask.add_argument("--samples", type=within(1, 10**4), default=1, metavar="N", help="answers a problem (default: 1)")
    ask.add_argument("--temperature", type=within(0, 1e9, float), default=0.0, metavar="T", help="(default: 0, greedy)")
    ask.add_argument("--top-p", type=within(1e-9, 1, float), default=1.0, metavar="P", help="nucleus (default: 1)")
    ask.add_argument("--k", type=within(1), nargs="+", default=[], metavar="K", help="also pass@k, up to --samples")
    ask.add_argument("--seed", type=within(0, math.inf), default=0, metavar="N", help="of samples, limit (default: 0)")
    run = parser.add_argument_group("run")
    run.add_argument("--batch-size", type=lambda text: text if text == "auto" else within(1)(text), default="auto",
                     metavar="N", help="prompts at a time, or auto (default: auto)")
    run.add_argument("--out", metavar="FOLDER", help="for samples and summary; a stopped run goes on from there")
    run.add_argument("--regrade", metavar="FILE", help="grades a samples.jsonl, or any response and gold, anew")
    return parser


def parse_args(argv=None) -> tuple[Parser, argparse.Namespace]:
    """The parser, for errors found later, and the flags, checked against each other."""
    parser = make_parser()
    args = parser.parse_args(argv)
    graded = {"data", "kind", "limit", "few_shot", "few_shot_from", "k", "batch_size", "out", "regrade"} & parser.given
    if args.ask is not None and graded:
        parser.error(f"--ask QUESTION grades nothing: leave out --{min(graded).replace('_', '-')}")
    if args.ask is not None and not args.ask.strip():
        parser.error("--ask: the question is empty")
    if args.samples > 1 and args.temperature == 0:
        parser.error(f"--samples {args.samples} at temperature 0 are all the same: add --temperature, such as 0.8")
    if max(args.k, default=1) > args.samples:
        parser.error(f"--k {' '.join(map(str, args.k))}: each must be from 1 to --samples, {args.samples}")
    return parser, args


def sha256_of(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def base_sha256(folder: str | Path) -> str:
    """What `cat model*.safetensors | sha256sum` prints in a base's folder."""
    return sha256_of(sorted(Path(folder).glob("model*.safetensors")) or sorted(Path(folder).glob("*.safetensors")))


def weights_of(folder: str | Path) -> dict[str, str]:
    """{file: sha256} of what makes a model or an adapter: weights, configs, tokenizer."""
    return {path.name: sha256_of([path]) for path in sorted(Path(folder).glob("*")) if path.name != "run.json"
            and path.suffix in (".safetensors", ".json", ".tiktoken", ".model", ".jinja")}


def training_of(adapter: Path) -> dict[str, str | None]:
    """base, base_sha256, prompt and system of an adapter's training.json; the base is else adapter_config.json's."""
    path, found = adapter / "training.json", read_json(adapter / "adapter_config.json")
    found = {"base": found.get("base_model_name_or_path")} | (read_json(path) if path.is_file() else {})
    return {name: found[name] if isinstance(found.get(name), str) else None
            for name in ("base", "base_sha256", "prompt", "system")}


def pick_base(given: str | None, adapters: dict[str, Path | None]) -> tuple[str, Path]:
    """Name and folder of the base: given, else that of the adapters' training, else data/base. Says what is odd."""
    folder, ours = resolve(given, "--base") if given else None, str(HERE / "data/base")
    trained = {name: training_of(path) for name, path in adapters.items() if path}
    bases = sorted({training["base"] for training in trained.values()} - {None})
    weights = {training["base_sha256"] for training in trained.values()}
    if not given and len(bases) > 1 and (len(weights) > 1 or None in weights):
        raise ValueError(f"the adapters were trained on different bases, {', '.join(bases)}: give one with --base")
    base = given or (bases or [ours])[0]
    if not given and os.path.isabs(base) and not Path(base).exists() and weights <= {None, base_sha256(ours)}:
        base = ours  # the path is of another machine
    folder = folder or resolve(base, "--base is not given, and the adapter was trained on")
    digest = base_sha256(folder) if weights - {None} else None
    for name, training in trained.items():
        own, known = training["base"] or ("" if given else "an unnamed base"), training["base_sha256"]
        if known not in (None, digest):
            print(f"warning: {name} was trained on {own}, with other weights than those of {base}")
        elif own and own != base and not (Path(own).exists() and Path(own).samefile(folder)):
            print(f"{name} was trained on {own}, here it is on {base}" + ", with the same weights" * bool(known))
    if not given and not folder.samefile(ours):
        print(f"base {base}, as in training; --base gives another")
    return base, folder


def pick_data(adapters: dict[str, Path | None]) -> Path:
    """The data folder of the adapters' runs, by run.json, where it has test problems here; else data/equations."""
    runs, ours = [folder / "run.json" for folder in adapters.values() if folder], HERE / "data/equations"
    named = {str(read_json(run).get("data")) for run in runs if run.is_file()}
    data = Path(named.pop()) if len(named) == 1 else ours
    if not data.is_dir() or data.samefile(ours) or not data_file(data, "test").is_file():
        return ours
    print(f"data {data}, as in training; --data gives other")
    return data


def pick_adapters(given: list[str] | None) -> dict[str, Path | None]:
    """{name: folder} of the adapters to evaluate, each folder once; "none", which has no folder, is the base alone."""
    if not given:
        newest = sorted(Path("out").glob("*/adapter_config.json"), key=lambda path: path.stat().st_mtime)
        return {"none": None, **{str(path.parent): path.parent for path in newest[-1:]}}
    adapters = {}
    for name in given:
        folder = None if name == "none" else resolve(name, "--adapter").resolve()
        if folder not in adapters.values():
            adapters[str(Path(name))] = folder
    return adapters


def load_base(base: Path, adapters: dict[str, Path | None]) -> tuple[Encoding, GPT]:
    """The base's tokenizer and model, on which each adapter has been tried."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    encoding, model = load_tokenizer(base), load_model(base, dtype, device)
    for _ in adapted(model, adapters):
        pass
    return encoding, model


def adapted(model: GPT, adapters: dict[str, Path | None]) -> Iterator[str]:
    """Each adapter's name, while it is on the model; then the base's own layers, which it never touched, are back."""
    for adapter, folder in adapters.items():
        if folder:
            load_adapter(model, folder)
        yield adapter
        for name, layer in lora_layers(model).items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.base)


class Samples:
    """samples.jsonl of --out: the lines of a run that was stopped, and a line more for each sample, batch by batch.

    A line ends in a check of itself and the run's settings: one that was edited, or is of another run, is refused."""

    def __init__(self, out: Path, settings: dict):
        self.path, self.settings, self.records, stored = out / "samples.jsonl", settings, {}, out / "settings.json"
        out.mkdir(parents=True, exist_ok=True)
        others = [path for path in out.iterdir() if path != self.path and path.suffix != ".tmp" and path.name[0] != "."]
        if others and not stored.exists():
            raise ValueError(f"--out {out} holds files that are no run of eval_pass1.py: choose another folder")
        if self.path.is_symlink() or self.path.exists() and not self.path.is_file():
            raise ValueError(f"{self.path} is no plain file: remove it, or choose another folder")
        self.file = open(self.path, "ab+", buffering=0)
        with contextlib.suppress(NameError):  # the kernel frees it when the process ends, however it ends
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"--out {out} belongs to another process, which is alive: wait for its end, or choose "
                                 "another folder") from None
        before = read_json(stored) if stored.exists() else settings
        if changed := [name for name in settings if before.get(name) != settings[name]]:
            raise ValueError(f"--out {out} holds another run ({', '.join(changed)} differ): choose another folder")
        *lines, cut = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            text = line.rpartition(b', "check": ')[0].decode(errors="replace")
            record = json.loads(text + "}") if line == self.sealed(text) else {}
            key = tuple(record.get(name) for name in ("adapter", "id", "sample"))
            if not record or key in self.records:
                what = "stands there twice" if record else "is not as this run wrote it"
                raise ValueError(f"{self.path}, line {number}: it {what}; remove the line: its sample is made anew")
            asked = record["reason"] != "prompt too long"  # graded by the grader of today
            self.records[key] = record | graded(record["completion"], record["gold"], record["kind"], asked)
        write_json(stored, settings)
        self.file.truncate(self.path.stat().st_size - len(cut))  # the line in which the run was stopped

    def sealed(self, text: str) -> bytes:
        """The line of a record whose JSON is text and a brace."""
        digest = hashlib.sha256(f"{json.dumps(self.settings)} {text}".encode()).hexdigest()
        return f'{text}, "check": "{digest[:16]}"}}'.encode()

    def add(self, records: list[dict]) -> None:
        lines = b"".join(self.sealed(json.dumps(record)[:-1]) + b"\n" for record in records)
        while lines:  # a disk that is nearly full takes a part
            lines = lines[self.file.write(lines) :]
        os.fsync(self.file.fileno())


class Run:
    """What is put to each model: the problems, their prompts as token ids, and how the answers are read."""

    def __init__(self, args, base: Path, adapters: dict[str, Path | None]):
        self.args, self.base, self.adapters, every = args, base, adapters, load_tests(args.data, args.kind)
        self.problems, self.of = draw(every, args.limit, args.seed), len(every)
        self.kind, form = self.problems[0]["kind"], self.problems[0]["form"]
        self.protocol = protocol = Protocol(args.prompt, self.kind, form)
        protocol.take_examples(every, args.data, args.few_shot, args.few_shot_from)
        self.max_new_tokens = args.max_new_tokens or protocol.max_new_tokens
        self.encoding, self.model = load_base(base, adapters)
        chat = (chat_for(self.problems, base, self.encoding) if protocol.name == "own" else
                load_chat(base, self.encoding) if protocol.chat else None)
        self.turns = ", turns as plain text (no chat template in --base)" if protocol.chat else ""
        self.turns = f", chat turns ({chat.source})" if chat else self.turns
        config = self.model.config
        self.ends, bos = end_tokens(self.encoding, config, bool(chat)), begin_token(self.encoding, config)
        self.prompts = [protocol.encode(self.encoding, problem, bos, chat) for problem in self.problems]
        if not all(self.prompts):
            raise ValueError(f"--prompt {protocol.name}: a problem's prompt has no token")
        self.batch_size = args.batch_size
        if args.batch_size == "auto":  # as many as have their keys and values in half of the free GPU memory, or 2 GiB
            longest = min(config.max_position_embeddings, max(map(len, self.prompts)) + self.max_new_tokens)
            weight = self.model.model.embed_tokens.weight
            row = config.num_hidden_layers * config.num_key_value_heads * config.head_dim * longest * 2
            most, room = (256, torch.cuda.mem_get_info()[0] // 2) if weight.is_cuda else (100, 2**31)
            self.batch_size = max(1, min(most, room // (row * weight.element_size())))

    def settings(self) -> dict:
        """All that a stored sample depends on, to tell whether --out goes on with the same run."""
        flags = {name: getattr(self.args, name) for name in ("prompt", "samples", "temperature", "top_p", "seed")}
        problems = repr([(p["id"], p["answer"], prompt) for p, prompt in zip(self.problems, self.prompts)])
        return dict(
            base=weights_of(self.base), problems=hashlib.sha256(problems.encode("utf-8", "replace")).hexdigest(),
            adapters={name: weights_of(folder) if folder else {} for name, folder in self.adapters.items()}, **flags,
            kind=self.kind, few_shot=len(self.protocol.examples), max_new_tokens=self.max_new_tokens,
            device=self.model.lm_head.weight.device.type)

    def announce(self) -> None:
        """The protocol in a line, and what is left out of it."""
        args, context, lengths = self.args, self.model.config.max_position_embeddings, [*map(len, self.prompts)]
        how = "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}, top-p {args.top_p:g}"
        print(f"protocol {self.protocol.name}{self.turns}, {len(self.protocol.examples)}-shot, {how}, "
              f"{args.samples} sample{'s' * (args.samples > 1)} a problem, at most {self.max_new_tokens:,} new tokens; "
              f"grader {self.kind}, exact")
        if len(lengths) < self.of:
            print(f"smoke test: a random {len(lengths):,} of {self.of:,} problems, seed {args.seed}; no result")
        if cramped := sum(length + self.max_new_tokens > context for length in lengths):
            over = sum(length >= context for length in lengths)
            print(f"{cramped:,} of {len(lengths):,} prompts with {self.max_new_tokens:,} new tokens exceed the context "
                  f"of {context:,}: {over:,} are not asked and count as wrong, {cramped - over:,} have less room")

    def records(self, adapter: str, samples: Samples | None) -> list[dict]:
        """The graded records of the adapter that is on the model, those that --out holds already among them."""
        args, kept = self.args, [r for key, r in samples.records.items() if key[0] == adapter] if samples else []
        progress = Progress("base" if adapter == "none" else adapter, len(self.prompts) * args.samples,
                            sys.stderr, quiet=10, first=len(kept))
        return answers(self.model, self.encoding, self.problems, self.prompts, self.protocol.cut, self.ends,
                       self.max_new_tokens, self.batch_size, args.samples, args.temperature, args.top_p, args.seed,
                       adapter, kept, samples.add if samples else None, progress)


def main(argv=None):
    plain_output()
    parser, args = parse_args(argv)
    try:  # everything that a user's mistake can break happens here, before anything is written
        if args.regrade is not None:
            return regrade(args)
        check_paths(data=args.data, few_shot_from=args.few_shot_from)
        adapters = pick_adapters(args.adapter)
        args.base, base = pick_base(args.base, adapters)
        if args.ask is not None:
            return ask(args, base, {"none": None, **adapters})
        args.data = args.data or pick_data(adapters)
        run = Run(args, base, adapters)
        samples = Samples(Path(args.out), run.settings()) if args.out is not None else None
    except (ValueError, OSError) as error:
        parser.error(error)
    try:
        run.announce()
        columns = {"base" if name == "none" and "base" not in adapters else name: run.records(name, samples)
                   for name in adapted(run.model, adapters)}
        print_table(columns, args.k, details=True)
        if samples:
            summaries = {name: summarize(records, args.k) for name, records in columns.items()}
            write_json(Path(args.out, "summary.json"), {**samples.settings, "models": summaries})
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:  # a full disk: no mistake of ours, no traceback
        kept = f"{samples.path} is kept, and the same command goes on from there" if samples else "nothing was kept"
        parser.error(f"{str(error) or 'no memory is left'}; {kept}")


def regrade(args) -> None:
    """Grades a stored file anew and says what has changed. Rows with the same id are answers to one problem."""
    columns, changed, judged = {}, [], 0
    for number, (where, row) in enumerate(read_rows(Path(args.regrade))):
        text, gold = row.get("completion", row.get("response")), row.get("gold")
        if not isinstance(text, str) or not isinstance(gold, str):
            raise ValueError(f"{where}: want a completion or response and its gold answer, as strings")
        kind = args.kind or next((kind for kind in KINDS if kind in str(row.get("kind"))), "math")
        verdict = graded(text, gold, kind, row.get("reason") != "prompt too long")
        before = row.get("correct", row.get("label"))
        judged += isinstance(before, bool)
        if isinstance(before, bool) and before != verdict["correct"]:
            changed.append(f"  {where}: {'right' if before else 'wrong'} → {verdict['reason']}, "
                           f"{verdict['extracted']!r:.60} against {gold!r:.60}")
        problem = next((row[name] for name in ("id", "problem_id", "unique_id", "test_index") if name in row), number)
        column = columns.setdefault(str(row.get("adapter", "responses")), [])
        column.append(dict(id=str(problem), sample=len(column), kind=kind, level=level_name(row.get("level")),
                           subject=str(row.get("subject") or "all"), tokens=0, truncated=False, seconds=0.0, **verdict))
    kinds = sorted({record["kind"] for column in columns.values() for record in column})
    print(f"regraded {args.regrade}; grader {', '.join(kinds)}, exact")
    print_table({"base" if name == "none" else name: column for name, column in columns.items()})
    if judged:
        print(f"{judged:,} had a verdict; {len(changed):,} have another now", *changed[:20], sep="\n")


def ask(args, base: Path, adapters: dict[str, Path | None]) -> None:
    """Prints the answers of the base and of each adapter to --ask, or to each line of standard input."""
    encoding, model = load_base(base, adapters)
    words = {(training["prompt"], training["system"]) for training in map(training_of, filter(None, adapters.values()))}
    (prompt, system), *other = words if words and args.prompt is None else [(args.prompt, None)]
    if other:
        raise ValueError("--ask: the adapters were trained in different words: ask one at a time, or give --prompt")
    protocol = Protocol(prompt, "math", system=system)
    chat = chat_for([], base, encoding, needed=protocol.chat)
    bos, ends = begin_token(encoding, model.config), end_tokens(encoding, model.config, protocol.chat)
    for question in [args.ask] if args.ask != "-" else filter(None, map(str.strip, sys.stdin)):
        if args.ask == "-" and not sys.stdin.isatty():
            print(f"\n> {question}")
        prompt = protocol.encode(encoding, dict(form="prompt", problem=question), bos, chat)
        for name in adapted(model, adapters):
            print(f"\n{name if adapters[name] else 'base'}:")
            generator = torch.Generator().manual_seed(args.seed % 2**63)
            for _ in range(args.samples):
                answer = Answer(encoding, ends, protocol.cut)
                with contextlib.suppress(StopIteration):
                    model.generate([prompt], args.max_new_tokens or protocol.max_new_tokens, ends, args.temperature,
                                   args.top_p, generator, answer)
                answer()


class Answer:
    """An answer that is printed, on a terminal as its tokens come."""

    def __init__(self, encoding: Encoding, ends: tuple[int, ...], cut: str):
        self.encoding, self.ends, self.cut, self.tokens, self.shown = encoding, ends, cut, [], 0

    def __call__(self, *token: int) -> None:
        """Prints what is new with (row, token), or without any the rest. StopIteration where a next problem begins."""
        self.tokens += token[1:]
        text, ended, invented = read_answer(self.encoding, self.tokens, self.ends, self.cut)
        if token and not ended and not invented:  # a character may be in two tokens, a next problem may begin
            text = text.rstrip("\ufffd")[: -len(self.cut) or None]
        text = printable(text.lstrip())
        if not token or sys.stdout.isatty():
            end = "\n" if ended or invented else f" [cut off after {len(self.tokens)} tokens]\n"
            print(text[self.shown :], end="" if token else end, flush=True)
            self.shown = max(self.shown, len(text))
        if token and invented:
            raise StopIteration


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        os.write(2, b"\neval_pass1.py: interrupted; an evaluation with --out goes on by the same command\n")
        sys.exit(130)
