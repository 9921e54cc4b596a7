"""Many tasks in one pass: layers that keep what each task learned apart from their shared weights.

The examples of T tasks, n of each, pass through a model as one batch of T n. In a linear layer the
weights of task t are W - alpha sum_k D_k' A_k, with the inputs A and the output gradients D of its
support examples at inner step k. Such a sum of outer products is never written out: X W' is one
product for all tasks, and the rest, (X A') D, is small. Where a mask m is on the weights,
W - m * (D' A) is written out, but for one task at a time; or, for very few examples, each pair of
rows of X and A is multiplied with m.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

PAIRS = 36  # of a support and a query row, up to which it is quicker to look at each


class TaskLayer:
    """A layer for the length of an inner loop, and what its tasks have moved."""

    takes: ClassVar[tuple[type[nn.Module], ...]]  # exactly these, no subclasses

    def __init__(
        self, layer: Any, *, tasks: int, moved: frozenset[str], mask: Tensor | None, keep: str
    ) -> None:
        """Begin with the same weights for every task.

        Args:
            layer: Whose shared tensors are used; they may be swapped between two passes.
            tasks: How many.
            moved: Its own names of the parameters that the inner steps move.
            mask: What gradients of the weight are multiplied with.
            keep: Which graphs of an inner step are kept: `none` of them, that of a `single` step,
                or those of `several`, whose gradients need gradients too.
        """
        self.layer, self.tasks, self.moved, self.mask, self.keep = layer, tasks, moved, mask, keep
        self._own: dict[str, Tensor] = {}  # per task: (tasks, *shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map the inputs of all tasks, (tasks * examples, ...), to outputs."""
        raise NotImplementedError

    def seen(self) -> list[Tensor]:
        """Return the tensors of the last pass that `learn` wants the gradients of."""
        return list(self._own.values())

    def learn(self, slopes: Sequence[Tensor], rate: float) -> None:
        """Do an inner step with the gradients, at `seen`, of the sum over tasks."""
        for name, slope in zip(self._own, slopes, strict=True):
            factor = rate * self.mask if name == "weight" and self.mask is not None else rate
            self._own[name] = self._own[name] - factor * slope

    def own(self, name: str) -> Tensor | None:
        """Return a parameter for each task, (tasks, *shape), or None if the layer has none."""
        shared: Tensor | None = getattr(self.layer, name)
        if shared is None:
            return None
        value = self._own.get(name, shared.expand(self.tasks, *shared.shape))
        if name in self.moved:
            self._own[name] = value = _with_gradient(value)
        return value

    def wide(self, x: Tensor) -> Tensor:
        """Return the tasks as groups of channels: (examples, tasks * channels, ...)."""
        return torch.flatten(self.split(x).transpose(0, 1), 1, 2)

    def join(self, y: Tensor) -> Tensor:
        """Return what is `wide` as one batch again: (tasks * examples, channels, ...)."""
        apart = y.reshape(len(y), self.tasks, -1, *y.shape[2:])
        return apart.transpose(0, 1).flatten(0, 1)

    def split(self, x: Tensor) -> Tensor:
        """Return values of all tasks with an axis of the tasks: (tasks, examples, ...)."""
        return x.reshape(self.tasks, -1, *x.shape[1:])


class LinearTasks(TaskLayer):
    """`nn.Linear`: shared weights, and low-rank changes of them."""

    takes = (nn.Linear,)

    def __init__(self, layer: Any, **how: Any) -> None:
        """Begin with no change; see `TaskLayer`."""
        super().__init__(layer, **how)
        self._terms: list[tuple[Tensor, Tensor]] = []  # inputs, and rate times output gradients
        self._used: list[tuple[Tensor, Tensor]] = []  # inputs and outputs of this pass

    def forward(self, x: Tensor) -> Tensor:
        """Map (tasks * examples, ..., in) to (tasks * examples, ..., out)."""
        rows = x.reshape(self.tasks, -1, x.shape[-1])  # (tasks, rows, in)
        weight, terms = self.layer.weight, self._terms
        if self.mask is None:
            y: Tensor = rows @ weight.mT
            for inputs, slopes in terms:
                y = y - (rows @ inputs.mT) @ slopes
        else:
            y = self._masked(rows, weight, terms)
        if "weight" in self.moved and torch.is_grad_enabled():
            y = _with_gradient(y)
            self._used.append((rows, y))
        bias = self.own("bias")
        if bias is not None:
            y = y + bias[:, None]
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def seen(self) -> list[Tensor]:
        """Return the outputs without the bias, and the biases."""
        return [*(y for _, y in self._used), *super().seen()]

    def learn(self, slopes: Sequence[Tensor], rate: float) -> None:
        """Add an outer product to what the tasks have learned."""
        for (rows, _), slope in zip(self._used, slopes, strict=False):
            inputs = rows.detach() if self.keep == "none" else rows
            self._terms.append((inputs, rate * slope))
        super().learn(slopes[len(self._used) :], rate)
        self._used = []

    def _masked(self, x: Tensor, weight: Tensor, terms: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return X (W - sum_k m * (D_k' A_k))', with the mask m."""
        assert self.mask is not None
        if not terms:
            return x @ weight.mT
        if terms[0][0].shape[1] * x.shape[1] <= PAIRS:
            y = x @ weight.mT
            for inputs, slopes in terms:
                pairs = (inputs[:, :, None] * x[:, None]) @ self.mask.mT  # (tasks, A, X, out)
                y = y - (pairs * slopes[:, :, None]).sum(1)
            return y
        # One product with as many rows as all steps have together.
        inputs, slopes = (torch.cat(parts, 1) for parts in zip(*terms, strict=True))
        if self.keep == "several":
            return x @ (weight - self.mask * (slopes.mT @ inputs)).mT
        given = (value.to(weight) for value in (x, inputs, slopes, self.mask))
        with torch.autocast(x.device.type, enabled=False):  # its backward pass knows one kind only
            found: Tensor = _MaskedProduct.apply(*given, weight)  # type: ignore[no-untyped-call]
        return found


class Conv2dTasks(TaskLayer):
    """`nn.Conv2d`: weights of its own for each task, the tasks as groups of channels."""

    takes = (nn.Conv2d,)

    def forward(self, x: Tensor) -> Tensor:
        """Map (tasks * examples, channels, height, width) to outputs."""
        layer, weight, bias = self.layer, self.own("weight"), self.own("bias")
        assert weight is not None
        given = weight.flatten(0, 1), None if bias is None else bias.flatten()
        how = layer.stride, layer.padding, layer.dilation, layer.groups * self.tasks
        return self.join(functional.conv2d(self.wide(x), *given, *how))


class BatchNormTasks(TaskLayer):
    """BatchNorm by the statistics of each task."""

    takes = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over the examples of its task."""
        weight, bias = (v if v is None else v.flatten() for v in map(self.own, ("weight", "bias")))
        return self.join(
            functional.batch_norm(self.wide(x), None, None, weight, bias, True, 0.0, self.layer.eps)
        )


class LayerNormTasks(TaskLayer):
    """LayerNorm with gains and shifts of its own for each task."""

    takes = (nn.LayerNorm,)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axes."""
        shape = self.layer.normalized_shape
        y = self.split(functional.layer_norm(x, shape, None, None, self.layer.eps))
        between = (1,) * (y.dim() - 1 - len(shape))
        weight, bias = self.own("weight"), self.own("bias")
        if weight is not None:
            y = y * weight.reshape(self.tasks, *between, *shape)
        if bias is not None:
            y = y + bias.reshape(self.tasks, *between, *shape)
        return y.flatten(0, 1)


KINDS = {
    kind: made for made in (LinearTasks, Conv2dTasks, BatchNormTasks, LayerNormTasks)
    for kind in made.takes
}  # fmt: skip
_NORMS = BatchNormTasks.takes  # these mix examples, so they count even if nothing moves


def task_layers(
    model: nn.Module, *, tasks: int, moved: Sequence[str], masks: Mapping[str, Tensor], keep: str
) -> dict[str, TaskLayer]:
    """Return a layer for each module that the tasks must have apart.

    Args:
        model: Any module.
        tasks: How many.
        moved: Names of the parameters that the inner steps move.
        masks: What gradients of some weights are multiplied with.
        keep: See `TaskLayer`.

    Returns:
        The layers by the names of their modules.

    Raises:
        ValueError: If a parameter is tied, or one that moves is of a module that is none of
            `KINDS`.
    """
    named = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    if len(set(named)) < len(named):
        raise ValueError("Tied weights cannot be held apart.")
    found: dict[str, TaskLayer] = {}
    for name, module in model.named_modules():
        own = {f"{name}.{leaf}".lstrip("."): leaf for leaf in module._parameters}
        leaves = frozenset(leaf for full, leaf in own.items() if full in moved)
        made = KINDS.get(type(module))
        if leaves and (made is None or getattr(module, "padding_mode", "zeros") != "zeros"):
            raise ValueError(f"{name!r} ({type(module).__name__}) cannot hold tasks apart.")
        if made is not None and (leaves or type(module) in _NORMS):
            mask = masks.get(f"{name}.weight".lstrip("."))
            found[name] = made(module, tasks=tasks, moved=leaves, mask=mask, keep=keep)
    return found


@contextmanager
def in_place(model: nn.Module, layers: Mapping[str, TaskLayer]) -> Generator[None]:
    """Let layers of a model be task layers for a `with` block."""
    modules = [(model.get_submodule(name), layer) for name, layer in layers.items()]
    try:
        for module, layer in modules:
            module.__dict__["forward"] = layer.forward
        yield
    finally:
        for module, _ in modules:
            module.__dict__.pop("forward", None)


@contextmanager
def batchnorm_in_parts(model: nn.Module) -> Generator[None]:
    """Let BatchNorm layers be computed by plain arithmetic, from the batch alone.

    Under vmap, PyTorch takes wrong second derivatives of `batch_norm` (seen up to 2.13): its batch
    statistics count as constants there.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        for layer in layers:
            layer.__dict__["forward"] = partial(_normalised, layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _normalised(layer: _BatchNorm, x: Tensor) -> Tensor:
    """BatchNorm by the statistics of the batch: (examples, channels, ...)."""
    over = [axis for axis in range(x.dim()) if axis != 1]
    shape = (-1, *(1,) * (x.dim() - 2))
    centred = x - x.mean(over, keepdim=True)
    y = centred * (centred.square().mean(over, keepdim=True) + layer.eps).rsqrt()
    if layer.affine:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    return y


def _with_gradient(value: Tensor) -> Tensor:
    """The tensor itself, as one that gradients can be taken at."""
    return value if value.requires_grad else value.detach().requires_grad_()


class _MaskedProduct(torch.autograd.Function):
    """X (W - m * (D' A))', task by task: what is in brackets is never kept."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        ctx.save_for_backward(*given)
        x, a, d, mask, weight = given
        return torch.stack(
            [x[t] @ torch.addcmul(weight, d[t].T @ a[t], mask, value=-1).T for t in range(len(x))]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, a, d, mask, weight = ctx.saved_tensors
        found = [torch.empty_like(value) for value in (x, a, d)]
        of_mask = torch.zeros_like(mask) if ctx.needs_input_grad[3] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[4] else None
        for t, slope in enumerate(slopes[0]):
            outer, back = d[t].T @ a[t], slope.T @ x[t]  # (out, in)
            if of_mask is not None:
                of_mask.addcmul_(outer, back, value=-1)
            if of_weight is not None:
                of_weight += back
            found[0][t] = slope @ torch.addcmul(weight, outer, mask, value=-1)
            back.mul_(mask)
            found[1][t] = -d[t] @ back
            found[2][t] = -a[t] @ back.T
        return (*found, of_mask, of_weight)
