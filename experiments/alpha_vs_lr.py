"""Finding 2: alpha against the learning rate, over a grid of both.

    python experiments/alpha_vs_lr.py      an hour on two cores; finished runs are reused (--quick: a minute)

data/base on data/equations, rank 16, 200 steps of 8 problems, AdamW without decay. Every alpha of 2 to 8192 with every
learning rate of 1.6e-5 to 6.4e-2, both by factors of 4, so that an equal alpha·lr lies on a diagonal. From alpha = 2r
and a small rate either alpha or the rate is multiplied, with three seeds. Controls: LoRA+ at alpha = 2r and ratio k,
which under Adam is the same as k·alpha [derived]; and alphas with the gradient's norm clipped at 1, with three seeds
around the best.
"""

import math
import statistics
import sys
from pathlib import Path

import finetune
import grid  # puts the modules above this folder on the path
import numpy
from rank_law import fitted, ridge

COLUMNS = finetune.COLUMNS
ALPHAS = [2.0 * 4**k for k in range(7)]
RATES = [1e-3 * 4.0**k for k in range(-3, 4)]
START, SEEDS = (32.0, 2.5e-4), [0, 1, 2]  # where both routes begin: the habit alpha = 2r
FACTORS = [1.0, 4.0, 16.0, 64.0, 256.0]
RATIOS, AT = [4.0, 16.0, 64.0], 1e-3  # of LoRA+ at the habit's alpha, and the rate of it and of clipping
CLIPPED = [32.0, 128.0, 512.0, 2048.0]  # with three seeds


def cells(quick: bool, rows: list[dict]) -> list[dict]:
    if quick:
        size = dict(steps=12, batch=4, val=50)
        routes = [finetune.cell(alpha=START[0] * a, lr=START[1] * b, **size) for a, b in [(1, 1), (16, 1), (1, 16)]]
        return routes + [finetune.cell(alpha=a, lr=AT, lr_ratio=b, clip=clip, **size)
                         for a, b in [(512.0, 1.0), (32.0, 16.0)] for clip in (0.0, 1.0)]
    found = [finetune.cell(alpha=alpha, lr=lr) for lr in RATES for alpha in ALPHAS]
    for seed in SEEDS[1:]:
        found += [finetune.cell(alpha=START[0] * k, lr=START[1], seed=seed) for k in FACTORS]
        found += [finetune.cell(alpha=START[0], lr=START[1] * k, seed=seed) for k in FACTORS[1:]]
    found += [finetune.cell(lr=AT, lr_ratio=ratio, clip=clip) for ratio in RATIOS for clip in (0.0, 1.0)]
    found += [finetune.cell(alpha=alpha, lr=AT, clip=1.0) for alpha in ALPHAS]
    return found + [finetune.cell(alpha=alpha, lr=AT, clip=clip, seed=seed)
                    for seed in SEEDS[1:] for alpha in CLIPPED for clip in (0.0, 1.0)]


def work(cell: dict) -> dict:
    return finetune.finetune(cell, drift=True, forgetting=True, test=250 if cell["val"] == 300 else 0)


# ---- What it shows ---------------------------------------------------------------------------------------------------


def select(rows: list[dict], **own) -> list[dict]:
    """The rows without clipping and LoRA+, but for what is given."""
    return grid.pick(rows, **{**dict(clip=0, lr_ratio=1), **own})


def slopes(rows: list[dict]) -> tuple[float, float, int]:
    """The exponents of alpha and of the learning rate in the drift ratio, by least squares on logarithms, over the runs
    that have learnt little (a loss above 0.7 of the highest), and how many they are: there B is still small."""
    fine = select(rows, seed=0, diverged=0)
    highest = max(row["val_loss"] for row in fine)
    # At large rates a high loss is one that rose.
    little = [row for row in fine if row["val_loss"] > 0.7 * highest and row["lr"] < AT]
    x = numpy.array([[1, math.log(row["alpha"]), math.log(row["lr"])] for row in little])
    y = numpy.log([row["drift_ratio"] for row in little])
    _, of_alpha, of_rate = numpy.linalg.lstsq(x, y, rcond=None)[0]
    return of_alpha, of_rate, len(little)


def route(rows: list[dict], which: str) -> list[tuple[float, list[dict]]]:
    """(factor, rows of the seeds) from START, with which (alpha or lr) raised."""
    fixed = {"alpha": dict(lr=START[1]), "lr": dict(alpha=START[0])}[which]
    start = START[0] if which == "alpha" else START[1]
    found = {}
    for row in select(rows, **fixed):
        if row[which] >= start:
            found.setdefault(row[which] / start, []).append(row)
    return sorted(found.items())


def mean(rows: list[dict], name: str) -> float:
    return statistics.fmean(row[name] if row[name] != "" else math.nan for row in rows)


def spread(rows: list[dict], name: str, digits: str = ".3f") -> str:
    """Mean and range over the rows."""
    values = [row[name] if row[name] != "" else math.nan for row in rows]
    if len(values) == 1 or any(math.isnan(value) for value in values):
        return f"{mean(rows, name):{digits}}"
    return f"{mean(rows, name):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


def best(rows: list[dict]) -> dict | None:
    return min((row for row in rows if not row["diverged"]), key=lambda row: row["val_loss"], default=None)


def heat(rows: list[dict], name: str, words: str, digits: str) -> list[str]:
    """A table of alpha and learning rate; the lowest loss of each rate is bold."""
    alphas = sorted({row["alpha"] for row in rows})
    lines = [f"| {words}, alpha = | " + " | ".join(f"{alpha:g}" for alpha in alphas) + " |",
             "|---|" + "---|" * len(alphas)]
    for rate in sorted({row["lr"] for row in rows}):
        of_rate = {row["alpha"]: row for row in grid.pick(rows, lr=rate)}
        shown = ["" if alpha not in of_rate else "diverged" if of_rate[alpha]["diverged"] else
                 f"{of_rate[alpha][name]:{digits}}" for alpha in alphas]
        if name == "val_loss" and (lowest := best(list(of_rate.values()))):
            shown[alphas.index(lowest["alpha"])] = f"**{lowest[name]:{digits}}**"
        lines.append(f"| lr {rate:.3g} | " + " | ".join(shown) + " |")
    return lines


def told(rows: list[dict]) -> str:
    lines = []
    for name, words, digits in (("val_loss", "validation loss", ".3f"), ("drift_ratio", "mean drift ratio", ".1e")):
        lines += [*heat(select(rows, seed=0), name, words, digits), ""]
    of_alpha, of_rate, count = slopes(rows)
    best_alpha = ridge(select(rows, seed=0))
    if len(best_alpha) > 1:
        _, power = fitted(list(best_alpha.items()))
        lines += ["The best alpha, by a parabola as in section 3, is "
                  + ", ".join(f"{alpha:.0f} at {lr:.3g}" for lr, alpha in best_alpha.items())
                  + f": it scales as lr^{power:.2f}. (The grid's factors of 4 bias it low, because the loss rises "
                  "steeply past the best alpha.)", ""]
    lines += [f"In the {count} runs at small rates whose loss stays above 0.7 of the highest, the drift ratio scales "
              f"as alpha^{of_alpha:.2f}·lr^{of_rate:.2f}.", "",
              f"Alpha or the learning rate multiplied, from alpha = {START[0]:g} and lr = {START[1]:g}; mean (range) "
              f"over {seeds(rows)} seeds:", "",
              "| multiplied | validation loss | pass@1, % | sum of the signal over all steps | drift ratio | "
              "loss on the base's corpus |", "|---|---|---|---|---|---|"]
    by_rate = dict(route(rows, "lr"))
    for factor, raised in route(rows, "alpha"):
        if factor in by_rate:
            pair = [(f"alpha ×{factor:g}", raised), (f"rate ×{factor:g}", by_rate[factor])]
            for name, group in pair if factor > 1 else [("neither", raised)]:
                lines.append(f"| {name} | {spread(group, 'val_loss')} | {100 * mean(group, 'pass1'):.1f} | "
                             f"{mean(group, 'signal'):.3g} | {mean(group, 'drift_ratio'):.2g} | "
                             f"{mean(group, 'base_loss'):.3f} |")
    lines += ["", f"| loss at a rate of {AT:g} | LoRA+, alpha = 32, ratio k | alpha = k·32 | clipped at 1: LoRA+ | "
              "alpha = k·32 | steps clipped |", "|---|---|---|---|---|---|"]
    for ratio, pair in controls(rows):
        lines.append(f"| k = {ratio:g} | " + " | ".join(f"{row['val_loss']:.4f}" for row in pair)
                     + f" | {100 * pair[2]['clipped']:.0f}%, {100 * pair[3]['clipped']:.0f}% |")
    alphas = sorted({row["alpha"] for row in select(rows, clip=1, lr=AT)})
    if len(alphas) > 1:
        groups = [(alpha, *(select(rows, clip=clip, lr=AT, alpha=alpha) for clip in (0, 1))) for alpha in alphas]
        lines += ["", f"| alpha, at a rate of {AT:g} | loss, not clipped | loss, clipped at 1 | steps clipped |",
                  "|---|---|---|---|"]
        lines += [f"| {alpha:g} | {spread(free, 'val_loss')} | {spread(clipped, 'val_loss')} | "
                  f"{100 * mean(clipped, 'clipped'):.0f}% |" for alpha, free, clipped in groups]
    return "\n".join(lines)


def seeds(rows: list[dict]) -> int:
    return len({row["seed"] for row in rows})


def controls(rows: list[dict]) -> list[tuple[float, list[dict]]]:
    """(k, [LoRA+, k·alpha, both clipped]) at the habit's alpha and the rate AT."""
    found = []
    for ratio in sorted({row["lr_ratio"] for row in rows} - {1.0}):
        found.append((ratio, [row for clip in (0, 1) for row in
                              select(rows, seed=0, lr=AT, alpha=START[0], lr_ratio=ratio, clip=clip)
                              + select(rows, seed=0, lr=AT, alpha=START[0] * ratio, clip=clip)]))
    return found


def findings(rows: list[dict]) -> list[tuple[str, str]]:
    of_alpha, of_rate, _ = slopes(rows)
    by_rate = dict(route(rows, "lr"))
    pairs = [(group, by_rate[factor]) for factor, group in route(rows, "alpha") if factor > 1 and factor in by_rate]
    by_alpha, by_rate = (min((group for group in groups if not any(row["diverged"] for row in group)),
                             key=lambda group: mean(group, "val_loss")) for groups in zip(*pairs))
    limit = best(select(rows, lr=AT, seed=0))["alpha"]
    same = [abs(plus["val_loss"] / alpha["val_loss"] - 1) for ratio, (plus, alpha, *_) in controls(rows)
            if START[0] * ratio <= limit]
    claims = [("at equal alpha·lr the drift ratio is lower where alpha was raised than where the rate was",
               all(mean(a, "drift_ratio") < mean(b, "drift_ratio") for a, b in pairs)),
              ("in runs with little progress the drift ratio is independent of alpha and proportional to the rate "
               "(exponents within 0.15 of 0 and 1)", abs(of_alpha) < 0.15 and abs(of_rate - 1) < 0.15),
              ("LoRA+ at ratio k ends where k times alpha does, to 3% of the loss, up to the best alpha",
               max(same) < 0.03),
              ("from alpha = 2r and a small rate, raising alpha reaches a lower loss than raising the rate, every seed "
               "below every other", max(r["val_loss"] for r in by_alpha) < min(r["val_loss"] for r in by_rate))]
    return [(claim, grid.verdict(true)) for claim, true in claims]


def picture(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    flat = select(rows, seed=0)
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), width_ratios=[1.25, 1, 1])
    fine = [row for row in flat if not row["diverged"]]
    norm = LogNorm(min(row["val_loss"] for row in fine), max(row["val_loss"] for row in fine))
    alphas, rates = sorted({row["alpha"] for row in flat}), sorted({row["lr"] for row in flat})
    for row in flat:
        at = alphas.index(row["alpha"]), rates.index(row["lr"])
        if row["diverged"]:
            left.text(*at, "×", ha="center", va="center", color="#999999", fontsize=12)
            continue
        color = plt.cm.viridis_r(norm(row["val_loss"]))
        left.add_patch(plt.Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, color=color, lw=0))
        left.text(*at, f"{row['val_loss']:.2f}", ha="center", va="center", fontsize=7.5,
                  color="black" if norm(row["val_loss"]) < 0.5 else "white")
    for i, rate in enumerate(rates):
        if of_rate := [row for row in fine if row["lr"] == rate]:
            at = alphas.index(best(of_rate)["alpha"])
            left.add_patch(plt.Rectangle((at - 0.46, i - 0.46), 0.92, 0.92, fill=False, color="#c1272d", lw=1.8))
    left.set(xticks=range(len(alphas)), xticklabels=[f"{a:g}" for a in alphas], yticks=range(len(rates)),
             yticklabels=[f"{r:.1e}" for r in rates], xlim=(-0.5, len(alphas) - 0.5), ylim=(-0.5, len(rates) - 0.5),
             xlabel="alpha", ylabel="learning rate", title="validation loss, rank 16 (framed: best alpha)")
    for which, color, name in (("alpha", "#c1272d", "alpha raised"), ("lr", "#1f4e79", "learning rate raised")):
        line = [(factor, group) for factor, group in route(rows, which) if not any(r["diverged"] for r in group)]
        for ax, value in ((middle, "val_loss"), (right, "drift_ratio")):
            ax.plot([f for f, _ in line], [mean(group, value) for _, group in line], "o-", color=color, ms=4)
            for factor, group in line:
                ax.plot([factor] * len(group), [row[value] for row in group], ".", color=color, ms=3)
        factor, group = line[-1]
        middle.plot([], [], color=color, label=name)
    middle.set(xscale="log", yscale="log", xlabel=f"factor, from alpha {START[0]:g} and rate {START[1]:g}",
               title="validation loss")
    middle.legend(frameon=False, fontsize=8)
    right.set(xscale="log", yscale="log", xlabel="factor", title="mean drift ratio")
    fig.tight_layout()
    fig.savefig(path, dpi=130, format="png")


if __name__ == "__main__":
    grid.command(sys.modules[__name__])
