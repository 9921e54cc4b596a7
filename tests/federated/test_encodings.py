"""How many bytes a vector takes, what is lost, and that nothing is lost in the long run."""

import math

import numpy as np
import pytest
import torch

from slipstream.federated import EightBit, Exact, TopK, bytes_of
from slipstream.federated.encodings import describe_encoding, encoding_from, pack, unpack

ALL = [Exact(), EightBit(), TopK(share=0.1), TopK(share=0.01)]


def vector(length=1000, seed=0):
    return torch.randn(length, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        (Exact(), 4 * 1000),
        (EightBit(), 1000 + 4 * 4),
        (TopK(share=0.1), 4 * 100 + 125),  # a bit for each
        (TopK(share=0.01), 4 * 10 + 4 * 10),  # a number for each that is kept
    ],
)
def test_bytes(encoding, expected):
    assert bytes_of(encoding.encode(vector())) == expected


def test_eight_bits_err_by_half_a_step_at_most():
    values = vector()
    error = (EightBit().decode(EightBit().encode(values), 1000) - values).abs()
    for start in range(0, 1000, 256):
        block = slice(start, start + 256)
        assert error[block].max() <= values[block].abs().max() / 254 * (1 + 1e-5)


def test_top_k_keeps_the_largest_and_nothing_else():
    values = vector()
    for share in (0.1, 0.01):
        found = TopK(share=share).decode(TopK(share=share).encode(values), 1000)
        kept = found != 0
        assert int(kept.sum()) == share * 1000
        assert torch.equal(found[kept], values[kept])
        assert values[kept].abs().min() > values[~kept].abs().max()


@pytest.mark.parametrize("encoding", ALL, ids=str)
@pytest.mark.parametrize("length", [1, 255, 256, 257, 1000])
def test_what_is_sent_and_what_is_left_are_the_whole(encoding, length):
    residual, sent, given = torch.zeros(length), torch.zeros(length), torch.zeros(length)
    for seed in range(20):
        step = vector(length, seed)
        wanted = step + residual
        arrived = encoding.decode(encoding.encode(wanted), length)
        residual = wanted - arrived
        sent, given = sent + arrived, given + step
    assert torch.allclose(sent + residual, given, atol=1e-4)
    assert residual.abs().max() < 200


@pytest.mark.parametrize("encoding", ALL, ids=str)
def test_zeros_and_nothing_and_nan(encoding):
    assert torch.equal(encoding.decode(encoding.encode(torch.zeros(300)), 300), torch.zeros(300))
    assert encoding.decode(encoding.encode(torch.zeros(0)), 0).shape == (0,)
    spoiled = vector(300)
    spoiled[7] = math.nan
    assert encoding.decode(encoding.encode(spoiled), 300).isnan().any()


@pytest.mark.parametrize("encoding", ALL, ids=str)
def test_an_encoding_is_plain_data(encoding):
    assert encoding_from(describe_encoding(encoding)) == encoding


def test_places_are_bits():
    places = torch.tensor([0, 3, 8, 9])
    assert pack(places, 10).tolist() == [0b10010000, 0b11000000]
    assert torch.equal(unpack(pack(places, 10), 10), places)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="share of TopK must be above 0 and at most 1, got 0"):
        TopK(share=0)
    with pytest.raises(ValueError, match="There is no encoding 'zip'; there are exact, 8-bit"):
        encoding_from({"name": "zip"})
    for encoding in ALL:
        with pytest.raises(ValueError, match="Expected"):
            encoding.decode(encoding.encode(torch.arange(600.0)), 3)
    with pytest.raises(ValueError, match="Expected 2 bytes of places, got 1"):
        unpack(np.zeros(1, dtype=np.uint8), 9)
