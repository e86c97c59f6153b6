"""MATH, one JSON a line. Writes train.jsonl (7,500 problems) and test.jsonl (5,000), or MATH-500's test.jsonl alone:
problem, solution, answer (what the solution's last \\boxed{} holds), level, type, unique_id.

    python data/math/prepare.py --from MATH          the authors' folder: train/ and test/, a folder a subject in each
    python data/math/prepare.py --from MATH.tar      the same as an archive
    python data/math/prepare.py --from FILE.jsonl    such as MATH-500

Nothing is downloaded: AoPS claims the copyright in the problems, and its DMCA notice of 2 January 2025 took the set off
Hugging Face. No sha256 is pinned either, as we know none that was published. Hendrycks et al. 2021, "Measuring
Mathematical Problem Solving With the MATH Dataset" (arXiv:2103.03874).
"""

import argparse
import json
import os
import re
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository, so that this runs as a script

from grader import last_box  # noqa: E402

COUNTS = {"train": [7500], "test": [5000, 500]}
WANT = "want the unpacked MATH folder, MATH.tar, or a JSONL file with problem and solution"
BY_HAND = ("nothing is downloaded: get https://huggingface.co/datasets/HuggingFaceH4/MATH-500/resolve/main/test.jsonl "
           "(or the authors' https://people.eecs.berkeley.edu/~hendrycks/MATH.tar, if it is there again) by hand, then "
           "python data/math/prepare.py --from FILE")


NAME = r"[^/\0-\x1f\x7f-\x9f]+"  # no control characters: names are printed
PROBLEM = re.compile(rf"(?:^|/)((?:train|test)/{NAME}/(?!\.){NAME}\.json)$")
LARGEST = 1_000_000, 200_000_000  # bytes of a problem, which has some thousand, and of all 12,500 of them


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file that may be a problem, from a folder or an archive."""
    if path.is_dir():
        root = path / "MATH" if (path / "MATH").is_dir() else path
        for found in [*root.glob("train/*/*.json"), *root.glob("test/*/*.json")]:
            yield found.relative_to(root).as_posix(), found.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:  # read in memory: no path that an archive names is ever made
            left = LARGEST[1]
            for member in archive:
                if member.isfile() and (match := PROBLEM.search(member.name)):
                    left -= member.size
                    if member.size > LARGEST[0] or left < 0:
                        what = "bytes are no problem" if left >= 0 else "bytes more are too many for a set of problems"
                        raise ValueError(f"{path}, {match[1]}: {member.size:,} {what}; {WANT}")
                    yield match[1], archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: a damaged archive ({error}); get it anew, or unpack it, name the folder") from None


def row(document: bytes, where: str, unique_id: str) -> dict:
    """One problem in the fields that are written. ValueError names what is not one."""
    try:
        raw = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); {WANT}") from None
    for name in ("problem", "solution"):
        if not isinstance(raw, dict) or not isinstance(raw.get(name), str):
            raise ValueError(f"{where}: no text for {name!r}; {WANT}")
    answer = last_box(raw["solution"]) if raw.get("answer") is None else str(raw["answer"])
    level = str(raw.get("level") or "?").removeprefix("Level ")  # MATH-500 has 5 for "Level 5"; MATH twice "Level ?"
    return dict(problem=raw["problem"], solution=raw["solution"], answer=(answer or "").strip(), level=f"Level {level}",
                type=raw.get("type") or raw.get("subject") or "", unique_id=raw.get("unique_id") or unique_id)


def read(path: Path) -> dict[str, list[dict]]:
    """The rows of each file to write: train and test by subject and number; those of a JSONL as they stand, as test."""
    if not path.exists():
        raise ValueError(f"--from {path}: no such file or folder; {WANT}")
    if path.is_dir() or tarfile.is_tarfile(path):
        found = {}
        for name, content in members(path):
            match = PROBLEM.search(name)
            if match and match[1] in found:
                raise ValueError(f"{path}: {match[1]} stands in it twice; {WANT}")
            if match:
                found[match[1]] = row(content, f"{path}, {name}", match[1])
        order = sorted(found, key=lambda name: (name.rpartition("/")[0], len(name), name))  # 9.json before 10.json
        files = {split: [found[name] for name in order if name.startswith(split)] for split in ("train", "test")}
    else:
        lines = enumerate(path.read_bytes().split(b"\n"), 1)
        files = {"test": [row(line, f"{path}, line {n}", f"{path.name}:{n}") for n, line in lines if line.strip()]}
    if not any(files.values()):
        raise ValueError(f"{path}: no problem in it; {WANT}")
    return {split: rows for split, rows in files.items() if rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage=argparse.SUPPRESS, allow_abbrev=False)  # no usage: an error is one line
    parser.add_argument("--from", dest="source", metavar="PATH", help="MATH's folder, MATH.tar or a JSONL file")
    parser.add_argument("--to", metavar="FOLDER", help="folder to write to (default: data/math)")
    args = parser.parse_args()
    folder = Path(args.to or HERE)
    try:
        if not args.source:
            raise ValueError(BY_HAND)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--to {folder}: not a folder")
        files = read(Path(args.source))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, suffix=".tmp") as unfinished:  # a stopped run leaves the old files
            for split, rows in files.items():
                Path(unfinished, split).write_text("".join(json.dumps(row) + "\n" for row in rows), newline="\n")
            for split in files:
                os.replace(Path(unfinished, split), folder / f"{split}.jsonl")
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    for split, rows in files.items():
        without = sum(not row["answer"] for row in rows)
        print(f"{split}.jsonl {len(rows):,} problems" + (f", {without} of them without an answer" if without else ""))
        if len(rows) not in COUNTS[split]:
            print(f"warning: {split}.jsonl has {len(rows):,} problems; MATH has 7,500 in train and 5,000 in test, "
                  "MATH-500 has 500", file=sys.stderr)
    print(f"\n  python eval_pass1.py --data {args.to or 'data/math'}{'' if 'test' in files else '/train.jsonl'}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nprepare.py: interrupted", file=sys.stderr)
        sys.exit(130)
