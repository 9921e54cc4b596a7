import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

from slipstream.testbed.datasets import Batches, Examples, load_data

EXAMPLES = Examples(torch.arange(11.0)[:, None], torch.arange(11))


def idx(values):
    return (
        bytes((0, 0, 8, values.ndim)) + np.asarray(values.shape, ">u4").tobytes() + values.tobytes()
    )


def write_mnist(folder, *, ending="", seed=0, train=40, test=10):
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    pack = gzip.compress if ending else bytes
    written = {}
    for name, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 4, 3), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 4
        (folder / f"{name}-images-idx3-ubyte{ending}").write_bytes(pack(idx(images)))
        (folder / f"{name}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(labels)))
        written[name] = images, labels
    return written


def cifar_batch(number, count=20):
    generator = np.random.default_rng(number)
    return {
        "data": generator.integers(0, 256, (count, 3072), np.uint8),
        "labels": [n % 10 for n in range(count)],
    }


def write_cifar10(folder, *, protocol=2):
    folder.mkdir(parents=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        (folder / name).write_bytes(pickle.dumps(cifar_batch(number), protocol=protocol))


# batches


@pytest.mark.parametrize("seed", [None, 3])
def test_batches_hold_every_example_once_and_the_last_what_is_left(seed):
    batches = EXAMPLES.batches(4, seed=seed)
    assert [len(labels) for _, labels in batches] == [4, 4, 3]
    assert len(batches) == 3
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(inputs[:, 0], labels.float())
    assert labels.sort().values.tolist() == list(range(11))


def order(batches):
    return torch.cat([labels for _, labels in batches]).tolist()


def test_order_depends_on_seed_and_epoch_alone():
    batches = EXAMPLES.batches(4, seed=0)
    assert order(batches) == order(batches) == order(batches.epoch(0))
    orders = [order(Batches(EXAMPLES, 4, seed=s).epoch(e)) for s in range(3) for e in range(3)]
    assert len({tuple(o) for o in orders}) == 9
    assert order(EXAMPLES.batches(4).epoch(1)) == list(range(11))


def test_the_order_is_the_same_in_every_process_and_version():
    assert order(EXAMPLES.batches(4, seed=0)) == [4, 6, 7, 2, 0, 3, 5, 10, 9, 8, 1]


def test_take_and_bad_sizes():
    assert EXAMPLES.take(3).labels.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        EXAMPLES.batches(0)


# data sets


def test_digits_are_split_once_and_for_all():
    first, again, other = load_data("digits"), load_data("digits"), load_data("digits", seed=1)
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.test.labels, other.test.labels)
    assert not torch.equal(first.validation.labels, other.validation.labels)
    assert first.spec.shape == (1, 8, 8)
    parts = (first.train, first.validation, first.test)
    assert sum(map(len, parts)) == 1797
    shares = torch.stack([part.labels.bincount() / len(part) for part in parts])
    assert (shares.max(0).values - shares.min(0).values).max() < 0.01, "stratified"


def test_parts_do_not_overlap():
    data = load_data("digits")
    rows = [
        set(map(bytes, part.inputs.numpy().reshape(len(part), -1)))
        for part in (data.train, data.validation, data.test)
    ]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_training_inputs_are_standardised_and_the_others_by_the_same_numbers(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py")
    data = load_data(f"cifar10:{tmp_path}")
    torch.testing.assert_close(data.train.inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    deviation = data.train.inputs.std((0, 2, 3), correction=0)
    torch.testing.assert_close(deviation, torch.ones(3), atol=1e-5, rtol=0)
    stored = torch.from_numpy(cifar_batch(5)["data"]).view(-1, 3, 32, 32).float()
    scale = (stored[1:] - stored[:1]) / (data.test.inputs[1:] - data.test.inputs[:1])
    for channel in scale.unbind(1):
        kept = channel[channel.isfinite()]
        torch.testing.assert_close(kept, kept[:1].expand_as(kept), rtol=1e-3, atol=0)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("inner", ["", "raw", "MNIST/raw"])
def test_mnist_is_found_where_tools_put_it(tmp_path, inner, ending):
    written = write_mnist(tmp_path / "data" / inner, ending=ending)
    data = load_data(f"mnist:{tmp_path / 'data'}")
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 10)
    assert data.spec.shape == (1, 4, 3)
    images, labels = written["t10k"]
    assert data.test.labels.tolist() == labels.tolist()
    correlation = np.corrcoef(images.ravel(), data.test.inputs.numpy().ravel())[0, 1]
    assert correlation == pytest.approx(1, abs=1e-6), "an affine map of the pixels, in their order"


@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar10_pickles_of_any_protocol(tmp_path, protocol):
    write_cifar10(tmp_path / "cifar-10-batches-py", protocol=protocol)
    data = load_data(f"cifar10:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 10, 20)
    same = load_data(f"cifar10:{tmp_path / 'cifar-10-batches-py'}")
    assert torch.equal(data.train.inputs, same.train.inputs)


def test_cifar10_from_the_archive(tmp_path):
    folder = tmp_path / "unpacked" / "cifar-10-batches-py"
    write_cifar10(folder)
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    packed, unpacked = (load_data(f"cifar10:{tmp_path / name}") for name in ("packed", "unpacked"))
    assert torch.equal(packed.train.inputs, unpacked.train.inputs)
    assert torch.equal(packed.test.labels, unpacked.test.labels)


def test_pickles_of_python_2_are_read(tmp_path):
    """CIFAR-10 was pickled by Python 2: its text and pixels are byte strings, opcode U and T."""
    pixels = bytes(range(256)) * 12
    text = lambda word: b"U" + bytes([len(word)]) + word  # ruff: ignore[lambda-assignment]
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        b"(K\x01(K\x01M\x00\x0ctcnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T\x00\x0c\x00\x00" + pixels + b"tb"
    )
    batch = b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"]K\x03au."
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        (tmp_path / name).write_bytes(batch)
    data = load_data(f"cifar10:{tmp_path}")
    assert data.test.labels.tolist() == [3]
    assert data.test.inputs.unique().numel() == 256


# bad input


class Evil:
    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize("spec", ["digit", "mnist", "cifar10:", "digits:here"])
def test_unknown_data_is_named(spec):
    with pytest.raises(ValueError, match=f"digits, mnist:DIR or cifar10:DIR, got '{spec}'"):
        load_data(spec)


def test_missing_files_say_what_was_expected_and_found(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\[.gz\].*notes.txt"):
        load_data(f"mnist:{tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py.*notes.txt"):
        load_data(f"cifar10:{tmp_path}")
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_data(f"mnist:{tmp_path / 'gone'}")


def test_a_cut_idx_file_is_refused(tmp_path):
    write_mnist(tmp_path / "raw")
    path = tmp_path / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is not an idx file of 3 axes"):
        load_data(f"mnist:{tmp_path}")
    path.write_bytes(b"\0\0")
    with pytest.raises(ValueError, match="cut short"):
        load_data(f"mnist:{tmp_path}")
    path.unlink()
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(b"text")[:-4])
    with pytest.raises(ValueError, match="not a gzip file, or is cut short"):
        load_data(f"mnist:{tmp_path}")


def test_a_pickle_that_calls_anything_is_refused(tmp_path):
    write_cifar10(tmp_path / "data")
    (tmp_path / "data" / "data_batch_3").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(ValueError, match=r"call posix\.getcwd: refused"):
        load_data(f"cifar10:{tmp_path / 'data'}")


@pytest.mark.parametrize(
    "content",
    [b"", pickle.dumps([1]), pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [1, 2]})],
    ids=["empty", "a list", "small images"],
)
def test_other_pickles_are_refused(tmp_path, content):
    write_cifar10(tmp_path / "data")
    (tmp_path / "data" / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match="test_batch"):
        load_data(f"cifar10:{tmp_path / 'data'}")


def test_an_incomplete_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-10-batches-py/readme"), io.BytesIO())
    with pytest.raises(ValueError, match="data_batch_1"):
        load_data(f"cifar10:{tmp_path}")


def test_changes_move_or_invert_every_image_alike(tmp_path):
    write_mnist(tmp_path / "data")  # 4 x 3 images
    plain, turned, permuted, inverted = (
        load_data(f"mnist{change}:{tmp_path / 'data'}")
        for change in ("", "+turned", "+permuted", "+inverted")
    )
    assert turned.spec.shape == (1, 3, 4)
    assert torch.equal(turned.test.inputs[:, 0, 0], plain.test.inputs[:, 0, :, -1])
    assert torch.equal(inverted.train.inputs, -plain.train.inputs)
    flat, moved = (split.test.inputs.flatten(1) for split in (plain, permuted))
    assert not torch.equal(flat, moved)
    order = [int((flat == moved[:, [place]]).all(0).nonzero()[0]) for place in range(12)]
    assert sorted(order) == list(range(12))
    assert torch.equal(flat[:, order], moved)
    for split in (turned, permuted, inverted):
        assert torch.equal(split.train.labels, plain.train.labels)
    with pytest.raises(ValueError, match="a change must be permuted, turned, inverted, got 'odd'"):
        load_data("digits+odd")
