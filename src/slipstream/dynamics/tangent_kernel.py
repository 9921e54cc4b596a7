"""The empirical neural tangent kernel: how a step on one example moves the outputs of another."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slipstream.dynamics.jacobians import (
    JacobianBlock,
    Layer,
    Network,
    blocks_of,
    simple_layers,
    sizes_of,
)
from slipstream.dynamics.prediction_plan import MEMORY, Outputs
from slipstream.evaluation import Batch, Task, inputs_of, takes_task, to_device, weights_in
from slipstream.evaluation.batches import device_of
from slipstream.weights import Weights


@dataclass(frozen=True)
class TangentKernel:
    """Result of `tangent_kernel`."""

    # (1, N*C, N*C): row i*C + c is output c of example i; or, if separate, (C, N, N).
    blocks: Tensor
    outputs: Tensor  # (N, C) at the weights
    kind: Outputs
    tensors: tuple[str, ...]  # the parameters that are trained
    factored: tuple[str, ...]  # the linear layers whose Jacobian was never written out
    seconds: float  # what it took

    def times(self, values: Tensor) -> Tensor:
        """Return the kernel times `values`, one for each output of each example.

        Args:
            values: (N, C).

        Returns:
            (N, C). A kernel of separate outputs leaves out what passes between outputs.
        """
        return self.joined(torch.bmm(self.blocks, self.split(values)))

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of each block: (1, N*C) or (C, N), rising."""
        values: Tensor = torch.linalg.eigvalsh(self.blocks)
        return values

    def part(self, examples: int) -> Tensor:
        """Return the blocks of the first `examples` examples."""
        rows = examples * (self.outputs.shape[1] if self.kind == "full" else 1)
        return self.blocks[:, :rows, :rows]

    def columns(self, rows: Tensor, values: Tensor) -> Tensor:
        """Return the kernel times values that are zero but at some examples.

        Args:
            rows: (n,) which examples.
            values: (n, C) the values there.

        Returns:
            (N, C).
        """
        count = self.outputs.shape[1]
        if self.kind == "full":
            rows = (rows[:, None] * count + torch.arange(count, device=rows.device)).flatten()
        return self.joined(torch.bmm(self.blocks[:, :, rows], self.split(values)))

    def split(self, values: Tensor) -> Tensor:
        """Return (n, C) values as a column for each block."""
        return values.reshape(1, -1, 1) if self.kind == "full" else values.T[:, :, None]

    def joined(self, columns: Tensor) -> Tensor:
        """Return what `split` made of (n, C) values, as (n, C) again."""
        if self.kind == "full":
            return columns.reshape(-1, self.outputs.shape[1])
        return columns[:, :, 0].T


@takes_task
def tangent_kernel(
    task: Task,
    *,
    weights: Weights | None = None,
    outputs: Outputs = "full",
    dtype: torch.dtype | None = None,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> TangentKernel:
    """Compute the empirical neural tangent kernel `Theta = J J^T` over all examples of a task.

    `J` is the Jacobian of the outputs with respect to the parameters that require a gradient. It
    is computed example by example, in blocks, and never held as a whole. Rows of linear layers
    that see one vector for each example are kept as products of two vectors.

    Args:
        task: A model in eval mode, or one in which examples do not depend on each other, left as
            it was; and batches whose inputs are a tensor with one row for each example.
        weights: Where to take the kernel, instead of at the model's own tensors.
        outputs: `full` has all pairs of outputs; `separate` only those of an output with itself,
            at a C-th of the memory.
        dtype: What to compute in; that of the parameters, float32 at least, if not given.
        memory: Bytes that the kernel, and blocks of the Jacobian, may each take.
        progress: Called after each block with their number so far, and in all.

    Returns:
        The kernel, and the outputs.

    Raises:
        ValueError: If there is no data, the kernel does not fit, or the model cannot be
            differentiated example by example.

    Example:
        >>> from torch import nn
        >>> task = Task(nn.Linear(1, 1, bias=False), [torch.tensor([[1.0], [3.0]])])
        >>> tangent_kernel(task).blocks
        tensor([[[1., 3.],
                 [3., 9.]]])

    Source:
        "Neural Tangent Kernel: Convergence and Generalization in Neural Networks" (Jacot, Gabriel,
        Hongler, 2018), equation 4; the products of linear layers as in "Fast Finite Width Neural
        Tangent Kernel" (Novak, Sohl-Dickstein, Schoenholz, 2022), section 3.3.
    """
    if outputs not in {"full", "separate"}:
        raise ValueError(f"outputs must be full or separate, got {outputs!r}.")
    started = time.perf_counter()
    with weights_in(task.model, weights):
        network = Network.of(task.model, dtype=dtype)
        inputs, found = outputs_over(network, task.data)
        check_memory(*found.shape, kind=outputs, itemsize=found.element_size(), memory=memory)
        _check_independent(network, inputs, found)
        values = memory // found.element_size()
        layers = {
            name: layer
            for name, layer in simple_layers(network, inputs).items()
            if found.numel() * layer.width <= values // 4
        }
        whole = _Sum(network, inputs, found, outputs)
        whole.add_layers(layers, values=values)
        taken = {name for one in layers.values() for name in (one.weight, one.bias)}
        others = {name: v for name, v in network.trained.items() if name not in taken}
        whole.add_tensors(others, values=values, progress=progress)
    seconds = time.perf_counter() - started
    return TangentKernel(
        whole.blocks(), found, outputs, tuple(network.trained), tuple(layers), seconds
    )


def outputs_over(network: Network, data: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Return all inputs on the model's device, and the outputs as (N, C).

    Args:
        network: The model.
        data: Batches.

    Returns:
        Inputs and outputs.

    Raises:
        ValueError: If there is no example, inputs are not a tensor, or something is not finite.
    """
    inputs, outputs = [], []
    device = device_of(network.model)
    for number, batch in enumerate(data):
        given = to_device(inputs_of(batch), device)
        if not isinstance(given, Tensor):
            raise ValueError(
                "The inputs of a batch must be a tensor with one row for each example; those of "
                f"batch {number} (counted from 0) are a {type(given).__name__}."
            )
        if given.is_floating_point() and not given.isfinite().all():
            raise ValueError(f"The inputs of batch {number} (counted from 0) are not all finite.")
        if len(given):
            inputs.append(given)
            outputs.append(network.outputs(given).reshape(len(given), -1))
    if not inputs:
        raise ValueError("data is empty: there is no example.")
    whole = torch.cat(outputs)
    if not whole.isfinite().all():
        raise ValueError("The outputs of the model are not all finite.")
    return torch.cat(inputs), whole


def check_memory(examples: int, outputs: int, *, kind: Outputs, itemsize: int, memory: int) -> None:
    """Raise if a kernel is too large, and say what would fit.

    Args:
        examples: Number of examples.
        outputs: Number of outputs of each.
        kind: Whether all pairs of outputs are kept.
        itemsize: Bytes of a value.
        memory: Bytes that there are.

    Raises:
        ValueError: With the bytes it takes.
    """
    separate = outputs * examples**2 * itemsize
    needed = separate * outputs if kind == "full" else separate
    if needed <= memory:
        return
    fewer = int((memory / (itemsize * (outputs**2 if kind == "full" else outputs))) ** 0.5)
    other = f'outputs="separate" ({_gigabytes(separate)}), ' if kind == "full" else ""
    raise ValueError(
        f"The kernel of {examples} examples with {outputs} outputs each takes "
        f"{_gigabytes(needed)}, and memory allows {_gigabytes(memory)}: give at most {fewer} "
        f"examples, {other}or more memory."
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"


def _check_independent(network: Network, inputs: Tensor, outputs: Tensor) -> None:
    """Raise if the first example has other outputs alone than among the others."""
    alone = network.outputs(inputs[:1]).flatten()
    scale = float(outputs.abs().max())
    if not torch.allclose(alone, outputs[0], rtol=1e-3, atol=1e-3 * scale):
        raise ValueError(
            "The outputs of an example depend on the others in its batch: the first one has other "
            "outputs alone. Such a model has no Jacobian example by example."
        )


class _Sum:
    """The kernel while it is summed over the parameters."""

    def __init__(self, network: Network, inputs: Tensor, outputs: Tensor, kind: Outputs) -> None:
        self._network, self._inputs, self._kind = network, inputs, kind
        self._units = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        examples, count = outputs.shape
        shape = (examples, count, examples, count) if kind == "full" else (count, *[examples] * 2)
        self._kernel = outputs.new_zeros(shape)

    def blocks(self) -> Tensor:
        """Return the kernel as square blocks."""
        if self._kind == "separate":
            return self._kernel
        rows = self._kernel.shape[0] * self._kernel.shape[1]
        return self._kernel.view(1, rows, rows)

    def add_layers(self, layers: Mapping[str, Layer], *, values: int) -> None:
        """Add what linear layers contribute, all at once or, if that is too much, one by one."""
        rows = len(self._inputs) * len(self._units)
        if layers and rows * sum(layer.width for layer in layers.values()) <= values // 4:
            self._add_layers(layers)
        else:
            for name, layer in layers.items():
                self._add_layers({name: layer})

    def _add_layers(self, layers: Mapping[str, Layer]) -> None:
        """Add (g . g') (x . x' + 1 if there is a bias)."""
        slopes, entering = self._network.rows([], self._inputs, self._units, layers=layers)
        for name, layer in layers.items():
            inner = self._kernel.new_full([len(self._inputs)] * 2, float(bool(layer.bias)))
            if layer.weight:
                inner += entering[name] @ entering[name].T
            products = self._products(slopes[name], slopes[name])
            if self._kind == "full":
                inner = inner[:, None, :, None]
            self._kernel += products * inner

    def add_tensors(
        self,
        tensors: Mapping[str, Tensor],
        *,
        values: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        """Add what tensors contribute, their Jacobian written out block by block."""
        examples, count = len(self._inputs), len(self._units)
        # Two blocks at a time, and as much again while a block is put together.
        groups = list(
            blocks_of(sizes_of(tensors), examples=examples, outputs=count, values=values // 4)
        )
        total = sum(len(blocks) * (len(blocks) + 1) // 2 for blocks in groups)
        done = 0
        for blocks in groups:
            for number, first in enumerate(blocks):
                rows = self._rows(first)
                for second in blocks[: number + 1]:
                    self._add(first, second, rows)
                    done += 1
                    if progress is not None:
                        progress(done, total)

    def _rows(self, block: JacobianBlock) -> dict[str, Tensor]:
        units = self._units[block.outputs]
        return self._network.rows(block.names, self._inputs[block.examples], units)[0]

    def _add(self, first: JacobianBlock, second: JacobianBlock, rows: dict[str, Tensor]) -> None:
        if self._kind == "separate" and first.outputs != second.outputs:
            return
        others = rows if second is first else self._rows(second)
        for name in first.names:
            pair = (found[name].reshape(*found[name].shape[:2], -1) for found in (rows, others))
            products = self._products(*pair)
            if self._kind == "separate":
                self._kernel[first.outputs, first.examples, second.examples] += products
                if second is not first:
                    turned = products.transpose(1, 2)
                    self._kernel[first.outputs, second.examples, first.examples] += turned
            else:
                at = (first.examples, first.outputs, second.examples, second.outputs)
                self._kernel[at] += products
                if second is not first:
                    self._kernel[at[2:] + at[:2]] += products.permute(2, 3, 0, 1)

    def _products(self, first: Tensor, second: Tensor) -> Tensor:
        """Inner products of rows (n, c, values) and (m, d, values)."""
        if self._kind == "separate":
            return torch.bmm(first.transpose(0, 1), second.permute(1, 2, 0))  # (c, n, m)
        products = first.flatten(0, 1) @ second.flatten(0, 1).T
        return products.view(*first.shape[:2], *second.shape[:2])
