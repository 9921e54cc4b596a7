"""Rows of embeddings belong to tokens: carried by name, else by number, the others left alone."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from slipstream.porting import FineTune, PortPlan, port_checkpoint

WIDTH = 3


def folder(path, rows, *, tokens=None, sized=True, fill=None, form="tokenizer.json"):
    """A folder with an embedding of `rows`, a head, and a matrix that has nothing to do with it."""
    path.mkdir()
    values = torch.arange(rows).float()[:, None].expand(rows, WIDTH) if fill is None else fill
    save_file(
        {
            "model.embed_tokens.weight": values.contiguous(),
            "lm_head.weight": values.clone() + 1,
            "body.weight": torch.eye(rows)[:2, :2].contiguous(),
        },
        path / "model.safetensors",
    )
    if sized:
        (path / "config.json").write_text(json.dumps({"vocab_size": rows}))
    if tokens is not None and form == "tokenizer.json":
        vocab = {token: number for number, token in enumerate(tokens[:-1])}
        added = [{"id": len(tokens) - 1, "content": tokens[-1]}]
        text = {"model": {"vocab": vocab}, "added_tokens": added}
        (path / form).write_text(json.dumps(text))
    elif tokens is not None and form == "unigram":
        listed = [[token, 0.0] for token in tokens]
        (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": listed}}))
    elif tokens is not None:
        listed = {token: number for number, token in enumerate(tokens)}
        text = json.dumps(listed) if form == "vocab.json" else "\n".join(tokens)
        (path / form).write_text(text)
    return path


def moved(rows, steps):
    """An embedding of `rows` whose token i moved by `steps[i]`."""
    start = torch.arange(rows).float()[:, None].expand(rows, WIDTH)
    return start + torch.tensor(steps).float()[:, None]


def port(tmp_path, base, tuned, other):
    result = port_checkpoint(
        tmp_path / "out", FineTune(base, tuned, other),
        plan=PortPlan("identity"),
    )  # fmt: skip
    before, after = (load_file(path / "model.safetensors") for path in (other, tmp_path / "out"))
    return result, {n: (after[n] - before[n])[:, 0].tolist() for n in after}


@pytest.mark.parametrize("form", ["tokenizer.json", "unigram", "vocab.json", "vocab.txt"])
def test_rows_are_carried_by_token(tmp_path, form):
    base = folder(tmp_path / "a", 3, tokens=["x", "y", "z"], form=form)
    tuned = folder(tmp_path / "t", 3, fill=moved(3, [1, 2, 4]))
    other = folder(tmp_path / "b", 4, tokens=["z", "new", "x", "other"], form=form)
    result, steps = port(tmp_path, base, tuned, other)
    assert steps["model.embed_tokens.weight"] == [4, 0, 1, 0]
    assert steps["lm_head.weight"] == [4, 0, 1, 0]
    assert any("share 2 of the 4 tokens of to_base" in warning for warning in result.warnings)


def test_tokens_that_the_fine_tune_added_are_found_by_its_own_tokenizer(tmp_path):
    base = folder(tmp_path / "a", 2, tokens=["x", "y"])
    tuned = folder(tmp_path / "t", 3, tokens=["new", "y", "x"], fill=moved(3, [0, 0, 0]))
    other = folder(tmp_path / "b", 3, tokens=["x", "y", "new"])
    _, steps = port(tmp_path, base, tuned, other)
    # x went from row 0 of the base to row 2 of the fine-tune, y stayed; nobody knows where new was
    assert steps["model.embed_tokens.weight"] == [2, 0, 0]


def test_the_same_tokens_in_another_order(tmp_path):
    base = folder(tmp_path / "a", 3, tokens=["x", "y", "z"])
    tuned = folder(tmp_path / "t", 3, tokens=["x", "y", "z"], fill=moved(3, [1, 2, 4]))
    other = folder(tmp_path / "b", 3, tokens=["y", "z", "x"])
    _, steps = port(tmp_path, base, tuned, other)
    assert steps["model.embed_tokens.weight"] == [2, 4, 1]


@pytest.mark.parametrize("sized", [True, False])
def test_without_tokenizers_rows_are_carried_by_number_with_a_warning(tmp_path, sized):
    base = folder(tmp_path / "a", 3, sized=sized)
    tuned = folder(tmp_path / "t", 3, sized=sized, fill=moved(3, [1, 2, 4]))
    other = folder(tmp_path / "b", 5, sized=sized)
    result, steps = port(tmp_path, base, tuned, other)
    assert steps["model.embed_tokens.weight"] == [1, 2, 4, 0, 0]
    assert any("first 3 rows are carried by number" in warning for warning in result.warnings)


def test_equal_vocabularies_are_left_alone(tmp_path):
    tokens = ["x", "y", "z"]
    base = folder(tmp_path / "a", 3, tokens=tokens)
    tuned = folder(tmp_path / "t", 3, tokens=tokens, fill=moved(3, [1, 2, 4]))
    result, steps = port(tmp_path, base, tuned, folder(tmp_path / "b", 3, tokens=tokens))
    assert steps["model.embed_tokens.weight"] == [1, 2, 4]
    assert not any("rows" in warning for warning in result.warnings)


def test_tokenizers_without_a_common_token_are_refused(tmp_path):
    base = folder(tmp_path / "a", 2, tokens=["x", "y"])
    other = folder(tmp_path / "b", 2, tokens=["p", "q"])
    with pytest.raises(ValueError, match=r"from_base and to_base have no token in common"):
        port(tmp_path, base, base, other)


def test_a_damaged_tokenizer_is_named(tmp_path):
    base = folder(tmp_path / "a", 2, tokens=["x", "y"])
    (base / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer in .*a cannot be read"):
        port(tmp_path, base, base, folder(tmp_path / "b", 3))
