"""Finding 2 on a toy network: a five-layer MLP, with the learning rate or alpha raised from alpha = 2r.

    python experiments/mlp.py              a minute on two cores, torch alone (--quick: seconds)

A ReLU MLP of five layers (32-128-128-128-128-8) learns a random linear map of Gaussian inputs; then LoRA of rank 4 in
every layer is trained, Adam, full batches, to that map plus one of rank 4. From alpha = 2r and a small learning rate,
the rate is multiplied by up to 1024, or alpha is, the latter also with A left as it was drawn. Width, data and steps
are our choice. Readers report of the paper's own toy, a five-layer MLP, that a rate 128 times as large diverges where
alpha 256 times as large is stable and better.
"""

import copy
import math
import statistics
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import grid  # puts the modules above this folder on the path
import torch
from torch import nn

from lora_alpha import inject_lora, lora_layers

RANK = 4
COLUMNS = ["start", "route", "factor", "steps", "seed", "loss", "worst"]
COLORS = {"alpha": "#c1272d", "alpha, A frozen": "#e0a030", "learning rate": "#1f4e79"}


def cells(quick: bool, rows: list[dict]) -> list[dict]:
    factors, seeds = ([1, 16, 128], [0]) if quick else ([1, 4, 16, 32, 64, 128, 256, 1024], range(3))
    return [dict(start=start, route=route, factor=factor, steps=300, seed=seed) for start in (1e-3, 3e-4, 1e-4)
            for route in COLORS for factor in factors for seed in seeds]


def data(seed: int) -> tuple:
    """Inputs (256, 32), what the base learns (256, 8), and what the adapter learns (256, 8)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 32, generator=generator)
    M = torch.randn(8, 32, generator=generator) / math.sqrt(32)
    change = torch.randn(8, RANK, generator=generator) @ torch.randn(RANK, 32, generator=generator)
    return x, x @ M.T, x @ (M + change / math.sqrt(RANK * 32)).T


def fit(model, x, y, lr: float, steps: int) -> list[float]:
    """Mean squared error before each of the steps of Adam, and after the last."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
    losses = []
    for _ in range(steps + 1):
        loss = ((model(x) - y) ** 2).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@cache
def base(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    sizes = [32, 128, 128, 128, 128, 8]
    layers = [layer for m, n in zip(sizes, sizes[1:]) for layer in (nn.Linear(m, n), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    fit(model, *data(seed)[:2], 1e-3, 300)
    return model


def work(cell: dict) -> dict:
    """loss: mean of the last ten. worst: of the run's second half, over the loss before the first step."""
    model, (x, _, changed) = copy.deepcopy(base(cell["seed"])), data(cell["seed"])
    torch.manual_seed(cell["seed"])  # before A's init
    of_rate, of_alpha = (cell["factor"], 1) if cell["route"] == "learning rate" else (1, cell["factor"])
    for layer in lora_layers(inject_lora(model, RANK, alpha=2 * RANK * of_alpha)).values():
        layer.lora_A.requires_grad_(cell["route"] != "alpha, A frozen")
    losses = fit(model, x, changed, cell["start"] * of_rate, cell["steps"])
    return dict(loss=statistics.mean(losses[-10:]), worst=max(losses[cell["steps"] // 2 :]) / losses[0])


# ---- What it shows ---------------------------------------------------------------------------------------------------


def curves(rows: list[dict]) -> dict[tuple, dict[float, list[dict]]]:
    """{(start, route): {factor: rows of the seeds}}."""
    found = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: (-row["start"], row["route"], row["factor"])):
        found[row["start"], row["route"]][row["factor"]].append(row)
    return found


def stable(rows: list[dict]) -> bool:
    """No seed's second half is ever above the loss at the start."""
    return all(row["worst"] <= 1 for row in rows)  # NaN is not


def loss(rows: list[dict]) -> float:
    return statistics.geometric_mean(row["loss"] for row in rows)


def summary(rows: list[dict]) -> dict[tuple, tuple]:
    """{(start, route): (largest factor up to which all are stable, best stable factor, its loss)}."""
    found = {}
    for name, curve in curves(rows).items():
        good = []
        for factor, of_seeds in curve.items():
            if not stable(of_seeds):
                break
            good.append((loss(of_seeds), factor))
        best, at = min(good)
        found[name] = max(factor for _, factor in good), at, best
    return found


def told(rows: list[dict]) -> str:
    lines = ["| initial learning rate | multiplied | stable up to | lowest loss of a stable run | at |",
             "|---|---|---|---|---|"]
    for (start, route), (border, at, best) in summary(rows).items():
        lines.append(f"| {start:g} | {route} | ×{border:g} | {best:.3g} | ×{at:g} |")
    return "\n".join(lines)


def findings(rows: list[dict]) -> list[tuple[str, str]]:
    found = summary(rows)
    starts = sorted({start for start, _ in found})
    further = [found[start, "alpha"][0] > found[start, "learning rate"][0] for start in starts]
    better = [found[start, "alpha"][2] < found[start, "learning rate"][2] for start in starts]
    each = curves(rows)
    claims = [("alpha can be raised further than the learning rate before training is unstable",
               grid.verdict(*further)),
              ("the best loss by alpha is below the best by the learning rate", grid.verdict(*better))]
    reported = [stable(each[start, "alpha"][256]) and not stable(each[start, "learning rate"][128])
                for start in starts if 256 in each[start, "alpha"]]
    if reported:
        claims.append(("[reported] the rate ×128 is unstable where alpha ×256 is stable", grid.verdict(*reported)))
    return claims


def picture(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True)
    for ax, start in zip(axes, sorted({row["start"] for row in rows}, reverse=True)):
        for route, color in COLORS.items():
            curve = curves(rows)[start, route]
            ax.plot(list(curve), [min(loss(of_seeds), 30) for of_seeds in curve.values()], color=color, lw=1.2)
            for factor, of_seeds in curve.items():
                fine = stable(of_seeds)
                ax.plot(factor, min(loss(of_seeds), 30), "o" if fine else "x", color=color, ms=5 if fine else 8)
        ax.set(xscale="log", yscale="log", xlabel="factor on alpha = 2r, or on the learning rate",
               title=f"from a rate of {start:g}")
    for (route, color), y in zip(COLORS.items(), (0.92, 0.84, 0.76)):
        axes[0].text(0.04, y, route, color=color, transform=axes[0].transAxes)
    axes[0].set_ylabel("squared error after 300 steps (× unstable)")
    fig.tight_layout()
    fig.savefig(path, dpi=150, format="png")


if __name__ == "__main__":
    grid.command(sys.modules[__name__])
