"""LoRA-α and other methods, each at its best learning rate and all at one small rate, and what each forgets.

    python experiments/baselines.py        45 minutes on two cores; finished runs are reused (--quick: a minute)

data/base on data/equations, rank 8, 200 steps of 8 problems, AdamW without decay and clipping. Every method ("arm")
gets the same six learning rates with one seed, then five seeds at its best rate by the validation loss and five at the
shared rate 1e-3. pass@1 on 250 test problems. Forgetting: the loss on fresh problems of the base's own corpus.
"""

import math
import statistics
import sys
from pathlib import Path

import finetune
import grid  # puts the modules above this folder on the path
from finetune import best_rate, tuned

from train import method_alpha

COLUMNS = [*finetune.COLUMNS, "curve"]
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
SHARED, RANK, SEEDS = 1e-3, 8, range(5)
TITLES = {"lora": "LoRA, alpha = 2r", "lora-32": "LoRA, alpha = 32", "rslora": "rsLoRA, s = 16/√r",
          "lora+": "LoRA+, 2r, ratio 16", "pissa": "PiSSA, alpha = r", "lora-alpha": "LoRA-α, 256·√r",
          "full": "full fine-tuning"}
COLORS = {"lora": "#1f4e79", "lora-32": "#5b8db8", "rslora": "#7a5195", "lora+": "#2a9d8f", "pissa": "#e0a030",
          "lora-alpha": "#c1272d", "full": "#000000"}


def cell(arm: str, lr: float, seed: int, **own) -> dict:
    method, alpha = ("lora", 32.0) if arm == "lora-32" else (arm, None)
    if arm in ("full", "none"):
        return finetune.cell(arm=arm, rank=0, alpha=0.0, lr=lr, seed=seed, **own)
    return finetune.cell(arm=arm, rank=RANK, alpha=method_alpha(method, RANK, alpha, None), lr=lr, seed=seed,
                         lr_ratio=16.0 if arm == "lora+" else 1.0, **own)


def cells(quick: bool, rows: list[dict]) -> list[dict]:
    if quick:
        return plan(rows, [1e-3, 1e-2], [0], steps=8, batch=4, val=50)
    return plan(rows, RATES, SEEDS)


def plan(rows: list[dict], rates: list[float], seeds, shared=lambda rows: SHARED, **size) -> list[dict]:
    """The base as it is, the tuning, and once that is there the seeds at each arm's best rate and the shared one."""
    found = [cell("none", SHARED, 0, **size)] + [cell(arm, lr, 0, **size) for lr in rates for arm in TITLES]
    if all(len(tuned(rows, arm=arm)) == len(rates) for arm in TITLES):
        found += [cell(arm, lr, seed, **size) for seed in seeds[1:] for arm in TITLES
                  for lr in (best_rate(rows, arm=arm), shared(rows))]
    return found


def work(cell: dict) -> dict:
    losses = []
    found = finetune.finetune(cell, forgetting=True, test=tests(cell), log=lambda row: losses.append(row["loss"]))
    parts = [losses[i : i + 10] for i in range(0, len(losses), 10)]
    return {**found, "curve": " ".join(f"{statistics.fmean(part):.4g}" for part in parts)}


def tests(cell: dict) -> int:
    return 250 if cell["val"] == 300 else 4


# ---- What it shows ---------------------------------------------------------------------------------------------------


def mean(values: list[float]) -> tuple[float, float]:
    """Mean over the seeds, and half of its 95% interval by Student's t (the problems are the same for every seed)."""
    if len(values) < 2:
        return values[0], math.nan
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}[len(values)]
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def each(rows: list[dict], arm: str, lr: float, name: str) -> list[float]:
    """A column over the seeds. A run that was not finite answers nothing, and its losses are none."""
    values = [row[name] for row in sorted(grid.pick(rows, arm=arm, lr=lr), key=lambda row: row["seed"])]
    return [value if value != "" else 0.0 if name == "pass1" else math.nan for value in values]


def within(rows: list[dict], arm: str) -> int:
    """How many rates of the grid end within 10% of the arm's lowest loss."""
    losses = [row["val_loss"] for row in tuned(rows, arm=arm).values() if not row["diverged"]]
    return sum(loss <= 1.1 * min(losses) for loss in losses)


def told(rows: list[dict]) -> str:
    return "\n".join(tables(rows, SHARED))


def tables(rows: list[dict], shared: float) -> list[str]:
    rates = list(tuned(rows, arm="lora"))
    lines = [f"| validation loss, one seed, lr = | {' | '.join(f'{lr:g}' for lr in rates)} | within 10% of its best |",
             "|---|" + "---|" * (len(rates) + 1)]
    for arm, title in TITLES.items():
        shown = ["diverged" if row["diverged"] else f"**{row['val_loss']:.3f}**" if lr == best_rate(rows, arm=arm) else
                 f"{row['val_loss']:.3f}" for lr, row in tuned(rows, arm=arm).items()]
        lines.append(f"| {title} | {' | '.join(shown)} | {within(rows, arm)} of {len(rates)} |")
    for words, rate_of in (("at its best rate", lambda arm: best_rate(rows, arm=arm)),
                           (f"at {shared:g}", lambda arm: shared)):
        lines += ["", table(rows, words, rate_of)]
    return lines


def table(rows: list[dict], words: str, rate_of) -> str:
    base = grid.pick(rows, arm="none")[0]["base_loss"]
    count = min(len(grid.pick(rows, arm=arm, lr=rate_of(arm))) for arm in TITLES)
    lines = [f"| {words}, {count} seeds | lr | validation loss | pass@1, % | loss on the base's corpus, from "
             f"{base:.3f} |", "|---|---|---|---|---|"]
    for arm, title in TITLES.items():
        loss, pass1, base = (mean(each(rows, arm, rate_of(arm), name)) for name in ("val_loss", "pass1", "base_loss"))
        lines.append(f"| {title} | {rate_of(arm):g} | {loss[0]:.3f} ± {loss[1]:.3f} | {100 * pass1[0]:.1f} ± "
                     f"{100 * pass1[1]:.1f} | {base[0]:.3f} ± {base[1]:.3f} |")
    return "\n".join(lines)


def findings(rows: list[dict]) -> list[tuple[str, str]]:
    return compared(rows, SHARED)


def compared(rows: list[dict], shared: float) -> list[tuple[str, str]]:
    """Compared seed by seed: below means that the 95% interval of the difference is."""
    others = [arm for arm in TITLES if arm not in ("lora-alpha", "full")]

    def beats(rate_of, name, sign):
        own, found = each(rows, "lora-alpha", rate_of("lora-alpha"), name), []
        for arm in others:
            theirs = each(rows, arm, rate_of(arm), name)
            difference, half = mean([sign * (a - b) for a, b in zip(own, theirs)])
            found.append(difference + (0 if math.isnan(half) else half) < 0)
        return grid.verdict(*found)

    def own(arm):
        return best_rate(rows, arm=arm)

    return [(f"at the shared rate {shared:g} LoRA-α ends below every other adapter",
             beats(lambda arm: shared, "val_loss", 1)),
            ("with each method at its own best rate LoRA-α ends below every other adapter", beats(own, "val_loss", 1)),
            ("with each method at its own best rate LoRA-α has a higher pass@1 than every other adapter",
             beats(own, "pass1", -1)),
            ("LoRA-α has more rates within 10% of its best loss than any other adapter",
             grid.verdict(*(within(rows, "lora-alpha") > within(rows, arm) for arm in others))),
            ("with each method at its own best rate LoRA-α forgets more than every other adapter",
             beats(own, "base_loss", -1))]


def draw_rates(ax, rows: list[dict]) -> None:
    for arm, color in COLORS.items():
        line = [(lr, row["val_loss"]) for lr, row in tuned(rows, arm=arm).items() if not row["diverged"]]
        ax.plot(*zip(*line), "o-", color=color, ms=3.5, lw=1.6 if arm == "lora-alpha" else 1, label=TITLES[arm])
    ax.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="validation loss", title="one seed a rate")


def picture(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    before = next(row for row in rows if row["arm"] == "none")
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2))
    draw_rates(left, rows)
    for arm, color in COLORS.items():
        group = grid.pick(rows, arm=arm, lr=best_rate(rows, arm=arm))
        curves = [[float(x) for x in str(row["curve"]).split()] for row in group if row["curve"] != ""]
        means = [statistics.fmean(values) for values in zip(*curves)]
        middle.plot([10 * (i + 0.5) for i in range(len(means))], means, color=color,
                    lw=1.6 if arm == "lora-alpha" else 1)
        right.plot(*zip(*[(row["val_loss"], row["base_loss"]) for row in grid.pick(rows, arm=arm, diverged=0)]), "o",
                   color=color, ms=3.5)
    right.axhline(before["base_loss"], color="#777777", lw=0.8, ls=":")
    right.annotate("before", (right.get_xlim()[1], before["base_loss"]), xytext=(-4, 4), textcoords="offset points",
                   ha="right", fontsize=8, color="#777777")
    middle.set(yscale="log", xlabel="step", title="training loss at each one's best rate")
    right.set(xscale="log", xlabel="validation loss", ylabel="loss on the base's corpus", title="learnt and forgotten")
    fig.legend(*left.get_legend_handles_labels(), loc="lower center", ncols=7, frameon=False, fontsize=8)
    fig.tight_layout(rect=(0, 0.06, 1, 1))
    fig.savefig(path, dpi=130, format="png")


if __name__ == "__main__":
    grid.command(sys.modules[__name__])
