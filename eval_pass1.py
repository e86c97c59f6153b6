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
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # torch takes seconds to import: Ctrl-C is one line then as well
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"\neval_pass1.py: interrupted\n"), os._exit(130)))

import torch

from grader import KINDS, extract_answer, is_correct, matches  # noqa: F401  (is_correct: for those who import it here)
from hf import load_adapter, load_model, load_tokenizer, read_json, resolve, write_json
from lora_alpha import GPT, lora_layers
from problems import (PROTOCOLS, Encoding, Protocol, begin_token, chat_for, data_file, decode, draw,
                      encode_prompt, end_tokens, help_prompts, level_name, load_chat, load_tests, read_rows)

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
    if samples == 1 or error == 0:
        return mean, *wilson(mean, N)
    if 0.2 < mean < 0.8:
        return mean, max(0.0, mean - Z * error), min(1.0, mean + Z * error)
    return mean, *wilson(mean, min(mean * (1 - mean) / error**2, N * samples))


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


def auto_batch_size(model: GPT, tokens: int) -> int:
    """As many rows of that many tokens as their keys and values fit half of the free GPU memory, or 2 GiB on a CPU."""
    weight, config = model.model.embed_tokens.weight, model.config
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens * weight.element_size()
    most, room = (256, torch.cuda.mem_get_info()[0] // 2) if weight.device.type == "cuda" else (100, 2**31)
    return max(1, min(most, room // row))


def answers(model: GPT, encoding: Encoding, problems: list[dict], prompts: list[list[int]], cut: str,
            ends: tuple[int, ...], max_new_tokens: int = 256, batch_size: int = 100, samples: int = 1,
            temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
            done: set = frozenset()) -> Iterator[list[dict]]:
    """Completes and grades; yields the records of a batch at a time, but for the (id, sample) pairs that are done.

    A completion ends before an end token, or where it begins a next problem of its own invention: at cut. Batches are
    the same in a run that goes on after a stop, and random numbers are a sample's own, by seed, problem and number."""
    context = model.config.max_position_embeddings
    rows = sorted(((i, n) for i in range(len(problems)) for n in range(samples)), key=lambda row: len(prompts[row[0]]))
    for start in range(0, len(rows), batch_size):
        batch = [row for row in rows[start : start + batch_size] if len(prompts[row[0]]) < context]
        unasked = [row for row in rows[start : start + batch_size] if row not in batch]
        if all((problems[i]["id"], n) in done for i, n in batch + unasked):
            continue
        began = time.time()
        seeds = [f"{seed} {problems[i]['id']} {n}".encode() for i, n in batch]
        generators = [torch.Generator().manual_seed(int(hashlib.sha256(s).hexdigest()[:15], 16)) for s in seeds]
        outputs = model.generate([prompts[i] for i, _ in batch], max_new_tokens, ends, temperature, top_p, generators)
        seconds = (time.time() - began) / max(1, len(batch))
        records = []
        for (i, n), tokens in [*zip(batch, outputs), *((row, None) for row in unasked)]:
            if (problems[i]["id"], n) in done:
                continue
            completion, ended, invented = read_answer(encoding, tokens or [], ends, cut)
            records.append(dict(
                id=problems[i]["id"], sample=n, kind=problems[i]["kind"], level=problems[i]["level"],
                subject=problems[i]["subject"], prompt=decode(encoding, prompts[i]), completion=completion,
                tokens=len(tokens or []), truncated=tokens is not None and not ended and not invented,
                seconds=round(seconds, 4) if tokens is not None else 0.0,
                **graded(completion, problems[i]["answer"], problems[i]["kind"], tokens is not None)))
        yield records


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
    except Exception:  # a mistake of the grader's ends no run: the text is kept, to be graded anew
        return dict(extracted=extracted, gold=gold, correct=False, reason="grader")
    reason = "right" if correct else "wrong" if extracted else "no answer" if asked else "prompt too long"
    return dict(extracted=extracted, gold=gold, correct=correct, reason=reason)


def solve(model: GPT, encoding: Encoding, problems: list[dict], chat=None, max_new_tokens: int = 256,
          progress=None) -> list[dict]:
    """The graded greedy answer to each problem, in the problems' order, asked as training asks."""
    bos = begin_token(encoding, model.config)
    prompts = [encode_prompt(encoding, problem, bos, chat) for problem in problems]
    cut = "\nProblem:" if all(problem.get("form", "problem") == "problem" for problem in problems) else ""
    ends = end_tokens(encoding, model.config, chat is not None)
    records = []
    for batch in answers(model, encoding, problems, prompts, cut, ends, max_new_tokens):
        records += batch
        if progress:
            progress(len(records), so_far(records))
    return sorted(records, key=lambda record: record["id"])


def so_far(records: list[dict]) -> str:
    """For a progress bar: the share that is right among those that are graded."""
    return f"{100 * sum(record['correct'] for record in records) / len(records):.1f}% right"


# ---- Tables ----------------------------------------------------------------------------------------------------------


def by_problem(records: list[dict]) -> dict[int, list[bool]]:
    """{id: [whether each sample is right]}, in the order of the ids."""
    samples = {}
    for record in sorted(records, key=lambda record: (record["id"], record["sample"])):
        samples.setdefault(record["id"], []).append(record["correct"])
    return samples


def pass1(records: list[dict]) -> dict:
    """n problems, their pass@1 with its 95% interval."""
    samples = by_problem(records)
    counts = {len(s) for s in samples.values()}
    if len(counts) > 1:
        raise ValueError(f"problems have {min(counts)} to {max(counts)} answers each: an unfinished run, or a mixture")
    mean, low, high = pass1_interval([sum(s) for s in samples.values()], counts.pop())
    return dict(n=len(samples), pass1=mean, low=low, high=high)


def summarize(records: list[dict], ks: list[int] = ()) -> dict:
    """The figures of one model: pass@1 in all, by level and by subject, and what the answers were like."""
    summary = pass1(records)
    for name in ("level", "subject"):
        groups = sorted({record[name] for record in records})
        if len(groups) > 1:
            summary[name] = {group: pass1([r for r in records if r[name] == group]) for group in groups}
    samples = by_problem(records).values()
    if ks:
        summary["pass_at_k"] = {k: sum(pass_at_k(len(s), sum(s), k) for s in samples) / len(samples) for k in ks}
    seconds = sum(record["seconds"] for record in records)
    return dict(summary, samples=len(records) // len(samples),
                mean_tokens=sum(record["tokens"] for record in records) / len(records),
                no_answer=sum(record["extracted"] is None for record in records) / len(records),
                truncated=sum(record["truncated"] for record in records) / len(records),
                too_long=sum(record["reason"] == "prompt too long" for record in records) / len(records),
                problems_per_s=len(samples) / seconds if seconds else None)


def print_table(columns: dict[str, list[dict]], ks: list[int] = (), details: bool = False) -> None:
    """pass@1 in per cent with its 95% interval: a row a level and a subject, a column a model. The records of each."""
    columns = {printable(name): records for name, records in columns.items()}
    summaries = {name: summarize(records, ks) for name, records in columns.items()}
    first = next(iter(summaries.values()))
    width = max(20, *(len(name) + 2 for name in columns))
    rows = [(group, first[by][group]["n"], [s.get(by, {}).get(group) for s in summaries.values()])
            for by in ("level", "subject") for group in first.get(by, {})]
    rows.append(("all", first["n"], list(summaries.values())))
    left = max(14, *(len(row[0]) + 2 for row in rows))
    print(f"{'pass@1, %':{left}}{'problems':>8}" + "".join(f"{name:>{width}}" for name in columns))
    for group, n, cells in rows:
        texts = [f"{100 * c['pass1']:.1f} [{100 * c['low']:.1f}, {100 * c['high']:.1f}]" if c else "-" for c in cells]
        print(f"{printable(group):{left}}{n:8}" + "".join(f"{text:>{width}}" for text in texts))
    if not details:
        return
    lines = [(f"pass@{k}, %", [f"{100 * s['pass_at_k'][k]:.1f}" for s in summaries.values()]) for k in ks]
    if any(record["kind"] == "choice" for record in next(iter(columns.values()))):
        lines.append(("chance, %", ["25.0"] * len(columns)))
    lines.append(("mean tokens", [f"{s['mean_tokens']:.1f}" for s in summaries.values()]))
    for name in ("no_answer", "truncated", "too_long"):
        if name != "too_long" or any(s[name] for s in summaries.values()):
            lines.append((f"{name.replace('_', ' ')}, %", [f"{100 * s[name]:.1f}" for s in summaries.values()]))
    lines.append(("problems/s", [f"{s['problems_per_s'] or 0:.1f}" for s in summaries.values()]))
    for name, texts in lines:
        print(f"{name:{left + 8}}" + "".join(f"{text:>{width}}" for text in texts))
    test = "McNemar's exact" if first["samples"] == 1 else "sign test's"
    (name, records), *others = columns.items()
    for other, its in others:
        counts = [[sum(s) for s in by_problem(column).values()] for column in (records, its)]
        mean, low, high, p = paired_difference(*counts, first["samples"])
        print(f"{other} - {name}: {100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], paired by problem; "
              f"{test} p = {p:.2g}")


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
        self.given = set()
        return super().parse_known_args(args, namespace)

    def error(self, error: str | Exception):
        if isinstance(error, OSError) and error.filename:
            error = f"{error.filename}: {error.strerror}"
        self.exit(2, f"{self.prog}: {printable(' '.join(str(error).split()))}\n")


def check_paths(**paths) -> None:
    """ValueError for the first flag whose path is not there; a flag that was not given is None."""
    for flag, path in paths.items():
        if path is not None and not Path(path).exists():
            raise ValueError(f"--{flag.replace('_', '-')} {path}: there is no such file or folder")


def plain_output() -> None:
    """Neither characters that the console lacks, bytes that are none, a closed stream nor | head ends the run."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    sys.stdout, sys.stderr = (Lasting(stream or open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr))


class Lasting:
    """A stream whose reader may go: what is printed after that is lost. Each write is flushed."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:  # a closed pipe, a dead terminal
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        return len(text)


class Progress:
    """How far a loop of size steps is: one line redrawn on a terminal, a plain line each tenth in a log file.

    what: is counted. file: stdout or stderr. quiet: seconds in which a log file gets none. first: done before. always:
    a line in a log file, too."""

    def __init__(self, what: str, size: int, file, quiet: float = 0.0, first: int = 0):
        self.what, self.size, self.file, self.start, self.first = what, size, file, time.time(), first
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
                line = f"\r{line[:width]:<{width}}"
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
    what.add_argument("--limit", type=int, metavar="N", help="a random N of the problems, by --seed: a smoke test")
    ask = parser.add_argument_group("how it is asked")
    ask.add_argument("--prompt", metavar="P",
                     help=f"{', '.join(PROTOCOLS)}, or a text with {{problem}} in it; \\n in it is a line feed, but "
                          "in LaTeX's commands (\\neq, \\nu) (default: as train.py asks such data)")
    ask.add_argument("--help-prompts", action="store_true", help="print every named protocol in full, and end")
    ask.add_argument("--few-shot", type=int, metavar="K", help="worked examples first (default: the protocol's)")
    ask.add_argument("--few-shot-from", metavar="FILE", help="where they are from (default: --data's train file)")
    ask.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: the protocol's)")
    ask.add_argument("--samples", type=int, default=1, metavar="N", help="answers to each problem (default: 1)")
    ask.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    ask.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus that is sampled from (default: 1)")
    ask.add_argument("--k", type=int, nargs="+", default=[], metavar="K", help="also pass@k, for k up to --samples")
    ask.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples and of --limit (default: 0)")
    run = parser.add_argument_group("run")
    run.add_argument("--batch-size", default="auto", metavar="N", help="prompts at a time, or auto (default: auto)")
    run.add_argument("--out", metavar="FOLDER", help="for samples and summary; a stopped run goes on from there")
    run.add_argument("--regrade", metavar="FILE", help="grades a samples.jsonl, or any response and gold, anew")
    return parser


def parse_args(argv=None) -> tuple[Parser, argparse.Namespace]:
    """The parser, for errors found later, and the flags, checked each by itself and against each other."""
    parser = make_parser()
    args = parser.parse_args(argv)
    for name, low in dict(limit=1, max_new_tokens=1, samples=1, few_shot=0).items():
        if getattr(args, name) is not None and getattr(args, name) < low:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: want {low} or more")
    graded = {"data", "kind", "limit", "few_shot", "few_shot_from", "k", "batch_size", "out", "regrade"} & parser.given
    if args.ask is not None and graded:
        parser.error(f"--ask QUESTION grades nothing: leave out --{min(graded).replace('_', '-')}")
    if args.ask is not None and not args.ask.strip():
        parser.error("--ask: the question is empty")
    if args.batch_size != "auto" and not (args.batch_size.isdecimal() and int(args.batch_size) > 0):
        parser.error(f"--batch-size {args.batch_size}: want auto, or 1 or more")
    if not (0 <= args.temperature < math.inf and 0 < args.top_p <= 1):
        parser.error(f"--temperature {args.temperature} --top-p {args.top_p}: want 0 or more, and 0 < top-p <= 1")
    if args.samples > 1 and args.temperature == 0:
        parser.error(f"--samples {args.samples} at temperature 0 are all the same: add --temperature, such as 0.8")
    if not all(1 <= k <= args.samples for k in args.k):
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
    found = {"base": read_json(adapter / "adapter_config.json").get("base_model_name_or_path")}
    found |= read_json(adapter / "training.json") if (adapter / "training.json").is_file() else {}
    return {name: found[name] if isinstance(found.get(name), str) else None
            for name in ("base", "base_sha256", "prompt", "system")}


def pick_base(given: str | None, adapters: dict[str, Path]) -> tuple[str, Path]:
    """Name and folder of the base: given, else that of the adapters' training, else data/base. Says what is odd."""
    folder = resolve(given, "--base") if given else None
    trained = {name: training_of(path) for name, path in adapters.items()}
    bases = sorted({training["base"] for training in trained.values() if training["base"]})
    weights, ours = {training["base_sha256"] for training in trained.values()}, str(HERE / "data/base")
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


def pick_data(adapters: dict[str, Path]) -> Path:
    """The data folder of the adapters' runs, by run.json, where it has test problems here; else data/equations."""
    runs, ours = [folder / "run.json" for folder in adapters.values()], HERE / "data/equations"
    named = [*{str(read_json(run).get("data")) for run in runs if run.is_file()}]
    data = Path(named[0]) if len(named) == 1 else ours
    if not data.is_dir() or data.samefile(ours) or not data_file(data, "test").is_file():
        return ours
    print(f"data {data}, as in training; --data gives other")
    return data


def remove_lora(model: GPT) -> None:
    """Takes the adapters off: the base's own layers, whose weights they never touched, are back."""
    for name, layer in lora_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)


class Samples:
    """samples.jsonl of --out: the lines of a run that was stopped, and a line more for each sample, batch by batch."""

    def __init__(self, out: str | None, settings: dict):
        self.settings, self.records = settings, []
        self.path = Path(out, "samples.jsonl") if out is not None else None
        if out is None:
            return
        Path(out).mkdir(parents=True, exist_ok=True)
        if Path(out, "settings.json").exists():
            before = read_json(Path(out, "settings.json"))
            changed = [name for name in settings if before.get(name) != json.loads(json.dumps(settings[name]))]
            if changed:
                raise ValueError(f"--out {out} holds another run ({', '.join(changed)} differ): choose another folder")
        elif any(path.suffix != ".tmp" and path.name[0] != "." for path in Path(out).iterdir()):
            raise ValueError(f"--out {out} holds files that are no run of eval_pass1.py: choose another folder")
        write_json(Path(out, "settings.json"), settings)
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]  # without the line in which the run was stopped
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        found = {}
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                record |= graded(record["completion"], record["gold"], record["kind"],
                                 record["reason"] != "prompt too long")  # by the grader of today
                found.setdefault((record["adapter"], record["id"], record["sample"]), record)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{self.path}, line {number}: no sample of this run; remove the line") from None
        self.records = list(found.values())  # a second process may have written the same sample

    def add(self, records: list[dict]) -> None:
        self.records += records
        if self.path:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(record) + "\n" for record in records))


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


@dataclass
class Asked:
    """What is put to each model: the problems, their prompts as token ids, and how the answers are read."""

    problems: list[dict]
    prompts: list[list[int]]
    protocol: Protocol
    ends: tuple[int, ...]
    max_new_tokens: int
    batch_size: int
    of: int  # problems in the file
    turns: str  # how chat turns are written, in words


def main(argv=None):
    plain_output()
    parser, args = parse_args(argv)
    if args.help_prompts:
        print(help_prompts())
        return
    try:  # everything that a user's mistake can break happens here, before anything is written
        if args.regrade is not None:
            regrade(args)
            return
        adapters = pick_adapters(args)
        folders = {name: folder for name, folder in adapters.items() if folder}
        args.base, base = pick_base(args.base, folders)
        if args.ask is not None:
            ask(args, base, folders)
            return
        args.data = args.data or pick_data(folders)
        model, encoding, asked = load(args, base, folders)
        samples = Samples(args.out, settings_of(args, base, adapters, asked))
    except BrokenPipeError:  # no mistake in the flags
        raise
    except (ValueError, OSError) as error:
        parser.error(error)

    announce(args, asked, model.config.max_position_embeddings)
    columns = {}
    for adapter, folder in adapters.items():
        name = "base" if adapter == "none" and "base" not in adapters else adapter
        columns[name] = evaluate(args, model, encoding, asked, adapter, folder, samples)
    print_table(columns, args.k, details=True)
    if args.out:
        summaries = {name: summarize(records, args.k) for name, records in columns.items()}
        write_json(Path(args.out, "summary.json"), {**samples.settings, "models": summaries})


def pick_adapters(args) -> dict[str, Path | None]:
    """{name: folder} of the adapters to evaluate, each folder once; "none", which has no folder, is the base alone."""
    check_paths(data=args.data, few_shot_from=args.few_shot_from)
    if not args.adapter:
        newest = sorted(Path("out").glob("*/adapter_config.json"), key=lambda path: path.stat().st_mtime)
        return {"none": None, **{str(path.parent): path.parent for path in newest[-1:]}}
    adapters = {}
    for name in args.adapter:
        folder = None if name == "none" else resolve(name, "--adapter").resolve()
        if folder not in adapters.values():
            adapters[str(Path(name))] = folder
    return adapters


def load_base(base: Path, folders: dict[str, Path]) -> tuple[Encoding, GPT]:
    """The base's tokenizer and model, on which each adapter has been tried."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    encoding, model = load_tokenizer(base), load_model(base, dtype, device)
    for folder in folders.values():
        remove_lora(load_adapter(model, folder))
    return encoding, model


def load(args, base: Path, folders: dict[str, Path]) -> tuple[GPT, Encoding, Asked]:
    """The base and its tokenizer, and what it is to be asked."""
    every = load_tests(args.data, args.kind)
    problems = draw(every, args.limit, args.seed)
    protocol = Protocol(args.prompt, problems[0]["kind"], problems[0]["form"])
    protocol.take_examples(every, args.data, args.few_shot, args.few_shot_from)
    max_new_tokens = args.max_new_tokens or protocol.max_new_tokens
    encoding, model = load_base(base, folders)
    chat = (chat_for(problems, base, encoding) if protocol.name == "own" else
            load_chat(base, encoding) if protocol.chat else None)
    turns = ", turns as plain text (no chat template in --base)" if protocol.chat else ""
    turns = f", chat turns ({chat.source})" if chat else turns
    ends = end_tokens(encoding, model.config, bool(chat))
    prompts = [protocol.encode(encoding, p, begin_token(encoding, model.config), chat) for p in problems]
    if not all(prompts):
        raise ValueError(f"--prompt {protocol.name}: a problem's prompt has no token")
    longest = min(model.config.max_position_embeddings, max(map(len, prompts)) + max_new_tokens)
    batch_size = auto_batch_size(model, longest) if args.batch_size == "auto" else int(args.batch_size)
    return model, encoding, Asked(problems, prompts, protocol, ends, max_new_tokens, batch_size, len(every), turns)


def settings_of(args, base: Path, adapters: dict[str, Path | None], asked: Asked) -> dict:
    """All that a stored sample depends on, to tell whether --out goes on with the same run."""
    def digest(values):
        return hashlib.sha256(repr(values).encode()).hexdigest()
    stored = args.out is not None
    return dict(
        base=stored and weights_of(base),
        adapters={name: weights_of(folder) if stored and folder else {} for name, folder in adapters.items()},
        problems=digest([(p["id"], prompt) for p, prompt in zip(asked.problems, asked.prompts)]),
        gold=digest([p["answer"] for p in asked.problems]), kind=asked.problems[0]["kind"], prompt=args.prompt,
        few_shot=len(asked.protocol.examples), max_new_tokens=asked.max_new_tokens, samples=args.samples,
        temperature=args.temperature, top_p=args.top_p, seed=args.seed,
        device="cuda" if torch.cuda.is_available() else "cpu")


def announce(args, asked: Asked, context: int) -> None:
    """The protocol in a line, and what is left out of it."""
    how = "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}, top-p {args.top_p:g}"
    print(f"protocol {asked.protocol.name}{asked.turns}, {len(asked.protocol.examples)}-shot, {how}, {args.samples} "
          f"sample{'s' * (args.samples > 1)} a problem, at most {asked.max_new_tokens:,} new tokens; grader "
          f"{asked.problems[0]['kind']}, exact")
    if len(asked.problems) < asked.of:
        print(f"smoke test: a random {len(asked.problems):,} of {asked.of:,} problems, seed {args.seed}; no result")
    if cramped := sum(len(prompt) + asked.max_new_tokens > context for prompt in asked.prompts):
        over = sum(len(prompt) >= context for prompt in asked.prompts)
        print(f"{cramped:,} of {len(asked.prompts):,} prompts with {asked.max_new_tokens:,} new tokens exceed the "
              f"context of {context:,}: {over:,} are not asked and count as wrong, {cramped - over:,} have less room")
    sys.stdout.flush()


def evaluate(args, model: GPT, encoding, asked: Asked, adapter: str, folder: Path | None, samples) -> list[dict]:
    """The graded records of one adapter, those that --out holds already among them."""
    records = [record for record in samples.records if record["adapter"] == adapter]
    done = {(record["id"], record["sample"]) for record in records}
    progress = Progress(printable("base" if adapter == "none" else adapter), len(asked.prompts) * args.samples,
                        sys.stderr, quiet=10, first=len(records))
    if folder:
        load_adapter(model, folder)
    for batch in answers(model, encoding, asked.problems, asked.prompts, asked.protocol.cut, asked.ends,
                         asked.max_new_tokens, asked.batch_size, args.samples, args.temperature, args.top_p, args.seed,
                         done):
        batch = [{"id": record.pop("id"), "adapter": adapter, **record} for record in batch]
        samples.add(batch)
        records += batch
        progress(len(records), so_far(records))
    remove_lora(model)
    return records


# ---- Ask -------------------------------------------------------------------------------------------------------------


def ask(args, base: Path, folders: dict[str, Path]) -> None:
    """Prints the answers of the base and of each adapter to --ask, or to each line of standard input."""
    encoding, model = load_base(base, folders)
    words = {(training["prompt"], training["system"]) for training in map(training_of, folders.values())}
    (prompt, system), *other = words if words and args.prompt is None else [(args.prompt, None)]
    if other:
        raise ValueError("--ask: the adapters were trained in different words: ask one at a time, or give --prompt")
    protocol = Protocol(prompt, "math", system=system)
    chat = chat_for([], base, encoding, needed=protocol.chat)
    bos, ends = begin_token(encoding, model.config), end_tokens(encoding, model.config, protocol.chat)
    for question in [args.ask] if args.ask != "-" else filter(None, map(str.strip, sys.stdin)):
        if args.ask == "-" and not sys.stdin.isatty():
            print(f"\n> {printable(question)}")
        prompt = protocol.encode(encoding, dict(form="prompt", problem=question), bos, chat)
        for name, folder in {"none": None, **folders}.items():
            if folder:
                load_adapter(model, folder)
            print(f"\n{printable(name) if folder else 'base'}:", flush=True)
            generator = torch.Generator().manual_seed(args.seed % 2**63)
            for _ in range(args.samples):
                answer = Answer(encoding, ends, protocol.cut)
                with contextlib.suppress(StopIteration):
                    model.generate([prompt], args.max_new_tokens or protocol.max_new_tokens, ends, args.temperature,
                                   args.top_p, generator, answer.add)
                answer.show(whole=True)
            remove_lora(model)


class Answer:
    """An answer that is printed, on a terminal as its tokens come."""

    def __init__(self, encoding: Encoding, ends: tuple[int, ...], cut: str):
        self.encoding, self.ends, self.cut, self.tokens, self.shown = encoding, ends, cut, [], 0

    def add(self, _, token: int) -> None:
        """StopIteration where a next problem begins: what follows is not shown."""
        self.tokens.append(token)
        if self.show():
            raise StopIteration

    def show(self, whole: bool = False) -> bool:
        """Prints the text that is new; whole: nothing follows. True where a next problem begins after it."""
        text, ended, invented = read_answer(self.encoding, self.tokens, self.ends, self.cut)
        if not (whole or ended or invented):  # a character may be in two tokens, a next problem may begin
            text = text.rstrip("\ufffd")[: -len(self.cut) or None]
        text = printable(text.lstrip())
        if whole or sys.stdout.isatty():
            end = "\n" if ended or invented else f" [cut off after {len(self.tokens)} tokens]\n"
            print(text[self.shown :], end=end * whole, flush=True)
            self.shown = max(self.shown, len(text))
        return invented


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        os.write(2, b"\neval_pass1.py: interrupted; an evaluation with --out goes on by the same command\n")
        sys.exit(130)
