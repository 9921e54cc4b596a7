import pytest

from slipstream.symmetry.neuron_groups import Block, NeuronGroup, NeuronGroups, Pin

GROUPS = NeuronGroups(
    (NeuronGroup("conv", 4), NeuronGroup("inside", 2, ("conv",))),
    (
        Block("conv.weight", 0, 0, ("conv", "inside")),
        Block("conv.bias", 0, 0, ("conv", "inside")),
        Block("head.weight", 1, 3, ("conv", "inside", 5)),
    ),
    {"conv.weight": (8, 3, 1, 1), "conv.bias": (8,), "head.weight": (2, 43), "head.bias": (2,)},
    pins=(Pin("input", "", "the order is given", ("conv.weight:1",)),),
)
OLD = """{
 "format": 1,
 "groups": [
  {
   "name": "units",
   "size": 3,
   "parents": []
  }
 ],
 "blocks": [
  {
   "tensor": "weight",
   "axis": 1,
   "offset": 2,
   "factors": [
    "units",
    2
   ]
  }
 ],
 "shapes": {
  "weight": [
   4,
   8
  ]
 },
 "pins": [
  {
   "operator": "fft",
   "where": "net.0",
   "reason": "no rule",
   "tensors": [
    "weight:0"
   ]
  }
 ],
 "dropped": []
}"""
TEXT = (
    OLD.replace('"format": 1', '"format": 2')
    .replace('"parents": []', '"parents": [],\n   "signed": true')
    .replace("    2\n   ]", '    2\n   ],\n   "signs": [\n    "units"\n   ]')
)


def test_json_is_this_text_and_comes_back(tmp_path):
    groups = NeuronGroups(
        (NeuronGroup("units", 3, signed=True),),
        (Block("weight", 1, 2, ("units", 2), ("units",)),),
        {"weight": (4, 8)},
        (Pin("fft", "net.0", "no rule", ("weight:0",)),),
    )
    assert groups.to_json() == TEXT
    assert NeuronGroups.from_json(TEXT) == groups
    assert NeuronGroups.from_json(OLD) == groups.without_signs()
    GROUPS.save(tmp_path / "groups.json")
    assert NeuronGroups.load(tmp_path / "groups.json") == GROUPS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not the JSON of neuron groups"),
        ("nonsense", "not the JSON of neuron groups"),
        (TEXT.replace('"format": 2', '"format": 3'), "format 3 are newer than 2"),
        (TEXT.replace('"units",\n    2', '"cells",\n    2'), "names no known group: 'cells'"),
        (
            TEXT.replace('"signed": true', '"signed": false'),
            "sign of 'units', which is not a signed",
        ),
        (
            TEXT.replace('"offset": 2', '"offset": 3'),
            "covers positions 3 to 9 on axis 1 of 'weight'",
        ),
        (TEXT.replace('"tensor": "weight"', '"tensor": "bias"'), "not a tensor of the model"),
    ],
)
def test_bad_json_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        NeuronGroups.from_json(text)


ONE = NeuronGroup("one", 3)


@pytest.mark.parametrize(
    ("groups", "blocks", "message"),
    [
        ([ONE, ONE], [], "same name"),
        ([ONE], [Block("w", 0, 0, ("one",)), Block("w", 0, 2, ("one",))], "overlap on axis 0"),
        ([NeuronGroup("child", 2, ("one",)), ONE], [], "not a group before it"),
        (
            [ONE, NeuronGroup("two", 2, ("one",)), NeuronGroup("three", 2, ("two",))],
            [],
            "must name 'one' as a parent too",
        ),
    ],
)
def test_inconsistent_groups_are_refused(groups, blocks, message):
    with pytest.raises(ValueError, match=message):
        NeuronGroups(tuple(groups), tuple(blocks), {"w": (6,)})


def test_lookups():
    assert GROUPS.sizes() == {"conv": 4, "inside": 2}
    assert GROUPS["inside"].parents == ("conv",)
    assert [GROUPS.length(block) for block in GROUPS.blocks] == [8, 8, 40]
    assert GROUPS.children_of("conv") == ("inside",)
    assert GROUPS.blocks_on("head.weight", 0) == ()
    assert len(GROUPS.blocks_of("inside")) == 3
    # Of the input axis of the head, 40 of 43 places move; that of the convolution is pinned.
    assert GROUPS.coverage().moved == pytest.approx((24 + 8 + 80) / 120)
    assert GROUPS.coverage().everywhere == pytest.approx((8 + 80) / 120)
    with pytest.raises(KeyError, match="nothing"):
        GROUPS["nothing"]


def test_keep_turns_the_places_of_other_groups_into_places_that_stay():
    kept = GROUPS.keep(["inside"])
    assert kept.groups == (NeuronGroup("inside", 2),)
    assert kept.blocks[2].factors == (4, "inside", 5)
    assert GROUPS.keep([]).blocks == ()


def test_signs_can_be_given_up():
    groups = NeuronGroups(
        (NeuronGroup("heads", 2, signed=True), NeuronGroup("inside", 3, ("heads",), signed=True)),
        (Block("w", 0, 0, ("heads", "inside"), ("heads", "inside")),),
        {"w": (6,)},
    )
    assert groups.without_signs(["heads"]).blocks[0].signs == ("inside",)
    assert [g.signed for g in groups.without_signs(["heads"]).groups] == [False, True]
    assert groups.without_signs().blocks[0].signs == ()
    assert groups.keep(["inside"]).blocks[0] == Block("w", 0, 0, (2, "inside"), ("inside",))
    assert str(groups).splitlines() == [
        "group   size  in     listed on",
        "heads   2     -      ±w:0",
        "inside  3     heads  ±w:0",
        "2 groups move 100.0% of the parameters, 100.0% along every axis",
        "where ± stands, a neuron may also change its sign",
    ]


def test_the_table_is_readable():
    assert str(GROUPS).splitlines() == [
        "group   size  in    listed on",
        "conv    4     -     conv.weight:0, conv.bias:0, head.weight:1",
        "inside  2     conv  conv.weight:0, conv.bias:0, head.weight:1",
        "2 groups move 93.3% of the parameters, 73.3% along every axis",
        "pinned by input in the model: the order is given (conv.weight:1)",
    ]
