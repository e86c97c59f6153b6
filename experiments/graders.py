"""The grader beside Math-Verify 0.9.0 on labelled answers: verdicts as labelled, and milliseconds of CPU time a row.

    pip install math-verify==0.9.0
    python experiments/graders.py --data FOLDER       minutes on one core; writes nothing but a table, to stdout

The files are model outputs with a verdict each (tests/grading_notes.md says where they are from and where we differ),
and the test cases of other graders. Each grader is called as its authors would: ours by is_correct; Math-Verify with
its defaults, the gold answer between dollar signs. A row that raises, or is given up after five seconds, is wrong.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from grader import is_correct  # noqa: E402

VERSION = "0.9.0"
# What is measured: file, kind of problem, of which source (all rows if empty). Of the test cases, the pairs of answers:
# Hendrycks's are MATH's own rule; MARIO_EVAL's and simple-evals' contradict it in places (10% is 0.1 as well, lists
# have an order). Math-Verify's own are left out: in them the gold answer, too, is text to extract from.
SETS = [("MATH: Qwen2.5-Math's example", "math_qwen", "math", ""),
        ("MATH: MathCoder-L-7B", "math_mathcoder", "math", ""),
        ("test cases of hendrycks/math", "pairs", "math", "answer_pair:hendrycks"),
        ("test cases of MARIO_EVAL", "pairs", "math", "answer_pair:mario"),
        ("test cases of simple-evals", "pairs", "math", "answer_pair:simple_evals"),
        ("GSM8K: ToRA-70B", "gsm8k_tora", "gsm8k", ""), ("GSM8K: OpenAI's four", "gsm8k_openai", "gsm8k", "")]


def rows_of(folder: Path, name: str, source: str) -> list[dict]:
    """The rows of a file but the ambiguous ones; the answer of a pair in a box."""
    lines = (folder / f"grader_labelled_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"].startswith(source) and not row.get("ambiguous")]
    if name == "pairs":
        rows = [{**row, "response": f"\\boxed{{{row['response']}}}"} for row in rows]
    return rows


def math_verify() -> Callable[[str, str, str], bool]:
    """Math-Verify's verdict, with is_correct's arguments."""
    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # a line for each time-out
    return lambda response, gold, kind: verify(parse(f"${gold}$"), parse(response))


def measured(verdict: Callable[[str, str, str], bool], rows: list[dict], kind: str) -> tuple[int, float]:
    """How many rows are decided as they are labelled, and the milliseconds of CPU time a row."""
    start, right = time.process_time(), 0
    for row in rows:
        try:
            right += bool(verdict(row["response"], row["gold"], kind)) == row["label"]
        except Exception:  # whatever another grader raises
            right += not row["label"]
    return right, 1000 * (time.process_time() - start) / len(rows)


def table(folder: Path, other: Callable[[str, str, str], bool], sets=SETS) -> str:
    lines = ["| | rows | ours | Math-Verify | ours, ms | Math-Verify, ms |", "|---|---|---|---|---|---|"]
    for name, file, kind, source in sets:
        rows = rows_of(folder, file, source)
        (ours, our_time), (theirs, their_time) = (measured(verdict, rows, kind) for verdict in (is_correct, other))
        lines.append(f"| {name} | {len(rows):,} | {ours:,} | {theirs:,} | {our_time:.2f} | {their_time:.2f} |")
    return "\n".join(lines)


def main(flags: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="graders.py", allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/real", metavar="FOLDER",
                        help="where grader_labelled_*.jsonl are (default: ../shared/real beside the repository)")
    folder = parser.parse_args(flags).data
    missing = [path.name for _, name, *_ in SETS if not (path := folder / f"grader_labelled_{name}.jsonl").is_file()]
    if missing:
        parser.error(f"{folder} has no {missing[0]}: the sources are named in tests/grading_notes.md")
    try:
        from importlib.metadata import version

        import math_verify as _  # noqa: F401
        found = version("math-verify")
    except ImportError:
        found = "none"
    if found != VERSION:
        parser.error(f"Math-Verify {VERSION} is wanted, {found} is here: pip install math-verify=={VERSION}")
    print(table(folder, math_verify()))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\ngraders.py: interrupted", file=sys.stderr)
        sys.exit(130)
