import contextlib
import itertools
import math
from collections import Counter

import pytest
import torch

import slipstream.matching.objective as objective_module
from oracles.plain_matching import plain_value
from slipstream.matching import LowRank, Objective, Solver, assign, match_weights, products, solve
from slipstream.symmetry import gather
from slipstream.symmetry.neuron_groups import Block, NeuronGroup, NeuronGroups
from slipstream.symmetry.permutation import Permutation

CHAIN = NeuronGroups(
    (NeuronGroup("a", 5), NeuronGroup("b", 9)),
    (
        Block("w1", 0, 0, ("a",)),
        Block("bias", 0, 0, ("a",)),
        Block("w2", 0, 0, ("b",)),
        Block("w2", 1, 0, ("a", 3)),
        Block("w3", 1, 0, ("b",)),
    ),
    {"w1": (5, 3, 2, 2), "bias": (5,), "w2": (9, 15), "w3": (2, 9), "free": (7,)},
)
CONCATENATION = NeuronGroups(
    (NeuronGroup("a", 5), NeuronGroup("b", 4), NeuronGroup("c", 3)),
    (
        Block("w1", 0, 0, ("a",)),
        Block("w2", 0, 0, ("b",)),
        Block("w3", 1, 0, ("a",)),
        Block("w3", 1, 5, ("b",)),
        Block("w3", 0, 0, ("c",)),
        Block("w4", 1, 1, ("c",)),
    ),
    {"w1": (5, 30), "w2": (4, 20), "w3": (3, 9), "w4": (20, 5)},
)


def grouped(count):
    """A convolution in `count` groups between two dense ones."""
    return NeuronGroups(
        (NeuronGroup("G", count), NeuronGroup("i", 2, ("G",)), NeuronGroup("o", 4, ("G",))),
        (
            Block("w0", 0, 0, ("G", "i")),
            Block("b0", 0, 0, ("G", "i")),
            Block("w", 0, 0, ("G", "o")),
            Block("w", 1, 0, ("i",)),
            Block("w2", 1, 0, ("G", "o")),
        ),
        {
            "w0": (2 * count, 5, 1, 1),
            "b0": (2 * count,),
            "w": (4 * count, 2, 3, 3),
            "w2": (7, 4 * count, 1, 1),
        },
    )


GROUPED = grouped(3)
DENSE_BETWEEN_GROUPED = NeuronGroups(
    (
        NeuronGroup("G", 3),
        NeuronGroup("i", 2, ("G",)),
        NeuronGroup("H", 2),
        NeuronGroup("j", 3, ("H",)),
    ),
    (Block("w", 0, 0, ("G", "i")), Block("w", 1, 0, ("H", "j")), Block("u", 1, 0, ("G", "i"))),
    {"w": (6, 6), "u": (2, 6)},
)
CUBE = NeuronGroups(
    (NeuronGroup("a", 7), NeuronGroup("b", 8), NeuronGroup("c", 9)),
    tuple(Block("w", axis, 0, (name,)) for axis, name in enumerate("abc")),
    {"w": (7, 8, 9)},
)
RESIDUAL = NeuronGroups(
    (NeuronGroup("s", 6),),
    (
        Block("embed", 0, 0, ("s",)),
        Block("inner", 0, 0, ("s",)),
        Block("inner", 1, 0, ("s",)),
        Block("head", 1, 0, ("s",)),
    ),
    {"embed": (6, 30), "inner": (6, 6), "head": (2, 6)},
)
SIGNED = NeuronGroups(
    (NeuronGroup("a", 3, signed=True), NeuronGroup("b", 4), NeuronGroup("c", 3, signed=True)),
    (
        Block("w1", 0, 0, ("a",), ("a",)),
        Block("gain", 0, 0, ("a",)),
        Block("w2", 1, 0, ("a", 2), ("a",)),
        Block("w2", 0, 0, ("b",)),
        Block("w3", 1, 0, ("b",)),
        Block("w3", 0, 0, ("c",), ("c",)),
        Block("w4", 0, 1, ("c",), ("c",)),
        Block("w4", 1, 0, ("a",), ("a",)),
    ),
    {"w1": (3, 40), "gain": (3,), "w2": (4, 6), "w3": (3, 4), "w4": (5, 3)},
)
HEADS = NeuronGroups(
    (
        NeuronGroup("stream", 4, signed=True),
        NeuronGroup("head", 2),
        NeuronGroup("query", 2, ("head",), signed=True),
        NeuronGroup("value", 2, ("head",)),
    ),
    (
        Block("embed", 0, 0, ("stream",), ("stream",)),
        Block("q", 0, 0, ("head", "query"), ("query",)),
        Block("q", 1, 0, ("stream",), ("stream",)),
        Block("k", 0, 0, ("head", "query"), ("query",)),
        Block("k", 1, 0, ("stream",), ("stream",)),
        Block("v", 0, 0, ("head", "value")),
        Block("v", 1, 0, ("stream",), ("stream",)),
        Block("o", 0, 0, ("stream",), ("stream",)),
        Block("o", 1, 0, ("head", "value")),
        Block("slope", 0, 0, ("head",)),
    ),
    {"embed": (4, 40), "q": (4, 4), "k": (4, 4), "v": (4, 4), "o": (4, 4), "slope": (2,)},
)
SHARED_KEYS = NeuronGroups(  # two query heads to a key, whose values they share
    (
        NeuronGroup("key", 2),
        NeuronGroup("head", 2, ("key",)),
        NeuronGroup("query", 2, ("key", "head")),
        NeuronGroup("value", 2, ("key",)),
    ),
    (
        Block("q", 0, 0, ("key", "head", "query")),
        Block("bias", 0, 0, ("key", "head", "query")),
        Block("v", 0, 0, ("key", "value")),
        Block("o", 1, 0, ("key", "head", "value")),
    ),
    {"q": (8, 5), "bias": (8,), "v": (4, 5), "o": (5, 8)},
)
LAYOUTS = {
    "chain": CHAIN,
    "concatenation": CONCATENATION,
    "grouped": GROUPED,
    "many groups": grouped(7),
    "dense between grouped": DENSE_BETWEEN_GROUPED,
    "cube": CUBE,
    "signed": SIGNED,
    "heads": HEADS,
    "shared keys": SHARED_KEYS,
}


def tensors(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=generator)
        for name, shape in groups.shapes.items()
    }


def swapped(permutation):
    """The permutation after one exchange in the first row of each group: few columns change."""
    orders = {name: order.clone() for name, order in permutation.orders.items()}
    for order in orders.values():
        row = order.view(-1, order.shape[-1])[0]
        row[[0, 1]] = row[[1, 0]]
    return Permutation(permutation.groups, orders, permutation.signs)


def every(groups, name):
    """All orders of a group with all their signs, (..., *parents, n)."""
    group = groups[name]
    parents = [groups[parent].size for parent in group.parents]
    orders = list(itertools.permutations(range(group.size)))
    signs = list(itertools.product([1, -1], repeat=group.size if group.signed else 0))
    for rows in itertools.product(itertools.product(orders, signs), repeat=math.prod(parents)):
        order = torch.tensor([row for row, _ in rows]).view(*parents, group.size)
        sign = torch.tensor([row for _, row in rows], dtype=torch.int8)
        yield order, sign.view(*parents, group.size) if group.signed else None


def replaced(permutation, name, order, sign):
    signs = permutation.signs if sign is None else {**permutation.signs, name: sign}
    return Permutation(permutation.groups, {**permutation.orders, name: order}, signs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_value_is_the_inner_product_with_the_permuted_source(layout):
    groups = LAYOUTS[layout]
    objective, pairs = Objective(groups), []
    drawn = Permutation.random(groups, seed=0)
    for number in range(3):  # pairs come one by one, and a few neurons change places in between
        pairs.append((tensors(groups, 2 * number), tensors(groups, 2 * number + 1)))
        objective.add(target=pairs[-1][0], source=pairs[-1][1])
        for permutation in (drawn, swapped(drawn)):
            expected = plain_value(pairs, permutation)
            assert objective.value(permutation) == pytest.approx(expected, abs=1e-10)
    identity = Permutation.identity(groups)
    assert objective.identity == pytest.approx(plain_value(pairs, identity), abs=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_similarity_says_what_any_other_order_is_worth(layout):
    groups = LAYOUTS[layout]
    objective, pairs = Objective(groups), []
    here = Permutation.random(groups, seed=0)
    for number in range(2):
        pairs.append((tensors(groups, 2 * number), tensors(groups, 2 * number + 1)))
        objective.add(target=pairs[-1][0], source=pairs[-1][1])
        for permutation in (here, swapped(here)):
            for group in groups.groups:
                held = permutation.orders[group.name], permutation.signs.get(group.name)
                similarity = objective.similarity(group.name, permutation)
                for seed in range(3):
                    drawn = Permutation.random(groups, seed=70 + seed)
                    new = drawn.orders[group.name], drawn.signs.get(group.name)
                    other = replaced(permutation, group.name, *new)
                    change = plain_value(pairs, other) - plain_value(pairs, permutation)
                    predicted = similarity.worth(*new) - similarity.worth(*held)
                    assert predicted == pytest.approx(change, abs=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_and_what_is_kept_change_nothing(layout, monkeypatch):
    groups = LAYOUTS[layout]
    whole, pieces = Objective(groups), Objective(groups)
    here = Permutation.random(groups, seed=0)
    for number in range(2):
        target, source = tensors(groups, 2 * number), tensors(groups, 2 * number + 1)
        for objective in (whole, pieces):
            objective.add(target=target, source=source)
    for permutation in (here, swapped(here)):
        with monkeypatch.context() as small:
            small.setattr(products, "CHUNK", 10)
            small.setattr(objective_module, "ROOM", 0)
            assert pieces.value(permutation) == pytest.approx(whole.value(permutation))
        for name in groups.sizes():
            expected = whole.similarity(name, permutation)
            with monkeypatch.context() as small:
                small.setattr(products, "CHUNK", 10)
                small.setattr(objective_module, "ROOM", 0)
                found = pieces.similarity(name, permutation)
            torch.testing.assert_close(found.even, expected.even)
            torch.testing.assert_close(found.best, expected.best)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_kept_products_the_same_is_found(layout, monkeypatch):
    groups = LAYOUTS[layout]
    source, target = tensors(groups, 0), tensors(groups, 1)
    expected = match_weights(source, target, groups=groups)
    monkeypatch.setattr(products.Product, "over", None)
    found = match_weights(source, target, groups=groups, keep_products=False)
    assert found.source_to_target.same_as(expected.source_to_target)
    assert found.objective == pytest.approx(expected.objective)


def test_half_precision_is_compared_in_single():
    source, target = tensors(CHAIN, 0), tensors(CHAIN, 1)
    half = [{n: v.bfloat16() for n, v in side.items()} for side in (source, target)]
    single = [{n: v.float() for n, v in side.items()} for side in half]
    found, expected = (match_weights(*pair, groups=CHAIN) for pair in (half, single))
    assert found.source_to_target.same_as(expected.source_to_target)
    assert found.objective == pytest.approx(expected.objective, rel=1e-5)


def test_factors_are_worth_what_their_product_is():
    generator = torch.Generator().manual_seed(0)
    groups = CHAIN
    factored, plain = Objective(groups), Objective(groups)
    for number in range(2):
        sides = []
        for _ in range(2):
            full = tensors(groups, number)
            factors = LowRank(
                torch.randn(6, 9, dtype=torch.float64, generator=generator),
                torch.randn(6, 15, dtype=torch.float64, generator=generator),
            )
            sides.append(({**full, "w2": factors}, {**full, "w2": factors.dense()}))
        factored.add(target=sides[0][0], source=sides[1][0])
        plain.add(target=sides[0][1], source=sides[1][1])
        for seed in range(2):
            permutation = Permutation.random(groups, seed=seed)
            assert factored.value(permutation) == pytest.approx(plain.value(permutation))
            for name in groups.sizes():
                torch.testing.assert_close(
                    factored.similarity(name, permutation).even,
                    plain.similarity(name, permutation).even,
                )
    assert factored.identity == pytest.approx(plain.identity)


@pytest.mark.parametrize("moved", ["a", "b"])
def test_the_product_of_factors_is_corrected_when_few_neurons_moved(moved, monkeypatch):
    other = "b" if moved == "a" else "a"
    generator = torch.Generator().manual_seed(0)
    factored, plain = Objective(CHAIN), Objective(CHAIN)
    for number in range(2):
        factors = [
            LowRank(
                torch.randn(6, 9, dtype=torch.float64, generator=generator),
                torch.randn(6, 15, dtype=torch.float64, generator=generator),
            )
            for _ in range(2)
        ]
        full = tensors(CHAIN, number)
        low, dense = (
            [{**full, "w2": value} for value in values]
            for values in (factors, [f.dense() for f in factors])
        )
        factored.add(target=low[0], source=low[1])
        plain.add(target=dense[0], source=dense[1])
    permutation = Permutation.random(CHAIN, seed=1)
    factored.similarity(other, permutation)
    order = permutation.orders[moved].clone()
    order[:2] = order[:2].flip(0)
    monkeypatch.setattr(products.Product, "_contract", None)  # the product anew
    changed = replaced(permutation, moved, order, None)
    found, expected = (o.similarity(other, changed) for o in (factored, plain))
    torch.testing.assert_close(found.even, expected.even)


@pytest.mark.parametrize("layout", [*LAYOUTS, "residual"])
def test_the_solution_is_one_that_no_group_can_improve(layout):
    groups = {**LAYOUTS, "residual": RESIDUAL}[layout]
    pairs = [(tensors(groups, 0), tensors(groups, 1)), (tensors(groups, 2), tensors(groups, 3))]
    objective = Objective(groups)
    for target, source in pairs:
        objective.add(target=target, source=source)
    start = Permutation.random(groups, seed=3)
    found = solve(objective, start=start)
    assert found.converged
    assert found.objective == pytest.approx(plain_value(pairs, found.source_to_target))
    assert found.objective >= plain_value(pairs, start) - 1e-12
    assert found.gain == pytest.approx(found.objective - found.identity_objective)
    for group in groups.groups if layout != "residual" else ():
        for seed in range(20):
            drawn = Permutation.random(groups, seed=seed)
            new = drawn.orders[group.name], drawn.signs.get(group.name)
            other = replaced(found.source_to_target, group.name, *new)
            assert plain_value(pairs, other) <= found.objective + 1e-10


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_order_and_signs_of_a_group_are_the_best_of_all(name):
    pairs = [(tensors(SIGNED, 0), tensors(SIGNED, 1))]
    objective = Objective(SIGNED)
    objective.add(target=pairs[0][0], source=pairs[0][1])
    start = Permutation.random(SIGNED, seed=5)
    # One step of the solver: its end would hide a step that is not the best.
    found = Solver(objective)._improve(name, start, Counter()) or start
    best = max(plain_value(pairs, replaced(start, name, *new)) for new in every(SIGNED, name))
    assert plain_value(pairs, found) == pytest.approx(best)


@pytest.mark.parametrize("groups", [HEADS, SHARED_KEYS], ids=["heads", "shared keys"])
def test_heads_are_matched_with_what_is_inside_them(groups):
    pairs = [(tensors(groups, 0), tensors(groups, 1)), (tensors(groups, 2), tensors(groups, 3))]
    objective = Objective(groups)
    for target, source in pairs:
        objective.add(target=target, source=source)
    start = Permutation.random(groups, seed=5)
    # One step of the solver: its end would hide a step that is not the best.
    found = Solver(objective)._improve("head", start, Counter())
    best = -math.inf
    for new in every(groups, "head"):
        permutation = replaced(start, "head", *new)
        for name in groups.children_of("head"):  # no two of them share a tensor
            others = (replaced(permutation, name, *inner) for inner in every(groups, name))
            permutation = max(others, key=lambda p: plain_value(pairs, p))
        best = max(best, plain_value(pairs, permutation))
    assert plain_value(pairs, found) == pytest.approx(best)


@pytest.mark.parametrize(
    "layout", ["chain", "concatenation", "grouped", "residual", "signed", "heads", "shared keys"]
)
def test_a_permuted_network_is_found_again(layout):
    groups = {**LAYOUTS, "residual": RESIDUAL}[layout]
    source = tensors(groups, 0)
    hidden = Permutation.random(groups, seed=1)
    found = match_weights(source, hidden.apply(source), groups=groups)
    assert found.source_to_target.same_as(hidden)
    assert found.objective == pytest.approx(sum(float(w.square().sum()) for w in source.values()))


def test_heads_that_lie_right_already_stay():
    source = tensors(HEADS, 0)
    objective = Objective(HEADS)
    objective.add(target=source, source=source)
    identity = Permutation.identity(HEADS)
    # Signs are chosen only at the turns where they gain something.
    # One step of the solver: its end would hide a step that is not the best.
    chosen = Solver(objective)._choose_with_inside("head", identity, Counter())
    assert objective.value(chosen) == pytest.approx(objective.identity)


def test_a_residual_group_never_loses():
    sources = {**tensors(RESIDUAL, 0)}
    for seed in range(20):
        objective = Objective(RESIDUAL)
        pair = ({**tensors(RESIDUAL, seed + 1)}, sources)
        pair[0]["inner"] *= 10  # on two axes: the similarity is only the slope
        objective.add(target=pair[0], source=pair[1])
        start = Permutation.random(RESIDUAL, seed=seed)
        found = solve(objective, start=start)
        assert found.converged
        assert plain_value([pair], found.source_to_target) >= plain_value([pair], start) - 1e-9


def test_sweeps_end_where_they_are_told_to():
    objective = Objective(CHAIN)
    objective.add(target=tensors(CHAIN, 0), source=tensors(CHAIN, 1))
    start = Permutation.random(CHAIN, seed=3)
    assert solve(objective, start=start).sweeps > 1
    found = solve(objective, start=start, max_sweeps=1)
    assert (found.sweeps, found.converged) == (1, False)


def test_a_solver_begins_with_the_prices_it_ended_with(monkeypatch):
    given = []

    def recorded(matrix, *, prices):
        given.append(prices)
        return assign(matrix, prices=prices)

    # Prices change how long it takes, never what is found.
    monkeypatch.setitem(Solver._assign.__globals__, "assign", recorded)
    objective = Objective(CHAIN)
    objective.add(target=tensors(CHAIN, 0), source=tensors(CHAIN, 1))
    solver = Solver(objective)
    for known in (False, True):
        given.clear()
        solver.solve(Permutation.identity(CHAIN))
        assert (given[0] is not None) == known


def test_restarts_take_the_best_of_several_orders_of_the_groups():
    source, target = tensors(CUBE, 0), tensors(CUBE, 1)
    alone = match_weights(source, target, groups=CUBE)
    values = []
    for seed in range(4):
        found = match_weights(source, target, groups=CUBE, restarts=1, seed=seed)
        assert found.objective >= alone.objective
        pair = [(target, source)]
        assert found.objective == pytest.approx(plain_value(pair, found.source_to_target))
        values.append(found.objective)
    assert max(values) > alone.objective  # the order matters here
    many = match_weights(source, target, groups=CUBE, restarts=8, seed=0)
    assert many.objective >= values[0]
    with pytest.raises(ValueError, match="restarts must be 0 or more, got -1"):
        match_weights(source, target, groups=CUBE, restarts=-1)


def test_kept_bytes_are_those_of_the_tensors_between_groups():
    objective = Objective(CHAIN)
    objective.add(target=tensors(CHAIN, 0), source=tensors(CHAIN, 1))
    assert objective.kept_bytes == 2 * 9 * 15 * 8  # w2 of both networks, in float64


def test_weights_match_in_the_targets_precision_and_without_counters():
    source, target = tensors(CHAIN, 0), tensors(CHAIN, 1)
    found = match_weights(source, target, groups=CHAIN)
    more = {"count": torch.tensor(100)}
    single = {name: value.float().requires_grad_() for name, value in source.items()}
    again = match_weights({**single, **more}, {**target, **more}, groups=CHAIN)
    assert again.objective == pytest.approx(found.objective, rel=1e-5)


def test_weights_of_another_layout_are_named():
    source = tensors(CHAIN, 0)
    with pytest.raises(ValueError, match=r"source and target differ in the shape of 'w3'"):
        match_weights(source, {**source, "w3": torch.zeros(2, 5)}, groups=CHAIN)


def test_a_nan_is_refused():
    source = tensors(CHAIN, 0)
    with pytest.raises(ValueError, match="NaN"):
        match_weights(source, {**source, "w1": source["w1"] * torch.nan}, groups=CHAIN)


def test_what_is_kept_lies_on_no_default_device_of_the_moment():
    permutation = Permutation.random(GROUPED, seed=0)
    value = torch.randn(GROUPED.shapes["w"])
    expected = permutation.apply_to("w", value)
    gather._grid.cache_clear()  # or an earlier test would have filled it
    with torch.device("meta"), contextlib.suppress(RuntimeError, NotImplementedError):
        gather.source_places(GROUPED, "w", permutation.orders)
    gather.source_places(GROUPED, "w", permutation.orders)
    again = Permutation(GROUPED, permutation.orders, permutation.signs)
    assert torch.equal(again.apply_to("w", value), expected)


@pytest.mark.parametrize("limit", [0, 1 << 14])
def test_remembered_moves_are_those_of_the_orders_that_are_asked_for(monkeypatch, limit):
    monkeypatch.setattr(products, "REMEMBERED", limit)
    moves = products.Moves(GROUPED)
    drawn = [Permutation.random(GROUPED, seed=seed) for seed in range(20)]
    for one in (*drawn, *drawn[:2], *drawn[-2:], Permutation.random(GROUPED, seed=0)):
        for name in GROUPED.shapes:
            move = moves.of(name, one.orders, one.signs)
            value = torch.randn(GROUPED.shapes[name])
            assert torch.equal(move(value), one.apply_to(name, value))
    again = Permutation.random(GROUPED, seed=19)
    known = drawn[-1] if limit else again
    first = moves.of("w", known.orders, {})
    assert moves.of("w", again.orders, {}) is first  # equal orders in other tensors
    wide = max(len(entries) for entries in moves._known.values())
    assert wide == (2 if limit == 0 else 16)


def random_pair(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    source, target = (
        {name: torch.randn(shape, generator=generator) for name, shape in groups.shapes.items()}
        for _ in range(2)
    )
    return source, target


@pytest.mark.parametrize("start", [None, "frank-wolfe"])
def test_autocast_around_a_matching_changes_nothing(start):
    source, target = random_pair(CHAIN)
    source["w2"], target["w2"] = 300 * source["w2"], 300 * target["w2"]
    expected = match_weights(source, target, groups=CHAIN, start=start)
    with torch.autocast("cpu", torch.bfloat16):
        found = match_weights(source, target, groups=CHAIN, start=start)
        factors = LowRank(torch.randn(4, 9), torch.randn(4, 15))
        assert factors.dense().dtype == torch.float32
    assert found.objective == expected.objective
    assert found.source_to_target.same_as(expected.source_to_target)


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [CHAIN, CONCATENATION, grouped(3)])
@pytest.mark.parametrize("start", [None, "frank-wolfe"])
def test_on_a_gpu_the_same_is_matched(groups, start):
    here = random_pair(groups)
    there = [{name: value.cuda() for name, value in side.items()} for side in here]
    expected, found = (match_weights(*pair, groups=groups, start=start) for pair in (here, there))
    assert found.source_to_target.same_as(expected.source_to_target)
    assert found.objective == pytest.approx(expected.objective)
    assert all(v.is_cuda for v in found.source_to_target.apply(there[0]).values())
