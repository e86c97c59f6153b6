"""One run of fine-tuning for a sweep: train.py's methods and its loop, without its files and printed lines.

A cell (a dict) holds base, data, arm (a method of train.py, or none for no training), rank, alpha, lr, lr_ratio, clip
(0: none), steps, batch, seed and val (how many validation problems); a run is a function of its cell alone.
"""

import math
import time
from functools import cache
from pydoc_data.topics import topics

import grid  # puts the modules above this folder on the path
import torch

from data.base.prepare import val_batches
from eval_pass1 import pass1, solve
from hf import load_config, load_model
from lora_alpha import collate, epochs, evaluate, inject_lora, lora_layers, train
from tokens import load_tokenizer
from train import encode_all, first_step_ratio, load_data, parse_args, pissa_init

ROOT = grid.HERE.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAME = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
SETTING = dict(base="data/base", data="data/equations", arm="lora", rank=16, alpha=32.0, lr=1e-3, lr_ratio=1.0,
               clip=0.0, steps=200, batch=8, seed=0, val=300)
FOUND = ["val_loss", "diverged", "first_step", "signal", "drift_ratio", "clipped", "base_loss", "pass1", "tested",
         "seconds", "device"]
COLUMNS = [*SETTING, *FOUND]


def cell(**own) -> dict:
    """SETTING, but for what is given."""
    return {**SETTING, **own}


@cache
def examples(base: str, data: str, val: int) -> tuple[list, list, list]:
    """Training examples, validation batches and test problems, as train.py takes them from a data folder."""
    encoding, config = load_tokenizer(ROOT / base), load_config(ROOT / base)
    train_problems, val_problems, test_problems = load_data(parse_args(["--data", str(ROOT / data)])[1])
    held_out = encode_all(val_problems, "validation problems", encoding, config)[:val]
    held_out.sort(key=lambda example: len(example[0]))  # little padding
    size = max(1, 5000 // len(held_out[-1][0]))
    return (encode_all(train_problems, "training problems", encoding, config),
            [collate(held_out[i : i + size]) for i in range(0, len(held_out), size)], test_problems)


@cache
def loss_before(base: str, data: str, val: int) -> float:
    return evaluate(load_model(ROOT / base, torch.float32, DEVICE), examples(base, data, val)[1])


@cache
def corpus(base: str) -> list:
    """What fine-tuning can forget: fresh problems of the corpus that data/base and its kin were pre-trained on; for
    any other model 16 rows of 256 tokens of English, Python's language reference as pydoc has it."""
    encoding = load_tokenizer(ROOT / base)
    if (ROOT / base / "base.tiktoken").is_file():
        return val_batches(encoding)
    tokens = torch.tensor(encoding.encode_ordinary("".join(topics.values()))[: 16 * 256 + 1])
    return [(tokens[:-1].view(-1, 256)[i : i + 4], tokens[1:].view(-1, 256)[i : i + 4]) for i in range(0, 16, 4)]


def made(cell: dict):
    """The cell's base, adapted as its arm says."""
    model = load_model(ROOT / cell["base"], torch.float32, DEVICE)
    torch.manual_seed(cell["seed"])  # before A's init
    if cell["arm"] not in ("full", "none"):
        inject_lora(model, cell["rank"], cell["alpha"])
    if cell["arm"] == "pissa":
        pissa_init(model)
    return model


def finetune(cell: dict, drift: bool = False, forgetting: bool = False, test: int = 0, log=None) -> dict:
    """What a run ends with: FOUND's values, those that were not asked for left out.

    signal: sum over the steps of its norm; drift_ratio: mean over the steps from the second (at B = 0 there is no
    drift). diverged: 1 where a loss was not finite, or the last is above the base's. base_loss: on its own corpus.
    """
    start = time.time()
    train_examples, held_out, problems = examples(cell["base"], cell["data"], cell["val"])
    model = made(cell)
    found = dict(diverged=1, device=NAME)
    if lora_layers(model) and cell["arm"] != "pissa":  # PiSSA's B is not 0
        found["first_step"] = first_step_ratio(model) * cell["lr_ratio"]
    try:
        rows = train(model, epochs(train_examples, cell["batch"], seed=cell["seed"]), cell["steps"], cell["lr"],
                     grad_clip=cell["clip"] or None, lr_ratio=cell["lr_ratio"], drift=drift,
                     log=log) if cell["arm"] != "none" else []
    except FloatingPointError:
        return dict(**found, val_loss=math.nan, seconds=time.time() - start)
    found["val_loss"] = evaluate(model, held_out)
    found["diverged"] = int(bool(rows) and not found["val_loss"] < loss_before(cell["base"], cell["data"], cell["val"]))
    found["clipped"] = sum(row["clipped"] for row in rows) / max(1, len(rows))
    if drift:
        found["signal"] = sum(row["signal"] for row in rows)
        found["drift_ratio"] = sum(row["drift_ratio"] for row in rows[1:]) / max(1, len(rows) - 1)
    if forgetting:
        found["base_loss"] = evaluate(model, corpus(cell["base"]))
    if test:
        found["pass1"] = pass1(solve(model, load_tokenizer(ROOT / cell["base"]), problems[:test]))["pass1"]
        found["tested"] = len(problems[:test])
    return dict(**found, seconds=time.time() - start)


def on_gpu(cells: list[dict], rows: list[dict]) -> list[dict]:
    """Cells that ask for a GPU: all of them where there is one, elsewhere those whose rows are there."""
    return [cell for cell in cells if DEVICE == "cuda" or grid.pick(rows, **cell)]


def tuned(rows: list[dict], **arm) -> dict[float, dict]:
    """{learning rate: row of seed 0} of an arm, by its columns."""
    return {row["lr"]: row for row in sorted(grid.pick(rows, seed=0, **arm), key=lambda row: row["lr"])}


def best_rate(rows: list[dict], **arm) -> float:
    """The learning rate of the lowest validation loss."""
    return min(grid.pick(tuned(rows, **arm).values(), diverged=0), key=lambda row: row["val_loss"])["lr"]


if __name__ == "__main__":  # a module of the other scripts: --help says what it is
    grid.Parser(description=__doc__).parse_args()
