"""What checkpoints are to each other, by what was done to them."""

import json
import math

import pytest
import torch
from descendants import groups, network, trained, weights
from safetensors.torch import save_file

from slipstream.comparison import compare_checkpoints
from slipstream.symmetry.permutation import Permutation

MODEL = trained(network())
BASE = weights(MODEL)
MATRICES = [name for name, value in BASE.items() if value.dim() > 1]


def compare(first, second, **how):
    return compare_checkpoints({"a": first, "b": second}, **how).pairs[0]


def test_a_copy_is_identical():
    found = compare(BASE, weights(MODEL))
    assert (found.relation, found.certainty, found.parent) == ("identical", "proven", None)
    assert found.same_architecture
    assert found.frozen == tuple(BASE)
    assert found.relative_distance == 0
    assert found.advice.startswith("no use")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("widened", [False, True])
def test_another_type_is_a_resaved_copy(dtype, widened):
    cast = {n: v.to(dtype).float() if widened else v.to(dtype) for n, v in BASE.items()}
    found = compare(cast, BASE)
    assert (found.relation, found.certainty, found.parent) == ("re-saved", "proven", "b")


def test_two_types_of_one_original():
    halves = [{n: v.to(t) for n, v in BASE.items()} for t in (torch.float16, torch.bfloat16)]
    assert compare(*halves).relation == "re-saved"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "model.body."])
def test_prefixes_are_another_way_to_save(prefix):
    found = compare({prefix + n: v for n, v in BASE.items()}, BASE)
    assert (found.relation, found.certainty) == ("re-saved", "proven")
    assert found.same_architecture


@pytest.mark.parametrize("known", [False, True])
def test_wrappers_inside_of_names(known):
    """Also where the heads differ, so that the order of all tensors does not help."""
    inside = {f"net.{n.replace('.', '._orig_mod.', 1)}": v for n, v in BASE.items()}
    headed = BASE | {"5.weight": torch.randn(3, 24), "5.bias": torch.randn(3)} if known else BASE
    found = compare(headed, {f"_fsdp_wrapped_module.{n}": v for n, v in inside.items()})
    assert found.relation == ("fine-tune or siblings" if known else "re-saved")
    assert len(found.layers) == (4 if known else 6)


def test_other_names_in_the_same_order():
    renamed = {f"layer_{n}": v for n, v in enumerate(BASE.values())}
    assert compare(renamed, BASE).relation == "re-saved"


def test_a_copy_of_a_tied_tensor_is_another_way_to_save():
    tied = {**BASE, "decoder.weight": BASE["1.weight"].clone()}
    found = compare(tied, BASE)
    assert found.relation == "re-saved"
    assert "decoder.weight" in " ".join(found.evidence)
    other = compare({**BASE, "decoder.weight": torch.randn(24, 64)}, BASE)
    assert other.differences == ("decoder.weight is missing in b",)
    assert other.relation == "fine-tune or siblings"


def test_shards_and_pickles(tmp_path):
    names = list(BASE)
    index = {n: f"model-0000{1 + (n in names[3:])}-of-00002.safetensors" for n in names}
    for file in set(index.values()):
        save_file({n: BASE[n] for n in names if index[n] == file}, tmp_path / file)
    listed = json.dumps({"weight_map": index})
    (tmp_path / "model.safetensors.index.json").write_text(listed)
    torch.save({"state_dict": BASE}, tmp_path / "a.pt")
    found = compare_checkpoints([tmp_path, str(tmp_path / "a.pt")]).pairs[0]
    assert (found.relation, found.certainty) == ("re-saved", "proven")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="missing"):
        compare_checkpoints([tmp_path, tmp_path / "a.pt"])


def test_pruned():
    pruned = {n: v * (v.abs() > 0.1) if n in MATRICES else v for n, v in BASE.items()}
    found = compare(pruned, BASE)
    assert (found.relation, found.certainty, found.parent) == ("pruned", "proven", "b")


@pytest.mark.parametrize("levels", [7, 127])
def test_quantised(levels):
    steps = {n: BASE[n].abs().amax(1, keepdim=True) / levels for n in MATRICES}
    whole = {n: (BASE[n] / steps[n]).round() * steps[n] for n in MATRICES}
    found = compare(BASE, BASE | whole)
    assert (found.relation, found.certainty, found.parent) == ("quantised", "proven", "a")
    scale = {n: v.abs().max() / levels for n, v in BASE.items()}
    found = compare({n: (v / scale[n]).round() * scale[n] for n, v in BASE.items()}, BASE)
    assert (found.relation, found.certainty, found.parent) == ("quantised", "proven", "b")
    vectors = {n: torch.ones_like(v) for n, v in BASE.items() if v.dim() == 1}
    assert compare(BASE, BASE | vectors).relation != "quantised"


def test_another_seed_is_independent_though_it_learned_the_same():
    found = compare(BASE, weights(trained(network(1))))
    assert (found.relation, found.certainty) == ("independent", "sure")
    assert found.advice.startswith("port with matching")


@pytest.mark.parametrize("steps", [1, 100])
def test_a_fine_tune_is_related_but_the_weights_do_not_tell_which_came_first(steps):
    found = compare(BASE, weights(trained(MODEL, steps, seed=3, flipped=True)))
    assert (found.relation, found.certainty) == ("fine-tune or siblings", "sure")
    assert found.parent is None


def test_an_initialisation_comes_first():
    start = weights(network())
    found = compare(BASE, start)
    assert (found.relation, found.certainty, found.parent) == ("fine-tune", "likely", "b")


def test_frozen_layers_and_low_ranks_are_seen():
    changed = BASE | {"3.weight": BASE["3.weight"] + 0.01 * torch.outer(*torch.randn(2, 24))}
    found = compare(BASE, changed)
    assert found.relation == "fine-tune or siblings"
    assert set(found.frozen) == set(BASE) - {"3.weight"}
    layer = next(layer for layer in found.layers if not layer.frozen)
    assert (layer.rank, layer.full_rank) == (1, 24)
    assert layer.distance == pytest.approx(
        float((changed["3.weight"] - BASE["3.weight"]).norm()), rel=1e-4
    )
    assert "rank of at most 1" in " ".join(found.evidence)


def test_batchnorm_counts_tell_which_came_first():
    first = trained(network(norm=True), 20)
    longer = trained(first, 30, seed=2)
    found = compare(weights(longer), weights(first))
    assert (found.relation, found.parent) == ("fine-tune or siblings", "b")
    moved = {n: 0.1 * torch.randn_like(v) for n, v in weights(first).items() if v.dim()}
    other = {n: v + moved[n] if n in moved else v + 9 for n, v in weights(first).items()}
    given = {"first": weights(first), "longer": weights(longer), "other": other}
    three = compare_checkpoints(given)
    assert three.pair("longer", "other").relation == "siblings"
    assert three.tree.splitlines()[0] == "first"


def test_new_zeros_tell_which_came_first():
    pruned = {n: v * (v.abs() > 0.1) if n in MATRICES else v * 1.01 for n, v in BASE.items()}
    found = compare(pruned, BASE)
    assert (found.relation, found.parent) == ("fine-tune or siblings", "b")


def test_a_new_head_is_named():
    found = compare(BASE, {**BASE, "5.weight": torch.randn(3, 24), "5.bias": torch.randn(3)})
    assert found.relation == "fine-tune or siblings"
    assert found.differences[0] == "5.weight is (10, 24) in a and (3, 24) in b"


def test_a_longer_vocabulary_is_named():
    longer = BASE | {"1.weight": torch.cat([BASE["1.weight"], torch.randn(24, 4)], 1)}
    found = compare(BASE, longer)
    assert found.relation == "different architectures"  # most of this one is its inputs
    wide = BASE | {"3.weight": torch.randn(200, 200)}
    longer = wide | {"1.weight": longer["1.weight"]}
    found = compare(wide, longer)
    assert found.relation == "fine-tune or siblings"
    assert found.differences == ("1.weight is (24, 64) in a and (24, 68) in b",)


def test_other_architectures():
    found = compare(BASE, {"x": torch.randn(30, 30)})
    assert (found.relation, found.certainty) == ("different architectures", "proven")
    assert found.advice.startswith("no use")
    wide = {n: torch.randn(2 * len(v), *v.shape[1:]) for n, v in BASE.items()}
    assert compare(BASE, wide).relation == "different architectures"


@pytest.mark.parametrize("known", [False, True])
def test_permuted_neurons(known):
    moved = Permutation.random(groups().without_signs(), seed=4).apply(BASE)
    found = compare(BASE, moved, groups=groups() if known else None)
    assert (found.relation, found.certainty) == ("permuted", "proven" if known else "sure")
    assert "3.weight:0" in " ".join(found.evidence) or known


@pytest.mark.parametrize("known", [False, True])
def test_changed_signs(known):
    moved = Permutation.random(groups(), seed=4).apply(BASE)
    found = compare(moved, BASE, groups=groups() if known else None)
    assert (found.relation, found.certainty) == ("permuted", "proven" if known else "sure")
    assert "sign" in found.evidence[0]


def test_rows_in_another_order_of_one_tensor_alone_are_no_permutation_of_neurons():
    order = torch.randperm(24)
    found = compare(BASE, BASE | {"3.weight": BASE["3.weight"][order]})
    assert (found.relation, found.certainty) == ("cannot tell", "open")
    assert "another order" in found.evidence[0]


def test_matrices_that_have_nothing_in_common_are_named_in_the_advice():
    moved = Permutation.random(groups().without_signs(), seed=4).apply(BASE)
    wide = {"x.weight": torch.randn(60, 60), "y.weight": torch.randn(60, 60)}
    tuned = {n: v + 0.01 * torch.randn_like(v) for n, v in {**moved, **wide}.items()}
    found = compare({**BASE, **wide}, tuned)
    assert found.relation == "fine-tune or siblings"
    assert " and 1 more have nothing in common: match the neurons first" in found.advice
    assert "nothing in common" not in compare(BASE, {n: v * 1.01 for n, v in BASE.items()}).advice


def test_what_is_related_to_a_permuted_copy_is_related():
    moved = Permutation.random(groups().without_signs(), seed=4).apply(BASE)
    tuned = weights(trained(MODEL, 10, flipped=True))
    assert compare(moved, tuned).relation == "independent"  # alone, nothing shows it
    found = compare_checkpoints({"base": BASE, "moved": moved, "tuned": tuned}).pair(
        "moved", "tuned"
    )
    assert found.relation == "fine-tune or siblings"
    assert found.advice.startswith("port with matching")


def test_nothing_is_pruned_to_nothing():
    zeroed = {n: torch.zeros_like(v) for n, v in BASE.items()}
    assert compare(BASE, zeroed).relation == "cannot tell"


def test_what_is_made_of_a_body_with_another_head_may_be_of_a_third():
    headed = BASE | {"5.weight": torch.randn(3, 24), "5.bias": torch.randn(3)}
    pruned = {n: v * (v.abs() > 0.1) if n in MATRICES else v for n, v in BASE.items()}
    assert compare(headed, pruned).relation == "fine-tune or siblings"


def test_a_new_head_is_no_sibling():
    headed = BASE | {"5.weight": 0.3 * torch.randn(10, 24), "5.bias": torch.randn(10)}
    found = compare_checkpoints({"init": weights(network()), "base": BASE, "headed": headed})
    assert found.pair("base", "headed").relation == "fine-tune or siblings"


@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_the_middle_of_an_extrapolation_is_no_average(factor):
    tuned = weights(trained(MODEL, 20, flipped=True))
    beyond = {n: factor * v + (1 - factor) * tuned[n] for n, v in BASE.items()}
    found = compare_checkpoints({"base": BASE, "tuned": tuned, "beyond": beyond})
    assert found.merges == ()
    assert {pair.relation for pair in found.pairs} == {"fine-tune or siblings"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_averages_are_told_by_computing_them_again(dtype):
    one = {n: v.to(dtype) for n, v in BASE.items()}
    other = {n: v.to(dtype) for n, v in weights(trained(MODEL, 30, flipped=True)).items()}
    means = {
        "sum": {n: 0.3 * v + 0.7 * other[n] for n, v in one.items()},
        "lerp": {n: v.lerp(other[n], 0.7) for n, v in one.items()},
        "steps": {n: v + 0.7 * (other[n] - v) for n, v in one.items()},
    }
    for name, mean in means.items():
        found = compare_checkpoints({"one": one, "other": other, name: mean})
        assert found.pair("one", name).relation == "merged", name


def test_averages_are_found_with_their_weights():
    tuned = [weights(trained(MODEL, 30, seed=n, flipped=n > 1)) for n in range(3)]
    mean = {n: 0.25 * tuned[0][n] + 0.75 * tuned[1][n] for n in BASE}
    given = dict(zip("pqr", tuned, strict=True)) | {"mean": mean}
    found = compare_checkpoints(given)
    assert found.merges == ("mean = 0.25 p + 0.75 q, to rounding",)
    assert found.pair("mean", "p").relation == "merged"
    assert found.pair("mean", "p").parent == "p"
    assert found.pair("mean", "r").relation == "fine-tune or siblings"
    near = {n: v + 1e-4 * torch.randn_like(v) for n, v in mean.items()}
    assert compare_checkpoints(given | {"mean": near}).merges == ()


def test_a_nan_is_named():
    broken = BASE | {"3.bias": torch.full((24,), math.nan)}
    with pytest.raises(ValueError, match=r"b holds a NaN or an infinity in '3.bias'"):
        compare(BASE, broken)


def test_too_little_to_tell():
    assert compare({"w": torch.randn(10, 64)}, {"w": torch.randn(10, 64)}).relation == "cannot tell"
    with pytest.raises(ValueError, match="at least two"):
        compare_checkpoints({"a": BASE})


def test_a_model_that_cannot_be_traced_is_noted():
    moved = Permutation.random(groups().without_signs(), seed=4).apply(BASE)
    found = compare_checkpoints([BASE, moved], model=network(), example_input=torch.zeros(2, 3))
    assert found.pairs[0].relation == "permuted"
    assert "no neuron groups were found" in found.notes[0]


def test_short_names_tell_paths_apart(tmp_path):
    for folder in "xy":
        (tmp_path / folder).mkdir()
        save_file(BASE, tmp_path / folder / "model.safetensors")
    found = compare_checkpoints([tmp_path / n / "model.safetensors" for n in "xy"])
    assert found.names == ("x/model.safetensors", "y/model.safetensors")
    with pytest.raises(KeyError, match="no pair"):
        found.pair("x", "y")


def test_the_tree_joins_what_is_near_and_what_is_proven():
    tuned = weights(trained(MODEL, 30, flipped=True))
    given = {
        "init": weights(network()),
        "base": BASE,
        "tuned": tuned,
        "half": {n: v.half() for n, v in tuned.items()},
        "alone": weights(trained(network(8))),
    }
    lines = compare_checkpoints(given).tree.splitlines()
    names = [line.replace("└──", "").replace("├──", "").split()[0] for line in lines]
    assert names == ["init", "base", "tuned", "half", "alone"]
    depths = [len(line) - len(line.lstrip(" │└├─")) for line in lines]
    assert depths == [0, 4, 8, 12, 0]
    assert lines[3].split("half")[1].startswith("  re-saved, ")
