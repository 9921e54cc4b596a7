"""Every test draws the same numbers in every run, alone or among others."""

import signal

import pytest
import torch

from oracles.vision_networks import declare_operators

torch.manual_seed(0)  # for what modules draw when they are imported


# Tests interrupt processes; one that was begun in the background of a shell ignores Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

declare_operators()  # transformers and timm import torchvision


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)
