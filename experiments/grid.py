"""A sweep that can be stopped: every finished run is appended to a CSV file at once, and is not made again.

A cell is a dict: the settings of one run. A script beside this one has cells(quick, rows), work(cell), COLUMNS,
told(rows), findings(rows), picture(rows, path) and ends with grid.command. `cells` sees the finished rows, as later
runs may depend on what earlier ones found; `told` gives the tables in Markdown, `findings` each claim and whether it
holds here.
"""

import csv
import io
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).resolve().parent
if Path(sys.argv[0]).resolve().parent == HERE:  # not in a test. Ctrl-C ends a pool's processes, and these scripts while
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # they import torch for seconds, at once and without words

import torch  # noqa: E402

sys.path.insert(0, str(HERE.parent))  # the scripts stand in a folder of their own, the modules above it

from eval_pass1 import Parser, plain_output  # noqa: E402
from hf import replacing  # noqa: E402


def whole(path: Path) -> str:
    """The CSV file but what a kill or a full disk has cut: what follows the last line feed, lines that lack columns."""
    content = path.read_bytes() if path.is_file() else b""
    lines = content[: content.rfind(b"\n") + 1].decode().splitlines(keepends=True)
    columns = [len(next(csv.reader([line]), [])) for line in lines]
    return "".join(line for line, count in zip(lines, columns) if count == columns[0])


def read_rows(path: Path) -> list[dict]:
    """The whole lines of the CSV file, numbers as floats where they are such; none where there is no file."""
    return [{name: number(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(whole(path)))]


def mended(path: Path, names: list[str]) -> list[dict]:
    """The rows of the CSV file, from which what was cut is removed: the cell, of columns names, is run again, whole."""
    rows, lines = read_rows(path), whole(path).splitlines(keepends=True)
    content = path.read_bytes() if path.is_file() else b""
    if "".join(lines).encode() == content:
        return rows
    rest = content[content.rfind(b"\n") + 1 :].decode(errors="ignore")
    if rows and rest:  # a cell may have several lines: those before the cut one go as well, if they may be its own
        header, last, cut = csv.reader([lines[0], lines[-1], rest])
        if all(value.startswith(part) for name, value, part in zip(header, last, cut) if name in names):
            rows = [row for row in rows if key(row, names) != key(rows[-1], names)]
    with replacing(path) as temporary:
        temporary.write_text("".join(lines[: 1 + len(rows)]), encoding="utf-8", newline="")
    return rows


def append(path: Path, rows: list[dict], columns: list[str]) -> None:
    """Adds the lines to the CSV file, all of them or none, with a header where it has none."""
    text = io.StringIO()
    size = path.stat().st_size if path.is_file() else 0
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if not size:
        writer.writeheader()
    writer.writerows(rows)
    with open(path, "ab", buffering=0) as file:
        try:
            content = text.getvalue().encode()
            while content:
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:  # a full disk
            file.truncate(size)
            raise


def number(text: str):
    try:
        return float(text)
    except ValueError:
        return text


def key(cell: dict, names) -> tuple:
    return tuple(number(str(cell[name])) for name in names)


def sweep(path: Path, cells: list[dict], work, columns: list[str], processes: int | None = None) -> list[dict]:
    """Works out every cell that the CSV at path lacks, in parallel, and returns all of the cells' rows.

    work(cell) gives the values beside the cell's own: a dict, or a list of them for several lines. It runs in a process
    of its own with one thread, so it must be a function of a module. A cell's lines are written together.
    """
    names = list(cells[0])
    rows = mended(path, names)
    varying = [name for name in names if len({cell[name] for cell in cells}) > 1]
    done = {key(row, names) for row in rows}
    left = list({key(cell, names): cell for cell in cells if key(cell, names) not in done}.values())  # each once
    processes = processes or os.cpu_count()
    start = time.time()
    if left:
        print(f"{path.name}: {len(cells) - len(left)} of {len(cells)} runs are done, {len(left)} to go", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            waiting = {pool.submit(work, cell): cell for cell in left}
            for i, future in enumerate(as_completed(waiting), 1):
                cell, found = waiting[future], future.result()
                lines = [{**cell, **values} for values in (found if isinstance(found, list) else [found])]
                append(path, lines, columns)
                minutes = (time.time() - start) / i * (len(left) - i) / 60
                told = " ".join(f"{name} {cell[name]:.6g}" if isinstance(cell[name], float) else f"{name} {cell[name]}"
                                for name in varying)
                print(f"{i}/{len(left)} {told}, {minutes:.0f} min left", flush=True)
    return rows_of(path, cells)


def rows_of(path: Path, cells: list[dict]) -> list[dict]:
    """The CSV's lines that belong to the cells."""
    names = list(cells[0])
    wanted = {key(cell, names) for cell in cells}
    return [row for row in read_rows(path) if key(row, names) in wanted]


def pick(rows: list[dict], **values) -> list[dict]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def run(script, quick: bool, plot_only: bool = False) -> list[dict]:
    """The rows of a script (a module), its picture drawn; the quick setting's files go to out/experiments."""
    name = Path(script.__file__).stem
    path = (HERE.parent / "out/experiments" if quick else HERE) / f"{name}.csv"
    if plot_only and not path.is_file():
        raise FileNotFoundError(f"{path.name} is not there: python experiments/{name}.py without --plot-only makes it")
    if hasattr(script, "prepare") and not plot_only:
        script.prepare(quick)  # what the cells need and no cell can make for all
    cells, rows = None, read_rows(path)
    while cells != (cells := script.cells(quick, rows)):
        rows = rows_of(path, cells) if plot_only else sweep(path, cells, script.work, script.COLUMNS)
    with replacing(path.with_suffix(".png")) as picture:
        script.picture(rows, picture)
    return rows


def report(script, rows: list[dict], quick: bool = False) -> str:
    """What the rows show, in Markdown: the tables, what became of the claims, and the cost."""
    claims = [f"- **{verdict}**: {claim}" for claim, verdict in script.findings(rows)]
    cells = script.cells(quick, rows)
    names = list(cells[0])
    left = len({key(cell, names) for cell in cells} - {key(row, names) for row in rows})
    timed = [row for row in rows if row.get("seconds", "") != ""]
    devices = {}
    for row in sorted(timed, key=lambda row: row.get("device", "cpu") != "cpu"):
        devices.setdefault(row.get("device", "cpu"), []).append(row)
    hours = sum(row["seconds"] for row in devices.get("cpu", [])) / 3600
    each = [f"{len(group)} on a CPU ({hours:.1f} core-hours)" if device == "cpu" else f"{len(group)} on one {device}"
            for device, group in devices.items()]
    cost = [f"\nRuns: {', '.join(each)}"
            + (f"; {left} runs are still to be made." if left else ".")] if timed else []
    return "\n".join([script.told(rows), "", *claims, *cost])


def verdict(*cases: bool) -> str:
    """What became of a claim, from the cases that it was tried in."""
    if not any(cases):
        return "does not hold here"
    return "holds" if all(cases) else f"holds in {sum(cases)} of {len(cases)} cases"


def command(script) -> None:
    """A script's command line."""
    plain_output()
    parser = Parser(description=script.__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller runs, into out/experiments")
    parser.add_argument("--plot-only", action="store_true", help="train nothing: make text and picture from the CSV")
    args = parser.parse_args()
    try:
        rows = stoppable(lambda: run(script, args.quick, args.plot_only))
    except (OSError, UnicodeDecodeError) as error:  # nothing to plot, a full disk
        parser.error(error)
    print(report(script, rows, args.quick))


def stoppable(work):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return work()
    except KeyboardInterrupt:
        print("\nstopped; the finished runs are kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":  # a module of the other scripts: --help says what it is
    Parser(description=__doc__).parse_args()
