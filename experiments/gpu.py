"""Finding 3 and the other methods again on a wider, deeper base, on a GPU: what changes with the width?

    python data/base/prepare.py --preset gpu    the base, 69M parameters, into out/base-gpu: some minutes
    python experiments/gpu.py                   some more; finished runs are reused

out/base-gpu (6 layers of width 1024) on data/equations, in the settings of rank_law.py and baselines.py, but with two
seeds for the rank law and three for the other methods. The shared learning rate is the one of baselines.py's six that
is best for full fine-tuning on this base.
"""

import math
import sys
from pathlib import Path

import baselines
import finetune
import grid
import rank_law
from finetune import best_rate, tuned

COLUMNS = baselines.COLUMNS
BASE, LAW_SEEDS, PEER_SEEDS = "out/base-gpu", [0, 1], range(3)


def prepare(quick: bool) -> None:
    if not (grid.HERE.parent / BASE / "model.safetensors").is_file():
        raise FileNotFoundError(f"{BASE} is not there: python data/base/prepare.py --preset gpu first, on a GPU")


def cells(quick: bool, rows: list[dict]) -> list[dict]:
    """The peers' tuning gives full fine-tuning's best rate, which the law is measured at."""
    rows, _ = parted(rows)
    size = dict(base=BASE, steps=2, batch=2, val=4) if quick else dict(base=BASE)
    rates, ranks = ([1e-3], [4, 16]) if quick else (baselines.RATES, rank_law.RANKS)
    found = baselines.plan(rows, rates, [0] if quick else PEER_SEEDS, shared, **size)
    if len(tuned(rows, arm="full")) == len(rates):
        lr = shared(rows)
        for seed in LAW_SEEDS[:1] if quick else LAW_SEEDS:
            grid_of_c = rank_law.grid_at(lr, rank_law.NEAR if seed else rank_law.GRID)
            found += rank_law.over(ranks, grid_of_c, [seed], lr=lr, **size)
    return found


def shared(rows: list[dict]) -> float:
    return best_rate(rows, arm="full")


def of_peers(row: dict) -> bool:
    """Whether a row or a cell is of the peers, not of the law."""
    return row["arm"] != "lora" or (row["rank"], row["alpha"]) == (baselines.RANK, 2 * baselines.RANK)


def parted(rows: list[dict]) -> list[list[dict]]:
    """The rows of the peers, and those of the law."""
    return [[row for row in rows if of_peers(row) == wanted] for wanted in (True, False)]


def work(cell: dict) -> dict:
    return baselines.work(cell) if of_peers(cell) else finetune.finetune(cell)


# ---- What it shows ---------------------------------------------------------------------------------------------------


def told(rows: list[dict]) -> str:
    peers, law = parted(rows)
    lines = baselines.tables(peers, shared(peers))
    if law:
        lines += ["", f"At {shared(peers):g}:", "", *rank_law.by_rank(law)]
    if len(rank_law.best_alphas(law)) > 2:
        lines += ["", rank_law.law_in_words(law) + " " + rank_law.sides_in_words(law)]
    return "\n".join(lines)


def findings(rows: list[dict]) -> list[tuple[str, str]]:
    peers, law = parted(rows)
    found = baselines.compared(peers, shared(peers))
    if len(rank_law.best_alphas(law)) > 2:
        low, high = rank_law.law(law)["p_interval"]
        found += [("the best alpha follows the square root of the rank: the exponent's interval contains 1/2",
                   grid.verdict(low <= 0.5 <= high))]
    return found


def picture(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    peers, law = parted(rows)
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2))
    baselines.draw_rates(left, peers)
    if law:
        rank_law.draw_curves(middle, law, math.sqrt, "lower right")
        middle.set(title=f"loss over alpha/√r, lr {shared(peers):g} (● 256·√r)")
        rank_law.draw_law(right, law)
    fig.legend(*left.get_legend_handles_labels(), loc="lower center", ncols=7, frameon=False, fontsize=8)
    fig.tight_layout(rect=(0, 0.06, 1, 1))
    fig.savefig(path, dpi=130, format="png")


if __name__ == "__main__":
    grid.command(sys.modules[__name__])
