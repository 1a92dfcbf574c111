"""What every test runs under: known threads, known seeds, and a chosen depth of search."""

from __future__ import annotations

import os
import random

# Before torch is imported. Two threads, so that the threaded paths run everywhere; OpenMP's workers
# sleep between operations instead of taking the core from what is being tested.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# HYPOTHESIS_PROFILE=fast (default), ci, or deep: the one whose search differs from run to run.
_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "fast", max_examples=25, deadline=None, derandomize=True, suppress_health_check=_SLOW
)
settings.register_profile("ci", settings.get_profile("fast"), max_examples=100, print_blob=True)
settings.register_profile("deep", settings.get_profile("ci"), max_examples=2000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same random state, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the legacy state is what tests and libraries may share)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def torch_as_found():
    """A test may change torch's threads, default dtype; the next test sees none of it."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
