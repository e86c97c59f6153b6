"""The experiments' own tools: python -m pytest tests/test_experiments.py"""

import csv
import importlib
import io
import json
import math
import os
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import train

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
NAMES = ["all", "alpha_vs_lr", "baselines", "calibrate", "curvature", "curves", "finetune", "gpu", "grid", "gsm8k",
         "mlp", "rank_law", "smollm2"]
(everything, alpha_vs_lr, baselines, calibrate, curvature, curves, finetune, gpu, grid, gsm8k, mlp, rank_law,
 smollm2) = (importlib.import_module(name) for name in NAMES)


class Net(nn.Module):
    """A small net with the GPT's call: (inputs, targets) to (outputs, loss)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x, y):
        found = self.layers(x)
        return found, ((found - y) ** 2).mean()


@pytest.mark.parametrize("seed", range(3))
def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian(seed):
    """Lanczos by Hessian-vector products against torch's dense Hessian and its eigenvalues, eigenvector included."""
    torch.manual_seed(seed)
    net, x, y = Net(), torch.randn(7, 3), torch.randn(7, 2)
    params = list(net.parameters())
    sizes = [p.numel() for p in params]

    def loss(flat):
        named = dict(zip((name for name, _ in net.named_parameters()), (part.view_as(p) for part, p in zip(
            flat.split(sizes), params))))
        return torch.func.functional_call(net, named, (x, y))[1]

    flat = torch.cat([p.detach().reshape(-1) for p in params])
    dense = torch.autograd.functional.hessian(loss, flat)
    expected = torch.linalg.eigvalsh(dense)[-1].item()
    value, vector = curvature.sharpness(net, (x, y), params, 26)
    vector = torch.cat([part.reshape(-1) for part in vector])
    assert value == pytest.approx(expected, rel=1e-4)
    assert torch.dot(vector, dense @ vector).item() == pytest.approx(expected, rel=1e-3)


def square(cell):
    return dict(square=cell["x"] ** 2)


def twice(cell):
    return [dict(square=cell["x"] ** 2), dict(square=-cell["x"] ** 2)]


@pytest.mark.parametrize("work, lines", [pytest.param(square, 1, marks=pytest.mark.thorough), (twice, 2)])
def test_a_sweep_goes_on_where_it_was_stopped(work, lines, tmp_path, capsys):
    """Finished cells are not run again, each has its lines, and other cells' lines are not returned."""
    path, cells = tmp_path / "x.csv", [dict(x=x, name="a") for x in range(4)]
    grid.sweep(path, cells[:2], work, ["x", "name", "square"], processes=1)
    capsys.readouterr()
    rows = grid.sweep(path, cells, work, ["x", "name", "square"], processes=1)
    assert "2 of 4 runs are done" in capsys.readouterr().out and len(rows) == 4 * lines
    assert sorted(abs(row["square"]) for row in rows) == sorted(float(x**2) for x in range(4) for _ in range(lines))
    with open(path, newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 4 * lines
    assert len(grid.sweep(path, cells[:1], work, ["x", "name", "square"], processes=1)) == lines


def test_a_cell_that_is_named_twice_runs_once(tmp_path):
    rows = grid.sweep(tmp_path / "x.csv", [dict(x=1), dict(x=1)], square, ["x", "square"], processes=1)
    assert len(rows) == 1


def test_the_figures_of_the_text_are_the_csvs():
    """Every block of the README is what the scripts make of their CSVs: all.py --plot-only changes nothing."""
    text = everything.README.read_text(encoding="utf-8")
    assert {script.__name__ for script in everything.SCRIPTS} <= set(re.findall(r"<!-- from (\w+) -->", text))
    assert everything.filled(text) == text


def test_a_block_is_filled_even_where_it_is_empty():
    empty = "a\n<!-- from rank_law.law_in_words -->\n<!-- end -->\nb"
    assert everything.block("rank_law.law_in_words") in everything.filled(empty)
    assert everything.filled(everything.filled(empty)) == everything.filled(empty)


def assert_tables_are_whole(text: str):
    """Lines of Markdown tables that follow each other have as many cells."""
    lines = text.splitlines()
    for before, line in zip(lines, lines[1:]):
        if before.startswith("|") and line.strip() and not line.startswith("<!--"):
            assert line.startswith("|") and line.endswith("|") and line.count("|") == before.count("|"), line


@pytest.mark.parametrize("path", [everything.README, ROOT / "README.md", ROOT / "data/README.md"],
                         ids=lambda path: path.parent.name)
def test_the_tables_are_whole(path):
    assert_tables_are_whole(path.read_text(encoding="utf-8"))


def test_the_quick_law_is_told():
    """Three ranks and three alphas, the rule's not among them."""
    rows = [{**cell, "diverged": 0, "val_loss": math.log(cell["alpha"] / 200) ** 2 + 1}
            for cell in rank_law.cells(True, [])]
    assert_tables_are_whole(rank_law.told(rows))
    assert rank_law.told(rows).count("\n| ") == 3


@pytest.mark.parametrize("script", [s for s in everything.SCRIPTS if (grid.HERE / f"{s.__name__}.csv").is_file()],
                         ids=lambda script: script.__name__)
def test_the_picture_is_drawn_from_the_csv(script, tmp_path):
    """And is small, as the committed one is."""
    path = grid.HERE / f"{script.__name__}.csv"
    rows = grid.rows_of(path, script.cells(False, grid.read_rows(path)))
    script.picture(rows, tmp_path / "x.png")
    for picture in (tmp_path / "x.png", path.with_suffix(".png")):
        assert 0 < picture.stat().st_size < 200_000


def test_plot_only_needs_the_csv_alone(tmp_path):
    """curvature.py --plot-only, in a copy."""
    copy = tmp_path / "experiments"
    copy.mkdir()
    for name in ("curvature.py", "grid.py", "curvature.csv"):
        (copy / name).write_bytes((ROOT / "experiments" / name).read_bytes())
    done = subprocess.run([sys.executable, copy / "curvature.py", "--plot-only"], capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert (copy / "curvature.png").is_file()


@pytest.mark.thorough
def test_all_quick_settings_run(tmp_path):
    """all.py --quick, in a copy: every script runs, and says of each claim what became of it."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    (tmp_path / "data").symlink_to(ROOT / "data")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    done = subprocess.run([sys.executable, "experiments/all.py", "--quick"], text=True, capture_output=True,
                          cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    verdicts = done.stdout[done.stdout.rindex("To use it:"):].splitlines()[3:]
    names = [script.__name__ for script in everything.SCRIPTS]
    assert sorted({line.split()[0] for line in verdicts}) == sorted(names)
    told = {line.split(maxsplit=1)[1] for line in verdicts}
    assert "holds: the share is s²·r/(3n), to a factor of 2" in told
    assert "holds: LoRA+ at ratio k ends where k times alpha does, to 3% of the loss, up to the best alpha" in told


# ---- The command lines -----------------------------------------------------------------------------------------------

COMMANDS = [path for path in sorted([*ROOT.glob("experiments/*.py"), *ROOT.glob("data/*/prepare.py")])
            if "__main__" in path.read_text(encoding="utf-8")]


def command(path: Path, flag: str, monkeypatch) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the script, on an ASCII console."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), flag])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
    return end.value.code, *(stream.buffer.getvalue().decode() for stream in streams)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_does_no_work_and_an_unknown_flag_is_one_line(path, monkeypatch):
    """On an ASCII console as well."""
    status, out, err = command(path, "--help", monkeypatch)
    assert status == 0 and not err and "--help" in out
    status, out, err = command(path, "--no-such-flag", monkeypatch)
    assert status == 2 and not out and err.count("\n") == 1 and "--no-such-flag" in err


def test_every_script_has_a_command_line():
    """The two modules that the others share say what they are."""
    assert {*ROOT.glob("experiments/*.py"), *ROOT.glob("data/*/prepare.py")} == set(COMMANDS)


@pytest.mark.thorough
def test_help_in_a_process_of_its_own_under_the_c_locale():
    """What the shell sees, without UTF-8: no UnicodeEncodeError, and no work done."""
    def help_of(path):
        env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
        return subprocess.run([sys.executable, path, "--help"], capture_output=True, env=env, timeout=120)

    some = COMMANDS[::3]  # the test above has them all in this process
    with ThreadPoolExecutor(4) as pool:
        for path, done in zip(some, pool.map(help_of, some)):
            assert done.returncode == 0 and b"--help" in done.stdout and not done.stderr, (path, done.stderr)


# ---- One run ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("arm, own", [("lora+", dict(lr_ratio=16.0)), ("pissa", {}),
                                      ("lora", dict(clip=0.5))])
def test_a_cell_is_a_run_of_train_py(arm, own, tmp_path, capsys):
    """The same flags give the same validation loss, first step and share of clipped steps."""
    for name, count in (("train", 40), ("val", 20)):
        lines = (ROOT / f"data/equations/{name}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:count]))
    alpha, data = train.method_alpha(arm, 4, None, None), str(tmp_path)
    cell = finetune.cell(arm=arm, rank=4, alpha=alpha, steps=3, batch=2, seed=1, data=data, **own)
    found = finetune.finetune(cell)
    flags = ["--grad-clip", "0.5"] if own.get("clip") else []
    train.main(["--method", arm, "--rank", "4", "--steps", "3", "--batch-size", "2", "--seed", "1", "--eval-problems",
                "0", "--eval-every", "3", "--data", data, "--out", str(tmp_path / "run"), *flags])
    run = train.read_json(tmp_path / "run/run.json")
    assert found["val_loss"] == pytest.approx(run["results"]["val_loss_after"], rel=1e-5)
    assert found["clipped"] == run["results"]["clipped"]
    assert found.get("first_step") == (pytest.approx(run["first_step_ratio"]) if run["first_step_ratio"] else None)


def test_a_run_that_diverges_is_a_row():
    """A loss that is not finite, and one that is above the base's, are both marked."""
    lost = finetune.finetune(finetune.cell(alpha=1e30, steps=3, batch=2, val=10))
    worse = finetune.finetune(finetune.cell(alpha=2e3, lr=0.02, steps=3, batch=2, val=10))
    fine = finetune.finetune(finetune.cell(alpha=64.0, steps=3, batch=2, val=10))
    assert [run["diverged"] for run in (lost, worse, fine)] == [1, 1, 0]
    assert math.isnan(lost["val_loss"]) and math.isfinite(worse["val_loss"])


# ---- The fits --------------------------------------------------------------------------------------------------------


@given(st.floats(-1.9, 1.9), st.floats(0.02, 2.0), st.floats(0.01, 3.0))
def test_the_vertex_of_a_parabola_is_found(at, curvature, lowest):
    """alpha* and the loss there, of a curve that is a parabola in log alpha and log loss; none at the grid's edge."""
    best = 64 * 2**at
    alphas = [8.0 * 2**k for k in range(7)]
    curve = {alpha: lowest * math.exp(curvature * math.log(alpha / best) ** 2) for alpha in alphas}
    alpha, loss, _ = rank_law.optimum(curve)
    assert alpha == pytest.approx(best, rel=1e-6) and loss == pytest.approx(lowest, rel=1e-6)
    assert rank_law.optimum({alpha: alpha for alpha in curve}) is None
    cut = {alpha: loss if alpha < 400 else math.inf for alpha, loss in curve.items()}
    assert rank_law.optimum(cut)[0] == (256 if best > 182 else pytest.approx(best, rel=1e-6))


def rows_of_a_law(p: float, c: float, noise: float = 0.0) -> list[dict]:
    """Rows as rank_law.py's, of runs whose best alpha is c·r^p."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for cell in rank_law.cells(False, []):
        if cell["arm"] == "lora" and cell["steps"] == 200 and cell["base"] == "data/base":
            best = c * cell["rank"] ** p * math.exp(noise * torch.randn((), generator=generator).item())
            rows.append({**cell, "diverged": 0, "val_loss": math.exp(0.1 * math.log(cell["alpha"] / best) ** 2)})
    return rows


@pytest.mark.parametrize("p, c", [(0.5, 128.0), (0.3, 200.0), (0.7, 90.0)])
def test_the_law_is_recovered(p, c):
    """p and c of an exact law, and the truth within the intervals where there is noise."""
    found = rank_law.law(rows_of_a_law(p, c))
    assert found["p"] == pytest.approx(p, abs=1e-6) and found["c"] == pytest.approx(c, rel=1e-5)
    found = rank_law.law(rows_of_a_law(p, c, noise=0.05))
    low, high = found["p_interval"]
    assert low <= p <= high and high - low < 0.3


def test_a_grid_that_is_not_complete_yet_is_left_out():
    """Of a seed that was stopped, and of a number of steps that has one curve alone."""
    rows = rows_of_a_law(0.5, 128.0)
    longer = [{**row, "steps": 400} for row in grid.pick(rows, rank=16, seed=0)]
    assert rank_law.over_steps(rows + longer)[400] == [pytest.approx(128)]
    assert 400 not in rank_law.over_steps(rows + longer[:4])
    last = grid.pick(rows, seed=2, rank=1)[-1]
    assert (1, 2) in rank_law.curves(rows)
    assert (1, 2) not in rank_law.curves([row for row in rows if row is not last and row["rank"] * row["seed"] <= 2])


def test_c_is_taken_to_full_fine_tunings_best_rate(monkeypatch):
    """Played out on losses whose best rate of full fine-tuning is 0.5/width and whose best c is 100·(lr/1e-3)^-1.2:
    both are found, though neither is on the grid."""
    monkeypatch.setattr(grid, "read_rows", lambda path: [])
    rows = []
    while left := [cell for cell in rank_law.cells(False, rows) if not grid.pick(rows, **cell)]:
        for cell in {grid.key(cell, cell): cell for cell in left}.values():
            width = 256 if cell["base"] == "data/base" else int(cell["base"].rpartition("/")[2])
            off = (cell["lr"] / (0.5 / width) if cell["arm"] == "full" else
                   cell["alpha"] / math.sqrt(cell["rank"]) / (100 * (cell["lr"] / 1e-3) ** -1.2))
            rows.append({**cell, "diverged": 0, "val_loss": math.exp(0.1 * math.log(off) ** 2)})
    found = rank_law.matched(rows)
    assert set(found) == {"data/base", "out/widths/64", "out/widths/128", "out/widths/256"}
    for width, lr, each in found.values():
        assert lr == pytest.approx(0.5 / width, rel=1e-6)
        assert each == [pytest.approx(100 * (lr / 1e-3) ** -1.2, rel=1e-5)] * len(each)
    line = next(line for line in rank_law.told(rows).splitlines() if line.startswith("Full fine-tuning's loss"))
    losses = {row["lr"]: row["val_loss"] for row in grid.pick(rows, arm="full", base="data/base")}
    assert all(f"{loss:.3f} at {lr:g}" in line for lr, loss in losses.items()) and line.count(" at ") == 4


@pytest.mark.parametrize("falls, rises", [(0.0, 0.5), (-0.2, 0.3)])
def test_the_two_sides_of_the_best_are_told_apart(falls, rises):
    """Losses that are power laws of alpha over r^falls to the left, and over r^rises to the right."""
    rows = [{**row, "val_loss": max(row["alpha"] / row["rank"]**falls, 1e-9) ** -0.5
             + (row["alpha"] / row["rank"]**rises / 400) ** 8} for row in rows_of_a_law(0.5, 128.0)]
    level, left, right = rank_law.sides(rows)
    assert all(min(curve.values()) < level for (_, seed), curve in rank_law.curves(rows).items() if seed == 0)
    assert rank_law.fitted(list(right.items()))[1] == pytest.approx(rises, abs=0.05)
    assert len(left) > 2 and rank_law.fitted(list(left.items()))[1] == pytest.approx(falls, abs=0.05)


def test_regret_is_zero_for_the_rule_that_is_the_best():
    """With alpha* = 128·√r that rule loses nothing, alpha = 2r most where 2r is furthest from it."""
    means = rank_law.shared(rows_of_a_law(0.5, 128.0))
    assert next(iter(means)) == "alpha = 128·√r" and means["alpha = 128·√r"] == pytest.approx(0, abs=1e-9)
    each = rank_law.regrets(rows_of_a_law(0.5, 128.0))["alpha = 2r"]
    assert each[1] > each[4] > each[16] > each[64] > 0


def test_baselines_have_equal_budgets():
    """Every arm has the same rates; once they are there, the seeds come at the arm's best and at the shared one."""
    first = baselines.cells(False, [])
    rates = {arm: sorted(cell["lr"] for cell in first if cell["arm"] == arm) for arm in baselines.TITLES}
    assert all(rates[arm] == baselines.RATES for arm in baselines.TITLES)
    rows = [{**cell, "diverged": 0, "val_loss": abs(math.log(cell["lr"] / (1e-2 if cell["arm"] == "lora" else 3e-3)))}
            for cell in first]
    later = [cell for cell in baselines.cells(False, rows) if cell["seed"]]
    for arm in baselines.TITLES:
        mine = sorted((cell["lr"], cell["seed"]) for cell in later if cell["arm"] == arm)
        best = 1e-2 if arm == "lora" else 3e-3
        assert mine == [(lr, seed) for lr in (1e-3, best) for seed in (1, 2, 3, 4)]
    assert len({(cell["arm"], cell["alpha"], cell["lr_ratio"]) for cell in first}) == len(baselines.TITLES) + 1


def test_smollm2_follows_the_best_and_no_seed_changes_what_is_tried():
    """Played out on losses with a ridge at alpha·lr = 0.1: every arm has the four rates and goes on until its best rate
    is not the last; alpha does at the shared rate; rank 16 has three seeds at the shared rate and at each arm's best;
    and the plan of the whole still has every run that was made."""
    rows, made = [], set()
    while left := [cell for cell in smollm2.cells(False, rows) if grid.key(cell, cell) not in made]:
        for cell in left:
            made.add(grid.key(cell, cell))
            product = cell["alpha"] * cell["lr"] if cell["arm"] == "lora" else 1000 * cell["lr"]
            rows.append({**cell, "diverged": int(product > 30),
                         "val_loss": math.log(max(product, 1e-9) / 0.1) ** 2 + 1e-3 * cell["seed"]})
    assert {grid.key(cell, cell) for cell in smollm2.cells(False, rows)} == made
    for rank in smollm2.RANKS:
        for arm in smollm2.arms(rank):
            rates = list(finetune.tuned(rows, **arm))
            best = finetune.best_rate(rows, **arm)
            assert rates[:4] == smollm2.RATES and best < rates[-1]
            assert len(rates) == 4 or best == rates[-2]
            if rank == 16:
                assert {row["lr"] for row in rows if row["seed"] == 2 and row["alpha"] == arm["alpha"]} == {2e-5, best}
        at_shared = grid.pick(rows, arm="lora", rank=rank, lr=2e-5, seed=0)
        assert min(at_shared, key=lambda row: row["val_loss"])["alpha"] == 4096
        assert max(row["alpha"] for row in at_shared) == 16384
    assert smollm2.ridge(grid.pick(rows, rank=16, arm="lora", seed=0))[1e-4] == pytest.approx(1000, rel=0.3)


def played_out_gsm8k():
    """Every cell of the plan in turn, on losses with a ridge at alpha·lr = 0.1 and answers that are right by arm."""
    rows = []
    while left := [cell for cell in gsm8k.cells(False, rows) if not grid.pick(rows, **cell)]:
        for cell in left:
            product = cell["lr_ratio"] * cell["alpha"] * cell["lr"] if cell["arm"] == "lora" else 700 * cell["lr"]
            loss = 0.8 - 0.05 * cell["epochs"] + 0.01 * math.log(product / 0.1) ** 2 + 1e-4 * cell["seed"]
            right = "".join(str(int((7 * i + cell["seed"]) % 100 < 20 + (cell["alpha"] == 1024))) for i in range(1319))
            rows.append({**cell, "diverged": int(product > 30), "val_loss": loss, "curve": f"5:{loss + 1} 10:{loss}",
                         "drift_ratio": 0.01, "base_loss": 3.0, "seconds": 60.0, "device": "a GPU", "first_step": 1.0,
                         "right": "x" + right if cell["test"] else "", "pass1": ""})
    return rows


def test_gsm8k_tunes_every_arm_alike_and_tests_only_what_is_trained_out(tmp_path):
    """Played out: rates by factors of 2 with the best inside; three seeds of three epochs at each arm's best and at
    full fine-tuning's; no other run sees the test problems; tables, claims and picture come from these rows."""
    rows = played_out_gsm8k()
    shared = gsm8k.best_rate(rows, gsm8k.FULL)
    for name, arm in gsm8k.ARMS.items():
        tried = gsm8k.tuning(rows, name)
        best = gsm8k.best_rate(rows, name)
        assert all(b / a == pytest.approx(2, rel=1e-4) for a, b in zip(tried, list(tried)[1:]))
        assert min(tried) < best < max(tried) and 5 <= len(tried) <= 9
        product = arm["lr_ratio"] * (arm["alpha"] or 700) * best
        assert 0.1 / 1.5 < product < 0.15
        whole = grid.pick(rows, **arm, test=gsm8k.TESTS, dtype="bfloat16")
        assert {(row["lr"], row["seed"]) for row in whole} == {(lr, s) for lr in (best, shared) for s in (0, 1, 2)}
        assert len(gsm8k.bands(rows, name)) == 3
    assert {row["epochs"] for row in rows if row["test"]} == {3}
    assert len(grid.pick(rows, dtype="float32")) == 1
    text = gsm8k.told(rows)
    assert "| 20.1 [" in text and "| 21.2 [" in text
    assert "c = | 16 | 64 | 256 | 1024 |" in text and "With the base in float32" in text
    assert re.search(r"\| alpha 1024 = 256·√r \| \S+ \| \S+ \(\S+ to \S+\) \| \S+ \[\S+ \S+\] \| \+1\.0 \[", text)
    claims = dict(gsm8k.findings(rows))
    assert [*claims.values()] == ["holds", "does not hold here", "holds", "holds", "holds in 1 of 2 cases"]
    gsm8k.picture(rows, tmp_path / "x.png")
    assert gsm8k.told([]) == "" and [verdict for _, verdict in gsm8k.findings([])] == ["not run at full length"]


@pytest.mark.thorough
def test_gsm8k_trains_and_tests_as_its_cell_says(toy, monkeypatch):
    """The quick setting's cells on a toy base: every arm learns, only three epochs see test problems, and what a run
    gives is columns of the CSV."""
    monkeypatch.setattr(gsm8k, "BASE", str(toy.base))
    monkeypatch.setattr(gsm8k, "DATA", str(toy.data))
    cells = gsm8k.cells(True, [])
    assert [cell["test"] for cell in cells] == [0] * len(gsm8k.ARMS) + [2, 2]
    for cell in cells:
        found = gsm8k.work(cell)
        assert {**cell, **found}.keys() <= {*gsm8k.COLUMNS} and found["diverged"] == 0
        points = [point.split(":") for point in found["curve"].split()]
        assert [int(step) for step, _ in points] == list(range(1, 2 * cell["epochs"] + 1))
        assert float(points[-1][1]) == pytest.approx(found["val_loss"], abs=1e-4)
        assert ("right" in found) == bool(cell["test"]) and len(found.get("right", "x01")) == 3
    assert gsm8k.work(cells[-1])["val_loss"] == found["val_loss"]


@given(st.floats(1.5, 3), st.floats(-0.4, 0.4))
def test_a_band_is_as_wide_as_the_rates_within_two_percent(width, middle):
    """On a loss that rises by straight lines over log2 of the rate the width is exact; at an edge it ends there."""
    losses = {2.0**k: 1 + 0.02 * abs(k - middle) / width for k in range(-6, 7)}
    low = min(losses.values())
    assert gsm8k.band(losses) == pytest.approx(2 * width * (1.02 * low - 1) / 0.02, abs=1e-6)
    assert gsm8k.band({1.0: 1.0, 2.0: 1.001, 4.0: 1.002}) == 2
    assert gsm8k.band({1.0: 1.0, 2.0: math.inf}) == 0


def test_a_gpu_repeats_rank_16_for_more_steps(monkeypatch):
    """Played out: the runs of 200 steps are those of 40 at rank 16 where the same rates are best, and neither plan
    looks at the other's rows: here 200 steps like a rate four times smaller."""
    monkeypatch.setattr(finetune, "DEVICE", "cuda")
    rows = []
    while left := [cell for cell in smollm2.cells(False, rows) if not grid.pick(rows, **cell)]:
        for cell in left:
            product = (cell["alpha"] if cell["arm"] == "lora" else 1000) * cell["lr"] * (cell["steps"] / 40) ** 0.86
            rows.append({**cell, "diverged": int(product > 30), "val_loss": math.log(max(product, 1e-9) / 0.1) ** 2})
    for steps, factor in ((40, 1), (200, 4)):
        mine = [row for row in rows if row["steps"] == steps and row["rank"] in (0, 16)]
        assert len(grid.pick(mine, arm="none")) == 1
        assert {(row["arm"], row["alpha"]) for row in mine} >= {(arm["arm"], arm["alpha"]) for arm in smollm2.MAIN}
        for arm in smollm2.MAIN:
            best = min(finetune.tuned(mine, **arm).values(), key=lambda row: row["val_loss"])
            assert abs(math.log((arm["alpha"] or 1000) * best["lr"] * factor / 0.1)) < math.log(5)
            for seed in (1, 2):
                assert {row["lr"] for row in grid.pick(mine, seed=seed, **arm)} == {2e-5, best["lr"]}
    assert {row["rank"] for row in rows if row["steps"] == 200} == {0, 16}


@pytest.mark.parametrize("best, grid_of_c", [(1e-3, (16, 1024)), (3e-4, (64, 4096)), (3e-3, (4, 256))])
def test_the_wide_base_has_its_law_at_full_fine_tunings_best_rate(best, grid_of_c):
    """Played out: the law comes after the tuning, at that rate, its grid of c moved inversely to the rate; no run of
    the law is taken for one of the peers, so that each arm has the six rates and three seeds at the best."""
    rows = []
    while left := [cell for cell in gpu.cells(False, rows) if not grid.pick(rows, **cell)]:
        rows += [{**cell, "diverged": 0, "val_loss": math.log(cell["lr"] / (best if gpu.of_peers(cell) else 1e-9)) ** 2}
                 for cell in {grid.key(cell, cell): cell for cell in left}.values()]
    law = [row for row in rows if not gpu.of_peers(row)]
    assert {row["lr"] for row in law} == {best} and {row["arm"] for row in law} == {"lora"}
    assert {round(row["alpha"] / math.sqrt(row["rank"])) for row in law} == {
        grid_of_c[0] * 2**k for k in range(7)} and max(row["alpha"] for row in law if row["rank"] == 1) == grid_of_c[1]
    assert len(law) == 8 * 7 + 8 * 5
    for arm in baselines.TITLES:
        mine = sorted((row["lr"], row["seed"]) for row in rows if gpu.of_peers(row) and row["arm"] == arm)
        assert mine == sorted([(lr, 0) for lr in baselines.RATES] + [(best, 1), (best, 2)])


def test_cells_of_a_gpu_are_planned_elsewhere_only_when_they_are_there(monkeypatch):
    cells = rank_law.over([16], rank_law.GRID, rank_law.SEEDS[:2], base="out/widths/1024")
    monkeypatch.setattr(finetune, "DEVICE", "cpu")
    assert rank_law.of_width(1024, []) == [] and rank_law.of_width(1024, cells) == cells
    assert {cell["arm"] for cell in rank_law.of_width(512, [])} == {"lora"}
    assert finetune.on_gpu(cells, []) == [] and finetune.on_gpu(cells, cells[:3]) == cells[:3]
    monkeypatch.setattr(finetune, "DEVICE", "cuda")
    assert finetune.on_gpu(cells, []) == cells
    assert rank_law.of_width(1024, [])[: len(cells)] == cells


def test_both_routes_have_equal_products():
    """Each point of the rate's route has a point of alpha's with the same alpha·lr, for every seed."""
    cells = [cell for cell in alpha_vs_lr.cells(False, []) if not cell["clip"] and cell["lr_ratio"] == 1]
    alpha, lr = alpha_vs_lr.START
    for seed in alpha_vs_lr.SEEDS:
        routes = [{round(cell["alpha"] * cell["lr"], 9) for cell in grid.pick(cells, seed=seed, **fixed)}
                  for fixed in (dict(lr=lr), dict(alpha=alpha))]
        products = {round(alpha * lr * factor, 9) for factor in alpha_vs_lr.FACTORS[:-1]}
        assert products <= routes[0] and products <= routes[1]


# ---- calibrate.py ----------------------------------------------------------------------------------------------------


@given(st.floats(10, 3000), st.floats(10, 3000), st.floats(20, 200), st.booleans())
def test_calibration_finds_the_best_c(small, large, first, cliff):
    """Two ranks with their own best c, losses that are parabolas, with or without a cliff: each c is found, and the
    plan comes to an end after few runs."""
    setting, ranks, rows, plan = finetune.cell(steps=40), [4, 32], [], None
    while plan != (plan := calibrate.cells(setting, ranks, first, rows)):
        done = {(row["rank"], row["alpha"], row["stop"]) for row in rows}
        for cell in plan:
            if (cell["rank"], cell["alpha"], cell["stop"]) not in done:
                best = small if cell["rank"] == 4 else large
                c = cell["alpha"] / math.sqrt(cell["rank"])
                rows.append({**cell, "val_loss": math.inf if cliff and c > 4.5 * best else
                             math.exp(0.1 * math.log(c / best) ** 2)})
        assert len(rows) <= 40
    for rank, best in zip(ranks, (small, large)):
        c, loss, low, high = calibrate.fitted(calibrate.on_grid(calibrate.losses(rows, rank, 40)))
        assert c == pytest.approx(best, rel=1e-4) and loss == pytest.approx(1, rel=1e-4)
        assert math.log(high / best) ** 2 * 0.1 == pytest.approx(math.log1p(calibrate.LOSS), rel=1e-3)


def test_the_prediction_is_step_matching():
    """c of the matched first step is √(3n) of data/base's widths, to 5%; the curvature's is near it."""
    c, widths = calibrate.matched_steps(finetune.cell())
    assert widths == {256: 24, 688: 4}
    assert c == pytest.approx(math.sqrt(3 * 256), rel=0.1)
    assert calibrate.matched_sharpness(finetune.cell(), 2, 4) == pytest.approx(c, rel=0.3)


@pytest.mark.parametrize("flags, says", [
    (["--base", "nowhere"], "nowhere"), (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--ranks", "0"], "--ranks: 0"), (["--steps", "3"], "--steps: 3: want int from 4"),
    (["--lr", "nan"], "--lr: nan: want float"), (["--seed", str(2**32)], "--seed: 4294967296")])
def test_mistakes_are_one_line(flags, says, capsys):
    with pytest.raises(SystemExit) as end:
        calibrate.main(flags)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and says in error


def test_smollm2_says_what_is_missing(monkeypatch, tmp_path):
    """Without the weights or the problems: the command that makes them."""
    monkeypatch.setattr(smollm2, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="python data/smollm2/prepare.py"):
        smollm2.prepare(True)


# ---- curves.py -------------------------------------------------------------------------------------------------------


def write_run(folder, steps=4, header="step,loss,val_loss,seconds,drift", text=None, **flags):
    """A run as train.py leaves it: loss 8 / step, val_loss 9 in even steps, 2 seconds a step, no drift in the first."""
    folder.mkdir(parents=True)
    rows = (f"{i},{8 / i},{'' if i % 2 else 9},{2 * i},{i - 1}" for i in range(1, steps + 1))
    (folder / "metrics.csv").write_text("\n".join([header, *rows]) + "\n" if text is None else text, encoding="utf-8")
    if flags:
        (folder / "run.json").write_text(json.dumps(flags), encoding="utf-8")
    return folder


def test_curves_show_what_the_files_hold(tmp_path):
    """Over steps and seconds, a colour a run; rank, alpha and rate in the legend, or the folder of a run cut off."""
    folders = [write_run(tmp_path / "a", 40, method="lora-alpha", rank=8, alpha=724.0773, lr=1e-3),
               write_run(tmp_path / "b", 6), write_run(tmp_path / "c", 6, method="full", rank=8, alpha=None, lr=2e-5)]
    runs = [(curves.title(folder), curves.read_run(folder)) for folder in folders]
    names = [name for name, _ in runs]
    assert names == ["lora-alpha, rank 8, alpha 724.077, lr 0.001 (a)", "b (not finished)", "full, lr 2e-05 (c)"]
    fig = curves.picture(runs, True)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == names
    steps, seconds, *others = fig.axes
    for ax, scale in ((steps, 1), (seconds, 2)):
        raw, smooth, val = ax.lines[:3]
        assert list(raw.get_xdata()) == [scale * i for i in range(1, 41)]
        assert list(raw.get_ydata()) == [8 / i for i in range(1, 41)]
        assert smooth.get_ydata()[5] == pytest.approx((8 / 6 + 8 / 5) / 2)  # a twentieth of 40 steps
        assert [y for y in val.get_ydata() if y == y] == [9] * 20
        assert len({line.get_color() for line in ax.lines}) == 3 and len(ax.lines) == 9
    assert [len(ax.lines) for ax in others] == [0, 6, 0]


def test_curves_draw_the_newest_runs_and_say_where(tmp_path, command):
    """Five of seven without names; the picture lies beside them, or where --out says."""
    for i in range(7):
        os.utime(write_run(tmp_path / f"out/r{i}") / "metrics.csv", (i, i))
    done = command(curves, cwd=tmp_path)
    assert done.stdout == "5 runs drawn in out/curves.png\n" and (tmp_path / "out/curves.png").stat().st_size > 1000
    done = command(curves, "out/r1", "out/r1", "--drift", "--out", "new/x.svg", cwd=tmp_path)
    assert done.stdout == "1 run drawn in new/x.svg\n" and "<svg" in (tmp_path / "new/x.svg").read_text()


@pytest.mark.parametrize("text, flags, said", [
    (None, ["--drift", "absent"], "absent/metrics.csv: there is no such file"),
    (None, ["a", "--out", "metrics.csv"], "Format 'csv' is not supported"),
    ("step,loss,val_loss\n1,2,\n2,two,\n", ["a"], "a/metrics.csv, line 3: no row of numbers"),
    ("step,loss,val_loss\n1,2,\n2\n", ["a"], "a/metrics.csv, line 3: no row of numbers"),
    ("step,loss,val_loss\n1,2,3,4\n", ["a"], "a/metrics.csv, line 2: no row of numbers"),
    ("step,val_loss\n1,2\n", ["a"], "a/metrics.csv: lacks the column loss"),
    ("step,loss,val_loss\n", ["a"], "a/metrics.csv: holds no step yet"),
    ("", ["a"], "a/metrics.csv: lacks the column loss"),
    ("step,loss,val_loss\n1,2,\n", ["a", "--drift"], "no run has signal and drift: train with --drift"),
    (None, [], "out/ holds no run"),
], ids=str)
def test_curves_name_what_they_cannot_draw(text, flags, said, tmp_path, command):
    """One line, exit status 2, no picture."""
    write_run(tmp_path / "a", text=text)
    done = command(curves, *flags, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"curves.py: {said}") and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "metrics.csv"]


@pytest.mark.parametrize("work, lines", [(square, 1), (twice, 2)])
def test_a_csv_that_was_cut_anywhere_is_made_whole(work, lines, tmp_path):
    """Cut after any byte, the same sweep ends with every cell's lines once; no number cut short is taken for one."""
    columns, cells = ["x", "name", "square"], [dict(x=x, name="ä, b") for x in (12, 345, 67)]
    made = [{**cell, **square(cell)} for cell in cells] if work is square else [
        {**cell, **values} for cell in cells for values in twice(cell)]
    grid.append(tmp_path / "whole.csv", made, columns)
    content, wanted = (tmp_path / "whole.csv").read_bytes(), grid.read_rows(tmp_path / "whole.csv")
    assert len(wanted) == 3 * lines
    for cut in range(len(content)):
        if lines == 2 and content[:cut].endswith(b"\n") and content[:cut].count(b"\n") % 2 == 0:
            continue  # between the two lines of a cell, which are written together
        path = tmp_path / "cut.csv"
        path.write_bytes(content[:cut])
        assert all(row in wanted for row in grid.read_rows(path))
        with pytest.MonkeyPatch.context() as patch:  # threads: a new process for each cut takes seconds
            patch.setattr(grid, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
            rows = grid.sweep(path, cells, work, columns)
        assert sorted(rows, key=str) == sorted(wanted, key=str), cut
        assert path.read_bytes().count(b"\n") == 1 + 3 * lines


def test_a_full_disk_leaves_the_csv_as_it_was(tmp_path):
    path = tmp_path / "x.csv"
    grid.append(path, [dict(x=1)], ["x"])
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError):
            grid.append(path, [dict(x="a longer line"), dict(x="another")], ["x"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


@pytest.fixture
def copied(tmp_path):
    """start(): mlp.py --quick in a copy, as the leader of its processes; and the folder."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("*.csv", "*.png"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)

    def start():
        return subprocess.Popen([sys.executable, "experiments/mlp.py", "--quick"], cwd=tmp_path, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    return start, tmp_path


@pytest.mark.parametrize("line", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_ctrl_c_stops_a_sweep_and_its_processes_without_a_traceback(line, copied):
    """While torch is imported, without words; after the first run, with what to do next."""
    process = copied[0]()
    time.sleep(0.4) if not line else [process.stdout.readline() for _ in range(line + 1)]
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in err
    assert err == ("\nstopped; the finished runs are kept, and the same command goes on from there\n" if line else "")


@pytest.mark.thorough
def test_a_sweep_that_is_killed_again_and_again_ends_with_the_same_rows(copied):
    start, folder = copied
    path, kills = folder / "out/experiments/mlp.csv", 0
    for line in (1,):  # after so many runs of this process
        process = start()
        for _ in range(line + 1):
            process.stdout.readline()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert len(grid.read_rows(path)) >= line
    assert kills == 1 and start().communicate(timeout=500)[1] == ""
    rows, cells = grid.read_rows(path), mlp.cells(True, [])
    assert sorted(grid.key(row, cells[0]) for row in rows) == sorted(grid.key(cell, cells[0]) for cell in cells)
    for cell in cells[::5]:
        assert grid.pick(rows, **cell) == [{**cell, **mlp.work(cell)}]
