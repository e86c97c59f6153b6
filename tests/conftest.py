"""For every test: one thread, a Hypothesis profile that is the same on every run, and how a prepare.py is run."""

import sys

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# No deadline: torch's first call takes longer than Hypothesis's 200 ms. Derandomized: a failure comes back on a rerun.
settings.register_profile("default-run", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("default-run")


@pytest.fixture
def run(monkeypatch, capfd):
    """run(module, *args): (exit status, stdout, stderr) of a prepare.py's main, its child processes included."""
    def run(module, *args):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, args)])
        capfd.readouterr()
        try:
            module.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()
    return run
