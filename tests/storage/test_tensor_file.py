"""The safetensors layout, held against the library."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from slipstream.storage.tensor_file import map_tensors, read_tensor, tensor_chunks
from slipstream.storage.tensor_form import TensorForm
from slipstream.storage.tensor_header import read_places

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32,
    torch.int64, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.float8_e5m2, torch.float8_e4m3fn, torch.complex64,
]  # fmt: skip


def some_weights():
    generator = torch.Generator().manual_seed(0)
    weights = {
        str(dtype): (torch.randn(3, 5, generator=generator) * 3).abs().to(dtype) for dtype in DTYPES
    }
    weights["scalar"] = torch.tensor(7)
    weights["empty"] = torch.empty(0, 3)
    weights["transposed"] = torch.randn(4, 3, generator=generator).T
    weights["special"] = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    return weights


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def same(first, second):
    return first.keys() == second.keys() and all(
        first[n].shape == second[n].shape
        and first[n].dtype == second[n].dtype
        and bits(first[n]) == bits(second[n])
        for n in first
    )


def test_the_library_reads_what_is_written_here_bit_for_bit(tmp_path):
    weights = some_weights()
    (tmp_path / "w.safetensors").write_bytes(b"".join(tensor_chunks(weights)))
    assert same(
        dict(sorted(weights.items())), dict(sorted(load_file(tmp_path / "w.safetensors").items()))
    )


def test_each_tensor_is_aligned_to_its_width(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"".join(tensor_chunks(some_weights())))
    for place in read_places(tmp_path / "w.safetensors").values():
        assert place.start % place.form.dtype.itemsize == 0


def test_what_the_library_writes_is_read_here_bit_for_bit(tmp_path):
    path = tmp_path / "w.safetensors"
    weights = {name: value.contiguous() for name, value in some_weights().items()}
    save_file(weights, path)
    mapped = map_tensors(path)
    assert same(weights, {name: mapped[name] for name in weights})
    for name, value in weights.items():
        out = torch.empty_like(value)
        form = TensorForm(tuple(value.shape), value.dtype)
        read_tensor(path, name, out, form=form)
        assert bits(out) == bits(value)


def test_unaligned_files_of_other_writers_are_read(tmp_path):
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (9 - len(header) % 8)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + torch.ones(2).numpy().tobytes())
    assert read_places(path)["w"].start % 4
    assert map_tensors(path)["w"].tolist() == [1.0, 1.0]


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    map_tensors(path)["w"].fill_(5)
    assert load_file(path)["w"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"\x05", "cut short"),
        (b"\xff" * 40, "cut short"),
        ((2).to_bytes(8, "little") + b"[]", "header .* damaged"),
        ((6).to_bytes(8, "little") + b"{{{{{{", "header .* damaged"),
        (
            (53).to_bytes(8, "little")
            + b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'[:53],
            "header .* damaged",
        ),
        (
            (54).to_bytes(8, "little")
            + b'{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}'
            + bytes(8),
            "does not take 8 bytes",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_places(path)


def test_a_dtype_without_a_code_is_refused():
    with pytest.raises(ValueError, match=r"'w' is .1,. complex128"):
        list(tensor_chunks({"w": torch.zeros(1, dtype=torch.complex128)}))
