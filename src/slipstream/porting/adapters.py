"""LoRA adapters: what they add to a base, and their factors aligned to another base."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.porting.choosing import Choice
from slipstream.porting.displacement import halves
from slipstream.porting.plan import parts_of
from slipstream.porting.problem import LazyWeights, wide_copy
from slipstream.porting.stored import Stored, open_stored
from slipstream.pretrained import model_from_config
from slipstream.storage.tensor_form import TensorForm
from slipstream.symmetry.gather import multiply, take
from slipstream.symmetry.permutation import Permutation
from slipstream.weights import Weights

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
MERGE = (
    "Merge it with PEFT's merge_and_unload(), save the model, and port that; or save the "
    "adapter with path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
)
_DOWN = re.compile(r"\.lora_(?:embedding_)?A(?:\.weight)?$")


@dataclass(frozen=True)
class Factors:
    """The two factors of what is added to one tensor: `scale * up @ down`."""

    tensor: str  # of the base
    down: str  # key of lora_A, (rank, inputs, ...)
    up: str  # key of lora_B, (outputs, rank, ...)
    scale: float
    flipped: bool  # the tensor is (inputs, outputs), as in embeddings and GPT-2


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in the format of PEFT."""

    stored: Stored
    config: Mapping[str, Any]
    factors: tuple[Factors, ...]
    whole: Mapping[str, str]  # keys of tensors that replace the base's, to their names there

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors of the base that change."""
        return (*(factors.tensor for factors in self.factors), *self.whole.values())

    def added(self, factors: Factors, shape: torch.Size) -> Tensor:
        """Return what is added to a tensor of the base, in float32 or better."""
        up, down = (
            wide_copy(self.stored.weights[key]).flatten(1) for key in (factors.up, factors.down)
        )
        product = (up @ down).mul_(factors.scale)
        return product.T if factors.flipped else product.view(shape)

    def rank(self, factors: Factors) -> int:
        """Return the number of columns of the factors."""
        return self.stored.forms[factors.down].shape[0]

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of what is added to each tensor."""
        return {factors.tensor: self.rank(factors) for factors in self.factors}

    def on(self, base: Stored) -> Stored:
        """Return the fine-tuned weights: those of a base with the adapter merged, lazily."""
        pairs = {factors.tensor: factors for factors in self.factors}
        replaced = {name: key for key, name in self.whole.items()}

        def make(name: str) -> Tensor:
            if name in replaced:
                return self.stored.weights[replaced[name]]
            if name in pairs:
                value = base.weights[name]
                return self.added(pairs[name], value.shape).add_(value)
            return base.weights[name]

        forms = {**base.forms} | {n: self.stored.forms[key] for n, key in replaced.items()}
        return Stored(self.stored.path, LazyWeights(forms, make), {}, forms, base.config)


def is_adapter(path: str | Path) -> bool:
    """Return whether a folder holds an adapter in the format of PEFT."""
    return (Path(path) / CONFIG).is_file()


def open_adapter(path: str | Path, *, from_base: Stored, to_base: Stored) -> Adapter:
    """Open an adapter, and check that both bases have what it adapts.

    Args:
        path: The folder that PEFT's `save_pretrained` wrote.
        from_base: The base it was trained on.
        to_base: The base it is carried to.

    Returns:
        The adapter, its tensors read when they are asked for.

    Raises:
        ValueError: If it is not a plain LoRA adapter, or a base lacks a module that it adapts.
    """
    stored = open_stored(path, argument="fine_tuned")
    config = json.loads((stored.path / CONFIG).read_bytes())
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise ValueError(
            f"fine_tuned {path} is an adapter of type {kind}; only LoRA can be ported as an "
            "adapter. Merge it with PEFT's merge_and_unload(), save the model, and port that."
        )
    _check_plain(stored, config)
    factors = tuple(_factors(stored, config, from_base))
    used = {key for pair in factors for key in (pair.up, pair.down)}
    if unknown := [key for key in stored.forms if "lora_" in key and key not in used]:
        raise ValueError(_odd(stored, unknown[0]))
    whole = {
        key: key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        for key in stored.forms
        if key not in used and (".base_layer." not in key or key.endswith(".bias"))
    }
    adapter = Adapter(stored, config, factors, whole)
    _check_targets(adapter, {"from_base": from_base, "to_base": to_base})
    return adapter


def _check_plain(stored: Stored, config: Mapping[str, Any]) -> None:
    """Raise if the adapter is more, or something else, than a product added to its base."""
    if named := config.get("target_parameters"):
        raise ValueError(
            f"The adapter in {stored.path} adapts parameters by name, target_parameters={named}, "
            f"such as stacked experts, and only modules can be ported as an adapter. {MERGE}"
        )
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith("pissa") or begun in ("olora", "corda", "loftq", "lora_ga"):
        raise ValueError(
            f"The adapter in {stored.path} was initialised by {begun}, which changes the base as "
            f"well: what it adds is not scale * B @ A. {MERGE}"
        )
    odd = [key for key in stored.forms if re.search(r"lora_(B|embedding_B).*\.bias$", key)]
    odd += [key for key in stored.forms if "trainable_tokens" in key or "token_adapter" in key]
    odd += [key for key in stored.forms if "lora_magnitude" in key or ".lora_E" in key]
    if odd:
        raise ValueError(_odd(stored, odd[0]))


def _odd(stored: Stored, key: str) -> str:
    return (
        f"The adapter in {stored.path} holds {key!r}, which is not part of a plain LoRA and would "
        f"be lost. {MERGE}"
    )


def _factors(stored: Stored, config: Mapping[str, Any], base: Stored) -> Iterator[Factors]:
    transposed = _transposed_modules(base)
    for down in stored.forms:
        if _DOWN.search(down):
            module = _DOWN.sub("", down).removeprefix(_PREFIX)
            up = _DOWN.sub(lambda found: found[0].replace("A", "B"), down)
            rank = stored.forms[down].shape[0]
            flipped = "lora_embedding" in down or _is_flipped(
                (stored.forms[up].shape[0], *stored.forms[down].shape[1:]),
                base.forms.get(f"{module}.weight"),
                known=None if transposed is None else module in transposed,
                told=bool(config.get("fan_in_fan_out")),
            )
            yield Factors(f"{module}.weight", down, up, _scale(config, module, rank), flipped)


def _is_flipped(
    shape: tuple[int, ...], base: TensorForm | None, *, known: bool | None, told: bool
) -> bool:
    """Whether a weight is (inputs, outputs): by its shape, or if it is square by its module."""
    # PEFT's own flag is that of the last layer it came to, though both kinds may be adapted.
    if base is None or len(base.shape) != 2 or len(shape) != 2:
        return told
    if shape != base.shape or shape[::-1] != base.shape:
        return shape[::-1] == base.shape
    return told if known is None else known


def _transposed_modules(base: Stored) -> frozenset[str] | None:
    """The modules whose weight is (inputs, outputs), if the base's folder names its model."""
    model = _model_of(base)
    if model is None:
        return None
    return frozenset(n for n, m in model.named_modules() if type(m).__name__ == "Conv1D")


def _model_of(base: Stored) -> nn.Module | None:
    """The model of a base without values, if the base's folder names it."""
    if not base.is_folder or "model_type" not in base.config:
        return None
    try:
        return model_from_config(base.path)
    except (ModuleNotFoundError, ValueError):
        return None


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies the product by."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _check_targets(adapter: Adapter, bases: Mapping[str, Stored]) -> None:
    for argument, base in bases.items():
        lacking = [f.tensor for f in adapter.factors if f.tensor not in base.weights]
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise ValueError(
                f"The adapter adapts {', '.join(lacking[:3])}{more}, which {argument} "
                f"{base.path} lacks: it has {', '.join(list(base.weights)[:3])} and others."
            )
    base = bases["from_base"]
    new = [name for name in adapter.whole.values() if name not in base.weights]
    model = _model_of(base) if new else None
    known = dict(model.named_parameters(remove_duplicate=False)) if model is not None else {}
    if tied := [name for name in new if name in known]:
        raise ValueError(
            f"The adapter in {adapter.stored.path} holds {tied[0]!r} whole, which from_base "
            f"{base.path} ties to another tensor, so that both change. {MERGE}"
        )


def ported_adapter(
    adapter: Adapter, choice: Choice, to_base: Weights, *, retokenised: frozenset[str]
) -> dict[str, Tensor]:
    """Return the adapter's tensors for the other base.

    The factors themselves are permuted to the other base's neurons where the method only moves
    neurons; the rank lists no neurons, and stays. What a gradient changed entry by entry is
    factored again, and so is an embedding of other tokens.

    Args:
        adapter: What was trained on the first base.
        choice: The prepared method and its strength.
        to_base: The other base.
        retokenised: Tensors whose rows the other base has for other tokens.

    Returns:
        Tensors under the adapter's own keys, in its own dtypes.
    """
    ported: dict[str, Tensor] = {}
    for factors in adapter.factors:
        made = None if factors.tensor in retokenised else _permuted(adapter, factors, choice)
        up, down = made or _factored(adapter, factors, choice)
        ported |= {factors.up: up, factors.down: down}
    for key in adapter.stored.forms:
        if key not in ported:
            ported[key] = _replaced(adapter, key, choice, to_base)
    return {
        key: ported[key].to(form.dtype).contiguous() for key, form in adapter.stored.forms.items()
    }


def _permuted(adapter: Adapter, factors: Factors, choice: Choice) -> tuple[Tensor, Tensor] | None:
    """The two factors, each with its neurons in the order of the other base; None if impossible."""
    aligner = choice.prepared.aligner
    if (
        choice.before is not None
        or parts_of(choice.prepared.method)[1] != "none"
        or not isinstance(aligner, Permutation)
    ):
        return None
    indices, signs = aligner.indices(factors.tensor), aligner.factors(factors.tensor)
    if any(index.dim() > 1 for index in (*indices.values(), *signs.values())):
        return None  # the order on one axis depends on the position on the other

    def along(value: Tensor, axis: int) -> Tensor:
        there = 1 - axis if factors.flipped else axis
        value = take(value, {axis: indices[there]} if there in indices else {})
        return multiply(value, {axis: signs[there]} if there in signs else {})

    up, down = (adapter.stored.weights[key] for key in (factors.up, factors.down))
    return along(wide_copy(up), 0).mul(choice.strength), along(down, 1)


def _factored(adapter: Adapter, factors: Factors, choice: Choice) -> tuple[Tensor, Tensor]:
    """The factors of a dense displacement, as many columns as the adapter has."""
    moved = choice.added(factors.tensor).div_(factors.scale)
    matrix = moved.T if factors.flipped else moved.flatten(1)
    up, down = halves(matrix, adapter.rank(factors))
    shapes = (adapter.stored.forms[key].shape for key in (factors.up, factors.down))
    rows, columns = (shape[2:] for shape in shapes)
    return up.view(*up.shape, *rows), down.view(len(down), -1, *columns)


def _replaced(adapter: Adapter, key: str, choice: Choice, to_base: Weights) -> Tensor:
    """A tensor that an adapter holds whole; a new head is what it was."""
    name = adapter.whole.get(key)
    if name in choice.prepared.displacement and name is not None:
        return choice.at(name, to_base[name])
    beneath = key.removeprefix(_PREFIX).replace(".base_layer.", ".")  # the base's own embedding
    return to_base.get(beneath, adapter.stored.weights[key])
