"""Networks of random numbers in the files of the wheel torchani, and molecules for them."""

import numpy as np
import torch

WIDTHS = {"H": (384, 5, 4, 3, 1), "C": (384, 4, 4, 3, 1), "N": (384, 4, 3, 3, 1)}
WIDTHS["O"] = WIDTHS["N"]
CONSTANTS = """TM = 1
Rcr = 5.2
Rca = 3.5
EtaR = [16.0]
ShfR = [{radial}]
Zeta = [32.0]
ShfZ = [{angles}]
EtaA = [8.0]
ShfA = [0.9,1.55,2.2,2.85]
Atyp = [H,C,N,O]
"""


def write_resources(folder, *, members):
    """Write bases, and fine-tunes that are near them."""
    radial = ",".join(f"{value:.6f}" for value in np.linspace(0.9, 4.93125, 16))
    angles = ",".join(f"{value:.8f}" for value in (np.arange(8) + 0.5) * np.pi / 8)
    random = np.random.default_rng(0)
    for member in range(members):
        drawn = dict(_parameters(random))
        for kind, noise in (("ani-1x_8x", 0.0), ("ani-1ccx_8x", 0.02)):
            networks = folder / kind / f"train{member}" / "networks"
            networks.mkdir(parents=True)
            constants = CONSTANTS.format(radial=radial, angles=angles)
            (folder / kind / "rHCNO.params").write_text(constants, encoding="utf-8")
            description = networks.parent / "inputtrain.ipt"
            description.write_text(_description(), encoding="utf-8")
            for name, values in drawn.items():
                moved = values + noise * random.normal(size=values.shape)
                moved.astype("<f4").tofile(networks / name)
    return folder


def _parameters(random):
    for element, widths in WIDTHS.items():
        for layer in range(1, len(widths)):
            fan_in, width = widths[layer - 1 : layer + 1]
            file = f"ANN-{element}.nnf-l{layer}"
            yield f"{file}.wparam", random.normal(size=(width, fan_in)) / fan_in**0.5
            yield f"{file}.bparam", random.normal(size=width)


def _description():
    def layers(widths):
        for width in widths[1:]:
            yield f"layer [ nodes={width}; activation={6 if width == 1 else 9}; ]"

    nets = "\n".join(f"atom_net {e} $ {' '.join(layers(w))} $" for e, w in WIDTHS.items())
    return f"eta=0.001\nnetwork_setup {{\n inputsize=384;\n{nets}\n}}\n"


def made_up_molecules(molecule):
    """Some molecules of the four elements, by their class."""
    random = torch.Generator().manual_seed(0)
    formulas = "CHHHH", "OCHH", "NHHH", "CCNHHH", "OHOH", "CNHO"
    return [molecule(f, tuple(f), 1.2 * torch.randn(len(f), 3, generator=random)) for f in formulas]
