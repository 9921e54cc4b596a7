"""Every test draws the same numbers in every run, alone or among others."""

import pytest
import torch

torch.manual_seed(0)  # for what modules draw when they are imported


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)
