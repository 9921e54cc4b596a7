"""JSON from anywhere is read strictly, and a checksum finds every flipped bit."""

import math

import pytest

from slipstream.storage.strict_json import checked_json, read_checked_json, read_json


def test_what_is_written_is_read_again():
    data = {"a": [1, 2.5, None], "b": {"c": "ü"}, "d": True}
    for indent in (None, 1):
        assert read_checked_json(checked_json(data, indent=indent)) == data
    assert read_checked_json(b'{"old": 1}') == {"old": 1}  # version 0.1 wrote no checksum


def test_what_is_not_finite_becomes_text():
    found = read_checked_json(checked_json({"a": math.nan, "b": [-math.inf]}))
    assert found == {"a": "nan", "b": ["-inf"]}


@pytest.mark.parametrize("indent", [None, 1])
def test_no_flipped_bit_goes_unnoticed(indent):
    data = {"step": 10, "files": ["snapshots/00000010.safetensors"], "metrics": {"loss": 0.5}}
    text = checked_json(data, indent=indent)
    silent = []
    for bit in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            if read_checked_json(bytes(flipped)) != data:
                silent.append(bit)
        except ValueError:
            pass
    assert silent == []


@pytest.mark.parametrize(
    "text", [b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000 + b"]" * 100_000, b"\xff", b""]
)
def test_what_is_not_json_is_refused(text):
    with pytest.raises(ValueError):  # ruff: ignore[pytest-raises-too-broad]
        read_json(text)
