"""The main README's table: LoRA-α, LoRA with alpha = 2r at the same and at its best rate, and full fine-tuning.

    python experiments/first_table.py              an hour on two cores; finished runs are reused

Each learning rate is chosen on the validation problems (lowest loss, seed 0). Then each row is run with six seeds, ten
on a GPU, and pass@1 is taken on the 500 test problems. Every run is a plain `python train.py ...`, printed as it
starts. Writes first_table.csv (a line a run; runs of other devices are kept) and first_table.png (this device's runs)
beside this file, and prints the table in Markdown.
"""

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

import grid  # puts the modules above this folder on the path
import torch

from eval_pass1 import Parser, plain_output
from hf import replacing

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "out/first_table"
DEVICE = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
SEEDS = list(range(6)) if DEVICE == "cpu" else [1, 2, 3, 4, 5, 11, 12, 13, 14, 15]
SHARED_RATE = 1e-3  # train.py's default: the best of FULL_RATES
FULL_RATES = [1e-4, 3e-4, 1e-3, 3e-3]
LORA_RATES = [1e-3, 3e-3, 1e-2, 3e-2]
COLUMNS = ["method", "lr", "seed", "alpha", "s", "val_loss_before", "val_loss_after", "n_problems", "pass1_before",
           "pass1_after", "pass1_levels_1_2", "seconds", "device"]


def folder(method: str, lr: float, seed: int, pass1: bool) -> Path:
    return RUNS / f"{method}-lr{lr:g}-seed{seed}{'' if pass1 else '-loss-only'}"


def run(method: str, lr: float, seed: int, pass1: bool) -> dict:
    """The CSV's line of one run of train.py, made now unless it is there."""
    out = folder(method, lr, seed, pass1)
    if not (out / "run.json").is_file():
        flags = ["--rank", "16", "--method", method, "--lr", f"{lr:g}", "--seed", str(seed), "--dtype", "float32"]
        flags += [] if pass1 else ["--eval-problems", "0"]
        print("python train.py", *flags, flush=True)
        flags += ["--out", str(out), "--overwrite"]  # what a stopped run has left there
        done = subprocess.run([sys.executable, HERE.parent / "train.py", *flags], check=False,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode and "diverged" not in done.stderr:
            sys.exit(done.stderr.strip())
        if done.returncode:  # a rate at which training diverges is a result as well
            print(f"  {done.stderr.strip()}", flush=True)
            return dict(method=method, lr=lr, seed=seed, val_loss_after=float("inf"), device=DEVICE)
    raw = json.loads((out / "run.json").read_text(encoding="utf-8"))
    levels = raw["results"].get("levels", {})
    easy = [levels[level] for level in ("Level 1", "Level 2") if level in levels]
    row = {**raw, **raw["results"], "device": raw["machine"]["gpu"] or "cpu"}
    if easy:
        row["pass1_levels_1_2"] = sum(e["pass1"] * e["n"] for e in easy) / sum(e["n"] for e in easy)
    return {name: row.get(name) for name in COLUMNS}


def best_rate(method: str, rates: list[float], rows: list[dict]) -> float:
    """The rate of the lowest validation loss; its runs are added to rows."""
    tried = [run(method, lr, 0, False) for lr in rates]
    rows += tried
    for row in tried:
        print(f"{method:6} lr {row['lr']:<7g} validation loss {row['val_loss_after']:.4f}", flush=True)
    return min(tried, key=lambda row: row["val_loss_after"])["lr"]


def arms(rows: list[dict]) -> dict[str, list[dict]]:
    """The table's rows: a title and its runs, one a seed. rows: the CSV's lines."""
    titles = {"lora-alpha": "LoRA-α, alpha = 256·√r", "lora": "LoRA, alpha = 2r", "full": "full fine-tuning"}
    groups = {}
    for row in rows:
        if row["pass1_after"] not in (None, ""):
            own = "" if float(row["lr"]) == SHARED_RATE and row["method"] != "full" else "its best "
            groups.setdefault(f"{titles[row['method']]}, {own}lr {float(row['lr']):g}", []).append(row)
    return groups


def markdown(rows: list[dict]) -> str:
    """The README's table from the CSV's lines."""
    lines = ["| rank 16, 500 steps of 16 problems | runs | pass@1, mean (range) | levels 1-2 | validation loss |",
             "|---|---|---|---|---|"]
    for title, runs in arms(rows).items():
        pass1, easy = ([100 * float(row[name]) for row in runs] for name in ("pass1_after", "pass1_levels_1_2"))
        loss = statistics.mean(float(row["val_loss_after"]) for row in runs)
        lines.append(f"| {title} | {len(runs)} | {statistics.mean(pass1):.1f}% ({min(pass1):.1f} to {max(pass1):.1f}) "
                     f"| {statistics.mean(easy):.1f}% | {loss:.3f} |")
    return "\n".join(lines)


def picture(rows: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, 4))
    for (title, runs), color in zip(arms(rows).items(), ["#c1272d", "#5b8db8", "#1f4e79", "#777777"]):
        for row in runs:
            path = folder(row["method"], row["lr"], row["seed"], True) / "metrics.csv"
            with open(path, newline="", encoding="utf-8") as file:
                losses = [float(line["loss"]) for line in csv.DictReader(file)]
            smooth = [statistics.mean(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
            ax.plot(range(1, len(smooth) + 1), smooth, color=color, lw=1.3, label=title if row is runs[0] else None)
    ax.set(xlabel="step", ylabel="training loss, nats a token (mean of 10 steps)", yscale="log",
           title="data/equations on data/base, rank 16, a line a seed")
    ax.legend(frameon=False)
    fig.tight_layout()
    with replacing(Path(__file__).with_suffix(".png")) as path:
        fig.savefig(path, dpi=120, format="png")


def read() -> list[dict]:
    path = Path(__file__).with_suffix(".csv")
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main():
    plain_output()
    Parser(description=__doc__).parse_args()
    rows = []
    full_rate, lora_rate = best_rate("full", FULL_RATES, rows), best_rate("lora", LORA_RATES, rows)
    for method, lr in [("lora-alpha", SHARED_RATE), ("lora", SHARED_RATE), ("lora", lora_rate), ("full", full_rate)]:
        rows += [run(method, lr, seed, True) for seed in SEEDS]
    elsewhere = [row for row in read() if row["device"] != DEVICE]
    with replacing(Path(__file__).with_suffix(".csv")) as path:
        grid.append(path, rows + elsewhere, COLUMNS)
    before = next(100 * row["pass1_before"] for row in rows if row["pass1_before"] is not None)
    print(f"\nthe base before training: pass@1 {before:.1f}%\n\n{markdown(rows + elsewhere)}")
    picture(rows)


if __name__ == "__main__":
    grid.stoppable(main)
