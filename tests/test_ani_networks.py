"""What the benchmark of real networks reads and computes is right, on networks that are made up."""

import importlib.util
import math
import re
import shutil
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from made_up_networks import WIDTHS, made_up_molecules, write_resources

PATH = Path(__file__).parents[1] / "benchmarks" / "ani_networks.py"
spec = importlib.util.spec_from_file_location("ani_networks", PATH)
ani = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ani)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_resources(tmp_path_factory.mktemp("resources"), members=2)


@pytest.fixture(scope="module")
def functions(folder):
    return ani.Resources(folder).symmetry_functions()


def test_parameters_are_read_as_they_lie_in_the_files(folder):
    resources = ani.Resources(folder)
    assert resources.members(ani.BASES) == ["train0", "train1"]
    assert {e: tuple(w) for e, w in resources.sizes().items()} == WIDTHS
    weights = resources.weights(ani.FINE_TUNES, "train1")
    assert weights.keys() == dict(ani.AtomicNetworks(WIDTHS).named_parameters()).keys()
    file = folder / ani.FINE_TUNES / "train1" / "networks" / "ANN-C.nnf-l2.wparam"
    row_by_row = np.fromfile(file, dtype="<f4").reshape(4, 4)
    assert torch.equal(weights["networks.C.2.weight"], torch.from_numpy(row_by_row))


def test_a_wheel_is_read_as_its_folder_is(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "in" / "torchani" / "resources")
    made = shutil.make_archive(tmp_path / "made", "zip", tmp_path / "in")
    wheel = Path(made).rename(tmp_path / "torchani-2.0.whl")
    for path in (wheel, tmp_path / "in", tmp_path / "in" / "torchani"):
        found = ani.Resources(path).weights(ani.BASES, "train0")
        kept = ani.Resources(folder).weights(ani.BASES, "train0")
        assert all(torch.equal(found[name], kept[name]) for name in kept)


def test_what_is_not_there_or_has_another_size_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no folder 'ani-1x_8x'"):
        ani.Resources(tmp_path)
    write_resources(tmp_path, members=1)
    cut = tmp_path / ani.BASES / "train0" / "networks" / "ANN-N.nnf-l1.bparam"
    cut.write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"ANN-N.nnf-l1.bparam must hold \(4,\) numbers, got 3"):
        ani.Resources(tmp_path).weights(ani.BASES, "train0")


def features_by_loops(positions, elements, f):
    """Equations 2 to 4 of the article, atom by atom."""

    def fades(distance, cutoff):
        return (math.cos(math.pi * distance / cutoff) + 1) / 2 if distance < cutoff else 0.0

    pairs = [a + b for n, a in enumerate("HCNO") for b in "HCNO"[n:]]
    rows = []
    for i, centre in enumerate(positions):
        radial, angular = np.zeros((4, 16)), np.zeros((10, 4, 8))
        others = [j for j in range(len(elements)) if j != i]
        for j in others:
            d = math.dist(centre, positions[j])
            for m, shift in enumerate(f.radial_shifts.tolist()):
                near = math.exp(-f.radial_width * (d - shift) ** 2) * fades(d, f.radial_cutoff)
                radial["HCNO".index(elements[j]), m] += near / 4
        for j, k in combinations(others, 2):
            left, right = positions[j] - centre, positions[k] - centre
            lengths = np.linalg.norm(left), np.linalg.norm(right)
            angle = math.acos(0.95 * float(left @ right) / (lengths[0] * lengths[1]))
            both = math.prod(fades(d, f.angular_cutoff) for d in lengths)
            kind = "".join(sorted((elements[j], elements[k]), key="HCNO".index))
            for m, shift in enumerate(f.angular_shifts.tolist()):
                far = math.exp(-f.angular_width * (sum(lengths) / 2 - shift) ** 2)
                for n, theta in enumerate(f.angles.tolist()):
                    bent = ((1 + math.cos(angle - theta)) / 2) ** f.zeta
                    angular[pairs.index(kind), m, n] += 2 * bent * far * both
        rows.append(np.concatenate((radial.ravel(), angular.ravel())))
    return torch.from_numpy(np.array(rows))


@pytest.mark.parametrize("elements", ["OH", "HCNOHC"])
def test_features_are_those_of_the_formulas(elements, functions):
    generator = torch.Generator().manual_seed(1)
    positions = 1.5 * torch.randn(2, len(elements), 3, generator=generator, dtype=torch.float64)
    found = functions(positions, elements)
    assert found.shape == (2, len(elements), 384)
    for number in range(2):
        plain = features_by_loops(positions[number].numpy(), elements, functions)
        assert plain.abs().max() > 0.01
        torch.testing.assert_close(found[number], plain, rtol=1e-6, atol=1e-7)


def test_features_of_two_atoms_are_known(functions):
    distance = 1.16875  # the second radial shift
    positions = torch.tensor([[[0.0, 0.0, 0.0], [0.0, distance, 0.0]]])
    found = functions(positions, "OH")
    near = math.cos(math.pi * distance / 5.2) / 2 + 0.5
    assert found[0, 0, 1].item() == pytest.approx(near / 4, rel=1e-5)  # of the hydrogen beside it
    assert torch.equal(found[0, 0, :16], found[0, 1, 48:64])  # the hydrogen sees an oxygen
    assert not found[0, :, 64:].any()  # there is no angle


def test_features_follow_atoms_and_not_the_room(functions):
    generator = torch.Generator().manual_seed(2)
    positions = torch.randn(1, 5, 3, generator=generator, dtype=torch.float64)
    elements = "CHNOH"
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    still = functions(positions, elements)
    torch.testing.assert_close(functions(positions @ turn + 3.0, elements), still)
    order = [3, 0, 4, 2, 1]
    moved = functions(positions[:, order], [elements[at] for at in order])
    torch.testing.assert_close(moved, still[:, order])


def test_features_fade_before_an_atom_is_out_of_reach(functions):
    def at(distance):
        positions = torch.tensor([[[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]], dtype=torch.float64)
        return functions(positions, "HH")[0, 0]

    step = 1e-3
    slope = (at(5.2) - at(5.2 - step)) / step
    assert at(5.0).abs().max() > 1e-4
    assert slope.abs().max() < 1e-4
    assert not at(5.21).any()


def test_energies_of_a_ragged_batch_are_those_of_its_molecules(folder, functions):
    resources = ani.Resources(folder)
    model = ani.AtomicNetworks(resources.sizes())
    weights = resources.weights(ani.BASES, "train0")
    model.load_state_dict(weights)
    drawn = ani.geometries(made_up_molecules(ani.Molecule), functions, count=9, jitter=0.1, seed=0)
    assert len({g.elements for g in drawn}) > 2
    together = model(**ani.inputs_of(drawn))
    alone = torch.cat([model(**ani.inputs_of([g])) for g in drawn])
    torch.testing.assert_close(together, alone)

    def energy(element, features):
        for layer in (0, 2, 4, 6):
            name = f"networks.{element}.{layer}"
            features = features @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
            if layer < 6:
                features = torch.where(features > 0, features, 0.1 * torch.expm1(features / 0.1))
        return features.item()

    first = drawn[0]
    atoms = [energy(e, f) for e, f in zip(first.elements, first.features, strict=True)]
    mean = 627.5094738898777 * sum(atoms) / len(atoms)
    torch.testing.assert_close(together[0].item(), mean, rtol=1e-5, atol=1e-3)


def test_the_same_seed_draws_the_same_geometries(functions):
    known = made_up_molecules(ani.Molecule)

    def drawn(seed, jitter=0.1):
        found = ani.geometries(known, functions, count=20, jitter=jitter, seed=seed)
        return torch.cat([g.features for g in found])

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0)[:4], drawn(1)[:4])
    at_rest = {m.elements: functions(m.positions[None], m.elements)[0] for m in known}
    for g in ani.geometries(known, functions, count=20, jitter=0.0, seed=0):
        torch.testing.assert_close(g.features, at_rest[g.elements])


def test_the_page_about_real_networks_runs(folder, monkeypatch):
    page = Path(__file__).parents[1] / "docs" / "how-to" / "port-between-real-networks.md"
    text = page.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python no-run\n(.*?)^```", text, flags=re.S | re.M))
    for name, here in (("train5", "train1"), ("train4", "train0"), ("500", "40")):
        assert name in code
        code = code.replace(name, here)
    monkeypatch.setitem(sys.modules, "ani_networks", ani)
    monkeypatch.setattr(ani, "molecules", lambda: made_up_molecules(ani.Molecule))
    monkeypatch.setattr(ani, "Resources", lambda path, made=ani.Resources: made(folder))
    names = {}
    exec(compile(code, page.name, "exec"), names)
    result = names["result"]
    assert result.regime == "independent"
    assert result.loss_after <= result.loss_before
