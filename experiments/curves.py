"""Draws the training and validation loss of runs of train.py, over steps and over seconds.

    python experiments/curves.py out/a out/b           one colour a run; without names the newest five under out/
    python experiments/curves.py out/a out/b --drift   also signal, drift and their ratio, of runs made with --drift

The training loss is a mean over the last steps, with each step's own faint behind it. A run that is not finished, or
has diverged, is drawn as far as it came. Writes curves.png beside the first run's folder.
"""

import csv
import math
import os
from pathlib import Path

import grid  # puts the modules above this folder on the path

from eval_pass1 import Parser, plain_output
from hf import is_number, read_json, replacing

COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # Okabe and Ito: for every eye
DRIFT = {"signal": "signal, ‖s·(δB·A + B·δA)‖", "drift": "drift, ‖s·δB·δA‖", "drift_ratio": "drift / signal"}


def read_run(folder: Path) -> dict[str, list[float]]:
    """The columns of a run's metrics.csv, NaN where a cell is empty. ValueError, with the line, for anything else."""
    path, columns = folder / "metrics.csv", {}
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; name folders that train.py has written")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            names = reader.fieldnames or []
            for row in reader:
                for name, cell in row.items():
                    columns.setdefault(name, []).append(math.nan if cell == "" else float(cell))
        except (ValueError, TypeError, csv.Error) as error:
            raise ValueError(f"{path}, line {reader.line_num}: no row of numbers ({error})") from None
    if missing := {"step", "loss", "val_loss"} - {*names}:
        raise ValueError(f"{path}: lacks the column {min(missing)}; train.py writes it")
    if not columns:
        raise ValueError(f"{path}: holds no step yet")
    return columns


def title(folder: Path) -> str:
    """Method, rank, alpha and rate from run.json; the folder's name where there is none."""
    name = folder.resolve().name
    if not (folder / "run.json").is_file():
        return f"{name} (not finished)"
    raw = read_json(folder / "run.json")
    sizes = [f"{key} {raw[key]:.6g}" for key in ("rank", "alpha", "lr") if is_number(raw.get(key))
             and not (raw.get("method") == "full" and key == "rank")]
    return f"{', '.join([str(raw.get('method')), *sizes])} ({name})"


def smooth(values: list[float], window: int) -> list[float]:
    """The mean of each value and up to window - 1 before it."""
    parts = [values[max(0, i - window + 1) : i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def curve(ax, x: list[float], values: list[float], window: int, **style) -> None:
    """Each step's value, faint, and the mean of `window` of them."""
    ax.plot(x, values, lw=0.6, alpha=0.25, **style)
    ax.plot(x, smooth(values, window), lw=1.6, **style)


def picture(runs: list[tuple[str, dict]], drift: bool):
    """The figure: the losses over steps and over seconds, and with drift a second row of three panels over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogFormatter

    window = max(1, max(len(columns["step"]) for _, columns in runs) // 20)
    fig = plt.figure(figsize=(9, 3.6 + 2.9 * drift + 0.2 * len(runs)), layout="constrained")
    rows = fig.subfigures(1 + drift, 1, squeeze=False)[:, 0]
    steps, seconds = rows[0].subplots(1, 2, sharey=True)
    others = dict(zip(DRIFT, rows[1].subplots(1, 3))) if drift else {}
    for ax in (steps, seconds, *others.values()):
        ax.set_yscale("log", nonpositive="mask")  # the drift of the first step is 0
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
    handles = []
    for i, (name, columns) in enumerate(runs):
        style = dict(color=COLORS[i % len(COLORS)], ls=["-", "--", ":"][i // len(COLORS) % 3])
        for ax, key in ((steps, "step"), (seconds, "seconds")):
            if key in columns:  # no seconds in the metrics.csv of older versions
                curve(ax, columns[key], columns["loss"], window, **style)
                ax.plot(columns[key], columns["val_loss"], "o", ms=6, mec="white", color=style["color"])
        for key, ax in others.items():
            if key in columns:
                curve(ax, columns["step"], columns[key], window, **style)
        handles.append(Line2D([], [], lw=1.6, label=name, **style))
    steps.set(xlabel="step", ylabel="loss, nats a token")
    seconds.set(xlabel="seconds since the first step began")
    seconds.legend(handles=[Line2D([], [], color="#777777", lw=1.6, label=f"training, mean of {window} steps"),
                            Line2D([], [], color="#777777", ls="", marker="o", mec="white", label="validation")],
                   frameon=False, loc="upper right")
    for key, ax in others.items():
        ax.set(title=DRIFT[key], xlabel="step")
    fig.legend(handles=handles, loc="outside lower center", frameon=False)
    return fig


def main():
    plain_output()
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="FOLDER", help="runs (default: the newest five in out/)")
    parser.add_argument("--drift", action="store_true", help="also draw signal, drift and drift / signal")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the picture (default: curves.png beside the runs)")
    args = parser.parse_args()
    try:
        folders = args.runs or sorted((path.parent for path in Path("out").glob("*/metrics.csv")),
                                      key=lambda folder: (folder / "metrics.csv").stat().st_mtime)[-5:]
        if not folders:
            raise ValueError("out/ holds no run: name folders that train.py has written")
        runs = [(title(folder), read_run(folder)) for folder in dict.fromkeys(folders)]
        if args.drift and not any("drift" in columns for _, columns in runs):
            raise ValueError("no run has signal and drift: train with --drift")
        out = args.out or folders[0].resolve().parent / "curves.png"
        out.parent.mkdir(parents=True, exist_ok=True)
        fig = picture(runs, args.drift)
        with replacing(out) as path:
            fig.savefig(path, dpi=120, format=out.suffix[1:] or "png")
    except ModuleNotFoundError as error:
        parser.error(f"the pictures need it: pip install {error.name}")
    except (ValueError, OSError) as error:
        parser.error(error)
    print(f"{len(runs)} run{'s' * (len(runs) > 1)} drawn in {os.path.relpath(out)}")


if __name__ == "__main__":
    grid.stoppable(main)
