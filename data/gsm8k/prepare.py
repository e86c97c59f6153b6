"""GSM8K, bytes as published. Writes train.jsonl (7,473 problems) and test.jsonl (1,319): question, answer with ####.

    python data/gsm8k/prepare.py                     from the authors' repository, 5 MB
    python data/gsm8k/prepare.py --from FOLDER       a folder with train.jsonl and test.jsonl, or gsm8k_train.jsonl ...
    python data/gsm8k/prepare.py --from FILE FILE    files of any name: the sha256 tells which is which

A file with another sha256 is refused. Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems"
(arXiv:2110.14168), MIT licence.
"""

import argparse
import hashlib
import http.client
import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
URL = ("https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
       "grade_school_math/data/{}.jsonl")
SHA256 = {"train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
          "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"}
COUNTS = {"train": 7473, "test": 1319}
BY_HAND = (f"fetch {URL.format('train')} and {URL.format('test')} by hand into one folder, then "
           "python data/gsm8k/prepare.py --from FOLDER")


def fetch(url: str) -> bytes:
    print(f"fetching {url}", flush=True)
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"no download ({error}): {BY_HAND}") from None


def find(source: str) -> list[Path]:
    """The file itself, or a folder's two."""
    path = Path(source)
    if not path.exists():
        raise ValueError(f"--from {source}: no such file or folder")
    if not path.is_dir():
        return [path]
    found = [next((p for p in (path / f"{n}.jsonl", path / f"gsm8k_{n}.jsonl") if p.is_file()), None) for n in SHA256]
    if None in found:
        missing = list(SHA256)[found.index(None)]
        raise ValueError(f"--from {source}: no {missing}.jsonl in this folder; to go on with one file, name the file")
    return found


def which(content: bytes, where: str) -> str:
    """train or test, by the sha256."""
    found = hashlib.sha256(content).hexdigest()
    for name, expected in SHA256.items():
        if found == expected:
            return name
    expected = " or ".join(f"{sha256} ({name}.jsonl)" for name, sha256 in SHA256.items())
    raise ValueError(f"{where} is not GSM8K as published: its sha256 is {found}, expected {expected}; fetch it anew "
                     f"from {URL.format('{train,test}')}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage=argparse.SUPPRESS, allow_abbrev=False)  # no usage: an error is one line
    parser.add_argument("--from", dest="sources", nargs="+", action="extend", metavar="PATH",
                        help="folder or files to take instead of a download")
    parser.add_argument("--to", metavar="FOLDER", help="folder to write to (default: data/gsm8k)")
    args = parser.parse_args()
    folder = Path(args.to or HERE)
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--to {folder}: not a folder")
        if args.sources:
            contents = [(path.read_bytes(), str(path)) for source in args.sources for path in find(source)]
        else:
            contents = [(fetch(URL.format(name)), URL.format(name)) for name in SHA256]
        files = {which(content, where): content for content, where in contents}
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, suffix=".tmp") as unfinished:  # a stopped run leaves the old files
            for name, content in files.items():
                Path(unfinished, name).write_bytes(content)
            for name in files:
                os.replace(Path(unfinished, name), folder / f"{name}.jsonl")
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    for name, content in files.items():
        problems = [json.loads(line) for line in content.splitlines()]
        assert len(problems) == COUNTS[name] and all(problem["answer"].count("####") == 1 for problem in problems)
        print(f"{name}.jsonl {len(problems):,} problems, sha256 as published")
    print(f"\n  python eval_pass1.py --data {args.to or 'data/gsm8k'}{'' if 'test' in files else '/train.jsonl'}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nprepare.py: interrupted", file=sys.stderr)
        sys.exit(130)
