"""Settings for every test: one thread, and a Hypothesis profile that is the same on every run."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
# No deadline: torch's first call takes longer than Hypothesis's 200 ms. Derandomized: a failure comes back on a rerun.
settings.register_profile("default-run", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("default-run")
