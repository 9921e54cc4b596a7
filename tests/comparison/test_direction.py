"""Which of two came first: errors of rounding, and weight decay."""

import pytest
import torch
from descendants import network, trained, weights

from slipstream.comparison import compare_checkpoints
from slipstream.comparison.direction import made_of, rounding_errors, shrinkage
from slipstream.comparison.ranks import rank_of

WIDE = (torch.float32, torch.float32)


def parent(seed=0, rows=120, columns=100):
    torch.manual_seed(seed)
    return torch.randn(rows, columns)


def product(seed, like, rank=3, size=0.02):
    torch.manual_seed(seed)
    made = torch.randn(len(like), rank) @ torch.randn(rank, like.shape[1])
    return size * made


def errors(first, second, types=WIDE):
    return rounding_errors(first, second, rank_of(first, second), types)


@pytest.mark.parametrize("seed", range(5))
def test_a_product_was_added_to_the_first(seed):
    first = parent(seed)
    second = first + product(seed + 9, first)
    assert made_of([errors(first, second)]) == 0
    assert made_of([errors(second, first)]) == 1


@pytest.mark.parametrize("seed", range(5))
def test_siblings_and_several_steps_are_not_one_addition(seed):
    start = parent(seed)
    first, second = (start + product(seed + n, start) for n in (50, 60))
    assert made_of([errors(first, second)]) is None
    steps = start
    for n in range(4):
        steps = steps + product(seed + 70, start) * (1 + n) / 10
    assert made_of([errors(start, steps)]) is None


def test_where_each_has_a_product_of_its_own_neither_came_first():
    first, second = parent(1), parent(2)
    mixed = [(first, first + product(3, first)), (second + product(4, second), second)]
    assert made_of([errors(*pair) for pair in mixed]) is None


def test_unknown_tensors_and_large_changes_say_nothing():
    first = parent()
    whole = first + 0.01 * torch.randn_like(first)
    assert errors(first, whole) is None
    assert made_of([errors(first, first + product(9, first)), None]) is None
    assert made_of([]) is None
    few = first[:8, :8]
    assert made_of([errors(few, few + product(9, few, rank=1))]) is None


def test_narrow_types():
    narrow = parent().bfloat16()
    merged = (narrow.float() + product(5, narrow, size=0.02)).bfloat16()
    types = (torch.bfloat16, torch.bfloat16)
    found = rounding_errors(narrow, merged, rank_of(narrow, merged), types)
    assert found is not None
    assert made_of([found]) == 0


def test_what_got_no_gradient_shrank():
    first = parent()
    decayed = first + 0.01 * torch.randn_like(first)
    decayed[:, :4] = first[:, :4] * 0.995
    assert shrinkage(first, decayed, WIDE) == pytest.approx(0.995)
    assert shrinkage(decayed, first, WIDE) == pytest.approx(1 / 0.995)
    decayed[:, 0] = first[:, 0] * 0.5  # another factor: no decay
    assert shrinkage(first, decayed, WIDE) is None
    assert shrinkage(first, first + 0.01 * torch.randn_like(first), WIDE) is None
    assert shrinkage(first[0], decayed[0], WIDE) is None


def test_a_merged_product_is_a_fine_tune_of_its_base():
    base = weights(trained(network()))
    matrices = [name for name, value in base.items() if value.dim() > 1]
    lora = {n: v + product(3, v, 1, 0.02) if n in matrices else v for n, v in base.items()}
    found = compare_checkpoints({"a": lora, "b": base}).pairs[0]
    assert (found.relation, found.parent, found.certainty) == ("fine-tune", "b", "sure")
    assert "rounded once" in found.evidence[-1]


def test_relations_pass_through_a_third():
    base = weights(trained(network()))
    lora, other = (
        {n: v + product(s, v, 1, 0.02) if v.dim() > 1 else v for n, v in base.items()}
        for s in (3, 4)
    )
    steps = {n: v.abs().amax(1, keepdim=True) / 127 for n, v in lora.items() if v.dim() > 1}
    whole = {n: (lora[n] / step).round() * step for n, step in steps.items()}
    found = compare_checkpoints({"base": base, "x": lora, "y": other, "few": lora | whole})
    assert found.pair("x", "few").relation == "quantised"
    passed = found.pair("base", "few")
    assert (passed.relation, passed.parent, passed.certainty) == ("fine-tune", "base", "sure")
    beside = found.pair("x", "y")
    assert (beside.relation, beside.certainty) == ("siblings", "sure")
    assert "each by one operation" in beside.evidence[-1]


def test_weight_decay_tells_which_came_first():
    base = weights(trained(network()))
    later = {n: v + 0.001 * torch.randn_like(v) for n, v in base.items()}
    later["1.weight"][:, :3] = base["1.weight"][:, :3] * 0.99
    found = compare_checkpoints({"a": later, "b": base}).pairs[0]
    assert (found.relation, found.parent) == ("fine-tune or siblings", "b")
    assert "weight decay" in found.evidence[-1]
