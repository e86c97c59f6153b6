"""Finding 1, spectral suppression: how much of full fine-tuning's sharpness an adapter sees.

    python experiments/curvature.py                half an hour on two cores; finished runs are reused
    python experiments/curvature.py --quick        a minute, fewer and smaller runs, into out/experiments
    python experiments/curvature.py --plot-only    the picture anew from curvature.csv

Sharpness is the largest eigenvalue of the loss's Hessian, by Lanczos with exact Hessian-vector products: over the
matrices W that LoRA adapts (full fine-tuning), over B and over (A, B). Our derivation [derived] says that at B = 0
the block of B sees about s²·r/(3n) of full fine-tuning's sharpness, n a layer's input width. Measured on data/base and
eight problems of data/equations: at the start for ranks 2 to 64 and five rules for alpha, along training, and near a
minimum, where the largest learning rate of gradient descent that is stable is set against 2/λmax.
"""

import itertools
import math
import sys
from pathlib import Path

import grid  # puts the modules above this folder on the path
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf import load_config, load_model
from lora_alpha import collate, epochs, inject_lora, lora_layers, lora_scaling, train
from problems import encode_example, load_problems
from tokens import end_tokens, load_tokenizer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
COLUMNS = ["what", "arm", "rank", "rule", "seed", "problems", "lanczos", "steps", "step", "s", "loss", "sharpness",
           "sharpness_B", "mass_over_3n", "stable_lr", "stable_lr_adam"]
RULES = {"2r": lambda r: 2 * r, "16 fixed": lambda r: 16, "16√r": lambda r: 16 * math.sqrt(r),
         "64√r": lambda r: 64 * math.sqrt(r), "256√r": lambda r: 256 * math.sqrt(r)}
COLORS = {"2r": "#1f4e79", "16 fixed": "#777777", "16√r": "#e0a030", "64√r": "#5b8db8", "256√r": "#c1272d"}
STEPS = [0, 1, 3, 10, 30, 60, 100, 150, 200]  # where sharpness is measured along training


def some_examples(name: str, count: int) -> list[tuple[list[int], list[int]]]:
    encoding, config = load_tokenizer(ROOT / "data/base"), load_config(ROOT / "data/base")
    end = end_tokens(encoding, config)[0]
    return [encode_example(encoding, p, end) for p in load_problems(ROOT / f"data/equations/{name}.jsonl")[:count]]


def lanczos(product, size: int, steps: int, seed: int = 0) -> tuple[float, torch.Tensor]:
    """The largest eigenvalue of a symmetric matrix given by product(v), v (size,), and its unit eigenvector."""
    v = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    basis, diagonal, beside = [v / v.norm()], [], []
    for _ in range(steps):
        w = product(basis[-1])
        diagonal.append(torch.dot(w, basis[-1]).item())
        for _ in range(2):  # twice is enough to keep the basis orthogonal in float32
            for q in basis:
                w = w - torch.dot(w, q) * q
        beside.append(w.norm().item())
        if beside[-1] < 1e-6 * max(map(abs, diagonal)) or len(diagonal) == size:
            break
        basis.append(w / beside[-1])
    k = len(diagonal)
    T = torch.diag(torch.tensor(diagonal)) + torch.diag(torch.tensor(beside[: k - 1]), 1)
    values, vectors = torch.linalg.eigh(T, UPLO="U")
    return values[-1].item(), sum(c * q for c, q in zip(vectors[:, -1], basis))


def sharpness(model, batch, params: list, steps: int) -> tuple[float, list[torch.Tensor]]:
    """λmax of the loss's Hessian in params, and its eigenvector in their shapes."""
    sizes = [p.numel() for p in params]
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        gradients = torch.autograd.grad(model(*batch)[1], params, create_graph=True)

        def product(v):
            parts = [part.view_as(p) for part, p in zip(v.split(sizes), params)]
            found = torch.autograd.grad(gradients, params, parts, retain_graph=True, materialize_grads=True)
            return torch.cat([g.reshape(-1) for g in found])

        value, vector = lanczos(product, sum(sizes), steps)
    return value, [part.view_as(p) for part, p in zip(vector.split(sizes), params)]


# ---- The cells -------------------------------------------------------------------------------------------------------


def some_batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return collate(some_examples("train", count))


def made(cell: dict):
    """data/base, adapted as the cell says, with a B of zeros; or with its adapted matrices trainable for arm full."""
    torch.manual_seed(cell["seed"])
    model = load_model(ROOT / "data/base", torch.float32)
    inject_lora(model, cell["rank"], alpha_of(cell))
    if cell["arm"] == "full":
        model.requires_grad_(False)
        for layer in lora_layers(model).values():
            layer.base.weight.requires_grad_(True)
    return model


def alpha_of(cell: dict) -> float:
    return RULES[cell["rule"]](cell["rank"]) if cell["arm"] == "adapter" else 1.0


def s_of(cell: dict) -> float | None:
    return lora_scaling(cell["rank"], alpha_of(cell)) if cell["arm"] == "adapter" else None


def trained(model) -> list:
    return [p for p in model.parameters() if p.requires_grad]


def at_the_start(cell: dict) -> dict:
    """Sharpness before the first step: of (A, B) and of B alone, or of W with what the prediction needs of it."""
    model, batch = made(cell), some_batch(cell["problems"])
    if cell["arm"] == "full":
        value, vector = sharpness(model, batch, trained(model), cell["lanczos"])
        layers = lora_layers(model).values()
        return dict(sharpness=value, mass_over_3n=sum(v.norm().item() ** 2 / (3 * layer.base.in_features)
                                                      for v, layer in zip(vector, layers)))
    B = [layer.lora_B for layer in lora_layers(model).values()]
    return dict(s=s_of(cell), sharpness=sharpness(model, batch, trained(model), cell["lanczos"])[0],
                sharpness_B=sharpness(model, batch, B, cell["lanczos"])[0])


def along_training(cell: dict) -> list[dict]:
    """Sharpness in what is trained, before the first step and along train.py's loop at its default rate."""
    model, batch, rows = made(cell), some_batch(cell["problems"]), []

    def look(row):
        if row["step"] in STEPS:
            with torch.no_grad():
                loss = model(*batch)[1].item()
            value = sharpness(model, batch, trained(model), cell["lanczos"])[0]
            rows.append(dict(step=row["step"], s=s_of(cell), loss=loss, sharpness=value))

    look(dict(step=0))
    train(model, epochs(some_examples("train", 4000), 16), cell["steps"], 1e-3, log=look)
    return rows


def settled(cell: dict):
    """The cell's model after 100 full-batch Adam steps, near a minimum, where 2/λmax is the bound on stability."""
    model, batch = made(cell), some_batch(cell["problems"])
    lr = 1e-3 if cell["arm"] == "full" else 1e-3 * min(1.0, 32 / alpha_of(cell))
    train(model, itertools.repeat(batch), cell["steps"], lr)
    return model.eval(), batch


def stable(model, batch, start: dict, optimizer, lr: float) -> bool:
    """Whether 30 full-batch steps from start leave the loss no higher than it was there."""
    model.load_state_dict(start)
    steps, losses = optimizer(trained(model), lr), []
    for _ in range(31):
        loss = model(*batch)[1]
        losses.append(loss.item())
        steps.zero_grad()
        loss.backward()
        steps.step()
    return losses[-1] <= losses[0]  # NaN is not


def largest_stable_rate(cell: dict) -> dict:
    """By bisection of the logarithm to 10%, for gradient descent and for Adam, beside the sharpness, near a minimum."""
    model, batch = settled(cell)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    value = sharpness(model, batch, trained(model), cell["lanczos"])[0]
    found = dict(s=s_of(cell), sharpness=value, loss=model(*batch)[1].item())
    for name, optimizer, low, high in (("stable_lr", torch.optim.SGD, 1e-1 / value, 1e2 / value),
                                       ("stable_lr_adam", torch.optim.Adam, 1e-6, 1.0)):
        while high / low > 1.1:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if stable(model, batch, start, optimizer, middle) else (low, middle)
        found[name] = low
    return found


WORK = {"start": at_the_start, "training": along_training, "stability": largest_stable_rate}


def work(cell: dict) -> dict | list[dict]:
    return WORK[cell["what"]](cell)


def cells(quick: bool, rows: list[dict]) -> list[dict]:
    size = dict(seed=0, problems=2, lanczos=6, steps=10) if quick else dict(seed=0, problems=8, lanczos=20, steps=200)
    found = [dict(what="start", arm="full", rank=2, rule="", **size)]
    for rank in [2, 16] if quick else [2, 4, 8, 16, 32, 64]:
        found += [dict(what="start", arm="adapter", rank=rank, rule=rule, **size) for rule in RULES]
    for what, rules in (("training", ["2r", "256√r"]), ("stability", ["2r"] if quick else RULES)):
        found += [dict(what=what, arm="full", rank=16, rule="", **size)]
        found += [dict(what=what, arm="adapter", rank=16, rule=rule, **size) for rule in rules]
    return found


# ---- What it shows ---------------------------------------------------------------------------------------------------


def shares(rows: list[dict]) -> list[tuple[str, float, float, float]]:
    """(rule, rank, share measured, share predicted) of full fine-tuning's sharpness that B sees at the start."""
    starts = [row for row in rows if row["what"] == "start"]
    full = next(row for row in starts if row["arm"] == "full")
    return [(row["rule"], row["rank"], row["sharpness_B"] / full["sharpness"],
             row["s"] ** 2 * row["rank"] * full["mass_over_3n"]) for row in starts if row["arm"] == "adapter"]


def told(rows: list[dict]) -> str:
    """The finding in Markdown."""
    found = shares(rows)
    ratios = [share / predicted for _, _, share, predicted in found]
    habit = {rank: share for rule, rank, share, _ in found if rule == "2r"}
    lines = ["| | sharpness at the start, as a share of full fine-tuning's | predicted s²·r/(3n) |", "|---|---|---|"]
    lines += [f"| alpha = {rule}, rank {rank:g} | {share:.3g} | {predicted:.3g} |"
              for rule, rank, share, predicted in found if rank in (2, 16, 64)]
    lines += ["", f"Over all {len(found)} settings the measured share is {min(ratios):.2f} to {max(ratios):.2f} of the "
              f"predicted one. With alpha = 2r it grows from {100 * habit[min(habit)]:.1f}% at rank {min(habit):g} to "
              f"{100 * habit[max(habit)]:.0f}% at rank {max(habit):g}.", "",
              "| | 2/λmax | largest stable rate of gradient descent | ratio of the two | largest stable rate of Adam |",
              "|---|---|---|---|---|"]
    for row in rows:
        if row["what"] == "stability":
            bound = 2 / row["sharpness"]
            name = "full fine-tuning" if row["arm"] == "full" else f"alpha = {row['rule']}, rank {row['rank']:g}"
            lines.append(f"| {name} | {bound:.2g} | {row['stable_lr']:.2g} | {row['stable_lr'] / bound:.2f} | "
                         f"{row['stable_lr_adam']:.2g} |")
    settled = [row for row in rows if row["what"] == "stability"]
    ratios = [row["stable_lr"] * row["sharpness"] / 2 for row in settled]
    spread, spread_adam = (max(row[name] for row in settled) / min(row[name] for row in settled)
                           for name in ("stable_lr", "stable_lr_adam"))
    lines += ["", f"The largest stable rate of gradient descent is {min(ratios):.1f} to {max(ratios):.1f} times "
              f"2/λmax, and varies by a factor of {spread:,.0f} where Adam's varies by {spread_adam:.0f}."]
    return "\n".join(lines)


def findings(rows: list[dict]) -> list[tuple[str, str]]:
    found = shares(rows)
    settled = [row["stable_lr"] * row["sharpness"] / 2 for row in rows if row["what"] == "stability"]
    claims = [("with alpha = 2r the adapter sees less than half of full fine-tuning's sharpness, at every rank",
               all(share < 0.5 for rule, _, share, _ in found if rule == "2r")),
              ("the share is s²·r/(3n), to a factor of 2", all(0.5 < share / predicted < 2
                                                              for _, _, share, predicted in found)),
              ("the largest stable rate of gradient descent is 2/λmax, to a factor of 3",
               all(1 / 3 < ratio < 3 for ratio in settled))]
    return [(claim, grid.verdict(true)) for claim, true in claims]


def picture(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8))
    for rule, color in COLORS.items():
        points = [(predicted, share) for name, _, share, predicted in shares(rows) if name == rule]
        left.plot(*zip(*points), "o-", color=color, ms=4, lw=0.8, label=f"alpha = {rule}")
    ends = [min(p for *_, p in shares(rows)), max(p for *_, p in shares(rows))]
    left.plot(ends, ends, color="black", lw=0.8, ls=":")
    left.axhline(1, color="black", lw=0.5)
    left.set(xscale="log", yscale="log", xlabel="predicted, s²·r/(3n)", ylabel="share of full fine-tuning's sharpness",
             title="at the start, ranks 2 to 64")
    left.legend(frameon=False, fontsize=8)
    for arm, rule, color, name in [
            ("full", "", "black", "full fine-tuning"), ("adapter", "2r", COLORS["2r"], "alpha = 2r"),
            ("adapter", "256√r", COLORS["256√r"], "alpha = 256√r")]:
        line = [(row["step"], row["sharpness"]) for row in rows
                if row["what"] == "training" and (row["arm"], row["rule"]) == (arm, rule)]
        middle.plot(*zip(*line), "o-", color=color, ms=3, lw=1)
        middle.annotate(name, line[0], xytext=(0, 7 if rule != "256√r" else -13), textcoords="offset points",
                        fontsize=8, color=color)
    middle.set(xscale="symlog", yscale="log", xlabel="step", ylabel="sharpness in what is trained",
               title="along training, rank 16")
    settled = [row for row in rows if row["what"] == "stability"]
    for row in settled:
        name = "full fine-tuning" if row["arm"] == "full" else f"alpha = {row['rule']}"
        color = COLORS.get(row["rule"], "black")
        right.plot(2 / row["sharpness"], row["stable_lr"], "o", color=color, ms=4, label=name)
    right.legend(frameon=False, fontsize=8)
    ends = [min(2 / row["sharpness"] for row in settled), max(2 / row["sharpness"] for row in settled)]
    right.plot(ends, ends, color="black", lw=0.8, ls=":")
    right.set(xscale="log", yscale="log", xlabel="2/λmax", ylabel="largest stable rate",
              title="gradient descent, rank 16")
    fig.tight_layout()
    fig.savefig(path, dpi=150, format="png")


if __name__ == "__main__":
    grid.command(sys.modules[__name__])
