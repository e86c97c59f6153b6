"""Does alpha give a model that is trained out what no learning rate gives? SmolLM2-135M on all of GSM8K.

    python data/smollm2/prepare.py; python data/gsm8k/prepare.py
    python experiments/gsm8k.py          some hours of one GPU, several runs at a time (--quick: two minutes, two cores)

Finished runs are reused, so it can go on at another time. The base is SmolLM2-135M-Instruct, dequantised from 4 bits;
7,473 training problems less 300 held out, all that have at most 512 tokens; updates of 32 problems, cosine to 0; on a
GPU the base is in bfloat16 and adapters in float32. Each arm's rate is chosen on the held-out problems after one epoch,
by factors of 2, until the best is no edge of what was tried. Then three seeds of three epochs, at each arm's best rate
and at full fine-tuning's; only these runs see the 1,319 test problems, once, at their end.
"""

import math
import statistics
import sys
import time
from pathlib import Path

import finetune
import grid  # puts the modules above this folder on the path
import torch
from finetune import DEVICE, NAME, ROOT
from smollm2 import Watch, mean

from eval_pass1 import paired_difference, pass1_interval, solve
from hf import load_model
from lora_alpha import epochs, evaluate, inject_lora, lora_layers, train
from tokens import load_tokenizer
from train import first_step_ratio

BASE, DATA, HELD_OUT, LONGEST = "data/smollm2", "data/gsm8k", 300, 512
SEEDS, EPOCHS, TESTS, NEAR = [0, 1, 2], 3, 1319, 1.02
SETTING = dict(arm="lora", rank=16, alpha=32.0, lr=1e-3, lr_ratio=1.0, epochs=1, seed=0, dtype="bfloat16", batch=32,
               problems=0, val=HELD_OUT, test=0)
# dtype: of the frozen base, or of full fine-tuning's products. problems: to train on, 0 for all. test: for pass@1.
COLUMNS = [*SETTING, "val_loss", "diverged", "curve", "first_step", "drift_ratio", "base_loss", "pass1", "right",
           "seconds", "device"]
FULL = "full fine-tuning"
HABIT, RULE = "alpha 32 = 2r", "alpha 1024 = 256·√r"
ARMS = {FULL: dict(arm="full", rank=0, alpha=0.0, lr_ratio=1.0),
        HABIT: dict(arm="lora", rank=16, alpha=32.0, lr_ratio=1.0),
        "alpha 64 = 16·√r (rsLoRA)": dict(arm="lora", rank=16, alpha=64.0, lr_ratio=1.0),
        RULE: dict(arm="lora", rank=16, alpha=1024.0, lr_ratio=1.0),
        "alpha 4096 = 4·256·√r": dict(arm="lora", rank=16, alpha=4096.0, lr_ratio=1.0),
        "LoRA+, alpha 32, ratio 16": dict(arm="lora", rank=16, alpha=32.0, lr_ratio=16.0),
        "rank 64, alpha 128 = 2r": dict(arm="lora", rank=64, alpha=128.0, lr_ratio=1.0),
        "rank 64, alpha 2048 = 256·√r": dict(arm="lora", rank=64, alpha=2048.0, lr_ratio=1.0)}
# The middle of the five rates that each arm begins with, 2e-5·2^k: of the 40 steps of smollm2.py and alpha·lr.
MIDDLE = {FULL: 2, HABIT: 6, "alpha 64 = 16·√r (rsLoRA)": 5, RULE: 2, "alpha 4096 = 4·256·√r": 0,
          "LoRA+, alpha 32, ratio 16": 3, "rank 64, alpha 128 = 2r": 5, "rank 64, alpha 2048 = 256·√r": 1}
C = [1 / 16, 1 / 4, 1, 4]  # times 256·√r, at full fine-tuning's best rate


def prepare(quick: bool) -> None:
    for folder, file in ((BASE, "model.safetensors"), (DATA, "train.jsonl")):
        if not (ROOT / folder / file).is_file():
            raise FileNotFoundError(f"{folder}/{file} is not there: python {folder}/prepare.py first")
    if not quick and DEVICE == "cpu":  # 3.6 hours an epoch on two cores, and over 150 epochs
        raise FileNotFoundError("no GPU is there, which the runs of this script need: see --quick")


# ---- The runs --------------------------------------------------------------------------------------------------------


def cells(quick: bool, rows: list[dict]) -> list[dict]:
    """Rates after one epoch; then what each arm comes to after three, what bfloat16 does, which c is best, and the
    rates again with other seeds, for the error of the bands."""
    if quick:
        size = dict(batch=4, problems=8, val=4, dtype="float32")
        return ([{**SETTING, **arm, "lr": rate(MIDDLE[name]), **size} for name, arm in ARMS.items()]
                + [{**SETTING, **ARMS[name], "lr": rate(MIDDLE[name]), **size, "epochs": EPOCHS, "test": 2}
                   for name in (HABIT, RULE)])
    found = [{**SETTING, **arm, "lr": lr} for name, arm in ARMS.items() for lr in rates(rows, name)]
    if not all(inside(rows, name) for name in ARMS):
        return found
    shared = best_rate(rows, FULL)
    whole = [{**SETTING, **arm, "lr": lr, "epochs": EPOCHS, "seed": seed, "test": TESTS} for seed in SEEDS
             for name, arm in ARMS.items() for lr in sorted({best_rate(rows, name), shared})]
    exact = {**SETTING, **ARMS[RULE], "lr": best_rate(rows, RULE), "epochs": EPOCHS, "test": TESTS, "dtype": "float32"}
    of_c = [{**SETTING, "rank": rank, "alpha": c * 256 * math.sqrt(rank), "lr": shared, "epochs": EPOCHS}
            for rank in (16, 64) for c in C]
    again = [{**cell, "seed": seed} for seed in SEEDS[1:] for cell in found]
    return [*found, *whole, exact, *of_c, *again]


def rate(k: int) -> float:
    return float(f"{2e-5 * 2.0**k:.6g}")


def tuning(rows: list[dict], name: str, seed: int = 0) -> dict[float, float]:
    """{learning rate: held-out loss} of an arm after one epoch, by rate; infinite where it diverged."""
    found = grid.pick(rows, **ARMS[name], epochs=1, seed=seed)
    return {row["lr"]: math.inf if row["diverged"] else row["val_loss"]
            for row in sorted(found, key=lambda row: row["lr"])}


def rates(rows: list[dict], name: str) -> list[float]:
    """The five rates that an arm begins with, and those beyond until the best is inside."""
    begin = [rate(MIDDLE[name] + k) for k in range(-2, 3)]
    tried = tuning(rows, name)
    if not tried.keys() >= set(begin):
        return begin
    if not inside(rows, name):
        best = best_rate(rows, name)
        return [*tried, float(f"{(best / 2 if best == min(tried) else best * 2):.6g}")]
    return [*tried]


def inside(rows: list[dict], name: str) -> bool:
    tried = tuning(rows, name)
    return len(tried) >= 5 and min(tried) < best_rate(rows, name) < max(tried)


def best_rate(rows: list[dict], name: str) -> float:
    tried = tuning(rows, name)
    return min(tried, key=tried.get)


def work(cell: dict) -> dict:
    """One run. curve: held-out loss at each half epoch; right: x and for each test problem 1 where it was right."""
    start, arm = time.time(), cell["arm"]
    examples, held_out, tests = finetune.examples(BASE, DATA, cell["val"])
    examples = [example for example in examples if len(example[0]) <= LONGEST][: cell["problems"] or None]
    dtype = getattr(torch, cell["dtype"])
    model = load_model(ROOT / BASE, torch.float32 if arm == "full" else dtype, DEVICE)
    torch.manual_seed(cell["seed"])  # before A's init
    if arm == "lora":
        inject_lora(model, int(cell["rank"]), cell["alpha"])
    found = dict(diverged=1, device=NAME)
    if lora_layers(model):
        found["first_step"] = first_step_ratio(model) * cell["lr_ratio"]
    micro = min(8, cell["batch"])  # rows of 512 tokens with 49,152 logits each
    steps = max(1, round(cell["epochs"] * len(examples) / cell["batch"]))
    try:
        rows = train(model, epochs(examples, micro, cell["batch"] // micro, cell["seed"]), steps, cell["lr"],
                     grad_accum=cell["batch"] // micro, lr_ratio=cell["lr_ratio"], drift=arm == "lora",
                     val_batches=held_out, eval_every=max(1, round(steps / cell["epochs"] / 2)), log=Watch(),
                     autocast=None if dtype == torch.float32 else dtype)
    except FloatingPointError:
        return dict(**found, val_loss=math.nan, seconds=time.time() - start)
    found |= dict(val_loss=rows[-1]["val_loss"], diverged=int(not rows[-1]["val_loss"] < rows[0]["loss"] * 2),
                  curve=" ".join(f"{row['step']}:{row['val_loss']:.4f}" for row in rows if row["val_loss"] is not None),
                  base_loss=evaluate(model, finetune.corpus(BASE)[: 1 if cell["problems"] else None]))
    if arm == "lora":
        found["drift_ratio"] = statistics.fmean(row["drift_ratio"] for row in rows[1:] or rows)
    if cell["test"]:
        with torch.autocast(DEVICE, dtype, enabled=arm == "full" and dtype != torch.float32):
            records = solve(model, load_tokenizer(ROOT / BASE), tests[: cell["test"]])
        right = [record["correct"] for record in records]
        found |= dict(pass1=statistics.fmean(right), right="x" + "".join(str(int(one)) for one in right))
    return dict(**found, seconds=time.time() - start)


# ---- What it shows ---------------------------------------------------------------------------------------------------


def trained_out(rows: list[dict], name: str, lr: float, dtype: str = "bfloat16") -> list[dict]:
    """The seeds of an arm after all epochs."""
    group = grid.pick(rows, **ARMS[name], epochs=EPOCHS, lr=lr, dtype=dtype)
    return [row for row in group if row["right"] != ""]


def correct(group: list[dict]) -> list[int]:
    """For each test problem how many of the seeds were right."""
    return [sum(map(int, answers)) for answers in zip(*(row["right"][1:] for row in group))]


def pass1(group: list[dict]) -> str:
    value, low, high = (100 * x for x in pass1_interval(correct(group), len(group)))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def against(group: list[dict], habit: list[dict]) -> tuple[float, float, float, float]:
    """Paired by problem, seeds pooled: difference to alpha = 2r at its best rate in points, its interval, exact p."""
    *points, p = paired_difference(correct(habit), correct(group), len(group))
    return *(100 * x for x in points), p


def band(losses: dict[float, float]) -> float:
    """Width in factors of 2 of the rates within 2% of the best loss: crossings by straight lines over log2 of the
    rate. An end at the edge of what was tried is where that edge is, so the width is a lower bound there."""
    points, most = [(math.log2(lr), loss) for lr, loss in losses.items()], NEAR * min(losses.values())
    best = min(range(len(points)), key=lambda i: points[i][1])
    ends = []
    for side in (points[best::-1], points[best:]):
        end = side[0][0]
        for (a, low), (b, high) in zip(side, side[1:]):
            if high > most:
                end = a + (b - a) * (most - low) / (high - low) if math.isfinite(high) else a
                break
            end = b
        ends.append(end)
    return ends[1] - ends[0]


def bands(rows: list[dict], name: str) -> list[float]:
    """Of each seed whose rates are all there."""
    whole = [tuning(rows, name, seed) for seed in SEEDS]
    return [band(losses) for losses in whole if losses.keys() == whole[0].keys()]


def told(rows: list[dict]) -> str:
    if not all(inside(rows, name) for name in ARMS):
        small = [f"- {name}: held-out loss {mean(found, 'val_loss')}" for name, arm in ARMS.items()
                 if (found := grid.pick(rows, **arm, epochs=1))]
        return "\n".join(small)
    shared = best_rate(rows, FULL)
    lines = ["Rates, chosen on 300 held-out problems after one epoch, seed 0:", "",
             "| | rates tried | best rate | its held-out loss | rates within 2%, in factors of 2 (range over seeds) |",
             "|---|---|---|---|---|"]
    for name in ARMS:
        tried, widths = tuning(rows, name), bands(rows, name)
        spread = f" ({min(widths):.2f} to {max(widths):.2f})" if len(widths) > 1 else ""
        lines.append(f"| {name} | {len(tried)}, {min(tried):g} to {max(tried):g} | {best_rate(rows, name):g} | "
                     f"{min(tried.values()):.4f} | {statistics.fmean(widths):.2f}{spread} |")
    habit = trained_out(rows, HABIT, best_rate(rows, HABIT))
    for words, rate_of in (("at its best rate", lambda name: best_rate(rows, name)),
                           (f"at {shared:g}, full fine-tuning's best", lambda name: shared)):
        groups = {name: group for name in ARMS if (group := trained_out(rows, name, rate_of(name)))}
        lines += ["", f"After {EPOCHS} epochs, {words}; seeds: {min(map(len, groups.values()), default=0)}:", "",
                  f"| | lr | held-out loss | pass@1 of {TESTS:,}, % | points above alpha = 2r at its best rate | p | "
                  "loss on English | drift ratio | seconds |", "|---|---|---|---|---|---|---|---|---|"]
        for name, group in groups.items():
            paired = ["", ""]
            if len(group) == len(habit) and group != habit:
                value, low, high, p = against(group, habit)
                paired = [f"{value:+.1f} [{low:+.1f}, {high:+.1f}]", f"{p:.2g}"]
            lines.append(f"| {name} | {group[0]['lr']:g} | {mean(group, 'val_loss')} | {pass1(group)} | "
                         f"{' | '.join(paired)} | {mean(group, 'base_loss')} | {mean(group, 'drift_ratio', '.2g')} | "
                         f"{mean(group, 'seconds', '.0f')} |")
    of_c = {rank: losses for rank in (16, 64) if (losses := over_c(rows, rank))}
    if of_c:
        lines += ["", f"| held-out loss after {EPOCHS} epochs at {shared:g}, c = | "
                  + " | ".join(f"{256 * c:g}" for c in C) + " |", "|---|" + "---|" * len(C)]
        lines += [f"| rank {rank} | " + " | ".join(f"{losses[c]:.4f}" if c in losses else "" for c in C) + " |"
                  for rank, losses in of_c.items()]
    exact, rounded = (trained_out(rows, RULE, best_rate(rows, RULE), dtype) for dtype in ("float32", "bfloat16"))
    if exact and rounded:
        lines += ["", f"With the base in float32 {RULE} ends at {exact[0]['val_loss']:.4f} and {pass1(exact)}, with "
                  f"it in bfloat16 at {rounded[0]['val_loss']:.4f} and {pass1(rounded[:1])} (seed 0)."]
    return "\n".join(lines)


def over_c(rows: list[dict], rank: int) -> dict[float, float]:
    """{c / 256: held-out loss} at full fine-tuning's best rate, seed 0."""
    shared = best_rate(rows, FULL)
    runs = {c: grid.pick(rows, arm="lora", rank=rank, alpha=c * 256 * math.sqrt(rank), lr_ratio=1.0, lr=shared,
                         epochs=EPOCHS, seed=0) for c in C}
    return {c: math.inf if found[0]["diverged"] else found[0]["val_loss"] for c, found in runs.items() if found}


def findings(rows: list[dict]) -> list[tuple[str, str]]:
    if not all(inside(rows, name) for name in ARMS):
        return [("alpha gives a model that is trained out what no learning rate gives", "not run at full length")]
    found, shared = [], best_rate(rows, FULL)
    ours, theirs = (trained_out(rows, name, best_rate(rows, name)) for name in (RULE, HABIT))
    if ours and len(ours) == len(theirs):
        _, low, _, _ = against(ours, theirs)
        losses = [[row["val_loss"] for row in group] for group in (ours, theirs)]
        found += [(f"after {EPOCHS} epochs, each at its best rate, alpha = 256·√r has a higher pass@1 than alpha = 2r "
                   "(the interval of the paired difference is above 0)", grid.verdict(low > 0)),
                  ("so has it a lower held-out loss, every seed below every one of alpha = 2r",
                   grid.verdict(max(losses[0]) < min(losses[1])))]
    full, ours, theirs = (trained_out(rows, name, shared) for name in (FULL, RULE, HABIT))
    if full and ours and theirs:
        loss, rule, habit = (statistics.fmean(row["val_loss"] for row in group) for group in (full, ours, theirs))
        found.append(("at full fine-tuning's best rate alpha = 256·√r ends within 2% of its held-out loss, and "
                      "alpha = 2r does not", grid.verdict(rule < NEAR * loss < habit)))
    rule, habit = bands(rows, RULE), bands(rows, HABIT)
    if len(rule) == len(habit) == len(SEEDS):
        found.append(("more rates are within 2% of the best with alpha = 256·√r than with alpha = 2r, in every seed",
                      grid.verdict(min(rule) > max(habit))))
    scans = [losses for rank in (16, 64) if len(losses := over_c(rows, rank)) == len(C)]
    if scans:
        found.append(("c = 256 is the best of four at full fine-tuning's best rate",
                      grid.verdict(*(min(losses, key=losses.get) == 1 for losses in scans))))
    return found


def picture(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.4))
    colors = dict(zip(ARMS, plt.cm.tab10.colors))
    for name, color in colors.items():
        tried = {lr: loss for lr, loss in tuning(rows, name).items() if math.isfinite(loss)}
        left.plot(list(tried), list(tried.values()), "o-", color=color, ms=4, lw=1.2, label=name)
        if not tried:
            continue
        group = trained_out(rows, name, best_rate(rows, name))
        for row in group[:1]:
            points = [tuple(map(float, point.split(":"))) for point in row["curve"].split()]
            middle.plot(*zip(*points), "o-", color=color, ms=3, lw=1.2)
        if group:
            value, low, high = pass1_interval(correct(group), len(group))
            right.errorbar(value, name, xerr=[[value - low], [high - value]], fmt="o", color=color)
    left.set(xscale="log", xlabel="learning rate", ylabel="held-out loss", title="one epoch, seed 0 (colours: right)")
    middle.set(xlabel="update", ylabel="held-out loss", title=f"{EPOCHS} epochs at each arm's best rate")
    right.set(xlabel="pass@1", title="test problems, 95% intervals")
    fig.tight_layout()
    fig.savefig(path, dpi=130, format="png")


if __name__ == "__main__":
    grid.command(sys.modules[__name__])
