"""GPQA, the columns that an evaluation needs. Writes test.csv: diamond (198 questions), main (448) or extended (546).

    python data/gpqa/prepare.py --from gpqa_diamond.csv
    python data/gpqa/prepare.py --from dataset.zip --password PASSWORD --subset main

Nothing is downloaded: the set is gated. Its authors ask that no example be shown in plain text or images online, so
test.csv is git-ignored; keep it, and what models answer to it, off the net. The password stands in the README of
https://github.com/idavidrein/gpqa. Rein et al. 2023, "GPQA: A Graduate-Level Google-Proof Q&A Benchmark"
(arXiv:2311.12022), CC-BY-4.0.
"""

import argparse
import csv
import io
import os
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

HERE = Path(__file__).parent
COUNTS = {"diamond": 198, "main": 448, "extended": 546}
NEEDED = ["Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]
ALSO = ["Subdomain", "High-level domain", "Record ID"]
BY_HAND = ("nothing is downloaded, as GPQA is gated: by hand, get gpqa_diamond.csv from "
           "https://huggingface.co/datasets/Idavidrein/gpqa or dataset.zip from https://github.com/idavidrein/gpqa, "
           "then python data/gpqa/prepare.py --from FILE")


LARGEST = 100_000_000  # bytes of a CSV, 20 times the authors' largest


def unzip(path: Path, subset: str, password: str | None) -> bytes:
    """gpqa_SUBSET.csv out of the authors' archive, in memory. Python reads its ZipCrypto, no other encryption."""
    wanted = f"gpqa_{subset}.csv"
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.rpartition("/")[2] == wanted), None)
            if name is None:
                raise ValueError(f"{path}: no {wanted} in it; want the authors' dataset.zip")
            entry = archive.getinfo(name)
            if entry.flag_bits & 1 and not password:
                raise ValueError(f"{path} is encrypted: add --password PASSWORD, as printed in the README of "
                                 "https://github.com/idavidrein/gpqa")
            if entry.file_size > LARGEST:
                raise ValueError(f"{path}: {wanted} unpacks to {entry.file_size:,} bytes, not the authors' some "
                                 "millions; get it anew")
            with archive.open(entry, pwd=password and password.encode()) as file:
                return file.read(entry.file_size)  # no more is unpacked, whatever the archive holds; the CRC then fails
    except (RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}): check --password, or unpack it by hand and give "
                         f"--from {wanted}") from None


def read(content: bytes, where: str) -> list[dict]:
    """The rows, by column name. What is wrong with one is said by its number: no text of a question is ever shown."""
    try:
        table = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        missing = [column for column in NEEDED if column not in (table.fieldnames or [])]
        rows = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{where}: not a whole CSV file in UTF-8 ({error}); get it anew") from None
    if missing:
        raise ValueError(f"{where}: no column {', '.join(missing)}; want gpqa_diamond.csv, gpqa_main.csv or "
                         "gpqa_extended.csv as published")
    for number, row in enumerate(rows, 1):
        empty = [column for column in NEEDED if not (row[column] or "").strip()]
        if empty or None in row:
            what = f"no {empty[0]}" if empty else "more cells than there are columns"
            raise ValueError(f"{where}: question {number} has {what}; get it anew")
    if not rows:
        raise ValueError(f"{where}: no question in it; get it anew")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage=argparse.SUPPRESS, allow_abbrev=False)  # no usage: an error is one line
    parser.add_argument("--from", dest="source", metavar="FILE", help="a CSV file, or the authors' dataset.zip")
    parser.add_argument("--subset", choices=COUNTS, help="which to take from the zip (default: diamond)")
    parser.add_argument("--password", help="the zip's, as printed in the authors' README")
    parser.add_argument("--to", metavar="FOLDER", help="folder to write to (default: data/gpqa)")
    args = parser.parse_args()
    folder = Path(args.to or HERE)
    try:
        if not args.source:
            raise ValueError(BY_HAND)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--to {folder}: not a folder")
        path = Path(args.source)
        if not path.is_file():
            raise ValueError(f"--from {path}: no such file; want gpqa_diamond.csv or dataset.zip")
        if zipfile.is_zipfile(path):
            subset = args.subset or "diamond"
            content = unzip(path, subset, args.password)
        elif args.subset or args.password:
            raise ValueError(f"{path} is no zip archive: --subset and --password are for dataset.zip, leave them out")
        else:
            subset = next((name for name in COUNTS if name in path.name), None)
            content = path.read_bytes()
        rows = read(content, str(path))
        folder.mkdir(parents=True, exist_ok=True)
        columns = [column for column in [*NEEDED, *ALSO] if column in rows[0]]
        with tempfile.TemporaryDirectory(dir=folder, suffix=".tmp") as unfinished:  # a stopped run leaves the old file
            with open(Path(unfinished, "test.csv"), "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            os.replace(Path(unfinished, "test.csv"), folder / "test.csv")
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    found = next((name for name in COUNTS if COUNTS[name] == len(rows) and subset in (name, None)), None)
    published = ", ".join(f"{name} {count}" for name, count in COUNTS.items())
    print(f"test.csv {len(rows)} questions, " + (f"GPQA {found}" if found else f"not a published number ({published})"))
    print(f"its columns: {', '.join(columns)}\n\n  python eval_pass1.py --data {args.to or 'data/gpqa'}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nprepare.py: interrupted", file=sys.stderr)
        sys.exit(130)
