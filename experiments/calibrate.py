"""Finds c for your model and data: a prediction without training, and a short sweep.

    python experiments/calibrate.py                                          data/base, five minutes on two cores
    python experiments/calibrate.py --base FOLDER --data FILE --steps 100    yours; flags as train.py's

The prediction: the c at which the first step is as large as full fine-tuning's, and the c at which the adapter's loss
is as sharp. The sweep: successive halving over c at a small and a larger rank, first for a quarter of the steps, then
the best one to the end, and its neighbours at a factor of 2 until both are worse; the vertex of a parabola through the
three is the best c. Finished runs are lines of --out and are not made again. The best c depends on the number of steps:
give the number that you will train for, as far as you can afford it.
"""

import math
import statistics
import time
from pathlib import Path

import finetune
import grid  # puts the modules above this folder on the path
from curvature import sharpness
from rank_law import optimum

from eval_pass1 import Parser, plain_output, within
from lora_alpha import collate, epochs, evaluate, lora_layers, train
from train import first_step_ratio, parse_args, short

ROOT = grid.HERE.parent
COLUMNS = [*finetune.SETTING, "stop", "val_loss", "seconds"]
LOSS = 0.02  # a c that loses less than this share of the loss is as good


# ---- Without training ------------------------------------------------------------------------------------------------


def matched_steps(cell: dict) -> tuple[float, dict[int, int]]:
    """c of a first step like full fine-tuning's over all adapted weights; {a layer's input width: how many layers}."""
    model = finetune.made({**cell, "alpha": math.sqrt(cell["rank"])})  # c = 1
    widths = [layer.base.in_features for layer in lora_layers(model).values()]
    return 1 / first_step_ratio(model), {n: widths.count(n) for n in sorted(set(widths))}


def matched_sharpness(cell: dict, problems: int, products: int) -> float:
    """c at which the largest curvature in B is that in W, from the Hessian-vector products of some examples.

    In B it goes as s², so one look at s = 1 tells it for every c.
    """
    examples = finetune.examples(cell["base"], cell["data"], cell["val"])[0][:problems]
    batch = [tensor.to(finetune.DEVICE) for tensor in collate(examples)]
    model = finetune.made({**cell, "alpha": float(cell["rank"])})  # s = 1
    layers = lora_layers(model).values()
    in_B = sharpness(model, batch, [layer.lora_B for layer in layers], products)[0]
    weights = [layer.base.weight.requires_grad_(True) for layer in layers]
    in_W = sharpness(model, batch, weights, products)[0]
    return math.sqrt(in_W / in_B) * math.sqrt(cell["rank"])


# ---- The sweep -------------------------------------------------------------------------------------------------------


class Stop(Exception):
    """Ends a run before its schedule does."""


def work(cell: dict) -> dict:
    """The validation loss after `stop` of the cell's steps."""
    start = time.time()
    train_examples, held_out, _ = finetune.examples(cell["base"], cell["data"], cell["val"])
    model = finetune.made(cell)

    def halt(row):
        if row["step"] == cell["stop"]:
            raise Stop

    try:
        train(model, epochs(train_examples, cell["batch"], seed=cell["seed"]), cell["steps"], cell["lr"], log=halt)
    except Stop:
        pass
    except FloatingPointError:
        return dict(val_loss=math.inf, seconds=time.time() - start)
    return dict(val_loss=evaluate(model, held_out), seconds=time.time() - start)


def losses(rows: list[dict], rank: int, stop: int) -> dict[float, float]:
    """{c: loss} of the runs of stop steps."""
    return {round(row["alpha"] / math.sqrt(rank), 6): row["val_loss"] for row in grid.pick(rows, rank=rank, stop=stop)}


def on_grid(whole: dict[float, float]) -> dict[float, float]:
    """Those with a c of 256 times a power of 2: alpha = 2r is mostly beside it."""
    return {c: loss for c, loss in sorted(whole.items()) if (steps := math.log2(c / 256)) == round(steps)}


def cells(setting: dict, ranks: list[int], first: float, rows: list[dict]) -> list[dict]:
    """The runs that are known to be needed, given the rows that are there; the same again when nothing is missing.

    The first four c are by factors of 4 up from the c that matches the first step, or the next 256·2^k to it.
    """
    steps, low, found = setting["steps"], 256 * 2.0 ** round(math.log2(first / 256)), []
    for rank in ranks:
        early, whole = losses(rows, rank, steps // 4), on_grid(losses(rows, rank, steps))
        rung = [low, 4 * low, 16 * low, 64 * low]
        wanted = [(c, steps // 4) for c in rung] + [(256.0, steps), (2 * math.sqrt(rank), steps)]
        if all(c in early for c in rung):
            favourite = min(rung, key=early.get)
            wanted.append((favourite, steps))
            if favourite in whole:  # then downhill; where all diverged, the smallest c is the first, so down as well
                best = min(whole, key=whole.get)
                wanted += [(c, steps) for c in (*whole, best / 2, 2 * best)]
        found += [{**setting, "rank": rank, "alpha": c * math.sqrt(rank), "stop": stop} for c, stop in wanted]
    return found


# ---- What it shows ---------------------------------------------------------------------------------------------------


def fitted(whole: dict[float, float]) -> tuple[float, float, float, float]:
    """(c*, its loss, and from where to where the loss is at most 1 + LOSS times that), of the finished runs."""
    best, loss, curvature = optimum(whole)
    width = math.exp(math.sqrt(math.log1p(LOSS) / curvature))
    return best, loss, best / width, best * width


def told(rows: list[dict], ranks: list[int], steps: int) -> tuple[list[str], list[float]]:
    """The table of the ranks in Markdown, and each one's best c."""
    lines = [f"| rank | best c | at most {100 * LOSS:.0f}% above its loss | loss there | at c = 256 | at alpha = 2r |",
             "|---|---|---|---|---|---|"]
    best = []
    for rank in ranks:
        whole = losses(rows, rank, steps)
        habit = whole[round(2 * math.sqrt(rank), 6)]
        c, loss, low, high = fitted(on_grid(whole))
        best.append(c)
        lines.append(f"| {rank} | {c:.0f} | {low:.0f} to {high:.0f} | {loss:.4f} | {more(whole[256.0], loss)} | "
                     f"{more(habit, loss)} |")
    return lines, best


def more(value: float, loss: float) -> str:
    return f"{value:.4f} ({100 * (value / loss - 1):+.0f}%)" if math.isfinite(value) else "diverged"


def main(argv=None):
    plain_output()
    parser = Parser(description=__doc__)
    parser.add_argument("--base", default="data/base", metavar="FOLDER", help="Hugging Face model folder")
    parser.add_argument("--data", default="data/equations", metavar="PATH", help="problems, as train.py takes them")
    parser.add_argument("--ranks", type=within(1), nargs="+", default=[4, 32], metavar="R", help="(default: 4 32)")
    parser.add_argument("--steps", type=within(4), default=150, metavar="N", help="updates of a run (default: 150)")
    parser.add_argument("--batch-size", type=within(1), default=8, metavar="N", help="problems an update (default: 8)")
    parser.add_argument("--lr", type=within(1e-30, 1e30, float), metavar="LR", help="to keep (default: train.py's)")
    parser.add_argument("--seed", type=within(0, 2**32 - 1), default=0, metavar="N", help="of A and the data's order")
    parser.add_argument("--val-problems", type=within(1), default=100, metavar="N", help="to choose by (default: 100)")
    parser.add_argument("--processes", type=within(1, 1024), metavar="N", help="runs at a time (default: one a core)")
    parser.add_argument("--out", default="out/calibrate.csv", metavar="FILE",
                        help="finished runs (default: out/calibrate.csv)")
    args = parser.parse_args(argv)
    start = time.time()
    base, data = (str((p if (p := Path(path)).exists() else ROOT / path).resolve()) for path in (args.base, args.data))
    try:
        lr = args.lr or parse_args(["--base", base])[1].lr
        setting = finetune.cell(base=base, data=data, lr=lr, steps=args.steps, batch=args.batch_size, seed=args.seed,
                                val=args.val_problems, rank=args.ranks[0])
        first, widths = matched_steps(setting)
        print("layers  " + ", ".join(f"{count} with {n:,} inputs, √(3n) = {math.sqrt(3 * n):.0f}"
                                     for n, count in widths.items()))
        print(f"a first step like full fine-tuning's: c = {first:.0f}", flush=True)
        print(f"sharpness like full fine-tuning's:    c = {matched_sharpness(setting, 2, 6):.0f}", flush=True)
        fixed = {name: value for name, value in setting.items() if name not in ("rank", "alpha")}
        plan, rows = None, grid.pick(grid.read_rows(Path(args.out)), **fixed)
        while plan != (plan := cells(setting, args.ranks, first, rows)):
            rows = grid.sweep(Path(args.out), plan, work, COLUMNS, args.processes)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    lines, best = told(rows, args.ranks, args.steps)
    c, cost = statistics.geometric_mean(best), sum(row["seconds"] for row in rows)
    print("\n".join(["", *lines, ""]))
    print(f"c = {c:.0f} ({min(best):.0f} to {max(best):.0f} over the ranks), {c / first:.1f} times the c of a first "
          f"step like full fine-tuning's. {len(rows)} runs, {cost / 60:.0f} minutes of one core, "
          f"{time.time() - start:.0f} s now. To use it:")
    print(f"  python train.py --base {short(base)} --data {short(data)} --rank 16 --c {c:.0f} --lr {lr:g}")


if __name__ == "__main__":
    grid.stoppable(main)
