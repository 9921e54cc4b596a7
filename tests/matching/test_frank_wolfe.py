import pytest
import torch
from test_objective import CHAIN, CONCATENATION, CUBE, HEADS, RESIDUAL, SIGNED, tensors

from slipstream.matching import match_weights
from slipstream.matching.frank_wolfe import Mixture, Relaxation, frank_wolfe
from slipstream.symmetry.permutation import Permutation

LAYOUTS = {
    "chain": CHAIN,
    "concatenation": CONCATENATION,
    "cube": CUBE,
    "residual": RESIDUAL,
    "signed": SIGNED,
}


def corner(permutation):
    """A permutation as the mixture of itself alone."""
    plain, signed = {}, {}
    for name, order in permutation.orders.items():
        entries = torch.eye(len(order), dtype=torch.float64)[order]
        plain[name] = entries
        if name in permutation.signs:
            signed[name] = entries * permutation.signs[name][:, None]
    return Mixture(plain, signed)


def inner(target, moved):
    return sum(float((target[name] * moved[name]).sum()) for name in target)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_permutation_is_worth_what_it_is_unrelaxed(layout):
    groups = LAYOUTS[layout]
    source, target = tensors(groups, 0), tensors(groups, 1)
    permutation = Permutation.random(groups, seed=3)
    listed = {name: target[name] for name in source if groups.blocks_on(name)}
    value = Relaxation(source, target, groups).value(corner(permutation))
    assert value == pytest.approx(inner(listed, permutation.apply(source)), rel=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_slope_is_that_of_autograd(layout):
    groups = LAYOUTS[layout]
    source, target = tensors(groups, 0), tensors(groups, 1)
    relaxed = Relaxation(source, target, groups)
    mixed = corner(Permutation.random(groups, seed=3)).towards(
        corner(Permutation.random(groups, seed=4)), 0.3
    )
    leaves = [v.requires_grad_() for kind in (mixed.plain, mixed.signed) for v in kind.values()]
    value = sum((target[name] * relaxed._mixed(name, mixed)).sum() for name in relaxed.names)
    expected = torch.autograd.grad(value, leaves, materialize_grads=True)
    with torch.no_grad():
        slope = relaxed.slope(mixed)
    found = [*slope.plain.values(), *slope.signed.values()]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_line_search_finds_the_highest_point(layout):
    groups = LAYOUTS[layout]
    relaxed = Relaxation(tensors(groups, 0), tensors(groups, 1), groups)
    for seed in range(4):
        ends = [corner(Permutation.random(groups, seed=2 * seed + end)) for end in (0, 1)]
        best = relaxed.value(ends[0].towards(ends[1], relaxed.line_search(*ends)))
        some = [relaxed.value(ends[0].towards(ends[1], t / 50)) for t in range(51)]
        assert best >= max(some) - 1e-9 * abs(max(some))


@pytest.mark.parametrize("layout", [*LAYOUTS, "heads"])
def test_a_permuted_network_is_found_again_from_the_relaxed_start(layout):
    groups = {**LAYOUTS, "heads": HEADS}[layout]
    source = tensors(groups, 0)
    hidden = Permutation.random(groups, seed=1)
    found = match_weights(source, hidden.apply(source), groups=groups, start="frank-wolfe")
    assert found.source_to_target.same_as(hidden)


@pytest.mark.parametrize("layout", ["chain", "concatenation", "signed"])
def test_the_start_alone_is_right_where_the_source_is_a_permuted_target(layout):
    groups = LAYOUTS[layout]
    source = tensors(groups, 0)
    hidden = Permutation.random(groups, seed=1)
    assert frank_wolfe(source, hidden.apply(source), groups=groups).same_as(hidden)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match=r"frank-wolfe.*'simulated annealing'"):
        match_weights({}, {}, groups=CHAIN, start="simulated annealing")
