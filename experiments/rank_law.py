"""Finding 3, the rank law: which alpha is best at each rank, at one small learning rate?

    python experiments/rank_law.py         some four hours on two cores; finished runs are reused (--quick: a minute)

data/base on data/equations, 200 steps of 8 problems, AdamW without decay and clipping, learning rate 1e-3 (train.py's
default, the best of full fine-tuning in first_table.py), alpha = c·√r over a grid of c. alpha*(r) is the vertex of a
parabola in log alpha through the log of the loss around the lowest point; alpha* = c·r^p is fitted over the ranks, with
an interval from a bootstrap over ranks and seeds. Also: how much higher the loss of other rules is than at the best
alpha; c* over the learning rate, the number of steps and the width of the model, on bases pre-trained for it (into
out/widths, the two widest on a GPU only).
"""

import math
import random
import statistics
import sys
from pathlib import Path

import finetune
import grid  # puts the modules above this folder on the path
import numpy
from finetune import best_rate, tuned

from data.base.prepare import pretrain
from hf import copy_tokenizer

ROOT = grid.HERE.parent
COLUMNS = finetune.COLUMNS
RANKS = [1, 2, 4, 8, 16, 32, 64, 128]
GRID = [16, 32, 64, 128, 256, 512, 1024]  # c
NEAR = GRID[1:-1]  # all that the first seed left in question at any rank
SEEDS = [0, 1, 2]
STEPS = [50, 400]  # beside SETTING's 200
RATES = [3e-4, 3e-3]  # beside SETTING's 1e-3
FULL_RATES = [3e-4, 1e-3, 3e-3, 1e-2]
WIDTHS = [64, 128, 256, 512, 1024, 2048]  # two layers, pre-trained for 1,000 steps of 16 rows
CPU_WIDTHS, CPU_WIDTHS_AT_BEST = WIDTHS[:4], WIDTHS[:3]  # what two cores can do in hours; the others ask for a GPU
FULL_RATES_OF_WIDTHS = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
RULES = {"alpha = 2r": lambda r: 2.0 * r, "alpha = 16": lambda r: 16.0, "alpha = 32": lambda r: 32.0,
         "alpha = 256": lambda r: 256.0, "alpha = 512": lambda r: 512.0, "alpha = 1024": lambda r: 1024.0,
         "rsLoRA, 16·√r": lambda r: 16 * math.sqrt(r)}


def cells(quick: bool, rows: list[dict]) -> list[dict]:
    if quick:
        return over([2, 8, 32], [16, 128, 1024], [0], steps=12, batch=4, val=50)
    # Ranks are the finding, so they come first; a sweep that is stopped has whole seeds of them.
    found = over(RANKS, GRID, SEEDS[:1]) + rules(RANKS[::2], SEEDS[:1]) + over(RANKS, NEAR, SEEDS[1:])
    found += [finetune.cell(arm="full", rank=0, alpha=0.0, lr=lr) for lr in FULL_RATES]
    for steps in STEPS:
        found += over([16], GRID, SEEDS[:2], steps=steps)
    for lr in RATES:
        found += over([16], grid_at(lr, GRID), SEEDS[:2], lr=lr)
    for width in WIDTHS:
        found += of_width(width, rows)
    return found


def prepare(quick: bool) -> None:
    """The bases of several widths, those whose runs are not all there."""
    rows = grid.read_rows(grid.HERE / "rank_law.csv")
    for width in [] if quick else WIDTHS:
        folder, part = ROOT / f"out/widths/{width}", ROOT / f"out/widths/{width}-part"
        if not folder.is_dir() and not all(grid.pick(rows, **cell) for cell in of_width(width, rows)):
            part.mkdir(parents=True, exist_ok=True)
            copy_tokenizer(ROOT / "data/base", part)
            pretrain(1000, 2e-3 * min(1, 512 / width), part, width, 2)
            part.rename(folder)


def over(ranks, grid, seeds, **own) -> list[dict]:
    return [finetune.cell(rank=rank, alpha=c * math.sqrt(rank), seed=seed, **own)
            for seed in seeds for rank in ranks for c in grid]


def of_width(width: int, rows: list[dict]) -> list[dict]:
    """The grid of c at one rate; full fine-tuning's rates, and once they are there the grid of c at its best."""
    base = f"out/widths/{width}"
    at_one = over([16], GRID, SEEDS[:2], base=base)
    at_best = [finetune.cell(arm="full", rank=0, alpha=0.0, lr=lr, base=base) for lr in FULL_RATES_OF_WIDTHS]
    if len(grid.pick(rows, arm="full", base=base)) == len(at_best):
        lr = best_rate(rows, arm="full", base=base)
        at_best += over([16], grid_at(lr, GRID), SEEDS[:2], lr=lr, base=base)
    return [*(at_one if width in CPU_WIDTHS else finetune.on_gpu(at_one, rows)),
            *(at_best if width in CPU_WIDTHS_AT_BEST else finetune.on_gpu(at_best, rows))]


def rules(ranks, seeds) -> list[dict]:
    return [finetune.cell(rank=rank, alpha=rule(rank), seed=seed)
            for seed in seeds for rank in ranks for rule in RULES.values()]


def work(cell: dict) -> dict:
    return finetune.finetune(cell)


# ---- What it shows ---------------------------------------------------------------------------------------------------


def grid_at(lr: float, grid: list[int]) -> list[float]:
    """A grid of c that is meant for 1e-3, moved as the best alpha is, inversely to the rate, by whole factors of 2."""
    return [c * 2.0 ** round(math.log2(1e-3 / lr)) for c in grid]


def curves(rows: list[dict], **own) -> dict[tuple, dict[float, float]]:
    """{(rank, seed): {alpha: loss}} of the LoRA runs over the grid of c, the usual ones but for what is given. Those
    that lack a c of NEAR which other runs have are not complete yet, and left out."""
    found, lora = {}, at_one_rate(rows)
    lr = lora[0]["lr"] if lora else 1e-3
    needed = {c for c in grid_at(lr, NEAR)
              if any(math.isclose(row["alpha"], c * math.sqrt(row["rank"])) for row in lora)}
    for row in usual(lora, **own) if lora else []:
        for c in grid_at(lr, GRID):
            if math.isclose(row["alpha"], c * math.sqrt(row["rank"])):
                found.setdefault((int(row["rank"]), int(row["seed"])), {})[c] = loss_of(row)
    return {(rank, seed): {c * math.sqrt(rank): loss for c, loss in sorted(curve.items())}
            for (rank, seed), curve in sorted(found.items()) if needed <= set(curve)}


def loss_of(row: dict) -> float:
    return math.inf if row["diverged"] else row["val_loss"]


def at_one_rate(rows: list[dict]) -> list[dict]:
    """The LoRA runs of the finding itself: those at the rate that most have."""
    lora = grid.pick(rows, arm="lora")
    return grid.pick(lora, lr=statistics.mode(row["lr"] for row in lora)) if lora else []


def usual(rows: list[dict], **own) -> list[dict]:
    """The rows of the finding itself, or those that differ from them as is said."""
    of_most = {name: statistics.mode(row[name] for row in rows) for name in ("base", "steps")}
    return grid.pick(rows, **{**of_most, **own})


def optimum(curve: dict[float, float], beside: int = 1) -> tuple[float, float, float] | None:
    """(alpha*, loss there, curvature): of a parabola in log alpha through log loss, by least squares over the lowest
    point of the grid and `beside` on each side of it. One: the loss rises steeply past its optimum, and points further
    off pull the vertex away. The lowest point itself where the next one diverged. None where it is at the grid's edge:
    the optimum is not inside."""
    alphas = list(curve)
    lowest = min(range(len(alphas)), key=lambda i: curve[alphas[i]])
    if not 0 < lowest < len(alphas) - 1:
        return None
    if not math.isfinite(curve[alphas[lowest + 1]]):
        return alphas[lowest], curve[alphas[lowest]], math.inf
    near = [alpha for alpha in alphas[max(0, lowest - beside) : lowest + beside + 1] if math.isfinite(curve[alpha])]
    a, b, c = numpy.polyfit(numpy.log(numpy.array(near) / alphas[lowest]), numpy.log([curve[x] for x in near]), 2)
    vertex = -b / (2 * a)
    return alphas[lowest] * math.exp(vertex), math.exp(c + b * vertex / 2), a


def ridge(rows: list[dict]) -> dict[float, float]:
    """{learning rate: best alpha}, of one seed's LoRA runs of one rank, where the optimum is inside the grid."""
    found = {}
    for lr in sorted({row["lr"] for row in rows}):
        of_rate = sorted(grid.pick(rows, lr=lr), key=lambda row: row["alpha"])
        curve = {row["alpha"]: loss_of(row) for row in of_rate}
        if len(curve) > 2 and (best := optimum(curve)):
            found[lr] = best[0]
    return found


def fitted(points: list[tuple[float, float]]) -> tuple[float, float]:
    """(coefficient, exponent) of the power law through (x, y), least squares on logarithms."""
    p, log_c = numpy.polyfit(*numpy.log(points).T, 1)
    return math.exp(log_c), p


def bootstrap(groups: dict[float, list[float]], of, rounds: int = 2000) -> list[tuple[float, ...]]:
    """of([(x, y), ...]) over resampled x, and for each a resampled y: what else could have been found."""
    rng, found = random.Random(0), []
    while len(found) < rounds:
        xs = rng.choices(list(groups), k=len(groups))
        if len(set(xs)) > 2 or len(groups) <= 2:  # a line needs different points
            found.append(of([(x, statistics.geometric_mean(rng.choices(groups[x], k=len(groups[x])))) for x in xs]))
    return found


def interval(values) -> tuple[float, float]:
    """The middle 95%."""
    return tuple(numpy.quantile(list(values), [0.025, 0.975]))


def best_alphas(rows: list[dict], beside: int = 1, **own) -> dict[int, list[float]]:
    """{rank: alpha* of each seed}, seeds whose optimum is not inside the grid left out."""
    found = {}
    for (rank, _), curve in curves(rows, **own).items():
        found.setdefault(rank, []).extend([best[0]] if (best := optimum(curve, beside)) else [])
    return {rank: alphas for rank, alphas in found.items() if alphas}


def law(rows: list[dict]) -> dict:
    """alpha* = c·r^p: p and c with their intervals, and c for p = 1/2."""
    groups = best_alphas(rows)
    points = [(rank, statistics.geometric_mean(alphas)) for rank, alphas in groups.items()]
    c, p = fitted(points)
    again = bootstrap(groups, lambda points: (*fitted(points), root_c(points)))
    return dict(c=c, p=p, root_c=root_c(points), c_interval=interval(a[0] for a in again),
                p_interval=interval(a[1] for a in again), root_c_interval=interval(a[2] for a in again))


def root_c(points) -> float:
    """c of alpha* = c·√r."""
    return statistics.geometric_mean(alpha / math.sqrt(rank) for rank, alpha in points)


def regrets(rows: list[dict]) -> dict[str, dict[int, float]]:
    """{rule: {rank: its loss over the lowest of the grid at that rank, less 1}}, geometric means over the seeds."""
    losses = {(int(row["rank"]), int(row["seed"]), round(row["alpha"], 6)): row["val_loss"]
              for row in usual(at_one_rate(rows))}
    found, grids = {}, curves(rows)
    rules = {**RULES, **{f"alpha = {c}·√r": lambda r, c=c: c * math.sqrt(r) for c in GRID[1:]}}
    for name, rule in rules.items():
        for rank in RANKS:
            ratios = [losses[key] / min(grids[rank, seed].values()) for seed in SEEDS
                      if (key := (rank, seed, round(rule(rank), 6))) in losses and (rank, seed) in grids]
            if ratios:
                found.setdefault(name, {})[rank] = statistics.geometric_mean(ratios) - 1
    return found


def shared(rows: list[dict]) -> dict[str, float]:
    """The rules' mean regret over the ranks at which all of them were run, lowest first."""
    found = regrets(rows)
    ranks = [rank for rank in RANKS if all(rank in of_rank for of_rank in found.values())]
    if not ranks or not set(RULES) <= set(found):
        return {}
    means = {name: math.exp(statistics.fmean(math.log1p(of_rank[r]) for r in ranks)) - 1
             for name, of_rank in found.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def best_c(rows: list[dict], **own) -> list[float]:
    """c* of each seed at rank 16."""
    return [alpha / math.sqrt(16) for alpha in best_alphas(rows, **own).get(16, [])]


def over_width(rows: list[dict]) -> dict[int, list[float]]:
    """{width: c* of each seed} at rank 16."""
    found = {width: best_c(rows, base=f"out/widths/{width}") for width in WIDTHS}
    return {width: each for width, each in found.items() if each}


def over_steps(rows: list[dict]) -> dict[int, list[float]]:
    """{steps: c* of each seed} at rank 16 on data/base."""
    found = {steps: best_c(rows, steps=steps) for steps in sorted([*STEPS, 200])}
    return {steps: each for steps, each in found.items() if each}


def by_rank(rows: list[dict]) -> list[str]:
    found = curves(rows)
    lines = ["| rank | alpha*, each seed | alpha*/√r, mean | loss at alpha* | at 256·√r |", "|---|---|---|---|---|"]
    for rank in sorted({rank for rank, _ in found}):
        mine = {seed: curve for (r, seed), curve in found.items() if r == rank}
        best = [optimum(curve) for curve in mine.values()]
        inside = [b for b in best if b]
        at = [curve[alpha] for curve in mine.values() for alpha in curve if math.isclose(alpha, 256 * math.sqrt(rank))]
        each = ", ".join(f"{b[0]:.0f}" if b else "at the edge" for b in best)
        coefficient = f"{statistics.geometric_mean(b[0] for b in inside) / math.sqrt(rank):.0f}" if inside else ""
        losses = [f"{statistics.fmean(values):.3f}" if values else "" for values in ([b[1] for b in inside], at)]
        lines.append(f"| {rank} | {each} | {coefficient} | {' | '.join(losses)} |")
    return lines


def over_rates(rows: list[dict]) -> dict[float, list[float]]:
    """{learning rate: c* of each seed} at rank 16 on data/base."""
    found = {lr: best_c(usual(rows, lr=lr)) for lr in sorted([*RATES, 1e-3])}
    return {lr: each for lr, each in found.items() if each}


def matched(rows: list[dict]) -> dict[str, tuple[int, float, list[float]]]:
    """{base: (width, full fine-tuning's best rate, c* of each seed at it)} at rank 16, where both are inside the grids.
    That rate is a parabola's, and c* is taken there from the best rate of the grid along data/base's power law. The
    runs on out/base-gpu are gpu.py's."""
    rows, p = rows + grid.read_rows(grid.HERE / "gpu.csv"), power(over_rates(rows).items())
    bases = {"data/base": 256, **{f"out/widths/{width}": width for width in WIDTHS}, "out/base-gpu": 1024}
    found = {}
    for base, width in sorted(bases.items(), key=lambda item: item[1]):
        of_base = grid.pick(rows, base=base, steps=200)
        full = {lr: loss_of(row) for lr, row in tuned(of_base, arm="full").items()}
        if len(full) > 2 and (best := optimum(full)):
            lr = min(full, key=full.get)
            if each := best_c(grid.pick(of_base, lr=lr)):
                found[base] = width, best[0], [c * (best[0] / lr) ** p for c in each]
    return found


def sides(rows: list[dict]) -> tuple[float, dict[int, float], dict[int, float]]:
    """A loss that every rank gets below, and the alpha of each rank at which the first seed's loss falls to it and at
    which it rises to it again, between two points of the grid by a power law; ranks that begin below it left out."""
    grids = {rank: curve for (rank, seed), curve in curves(rows).items() if seed == 0}
    level, falls, rises = 1.1 * max(min(curve.values()) for curve in grids.values()), {}, {}
    for rank, curve in grids.items():
        points = list(curve.items())
        for (alpha, loss), (next_alpha, next_loss) in zip(points, points[1:]):
            if math.isfinite(next_loss) and (loss - level) * (next_loss - level) < 0:
                share = math.log(level / loss) / math.log(next_loss / loss)
                (falls if loss > level else rises)[rank] = alpha * (next_alpha / alpha) ** share
    return level, falls, rises


def sides_in_words(rows: list[dict]) -> str:
    level, falls, rises = sides(rows)
    words = [f"{where} the best alpha, the alpha at which the loss is {level:.2f} scales as "
             f"r^{fitted(list(side.items()))[1]:.2f} (ranks {min(side)} to {max(side)})."
             for where, side in (("Below", falls), ("Above", rises)) if len(side) > 2]
    return " ".join(words)


def told(rows: list[dict]) -> str:
    lines = by_rank(rows)
    if len(best_alphas(rows)) < 3:
        return "\n".join(lines)
    wide = fitted([(rank, statistics.geometric_mean(alphas)) for rank, alphas in best_alphas(rows, beside=2).items()])
    lines += ["", law_in_words(rows) + " Parabolas through two points on each side, instead of one, give "
              f"{wide[0]:.0f}·r^{wide[1]:.2f}: lower, because the loss rises steeply past the best alpha.", "",
              sides_in_words(rows)]
    means, each = shared(rows), regrets(rows)
    if means:
        ranks = [rank for rank in RANKS if all(rank in of_rank for of_rank in each.values())]
        heads = " | ".join(f"rank {rank}" for rank in ranks)
        lines += ["", f"Only the first seed ran c below {NEAR[0]} and above {NEAR[-1]}, so rules outside that range "
                  "have one seed:", "",
                  f"| loss above the lowest of the grid, % | {heads} | geometric mean |",
                  "|---|" + "---|" * (len(ranks) + 1)]
        lines += [f"| {name} | " + " | ".join(f"{100 * each[name][r]:.0f}" for r in ranks) + f" | {100 * mean:.0f} |"
                  for name, mean in means.items()]
    full = {row["lr"]: row["val_loss"] for row in usual(rows) if row["arm"] == "full"}
    if full:
        lines += ["", "Full fine-tuning's loss in the same setting: "
                  + ", ".join(f"{loss:.3f} at {lr:g}" for lr, loss in sorted(full.items())) + "."]
    if len(over_width(rows)) > 1:
        lines += ["", "| width | c*, each seed | √(3n) | lowest loss of the grid, mean |", "|---|---|---|---|"]
        for width, each in over_width(rows).items():
            grids = curves(rows, base=f"out/widths/{width}").values()
            lines.append(f"| {width} | {', '.join(f'{c:.0f}' for c in each)} | {math.sqrt(3 * width):.0f} | "
                         f"{statistics.fmean(min(curve.values()) for curve in grids):.3f} |")
        lines += ["", f"c* scales as width^{power(over_width(rows).items()):.2f}."]
    if len(over_rates(rows)) > 1:
        lines += ["", "| learning rate | c*, each seed |", "|---|---|"]
        lines += [f"| {lr:g} | {', '.join(f'{c:.0f}' for c in each)} |" for lr, each in over_rates(rows).items()]
        lines += ["", f"c* scales as lr^{power(over_rates(rows).items()):.2f}.", "",
                  "| width, base | full fine-tuning's best rate | c* there, each seed | √(3n) |", "|---|---|---|---|"]
        at_best = matched(rows)
        lines += [f"| {width}, {base} | {lr:.1e} | {', '.join(f'{c:.0f}' for c in each)} | {math.sqrt(3 * width):.0f} |"
                  for base, (width, lr, each) in at_best.items()]
        if len(at_best) > 1:
            lines += ["", f"At that rate c* scales as width^{power((n, each) for n, _, each in at_best.values()):.2f}."]
    if len(over_steps(rows)) > 1:
        lines += ["", "| steps | c*, each seed |", "|---|---|"]
        lines += [f"| {steps} | {', '.join(f'{c:.0f}' for c in each)} |" for steps, each in over_steps(rows).items()]
        lines += ["", f"c* scales as steps^{power(over_steps(rows).items()):.2f}."]
    return "\n".join(lines)


def law_in_words(rows: list[dict]) -> str:
    """The fit over all ranks, over those up to 32, and with the exponent 1/2."""
    count = [len(alphas) for alphas in best_alphas(rows).values()]
    fit, low = law(rows), law([row for row in rows if row["rank"] <= 32])
    return ("The best alpha is {c:.0f}·r^{p:.2f} (95% intervals: coefficient [{:.0f}, {:.0f}], exponent [{:.2f}, "
            "{:.2f}]); with the exponent 1/2 it is {root_c:.0f}·√r [{:.0f}, {:.0f}].".format(
                *fit["c_interval"], *fit["p_interval"], *fit["root_c_interval"], **fit)
            + f" Seeds per rank: {min(count)}" + (f" to {max(count)}." if max(count) > min(count) else ".")
            + " Over ranks 1 to 32 alone (a range chosen after seeing the results): "
            + "{c:.0f}·r^{p:.2f}, exponent [{:.2f}, {:.2f}].".format(*low["p_interval"], **low))


def power(points) -> float:
    """The exponent of (x, the seeds' values)."""
    return fitted([(x, statistics.geometric_mean(each)) for x, each in points])[1]


def findings(rows: list[dict]) -> list[tuple[str, str]]:
    if len(best_alphas(rows)) < 3:
        return [("the best alpha grows more slowly than the rank", "too few ranks with the optimum inside the grid")]
    low, high = law(rows)["p_interval"]
    found = [("the best alpha grows more slowly than the rank: the exponent's interval is below 1",
              grid.verdict(high < 1)),
             ("the best alpha follows the square root of the rank: the exponent's interval contains 1/2",
              grid.verdict(low <= 0.5 <= high))]
    if means := shared(rows):
        found.append(("the best rule c·√r loses less against the best alpha of each rank than any other rule",
                      grid.verdict(next(iter(means)) not in RULES)))
    if len(over_width(rows)) > 1:
        found.append(("at one rate c* grows as the square root of the width (exponent 0.25 to 0.75)",
                      grid.verdict(0.25 <= power(over_width(rows).items()) <= 0.75)))
    if len(over_rates(rows)) > 1 and len(at_best := matched(rows)) > 1:
        p = power((width, each) for width, _, each in at_best.values())
        found.append(("at full fine-tuning's best rate it does (exponent 0.25 to 0.75)",
                      grid.verdict(0.25 <= p <= 0.75)))
    return found


def draw_curves(ax, rows: list[dict], scale, place: str, columns: int = 2) -> None:
    """Loss over alpha/scale(rank), a line a rank, geometric means over the seeds; the legend of the ranks at place."""
    import matplotlib.pyplot as plt

    found = curves(rows)
    ranks = sorted({rank for rank, _ in found})
    for i, rank in enumerate(ranks):
        color = plt.cm.viridis(0.92 * i / max(1, len(ranks) - 1))
        mine = [curve for (r, _), curve in found.items() if r == rank]
        line = [(a, statistics.geometric_mean(curve[a] for curve in mine if a in curve)) for a in mine[0]
                if all(math.isfinite(curve.get(a, 0)) for curve in mine)]
        ax.plot([a / scale(rank) for a, _ in line], [loss for _, loss in line], color=color, lw=1.2, label=rank)
        for a, loss in line:
            if math.isclose(a, 256 * math.sqrt(rank)):
                ax.plot(a / scale(rank), loss, "o", color=color, ms=5)
    ax.legend(title="rank", title_fontsize=8, fontsize=8, ncols=columns, loc=place, frameon=False)
    ax.set(xscale="log", yscale="log", xlabel="alpha/√r")


def draw_law(ax, rows: list[dict]) -> None:
    """The best alpha of each rank and seed, and the law."""
    points = [(rank, alpha) for rank, alphas in best_alphas(rows).items() for alpha in alphas]
    ranks = sorted({rank for rank, _ in curves(rows)})
    if len({rank for rank, _ in points}) > 2:
        fit = law(rows)
        inside = sorted({rank for rank, _ in points})
        ax.plot(inside, [fit["c"] * r ** fit["p"] for r in inside], color="#c1272d", lw=1.2)
        ax.text(0.04, 0.92, "best alpha = {c:.0f}·r^{p:.2f}".format(**fit), color="#c1272d", transform=ax.transAxes)
    if points:
        ax.plot(*zip(*points), "o", color="black", ms=4)
    for rule, place in ((lambda r: 256 * math.sqrt(r), "256·√r"), (lambda r: 2 * r, "2r")):
        ax.plot(ranks, [rule(r) for r in ranks], color="#777777", lw=0.9, ls=":")
        ax.annotate(place, (ranks[-1], rule(ranks[-1])), xytext=(-4, 5), textcoords="offset points", fontsize=8,
                    ha="right", color="#777777")
    ax.margins(y=0.12)
    ax.set(xscale="log", yscale="log", xlabel="rank", ylabel="best alpha", title="best alpha over the rank")


def picture(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ((over_alpha, collapsed), (of_rank, of_rest)) = plt.subplots(2, 2, figsize=(10, 7.6))
    draw_curves(over_alpha, rows, lambda rank: 1, "upper left")
    over_alpha.set(xlabel="alpha", ylabel="validation loss",
                   title="loss over alpha, ranks 1 to 128 (● the rule, 256·√r)")
    draw_curves(collapsed, rows, math.sqrt, "upper left", columns=4)
    collapsed.set(title="the same over alpha/√r")
    draw_law(of_rank, rows)
    for groups, color, name in ((over_steps(rows), "#b07000", "over the steps, width 256"),
                                (over_width(rows), "#1f4e79", "over the width, at lr 0.001")):
        means = [(x, statistics.geometric_mean(each)) for x, each in groups.items()]
        if means:
            of_rest.plot(*zip(*means), "o-", color=color, ms=4, lw=1.2, label=name)
    if len(over_rates(rows)) > 1:
        points = [(width, statistics.geometric_mean(each)) for width, _, each in matched(rows).values()]
        of_rest.plot(*zip(*points), "s", color="#2a9d8f", ms=5,
                     label="over the width, at full fine-tuning's best lr")
    widths = list(over_width(rows)) or CPU_WIDTHS
    of_rest.plot(widths, [math.sqrt(3 * n) for n in widths], color="#1f4e79", lw=0.9, ls=":", label="√(3n)")
    of_rest.legend(fontsize=8, frameon=False, loc="upper right")
    of_rest.set(xscale="log", yscale="log", xlabel="width n, or steps", ylabel="best c at rank 16",
                title="best c over the width and over the steps")
    of_rest.set_ylim(10, 1000)
    of_rest.set_xticks(WIDTHS, map(str, WIDTHS))
    of_rest.minorticks_off()
    of_rest.set_visible(len(over_width(rows)) > 1 or len(over_steps(rows)) > 1)
    fig.tight_layout()
    fig.savefig(path, dpi=120, format="png")


if __name__ == "__main__":
    grid.command(sys.modules[__name__])
