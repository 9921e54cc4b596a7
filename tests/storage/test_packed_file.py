"""Packed files: every bit comes back, only what is asked for is read, damage is told."""

import base64
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from slipstream.storage import packed_file
from slipstream.storage.packed_file import (
    packed_chunks,
    read_packed,
    unpack_tensors,
    unpacked_chunks,
)
from slipstream.storage.packed_header import contents_of, parsed, places_of
from slipstream.storage.packed_numbers import bits_of, pack, unpack
from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.tensor_header import read_places

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32,
    torch.int64, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.float8_e5m2, torch.float8_e4m3fn, torch.complex64,
]  # fmt: skip


def any_bits(dtype, count=3000):
    """All bit patterns may occur: NaN, infinity, denormal numbers, both zeros."""
    if dtype == torch.bool:
        return torch.randint(0, 2, (count,)).bool()
    return torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8).view(dtype)


def bytes_in(path):
    return path.read_bytes()


def write(path, chunks):
    path.write_bytes(b"".join(chunks))
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_pattern_comes_back(dtype):
    bits, base = bits_of(any_bits(dtype)), bits_of(any_bits(dtype))
    for other in (None, base, bits):
        packed = pack(bits, other, dtype=dtype)
        found = unpack(packed, other, dtype=dtype, count=len(bits))
        assert found.dtype == bits.dtype
        assert np.array_equal(found, bits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_neighbouring_floats_differ_by_one_across_zero_and_powers_of_two(dtype):
    """So that a small move is a small number: its other bytes are zeros, which cost nothing."""
    values = torch.tensor([0.0, -1.0, 1.0, 2.0, -4.0, 1e-30], dtype=dtype).repeat(500)
    lower = torch.nextafter(values, torch.full_like(values, -torch.inf))
    packed = pack(bits_of(lower), bits_of(values), dtype=dtype)
    assert len(packed) < 300
    far = pack(bits_of(torch.randn(3000).to(dtype)), bits_of(values), dtype=dtype)
    assert len(far) > 3000


def test_small_moves_take_fewer_bytes_when_ordered_by_exponent():
    weights = torch.randn(100_000) * 0.05
    moved = weights + torch.randn(100_000) * 1e-4
    packed = pack(bits_of(moved), bits_of(weights), dtype=torch.float32)
    assert len(packed) < 0.59 * moved.nbytes
    assert len(pack(bits_of(moved), None, dtype=torch.float32)) > 0.8 * moved.nbytes


def awkward(generator=None):
    return {
        "long": torch.randn(3, 100_000),  # three blocks, the last one short
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(7),
        "half": torch.randn(5, 5).half(),
        "flag": torch.tensor([True, False, True]),
        "complex": torch.randn(4, dtype=torch.complex64),
    }


@pytest.fixture
def three(tmp_path):
    """Three plain files and their packed ones: alone, from a plain base, from a packed base."""
    plain = []
    for number in range(3):
        torch.manual_seed(number)
        plain.append(tmp_path / "plain" / f"{number}.safetensors")
        plain[-1].parent.mkdir(exist_ok=True)
        save_file(awkward(), plain[-1], metadata={"by": "hand"})
    first = write(tmp_path / "0.packed", packed_chunks(plain[0], base=None))
    second = write(tmp_path / "1.packed", packed_chunks(plain[1], base=first))
    third = write(tmp_path / "2.packed", packed_chunks(plain[2], base=second))
    return plain, [first, second, third]


def test_the_file_comes_back_byte_for_byte(three):
    for plain, packed in zip(*three, strict=True):
        assert b"".join(unpacked_chunks(packed)) == bytes_in(plain)
        assert places_of(packed) == read_places(plain)


def test_tensors_and_stretches_of_them_are_read(three):
    torch.manual_seed(2)
    expected, packed = awkward(), three[1][2]
    found = unpack_tensors(packed)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value)
    flat, form = expected["long"].flatten(), TensorForm((3, 100_000), torch.float32)
    for start, length in [(0, 5), (131_070, 4), (262_143, 2), (299_999, 1), (7, 0), (0, 300_000)]:
        out = torch.empty(length)
        read_packed(packed, "long", out, form=form, start=start)
        assert torch.equal(out, flat[start : start + length]), (start, length)


def test_only_the_blocks_that_are_asked_for_are_read(three):
    """Everything else in the files is overwritten first."""
    _, packed = three
    place = places_of(packed[2])["long"]
    for path in packed:
        contents = contents_of(path)
        data = bytearray(bytes_in(path))
        for number, block in enumerate(contents.blocks):
            if not block.start <= place.start + 4 * 200_000 < block.stop:
                start, stop = contents.packed[number : number + 2]
                data[start:stop] = bytes(stop - start)
        path.write_bytes(data)
    # Another test may have read a file of the same name and time.
    packed_file._unpacked.cache_clear()
    torch.manual_seed(2)
    out, form = torch.empty(1000), TensorForm((3, 100_000), torch.float32)
    read_packed(packed[2], "long", out, form=form, start=200_000)
    assert torch.equal(out, awkward()["long"].flatten()[200_000:201_000])
    with pytest.raises(ValueError, match="damaged"):
        read_packed(packed[2], "long", out, form=form, start=0)


def test_small_tensors_share_a_block(tmp_path):
    """A frame for each would cost more than it holds."""
    torch.manual_seed(0)
    weights = {f"{n:03d}": torch.randn(100) for n in range(200)}
    save_file(weights, tmp_path / "w.safetensors")
    path = write(tmp_path / "w.packed", packed_chunks(tmp_path / "w.safetensors", base=None))
    assert len(contents_of(path).blocks) == 1
    found = unpack_tensors(path)
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_a_reader_finds_the_bases_in_its_cache(three, monkeypatch):
    """Three files read in order: each block is unpacked once."""
    calls = []
    real = packed_file.unpack
    monkeypatch.setattr(packed_file, "unpack", lambda *a, **k: calls.append(1) or real(*a, **k))
    # Another test may have read a file of the same name and time.
    packed_file._unpacked.cache_clear()
    for path in three[1]:
        unpack_tensors(path)
    assert len(calls) == sum(len(contents_of(path).blocks) for path in three[1])


def test_a_base_with_other_tensors_is_left_alone(tmp_path):
    save_file({"w": torch.zeros(3), "v": torch.ones(2)}, tmp_path / "0.safetensors")
    save_file({"w": torch.zeros(4), "v": torch.ones(2)}, tmp_path / "1.safetensors")
    base = tmp_path / "0.safetensors"
    packed = write(tmp_path / "1.packed", packed_chunks(tmp_path / "1.safetensors", base=base))
    assert contents_of(packed).base is None
    assert b"".join(unpacked_chunks(packed)) == bytes_in(tmp_path / "1.safetensors")


def test_headers_in_any_order_and_unaligned_come_back(tmp_path):
    header = {
        "late": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
        "early": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    text = json.dumps(header).encode() + b"   \n"
    plain = tmp_path / "odd.safetensors"
    plain.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(11)))
    packed = write(tmp_path / "odd.packed", packed_chunks(plain, base=None))
    assert b"".join(unpacked_chunks(packed)) == bytes_in(plain)
    assert unpack_tensors(packed)["early"].tolist() == [0, 1, 2]


def test_bytes_that_belong_to_no_tensor_are_refused(tmp_path):
    header = {"w": {"dtype": "U8", "shape": [3], "data_offsets": [2, 5]}}
    text = json.dumps(header).encode()
    plain = tmp_path / "gap.safetensors"
    plain.write_bytes(len(text).to_bytes(8, "little") + text + bytes(5))
    with pytest.raises(ValueError, match="'w' overlaps another tensor, or lies behind a hole"):
        list(packed_chunks(plain, base=None))


def test_a_cut_file_a_missing_base_and_a_wrong_one_are_told(three):
    _, (first, second, _) = three
    whole = bytes_in(second)
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        second.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cut short"):
            places_of(second)
    second.write_bytes(whole)
    torch.manual_seed(9)
    other = first.with_suffix(".safetensors")  # stands in for the packed one
    save_file(awkward(), other, metadata={"by": "hand"})
    with pytest.raises(ValueError, match="is not what it was"):
        list(unpacked_chunks(second))
    other.unlink()
    first.unlink()
    with pytest.raises(ValueError, match=r"0, which it is a difference to, is missing"):
        places_of(second)


def test_a_tensor_that_is_not_there_is_told(three):
    form = TensorForm((2,), torch.float32)
    with pytest.raises(ValueError, match=r"'w' is missing, expected \(2,\) float32"):
        read_packed(three[1][0], "w", torch.empty(2), form=form)
    with pytest.raises(ValueError, match=r"'scalar' is \(\) int64, expected"):
        read_packed(three[1][0], "scalar", torch.empty(2), form=form)


def test_without_zstandard_the_line_that_installs_it_is_told(three, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    parsed.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r'pip install "slipstream\[zstd\]"'):
        places_of(three[1][0])


OLD = """
U0xJUFBBQ0sotS/9JBCBAAAAAAAAAAAAAACAAEAAPj8/fPh8gSi1L/0klQ0EAMKIHR9QhbgNCMNQDk2MYha4gmRkhR
lEIGuo6jRd8Ayjqmpg05IsJe8STQQxxydrWcKtIcrhxdhqzVQzM2h7NI2R5vnn+oDg4wPTtBAUHu61c5zIsG/5iotA
2cdd8bpY4ZrXXgQ8vkp5BbhKzzOat58jBDUU+XbLXAoCAHBGsLrmHv1OK3GOAAAAAAAAAFNMSVBQQUNL
"""


def test_a_file_of_the_first_version_is_read(tmp_path):
    path = tmp_path / "old.packed"
    path.write_bytes(base64.b64decode(OLD))
    assert unpack_tensors(path)["w"].tolist() == [0.0, 0.25, 0.5, 0.75]
    assert b"".join(unpacked_chunks(path))[:8] == (56).to_bytes(8, "little")
