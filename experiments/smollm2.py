"""LoRA-α and other alphas on a pre-trained language model: SmolLM2-135M on grade school problems (GSM8K).

    python data/smollm2/prepare.py; python data/gsm8k/prepare.py
    python experiments/smollm2.py          four hours on two cores; finished runs are reused (--quick: two minutes)

Full fine-tuning and LoRA at alpha of 2r, 256, 1024 and 4096 and ranks 4, 16 and 64, each at the rates 2e-5 (the shared
small one), 1e-4, 5e-4 and 2e-3, and at larger rates while the largest is the best: 40 steps of 8 problems of GSM8K, the
loss on 48 held-out ones. At rank 16 three seeds at the shared rate and at each one's best, the second with pass@1 on
100 test problems; on a GPU the same of 200 steps, with all test problems. Problems of at most 128 tokens, so that a run
takes minutes. Forgetting: the rise of the loss on English, Python's language reference. A run whose loss at a step is
above twice that of the first has diverged, and is stopped.
"""

import math
import statistics
import sys
from pathlib import Path

import finetune
import grid  # puts the modules above this folder on the path
from finetune import best_rate, tuned
from rank_law import fitted, ridge

from eval_pass1 import wilson
from hf import load_config
from problems import encode_example, load_problems
from tokens import end_tokens, load_tokenizer

ROOT = grid.HERE.parent
COLUMNS = finetune.COLUMNS
BASE, DATA, LONGEST = "data/smollm2", "out/gsm8k-short", 128
RATES, SHARED, SEEDS = [2e-5, 1e-4, 5e-4, 2e-3], 2e-5, [0, 1, 2]
RANKS = [16, 4, 64]  # in this order
TEST, QUICK = 100, dict(steps=2, batch=1, val=2)
STEPS, LONG, LONG_TEST = 40, 200, 222  # all of the short ones


def prepare(quick: bool) -> None:
    """The problems whose tokens, prompt and solution, are at most LONGEST, as a data folder of train.py's."""
    for folder, file in ((BASE, "model.safetensors"), ("data/gsm8k", "train.jsonl")):
        if not (ROOT / folder / file).is_file():
            raise FileNotFoundError(f"{folder}/{file} is not there: python {folder}/prepare.py first")
    encoding, config = load_tokenizer(ROOT / BASE), load_config(ROOT / BASE)
    (ROOT / DATA).mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        lines = (ROOT / f"data/gsm8k/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        problems = load_problems(ROOT / f"data/gsm8k/{name}.jsonl")
        kept = [line for line, problem in zip(lines, problems)
                if len(encode_example(encoding, problem, end_tokens(encoding, config)[0])[0]) <= LONGEST]
        (ROOT / DATA / f"{name}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
        print(f"{name}: {len(kept):,} of {len(lines):,} problems have at most {LONGEST} tokens")


def arms(rank: int) -> list[dict]:
    alphas = sorted({2.0 * rank, 256.0, 1024.0, 4096.0})
    return [dict(arm="lora", rank=rank, alpha=alpha) for alpha in alphas]


FULL = dict(arm="full", rank=0, alpha=0.0)
NONE = dict(arm="none", rank=0, alpha=0.0)
MAIN = [FULL, *arms(16)]  # 1024 is the rule's


def cells(quick: bool, rows: list[dict]) -> list[dict]:
    """All rates at rank 16, then the seeds at the shared rate and at each arm's best, then the other ranks."""
    size = dict(base=BASE, data=DATA, steps=STEPS, val=48)
    if quick:
        return [finetune.cell(**arm, lr=SHARED, **{**size, **QUICK}) for arm in (NONE, *MAIN)]
    short = of_steps(rows, STEPS)
    found = [finetune.cell(**NONE, lr=SHARED, **size)] + whole(short, size)
    if there(rows, found):
        for rank in RANKS[1:]:
            others = [*arms(rank), dict(arm="lora", rank=rank, alpha=256 * math.sqrt(rank))]
            found += [finetune.cell(**arm, lr=lr, **size) for lr in RATES for arm in others]
            found += beyond(short, others, size) if there(rows, found) else []
    long = {**size, "steps": LONG}
    return found + finetune.on_gpu([finetune.cell(**NONE, lr=SHARED, **long), *whole(of_steps(rows, LONG), long)], rows)


def whole(rows: list[dict], size: dict) -> list[dict]:
    """Rank 16: all rates, further where the best is the last, then the seeds."""
    found = [finetune.cell(**arm, lr=lr, **size) for lr in RATES for arm in MAIN]
    if there(rows, found):
        found += beyond(rows, MAIN, size)
    if there(rows, found):
        for seed in SEEDS[1:]:
            found += [finetune.cell(**arm, lr=lr, seed=seed, **size) for arm in MAIN
                      for lr in sorted({SHARED, best_rate(rows, **arm)})]
    return found


def of_steps(rows: list[dict], steps: int) -> list[dict]:
    """The rows of so many steps, and the model as it is, measured beside them where it was."""
    own = grid.pick(rows, steps=steps)
    return own if grid.pick(own, arm="none") else own + grid.pick(rows, arm="none")


def there(rows: list[dict], cells: list[dict]) -> bool:
    return all(grid.pick(rows, **cell) for cell in cells)


def beyond(rows: list[dict], arms: list[dict], size: dict) -> list[dict]:
    """By factors of 4, until the best is not the last: each arm's rate, and alpha at the shared rate."""
    found = []
    for arm in arms:
        rates = list(tuned(rows, **arm))
        found += [finetune.cell(**arm, lr=lr, **size) for lr in rates[len(RATES) :]]
        if best_rate(rows, **arm) == rates[-1]:
            found.append(finetune.cell(**arm, lr=4 * rates[-1], **size))
    rank = arms[-1]["rank"]
    shared = grid.pick(of_rank(rows, rank), lr=SHARED)
    further = [row["alpha"] for row in shared if row["alpha"] > 4096]
    largest = max(row["alpha"] for row in shared)
    if min(grid.pick(shared, diverged=0), key=lambda row: row["val_loss"])["alpha"] == largest:
        further.append(4 * largest)
    return found + [finetune.cell(arm="lora", rank=rank, alpha=alpha, lr=SHARED, **size) for alpha in further]


def of_rank(rows: list[dict], rank: int) -> list[dict]:
    """The first seed's LoRA runs of a rank."""
    return grid.pick(rows, arm="lora", rank=rank, seed=0)


def work(cell: dict) -> dict:
    if cell["seed"] == 1 or cell["arm"] == "none" and cell["val"] > 2:  # one seed: it takes minutes
        test = TEST if cell["steps"] <= STEPS else LONG_TEST
    else:
        test = 0
    return finetune.finetune(cell, drift=cell["arm"] == "lora", forgetting=True, test=test, log=Watch())


class Watch:
    """Stops a run that is lost: hours of a machine for a loss that is known to be bad."""

    def __call__(self, row: dict) -> None:
        self.first = row["loss"] if row["step"] == 1 else self.first
        if row["loss"] > 2 * self.first:
            raise FloatingPointError(f"loss {row['loss']:.3g} at step {row['step']}")


# ---- What it shows ---------------------------------------------------------------------------------------------------


def title(arm: str, rank: float, alpha: float) -> str:
    if arm == "full":
        return "full fine-tuning"
    of = {2 * rank: " = 2r", 256 * math.sqrt(rank): " = 256·√r"}.get(alpha, "")
    return f"rank {rank:g}, alpha {alpha:g}{of}"


def mean(rows: list[dict], name: str, digits: str = ".3f") -> str:
    """Mean over the seeds, and their range."""
    values = [row[name] for row in rows if row[name] != ""]
    if not values:
        return ""
    shown = f"{statistics.fmean(values):{digits}}"
    return shown if len(values) == 1 else f"{shown} ({min(values):{digits}} to {max(values):{digits}})"


def pass1(rows: list[dict]) -> str:
    """Of the seed that was tested, with Wilson's interval."""
    for row in rows:
        if row["pass1"] != "":
            low, high = wilson(row["pass1"], row["tested"])
            return f"{100 * row['pass1']:.0f} [{100 * low:.1f}, {100 * high:.1f}]"
    return ""


def told(rows: list[dict]) -> str:
    return "\n\n".join("\n".join([f"{steps:g} steps:", "", *tables(of_steps(rows, steps))]) for steps in lengths(rows))


def lengths(rows: list[dict]) -> list[float]:
    """The numbers of steps that runs had."""
    return sorted({row["steps"] for row in rows if row["arm"] != "none"})


def tables(rows: list[dict]) -> list[str]:
    before = next(row for row in rows if row["arm"] == "none")
    rates = sorted({row["lr"] for row in rows})
    lines = [f"| validation loss, from {before['val_loss']:.3f}, one seed, lr = | "
             + " | ".join(f"{lr:g}" for lr in rates) + " |", "|---|" + "---|" * len(rates)]
    for arm in tried(rows):
        each = tuned(rows, **arm)
        best = best_rate(rows, **arm) if len(each) > 1 else None
        shown = ["" if lr not in each else "diverged" if each[lr]["diverged"] else f"**{each[lr]['val_loss']:.3f}**"
                 if lr == best else f"{each[lr]['val_loss']:.3f}" for lr in rates]
        lines.append(f"| {title(**arm)} | {' | '.join(shown)} |")
    ridges = {rank: found for rank in sorted(RANKS) if (found := ridge(of_rank(rows, rank)))}
    inside = sorted({lr for found in ridges.values() for lr in found})
    if ridges:
        lines += ["", f"| best alpha (and c) at lr = | {' | '.join(f'{lr:g}' for lr in inside)} | scales as |",
                  "|---|" + "---|" * (len(inside) + 1)]
    for rank, found in ridges.items():
        shown = [f"{found[lr]:.0f} ({found[lr] / math.sqrt(rank):.0f})" if lr in found else "" for lr in inside]
        power = f"lr^{fitted(list(found.items()))[1]:.2f}" if len(found) > 1 else ""
        lines.append(f"| rank {rank} | {' | '.join(shown)} | {power} |")
    if len(ridges) > 1:
        lines.append(f"| scales as | {' | '.join(f'r^{p:.2f}' for p in over_ranks(ridges, inside))} | |")
    for words, rate_of in ((f"at {SHARED:g}", lambda arm: SHARED),
                           ("at its best rate", lambda arm: best_rate(rows, **arm))):
        groups = {title(**arm): grid.pick(rows, lr=rate_of(arm), **arm) for arm in MAIN if tuned(rows, **arm)}
        lines += ["", f"| {words}; seeds: {min(map(len, groups.values()), default=0)} | lr | validation loss | "
                  f"rms(ΔW)/lr at step 1 | drift ratio | loss on English, from {english(rows):.3f} | "
                  f"pass@1 of {tested(rows)}, one seed, % |", "|---|---|---|---|---|---|---|"]
        for name, group in groups.items():
            first = group[:1]  # the seeds differ little in these
            lines.append(f"| {name} | {group[0]['lr']:g} | {mean(group, 'val_loss')} | "
                         f"{mean(first, 'first_step', '.2f')} | {mean(first, 'drift_ratio', '.2g')} | "
                         f"{mean(group, 'base_loss')} | {pass1(group)} |")
    return lines


def tested(rows: list[dict]) -> str:
    """How many test problems the trained were asked."""
    return next((f"{row['tested']:g}" for row in rows if row["arm"] != "none" and row["tested"] != ""), "0")


def english(rows: list[dict]) -> float:
    """The loss on English at the start. Python's reference begins otherwise in other versions of it, so where the
    model was measured on another machine than these runs it is that of the run with the smallest alpha·lr."""
    before = next(row for row in rows if row["arm"] == "none")
    trained = [row for row in rows if row["arm"] == "lora"]
    if not trained or before["device"] == trained[0]["device"]:
        return before["base_loss"]
    return min(trained, key=lambda row: row["alpha"] * row["lr"])["base_loss"]


def over_ranks(ridges: dict[int, dict[float, float]], rates: list[float]) -> list[float]:
    """The exponent of the best alpha over the rank at each rate, not a number where fewer than two ranks have one."""
    points = [[(rank, found[lr]) for rank, found in ridges.items() if lr in found] for lr in rates]
    return [fitted(of_rate)[1] if len(of_rate) > 1 else math.nan for of_rate in points]


def summary(rows: list[dict]) -> str:
    """One line an arm of rank 16: 40 and 200 steps, each at the shared rate and at its best."""
    before = next(row for row in rows if row["arm"] == "none")
    seeds = min(len(grid.pick(rows, steps=steps, lr=SHARED, **arm)) for steps in lengths(rows) for arm in MAIN)
    lines = [f"| rank 16; loss: mean (range), seeds: {seeds}; pass@1: one seed |" + "".join(
        f" {steps:g} steps, loss at {SHARED:g} | at its best rate | pass@1 of {tested(of_steps(rows, steps))}, % |"
        for steps in lengths(rows)),
             "|---|" + "---|" * 3 * len(lengths(rows)),
             f"| before | {mean([before], 'val_loss')} | | {pass1([before])} |" + " |" * 3 * (len(lengths(rows)) - 1)]
    for arm in MAIN:
        shown = []
        for steps in lengths(rows):
            of_length = of_steps(rows, steps)
            best = best_rate(of_length, **arm)
            small, tuned_to = (grid.pick(of_length, lr=lr, **arm) for lr in (SHARED, best))
            shown.append(f"{mean(small, 'val_loss')} | {mean(tuned_to, 'val_loss')} at {best:g} | {pass1(tuned_to)}")
        lines.append(f"| {title(**arm).removeprefix('rank 16, ')} | {' | '.join(shown)} |")
    return "\n".join(lines)


def tried(rows: list[dict]) -> list[dict]:
    """The arms of the rows, full fine-tuning first, then by rank and alpha."""
    each = {(row["arm"], row["rank"], row["alpha"]) for row in rows} - {("none", 0.0, 0.0)}
    return [dict(arm=arm, rank=rank, alpha=alpha) for arm, rank, alpha in sorted(each)]


def loss_at(rows: list[dict], lr: float, **arm) -> float:
    return statistics.fmean(row["val_loss"] for row in grid.pick(rows, lr=lr, **arm))


def findings(rows: list[dict]) -> list[tuple[str, str]]:
    """Of both numbers of steps, where both are there."""
    habit, rule = MAIN[1], next(arm for arm in MAIN if arm["alpha"] == 1024)
    groups = [of_length for steps in lengths(rows)
              if all(tuned(of_length := of_steps(rows, steps), **arm) for arm in MAIN)]
    if not groups:
        return []
    near = []
    for of_length in groups:
        full, ours, theirs = (loss_at(of_length, SHARED, **arm) for arm in (FULL, rule, habit))
        near.append(ours < 1.05 * full < theirs)
    found = [(f"at {SHARED:g} alpha = 256·√r ends within 5% of full fine-tuning's loss, and alpha = 2r does not",
              grid.verdict(*near))]
    if len(tuned(groups[0], **rule)) > 1:
        pairs = [[grid.pick(of_length, lr=best_rate(of_length, **arm), **arm) for arm in (rule, habit)]
                 for of_length in groups]
        found += [("with each at its best rate every seed of alpha = 256·√r ends below every one of alpha = 2r",
                   grid.verdict(*(below(ours, theirs, "val_loss") for ours, theirs in pairs))),
                  ("with each at its best rate every seed of alpha = 256·√r forgets more English than every one of "
                    "alpha = 2r",
                   grid.verdict(*(below(theirs, ours, "base_loss") for ours, theirs in pairs)))]
    ridges = {rank: ridge(of_rank(groups[0], rank)) for rank in RANKS}
    if all(ridges.values()):
        powers = over_ranks(ridges, sorted(set.intersection(*map(set, ridges.values()))))
        found.append((f"the best alpha grows as the square root of the rank (exponent 0.25 to 0.75) in {STEPS} steps, "
                      "at each rate", grid.verdict(*(0.25 <= p <= 0.75 for p in powers))))
    return found


def below(rows: list[dict], others: list[dict], name: str) -> bool:
    return max(row[name] for row in rows) < min(row[name] for row in others)


def picture(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = ["#000000", "#1f4e79", "#5b8db8", "#c1272d", "#e0a030"]
    fig, ((left, long), (middle, right)) = plt.subplots(2, 2, figsize=(10, 7.6))
    for ax, steps in zip((left, long), lengths(rows)):
        for arm, color in zip(MAIN, colors):
            line = [(lr, row["val_loss"]) for lr, row in tuned(of_steps(rows, steps), **arm).items()
                    if not row["diverged"]]
            if line:  # none in a sweep that was stopped
                ax.plot(*zip(*line), "o-", color=color, ms=4, lw=1.2, label=title(**arm).removeprefix("rank 16, "))
        ax.set(xscale="log", xlabel="learning rate", ylabel="validation loss", title=f"rank 16, {steps:g} steps of 8")
        ax.legend(frameon=False, fontsize=8)
    first = lengths(rows)[0]
    long.set_visible(len(lengths(rows)) > 1)
    short = of_steps(rows, first)
    for rank, color in zip(RANKS, ["#2a9d8f", "#7a5195", "#b0577a"]):
        line = sorted((row["alpha"], row["val_loss"]) for row in
                      grid.pick(of_rank(short, rank), lr=SHARED, diverged=0))
        if line:
            middle.plot(*zip(*line), {4: "s--", 16: "o-", 64: "^:"}[rank], color=color, ms=4, lw=1.2)
            middle.annotate(f"rank {rank}", line[0], xytext=(6, 0), textcoords="offset points", fontsize=8,
                            color=color)
    if tuned(short, **FULL):
        middle.axhline(loss_at(short, SHARED, **FULL), color="black", lw=0.8, ls=":")
    middle.set(xscale="log", xlabel="alpha", ylabel="validation loss",
               title=f"{first:g} steps at {SHARED:g} (dotted: full fine-tuning)")
    for steps, mark in zip(lengths(rows), "ox"):
        start = english(of_steps(rows, steps))
        for arm, color in zip(MAIN[1:], colors[1:]):
            line = [(row["alpha"] * row["lr"], row["base_loss"] - start) for row in
                    grid.pick(rows, steps=steps, diverged=0, **arm)]
            right.plot(*zip(*line), mark, color=color, ms=4)
    right.set(xscale="log", xlabel="alpha · learning rate", ylabel="rise of the loss on English",
              title="forgotten, colours as above (● 40 steps, × 200)")
    right.set_yscale("symlog", linthresh=0.1)
    right.set(yticks=[0, 0.1, 1], yticklabels=["0", "0.1", "1"], ylim=(-0.03, 5))
    fig.tight_layout()
    fig.savefig(path, dpi=130, format="png")


if __name__ == "__main__":
    grid.command(sys.modules[__name__])
