"""Files of unknown origin: whatever is in them, the error is one line that names the file."""

import copy
import json
import os
import struct

import pytest
import torch
from torch import nn

from slipstream.modes import Modes, fit_modes
from slipstream.storage.reading import parsing
from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.trajectory import Trajectory
from slipstream.weights import weights_of

WEIRD = [None, True, -1, 10**30, 0.5, "", "x", [], {}, [[]], [-1, 2**40], {"a": 1}]
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files of groups, of a permutation and of modes."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    groups = find_neuron_groups(model, torch.randn(4, 3), prove=False)
    groups.save(folder / "groups.json")
    Permutation.random(groups, seed=0).save(folder / "permutation.safetensors")
    path = [
        {n: v + t * torch.randn_like(v) for n, v in weights_of(model).items()} for t in (0, 1, 2)
    ]
    fit_modes(Trajectory.from_weights(path), modes=2).save(folder / "modes.safetensors")
    return folder


def positions(data, road=()):
    """Every place in plain data."""
    keys = range(len(data)) if isinstance(data, list) else data
    for key in keys if isinstance(data, list | dict) else ():
        yield (*road, key)
        yield from positions(data[key], (*road, key))


def spoilt(data):
    """The data, with one value after the other replaced or left out."""
    for number, (*road, last) in enumerate(positions(data)):
        for value in (WEIRD[number % len(WEIRD)], WEIRD[(number + 5) % len(WEIRD)], KeyError):
            changed = copy.deepcopy(data)
            holder = changed
            for key in road:
                holder = holder[key]
            if value is KeyError:
                del holder[last]
            else:
                holder[last] = value
            yield json.dumps(changed)
    yield from (DEEP, "", "null", "{")


def with_metadata(file, key, text):
    """The bytes of a safetensors file with other metadata."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][key] = text
    new = json.dumps(header).encode()
    return struct.pack("<Q", len(new)) + new + content[8 + length :]


def metadata(file, key):
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"][key])


def use_modes(path):
    modes = Modes.load(path)
    modes.weights_at(modes.steps[-1])
    modes.share_by_tensor()


@pytest.mark.parametrize(
    ("name", "key", "read"),
    [
        ("groups.json", None, lambda path: str(NeuronGroups.load(path))),
        ("permutation.safetensors", "neuron_groups", Permutation.load),
        ("modes.safetensors", "slipstream.modes", use_modes),
    ],
)
def test_whatever_is_damaged_is_one_line_that_names_the_file(name, key, read, saved, tmp_path):
    file, source = tmp_path / name, saved / name
    data = json.loads(source.read_bytes()) if key is None else metadata(source, key)
    errors = []
    for text in spoilt(data):
        file.write_bytes(text.encode() if key is None else with_metadata(source, key, text))
        try:
            read(file)
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) > 30
    assert all(name in error and "\n" not in error for error in errors)
    content = source.read_bytes()
    for length in (0, 5, len(content) // 2):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=name):
            read(file)


@pytest.mark.parametrize("read", [NeuronGroups.load, Permutation.load, Modes.load])
def test_a_pipe_is_not_waited_for_and_a_missing_file_is_missing(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe .* it is not a regular file"):
        read(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="nothing"):
        read(tmp_path / "nothing")


def test_an_error_that_names_the_file_is_passed_on(tmp_path):
    (tmp_path / "plan").touch()
    with (
        pytest.raises(ValueError, match=r"plan is of format 7\.$"),
        parsing(tmp_path / "plan", "plan"),
    ):
        raise ValueError(f"{tmp_path / 'plan'} is of format 7.")
    with (
        pytest.raises(ValueError, match=r"plan holds no plan, or is damaged: of format 7\.$"),
        parsing(tmp_path / "plan", "plan"),
    ):
        raise ValueError("of format 7.\nsecond line")
