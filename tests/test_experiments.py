"""The experiments' own tools: python -m pytest tests/test_experiments.py"""

import csv
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
curvature, grid = (importlib.import_module(name) for name in ("curvature", "grid"))


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


@pytest.mark.parametrize("work, lines", [(square, 1), (twice, 2)])
def test_a_sweep_goes_on_where_it_was_stopped(work, lines, tmp_path, capsys):
    """Finished cells are not run again, each has its lines, and other cells' lines are not returned."""
    path, cells = tmp_path / "x.csv", [dict(x=x, name="a") for x in range(4)]
    grid.sweep(path, cells[:2], work, ["x", "name", "square"], processes=1)
    capsys.readouterr()
    rows = grid.sweep(path, cells, work, ["x", "name", "square"], processes=1)
    assert "2 of 4 cells are there" in capsys.readouterr().out and len(rows) == 4 * lines
    assert sorted(abs(row["square"]) for row in rows) == sorted(float(x**2) for x in range(4) for _ in range(lines))
    with open(path, newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 4 * lines
    assert len(grid.sweep(path, cells[:1], work, ["x", "name", "square"], processes=1)) == lines


def test_the_text_is_what_the_csv_says():
    """experiments/README.md holds the table that each script makes of its CSV."""
    text = (ROOT / "experiments/README.md").read_text(encoding="utf-8")
    assert curvature.told(grid.read_rows(ROOT / "experiments/curvature.csv")) in text


def test_the_picture_is_drawn_from_the_csv_alone(tmp_path):
    """curvature.py --plot-only draws from the committed CSV, in a copy."""
    copy = tmp_path / "experiments"
    copy.mkdir()
    for name in ("curvature.py", "grid.py", "curvature.csv"):
        (copy / name).write_bytes((ROOT / "experiments" / name).read_bytes())
    done = subprocess.run([sys.executable, copy / "curvature.py", "--plot-only"], capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert 0 < (copy / "curvature.png").stat().st_size < 200_000


def test_the_quick_setting_runs():
    """curvature.py --quick, a minute on two cores: what it measures is within a factor of two of the prediction."""
    done = subprocess.run([sys.executable, ROOT / "experiments/curvature.py", "--quick"], text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    low, high = re.search(r"measured share is ([\d.]+) to ([\d.]+) of", done.stdout).groups()
    assert 0.5 < float(low) and float(high) < 2
