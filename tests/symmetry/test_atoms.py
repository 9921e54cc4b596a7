"""The algebra against index tensors: an axis that moves is a view of places that move."""

import math

import pytest
import torch

from slipstream.symmetry.atoms import (
    Cause,
    cut,
    divide,
    fixed,
    free,
    is_fixed,
    length,
    merge,
    pin,
    regroup,
    resolve,
    tie,
)
from slipstream.symmetry.parents import settle

WHY = Cause("test", "here", "because")


def sizes(axis):
    """The axis as nested sizes; places that stay are negative."""
    return [
        [-atom.size if atom.cause else atom.size for atom in product] for product in resolve(axis)
    ]


def test_tying_a_concatenation_splits_the_other_side_everywhere():
    whole, left, right = free(9), free(4), free(5)
    tie(left + right, whole, WHY)
    assert sizes(whole) == [[4], [5]]
    assert resolve(whole) == resolve(left) + resolve(right)


def test_two_ways_to_cut_meet_in_the_finest():
    tie(first := free(4) + free(5), second := free(6) + free(3), WHY)
    assert sizes(first) == sizes(second) == [[4], [2], [3]]
    assert resolve(first) == resolve(second)


def test_an_axis_tied_with_itself_the_other_way_round_has_equal_parts():
    left, right = free(2), free(4)
    tie(left + right, right + left, WHY)
    assert resolve(right) == resolve(left) * 2


def test_products_meet_in_their_common_factors():
    flat = free(24)
    tie(flat, merge([free(4), fixed(6)]), WHY)
    tie(flat, merge([free(2), free(12)]), WHY)
    assert sizes(flat) == [[2, 2, -6]]


@pytest.mark.parametrize("other", [(4, 6), (12, 2)])
def test_products_without_a_common_refinement_are_pinned(other):
    flat = free(24)
    tie(flat, merge([free(6), free(4)]), WHY)
    tie(flat, merge([free(size) for size in other]), WHY)
    assert is_fixed(resolve(flat)) == (other == (4, 6))


def test_what_is_pinned_pins_what_is_tied_with_it_and_keeps_its_cause():
    first, second = free(6), fixed(6, WHY)
    tie(first, second, Cause("other", "", ""))
    assert resolve(first)[0][0].cause == WHY
    pin(first, Cause("late", "", ""))
    assert resolve(first)[0][0].cause == WHY


def test_axes_of_different_length_are_refused():
    with pytest.raises(ValueError, match="4 and 5 positions"):
        tie(free(4), free(5), WHY)


def test_a_cut_through_the_inside_pins_unless_the_outside_stays():
    pictures = merge([fixed(2), free(3)])
    left, right = cut(pictures, 4, WHY)
    assert (sizes(left), sizes(right)) == ([[], [2], []], [[2]])
    channels = merge([free(2), free(3)])
    left, right = cut(channels, 4, WHY)
    assert (length(left), length(right)) == (4, 2)
    assert is_fixed(resolve(channels))


def test_dividing_a_concatenation_makes_the_insides_equal():
    left, right = free(4), free(6)
    slow, fast = divide(left + right, 2, WHY)
    assert (sizes(slow), sizes(fast)) == ([[2], [3]], [[2]])
    assert resolve(left)[0][-1] is resolve(right)[0][-1]


def test_dividing_an_axis_that_holds_an_atom_twice_divides_both():
    once = free(12)
    slow, fast = divide(once + once, 2, WHY)
    assert resolve(slow)[0] == resolve(slow)[1]
    assert merge([resolve(slow)[:1], fast]) == resolve(once)


def test_a_concatenation_inside_a_moving_axis_cannot_move():
    both = free(2) + free(3)
    assert sizes(merge([free(4), both])) == [[4, -5]]
    assert is_fixed(resolve(both))
    both = free(2) + free(3)
    assert sizes(merge([fixed(2), both])) == [[2], [3], [2], [3]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((4, 6), (24,)),
        ((24,), (2, 3, 4)),
        ((4, 1, 6), (2, 12, 1)),
        ((2, 3, 4), (6, 4)),
        ((6, 4), (3, 2, 2, 2)),
        ((5, 7), (5, 1, 7)),
    ],
)
def test_regrouping_agrees_with_a_view_of_moved_places(old, new):
    before = tuple(free(size) for size in old)
    after = regroup(before, new, WHY)
    assert tuple(map(length, after)) == new
    orders = {}
    for axis in (*before, *after):
        for product in resolve(axis):
            for atom in product:
                generator = torch.Generator().manual_seed(len(orders))
                orders.setdefault(atom, torch.randperm(atom.size, generator=generator))

    def moved(value, layout):
        for number, axis in enumerate(layout):
            (product,) = resolve(axis)
            index = torch.zeros(1, dtype=torch.int64)
            for atom in product:
                index = (index[:, None] * atom.size + orders[atom]).flatten()
            value = value.index_select(number, index)
        return value

    places = torch.arange(math.prod(old)).view(old)
    assert torch.equal(moved(places, before).view(new), moved(places.view(new), after))


def test_an_order_inside_depends_on_the_group_only_where_the_group_is_in_sight():
    channels = free(6)
    groups, inside = divide(channels, 2, WHY)
    (group,), (inner,) = resolve(groups)[0], resolve(inside)[0]
    assert settle([(channels,)], [])[inner] == [group]
    assert settle([(groups, inside)], [])[inner] == [group]
    assert settle([(channels,), (inside,)], [])[inner] == []
    assert settle([(groups, groups, inside)], [])[inner] == []
    assert settle([(channels,)], [(inside, groups)])[inner] == []
    pin(groups, WHY)
    assert settle([(channels,)], [])[inner] == []


def test_of_two_orders_that_could_depend_on_each_other_one_does():
    channels, mixed = free(6), free(6)
    groups, inside = divide(channels, 2, WHY)
    inside_first, groups_last = divide(mixed, 3, WHY)
    tie(inside, inside_first, WHY)
    tie(groups, groups_last, WHY)
    parents = settle([(channels,), (mixed,)], [])
    assert sorted(len(found) for found in parents.values()) == [0, 1]
