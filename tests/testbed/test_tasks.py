"""Tasks and Omniglot: what is drawn, and what a wrong folder or form is told."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from slipstream.testbed import ClassTasks, SinusoidTasks, TaskForm, load_tasks, read_omniglot


def tasks(classes=7, examples=6, turned=False, **form):
    """Every example is an image that tells its class and its number."""
    images = torch.zeros(classes, examples, 1, 2, 2)
    images[..., 0, 0] = torch.arange(classes).view(-1, 1, 1) + 1
    images[..., 0, 1] = torch.arange(examples).view(1, -1, 1) + 100
    return ClassTasks(images, TaskForm(**{"tasks": 50, **form}), turned)


def test_a_task_has_distinct_classes_and_examples():
    made = tasks(ways=5, shots=2, queries=3)
    support, query = made.batch(0)
    assert support[0].shape == (50, 10, 1, 2, 2)
    assert query[0].shape == (50, 15, 1, 2, 2)
    drawn = set()
    for t in range(50):
        classes = support[0][t, :, 0, 0, 0].view(5, 2)
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0].tolist())) == 5
        assert support[1][t].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert torch.equal(query[0][t, :, 0, 0, 0].view(5, 3), classes[:, :1].expand(5, 3))
        numbers = torch.cat(
            [support[0][t, :, 0, 0, 1].view(5, 2), query[0][t, :, 0, 0, 1].view(5, 3)], 1
        )
        assert all(len(set(row.tolist())) == 5 for row in numbers)
        drawn.add(tuple(classes[:, 0].tolist()))
    assert len(drawn) > 40
    counts = torch.bincount(support[0][..., 0, 0, 0].flatten().long(), minlength=8)[1:]
    assert counts.float().std() / counts.float().mean() < 0.15


def test_turns_are_classes_of_their_own():
    made = tasks(classes=2, ways=8, shots=1, turned=True)
    assert made.classes == 8
    images = made.batch(0).support[0]
    for t in range(50):
        corners = [tuple(image[0].flatten().nonzero().flatten().tolist()) for image in images[t]]
        assert sorted(corners) == sorted(2 * [(0, 1), (0, 2), (2, 3), (1, 3)])
        assert (images[t].amax((1, 2, 3)) >= 100).all()
    once = torch.rot90(torch.tensor([[1.0, 100.0], [0.0, 0.0]]), 1, dims=(-2, -1))
    assert once.flatten().nonzero().flatten().tolist() == [0, 2]


def test_the_same_seed_gives_the_same_tasks():
    made = tasks(ways=3, shots=1, batches=3)
    assert all(torch.equal(a.support[0], b.support[0]) for a, b in zip(made, made, strict=True))
    other = made.epoch(1).batch(0)
    assert not torch.equal(other.support[0], made.batch(0).support[0])
    assert len(made) == 3


def test_sinusoids_are_sinusoids():
    support, query = SinusoidTasks(TaskForm(1, 10, 10, tasks=200)).batch(3)
    x, y = (torch.cat(parts, 1)[..., 0].double() for parts in zip(support, query, strict=True))
    design = torch.stack([x.sin(), x.cos()], -1)
    fit = torch.linalg.lstsq(design, y[..., None]).solution
    torch.testing.assert_close((design @ fit)[..., 0], y, rtol=1e-4, atol=1e-4)
    height = fit.norm(dim=1).flatten()
    assert 0.1 <= height.min() < 0.5
    assert 4.5 < height.max() <= 5
    assert x.abs().max() <= 5


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"ways": 8}, "ways is 8, but there are 7 classes"),
        ({"shots": 4}, "4 shots \\+ 4 queries of each class, but there are 6 examples"),
        ({"shots": 2, "queries": 5}, "2 shots \\+ 5 queries"),
        ({"ways": 0}, "ways must be at least 1, got 0"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
    ],
)
def test_a_form_that_does_not_fit_is_told(form, message):
    with pytest.raises(ValueError, match=message):
        tasks(**form)


def test_parts_share_no_class():
    split = load_tasks("digits", TaskForm(5, 1))
    parts = [split.train, split.validation, split.test]
    assert [part.classes for part in parts] == [20, 8, 12]
    assert [len(part) * part.form.tasks for part in parts] == [400, 100, 1000]
    rows = [part.examples.flatten(2).flatten(0, 1) for part in parts]
    assert not (rows[0][:, None] == rows[2][None, :50]).all(-1).any()
    with pytest.raises(ValueError, match="omniglot:DIR or sinusoid, got 'omniglot'"):
        load_tasks("omniglot", TaskForm())
    with pytest.raises(ValueError, match="ways must be 1 for sinusoids"):
        load_tasks("sinusoid", TaskForm(5))


def drawing(number):
    image = np.full((105, 105), 255, np.uint8)
    image[: 5 * number + 5, :52] = 0
    buffer = io.BytesIO()
    Image.fromarray(image).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def omniglot(tmp_path):
    """Two alphabets of two characters, in the usual layout."""
    for alphabet in ("Greek", "Latin"):
        for number in (1, 2):
            folder = tmp_path / "images_background" / alphabet / f"character{number:02}"
            folder.mkdir(parents=True)
            for drawer in range(20):
                (folder / f"{number:04}_{drawer + 1:02}.png").write_bytes(drawing(number))
    return tmp_path


def test_omniglot_is_read_from_folders_and_zips_alike(omniglot):
    found = read_omniglot(omniglot, size=21)
    assert found.images.shape == (4, 20, 1, 21, 21)
    assert found.names[0] == "Greek/character01"
    assert found.of("Latin").names == ("Latin/character01", "Latin/character02")
    assert found.images[0, 0, 0, 0, 0] == 1  # ink
    assert found.images[0, 0, 0, -1, -1] == 0
    assert found.images[1].sum() > found.images[0].sum()
    packed = omniglot / "packed" / "omniglot-py"
    packed.mkdir(parents=True)
    with zipfile.ZipFile(packed / "images_background.zip", "w") as archive:
        for path in sorted((omniglot / "images_background").rglob("*.png")):
            archive.write(path, path.relative_to(omniglot))
    again = read_omniglot(omniglot / "packed", size=21)
    assert again.names == found.names
    assert torch.equal(again.images, found.images)
    with pytest.raises(ValueError, match="no alphabet 'Latn'; there are Greek, Latin"):
        found.of("Latn")


def test_what_is_no_omniglot_is_told(omniglot, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_omniglot(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"lacks images_evaluation.zip, or the folder"):
        read_omniglot(omniglot, part="evaluation")
    with pytest.raises(ValueError, match="part must be background, evaluation, all"):
        read_omniglot(omniglot, part="train")
    some = omniglot / "images_background" / "Greek" / "character01" / "0001_07.png"
    content = some.read_bytes()
    some.write_bytes(content[:60])
    with pytest.raises(ValueError, match="is not an image, or is cut short"):
        read_omniglot(omniglot)
    some.unlink()
    with pytest.raises(ValueError, match="19 drawings of Greek/character01, expected 20"):
        read_omniglot(omniglot)
    (tmp_path / "images_evaluation.zip").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match="is not a zip file, or is damaged"):
        read_omniglot(tmp_path, part="evaluation")
