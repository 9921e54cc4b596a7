"""The Jacobian of a network's outputs, example by example and in blocks that fit in memory."""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from slipstream.deprecated import moved_names
from slipstream.evaluation.determinism import layers_that_drop
from slipstream.evaluation.swapped_weights import functional_call

__getattr__ = moved_names(__name__)  # of version 0.1

_ROWS = 256  # of the Jacobian that are computed at once: more would be no faster
_Jacobian = dict[str, Tensor]  # name to (examples, outputs, *shape of the tensor)


@dataclass(frozen=True)
class Layer:
    """A linear layer whose Jacobian is the product of what comes in and the slope at what leaves.

    For a layer `W x + b` used once, the row of an output is `g x^T`, so that products of rows are
    `(g . g') (x . x')`: no tensor of the size of W is needed for each row.
    """

    weight: str  # names of the parameters that are trained, "" if one is not
    bias: str
    width: int  # of what leaves it


@dataclass
class Network:
    """A model as a function of its trained tensors and one example."""

    model: nn.Module
    dtype: torch.dtype
    trained: dict[str, Tensor]  # detached, in `dtype`
    fixed: dict[str, Tensor]  # parameters that are frozen, and buffers

    @classmethod
    def of(cls, model: nn.Module, *, dtype: torch.dtype | None) -> "Network":
        """Take the tensors of a model as they are now.

        Args:
            model: A module whose examples do not depend on each other.
            dtype: What to compute in; at least float32 if not given.

        Returns:
            The network.

        Raises:
            ValueError: If nothing is trained, or a layer drops at random or mixes examples.
        """
        check_mode(model)
        parameters = dict(model.named_parameters())
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        if not trained:
            raise ValueError("The model has no parameter that requires a gradient.")
        if found := [name for name, value in trained.items() if value.is_complex()]:
            raise ValueError(
                f"Parameter {found[0]!r} is complex, and the Jacobian is taken over real ones: "
                "keep its real and imaginary parts as two parameters (torch.view_as_real)."
            )
        if dtype is None:
            dtype = torch.float32
            for value in trained.values():
                dtype = torch.promote_types(dtype, value.dtype)

        def cast(value: Tensor) -> Tensor:
            return value.detach().to(dtype) if value.is_floating_point() else value.detach()

        others: dict[str, Tensor] = dict(model.named_buffers())
        others |= {name: p for name, p in parameters.items() if name not in trained}
        return cls(
            model,
            dtype,
            {name: cast(value) for name, value in trained.items()},
            {name: cast(value) for name, value in others.items()},
        )

    def cast(self, inputs: Tensor) -> Tensor:
        """Return inputs in the dtype that is computed in; integers stay."""
        return inputs.to(self.dtype) if inputs.is_floating_point() else inputs

    def __call__(self, trained: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the outputs, as the model shapes them."""
        given = (self.cast(inputs),)
        tensors = {**self.fixed, **self.trained, **trained}
        with _unfused():
            found = functional_call(self.model, tensors, given)
        if not isinstance(found, Tensor):
            raise ValueError(
                f"The model must return a tensor, one row for each example; it returns a "
                f"{type(found).__name__}. Wrap it in a module that returns, say, its logits."
            )
        return found

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the model on a batch, without a gradient."""
        with torch.no_grad():
            found = self({}, inputs)
        if found.dim() == 0 or len(found) != len(inputs):
            raise ValueError(
                f"The model must return one row for each of {len(inputs)} examples; the shape of "
                f"what it returns is {tuple(found.shape)}."
            )
        return found

    def image(self, direction: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the Jacobian times a direction in the space of trained tensors, (N, C)."""
        moves = {name: value.to(self.trained[name]) for name, value in direction.items()}
        at = {name: self.trained[name] for name in moves}

        def pulled(values: Tensor) -> dict[str, Tensor]:
            found: dict[str, Tensor] = vjp(lambda tensors: self(tensors, inputs), at)[1](values)[0]
            return found

        # The transpose of the transpose: more operators have it than forward differentiation.
        forth = vjp(pulled, torch.zeros_like(self.outputs(inputs)))[1]
        image: Tensor = forth(moves)[0]
        return image.reshape(len(inputs), -1)

    def pull(self, values: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        """Return the Jacobian's transpose times one value for each output, tensor by tensor."""
        outputs, back = vjp(lambda tensors: self(tensors, inputs), self.trained)[:2]
        found: dict[str, Tensor] = back(values.reshape(outputs.shape))[0]
        return found

    def rows(
        self,
        names: Sequence[str],
        inputs: Tensor,
        units: Tensor,
        *,
        layers: Mapping[str, Layer] | None = None,
    ) -> tuple[_Jacobian, dict[str, Tensor]]:
        """Return rows of the Jacobian for every example.

        Args:
            names: Which trained tensors.
            inputs: The examples.
            units: (rows, outputs): which combinations of the outputs.
            layers: Layers to take apart, by the names of their modules.

        Returns:
            The rows by tensor, those of a layer's outputs under the name of its module, and what
            comes into each layer.

        Raises:
            ValueError: If the model cannot be differentiated example by example.
        """
        layers = layers or {}
        asked = {name: self.trained[name] for name in names}
        zero = torch.zeros((), dtype=self.dtype, device=inputs.device)
        shifts = {name: zero.expand(layer.width) for name, layer in layers.items()}

        def outputs_of(
            at: Mapping[str, Tensor], move: Mapping[str, Tensor], x: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            seen: dict[str, Tensor] = {}
            with _shifted(self.model, move, seen):
                return self(at, x[None]).flatten(), seen

        def one_example(x: Tensor) -> tuple[_Jacobian, dict[str, Tensor]]:
            # The stubs of vjp do not know what `has_aux` returns.
            pulled: Any = vjp(lambda at, move: outputs_of(at, move, x), asked, shifts, has_aux=True)
            _, pull, seen = pulled
            tensors, slopes = vmap(pull)(units)
            return {**tensors, **slopes}, seen

        try:
            found: tuple[_Jacobian, dict[str, Tensor]] = vmap(
                one_example, chunk_size=max(1, _ROWS // len(units))
            )(inputs)
        except RuntimeError as error:
            raise ValueError(
                "The model cannot be differentiated example by example with torch.func "
                f"(functional_call and vmap): {str(error).strip().splitlines()[0]}"
            ) from error
        return found


def check_mode(model: nn.Module) -> None:
    """Raise if a layer drops at random, or makes examples of a batch depend on each other.

    Args:
        model: Any module.

    Raises:
        ValueError: With the name of the layer.
    """
    if dropping := layers_that_drop(model):
        raise ValueError(
            f"The model drops at random in train mode at {dropping[0] or 'its root'}: call "
            "model.eval() first. What is computed then holds for training without dropout."
        )
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"BatchNorm at {name or 'the root'} normalises by the batch, so that the outputs "
                "of an example depend on the others: call model.eval() first, for running "
                "statistics. What is computed then holds for training in eval mode."
            )


def simple_layers(network: Network, inputs: Tensor) -> dict[str, Layer]:
    """Return the linear layers that may be taken apart: proven on an example, not assumed.

    Args:
        network: A model.
        inputs: Some examples; the first is tried.

    Returns:
        By the name of the module, layers that are called once, with one vector for each example,
        and whose parameters do nothing else.
    """
    calls: dict[str, list[tuple[int, ...]]] = {}
    found = {}
    with _watched(network.model, calls):
        network.outputs(inputs[:1])
    for name, module in network.model.named_modules():
        if calls.get(name) != [(1, getattr(module, "in_features", -1))]:
            continue
        own = {f"{name}.{kind}".lstrip("."): kind for kind in ("weight", "bias")}
        trained = {kind: full for full, kind in own.items() if full in network.trained}
        if trained and isinstance(module, nn.Linear):
            found[name] = Layer(
                trained.get("weight", ""), trained.get("bias", ""), module.out_features
            )
    return {name: layer for name, layer in found.items() if _holds(network, name, layer, inputs)}


def _holds(network: Network, name: str, layer: Layer, inputs: Tensor) -> bool:
    """Whether the layer's gradient on an example is the product that it should be."""
    first = inputs[:1]
    count = network.outputs(first).numel()
    # One combination of all outputs, with unequal shares: no output can hide behind another.
    units = torch.linspace(1, 2, count, dtype=network.dtype, device=inputs.device)[None]
    names = [kind for kind in (layer.weight, layer.bias) if kind]
    whole, _ = network.rows(names, first, units)
    parts, seen = network.rows([], first, units, layers={name: layer})
    slope, entering = parts[name][0, 0], seen[name][0]
    expected = {layer.weight: torch.outer(slope, entering), layer.bias: slope}
    return all(_close(whole[kind][0, 0], expected[kind]) for kind in names)


def _close(first: Tensor, second: Tensor) -> bool:
    scale = float(second.abs().max())
    return torch.allclose(first, second, rtol=1e-3, atol=1e-3 * scale if scale else 1e-12)


@contextmanager
def _unfused() -> Generator[None]:
    """Compute attention step by step: fused, it has no batching rule and no second derivative."""
    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(fast)


@contextmanager
def _shifted(
    model: nn.Module, shifts: Mapping[str, Tensor], seen: dict[str, Tensor]
) -> Generator[None]:
    """Add a vector to what leaves some layers, and keep what enters them."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def shift(_: nn.Module, entering: tuple[Tensor, ...], leaving: Tensor) -> Tensor:
            seen[name] = entering[0][0]
            return leaving + shifts[name]

        return shift

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in shifts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watched(model: nn.Module, calls: dict[str, list[tuple[int, ...]]]) -> Generator[None]:
    """Keep the shape of what enters each linear layer, at every call."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, entering: calls.setdefault(name, []).append(tuple(entering[0].shape))

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class JacobianBlock:
    """A part of the Jacobian that fits in memory: some tensors, examples and outputs."""

    names: tuple[str, ...]
    examples: slice
    outputs: slice


def blocks_of(
    sizes: Mapping[str, int], *, examples: int, outputs: int, values: int
) -> Iterator[list[JacobianBlock]]:
    """Yield lists of blocks; the blocks of a list cover all rows of the same tensors.

    Args:
        sizes: Values in each tensor.
        examples: Number of examples.
        outputs: Number of outputs of each.
        values: How many a block may hold; a tensor's single row may hold more.

    Yields:
        Blocks in the order of the examples, then of the outputs.
    """
    rows = examples * outputs
    group: list[str] = []
    for name in sizes:
        if group and rows * sum(sizes[n] for n in (*group, name)) > values:
            yield _cut(group, sizes, examples=examples, outputs=outputs, values=values)
            group = []
        group.append(name)
    if group:
        yield _cut(group, sizes, examples=examples, outputs=outputs, values=values)


def _cut(
    names: list[str], sizes: Mapping[str, int], *, examples: int, outputs: int, values: int
) -> list[JacobianBlock]:
    rows = max(1, values // sum(sizes[name] for name in names))
    few, part = max(1, rows // outputs), min(rows, outputs)  # examples and outputs of a block
    return [
        JacobianBlock(tuple(names), slice(at, at + few), slice(out, out + part))
        for at in range(0, examples, few)
        for out in range(0, outputs, part)
    ]


def sizes_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many values each tensor holds."""
    return {name: math.prod(value.shape) for name, value in tensors.items()}
