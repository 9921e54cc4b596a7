"""Products of the loss's Hessian with vectors, over a whole data set, without the matrix."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from slipstream.evaluation import Task, eval_mode, probe_determinism, takes_task, weights_in
from slipstream.evaluation.batches import sized_batches
from slipstream.evaluation.metrics import checked_loss
from slipstream.landscape.plans import Mode
from slipstream.weights import Weights, check_shapes, norm


class MeanLoss:
    """The mean loss over some batches, as a function of the trained parameters in one vector.

    The batches are read once and kept. Vectors are flat, in float32 or better, in the order of
    `named_parameters`.
    """

    def __init__(self, task: Task, *, weights: Weights | None, mode: Mode = "eval") -> None:
        if mode not in ("eval", "own"):
            raise ValueError(f"mode must be 'eval' or 'own', got {mode!r}.")
        model, self._loss, self._weights, self._mode = task.model, task.loss, weights, mode
        self._model = model
        self.batches = list(sized_batches(model, task.data, task.batch_size))
        self.examples = sum(size for _, size in self.batches)
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._trained:
            raise ValueError("The model has no parameter that requires a gradient.")
        if found := [name for name, p in self._trained.items() if p.is_complex()]:
            raise ValueError(
                f"Parameter {found[0]!r} is complex, and the Hessian is taken over real ones: keep "
                "its real and imaginary parts as two parameters (torch.view_as_real)."
            )
        dtypes = [p.dtype for p in self._trained.values()]
        self.dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        self.device = next(iter(self._trained.values())).device
        self.size = sum(p.numel() for p in self._trained.values())
        self.products = 0  # with vectors, each a pass over the data
        self._probe()

    def value(self, displacement: Tensor | None = None) -> float:
        """Return the loss at the weights, or `displacement` (size,) away from them."""
        total = 0.0
        with self._in_place(), torch.no_grad():
            if displacement is not None:
                for parameter, part in zip(
                    self._trained.values(), self._parts(displacement), strict=True
                ):
                    parameter.data = parameter.data + part.to(parameter.dtype)  # not in place
            for batch, size in self.batches:
                total += size * float(self._loss(self._model, batch))
        return total / self.examples

    def gradients(self) -> Generator[tuple[Tensor, int]]:
        """Yield the gradient (size,) of the mean loss of each batch, and the batch's size."""
        with self._in_place(), torch.enable_grad():
            for number, (batch, size) in enumerate(self.batches):
                value = checked_loss(self._loss(self._model, batch), number)
                parameters = list(self._trained.values())
                yield (
                    self._flat(torch.autograd.grad(value, parameters, materialize_grads=True)),
                    size,
                )

    def gradient(self) -> Tensor:
        """Return the gradient of the mean loss, (size,)."""
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for slope, size in self.gradients():
            total += slope * (size / self.examples)
        return total

    def product(self, vector: Tensor) -> Tensor:
        """Return the Hessian of the mean loss times `vector`, (size,)."""
        self.products += 1
        parts = self._parts(vector)
        parameters = list(self._trained.values())
        total = torch.zeros_like(vector)
        with self._in_place(), torch.enable_grad(), _second_derivative():
            for number, (batch, size) in enumerate(self.batches):
                value = checked_loss(self._loss(self._model, batch), number)
                slopes = torch.autograd.grad(
                    value, parameters, create_graph=True, materialize_grads=True
                )
                inner = [(s * v.to(s)).sum() for s, v in zip(slopes, parts, strict=True)]
                along = torch.stack(inner).sum()
                if not along.requires_grad:  # the loss is linear in all of them
                    continue
                if self.products == 1 and number == 0:
                    _check_twice_differentiable(along)
                curved = torch.autograd.grad(along, parameters, materialize_grads=True)
                total += self._flat(curved) * (size / self.examples)
        return total

    def flatten(self, vector: Weights) -> Tensor:
        """Return the values for the trained parameters in one vector, zeros for those it lacks."""
        check_shapes(vector, {n: tuple(p.shape) for n, p in self._trained.items()})
        zeros = {n: torch.zeros_like(p) for n, p in self._trained.items()}
        return self._flat([(zeros | dict(vector))[name] for name in self._trained])

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a flat vector by the names of the parameters."""
        return dict(zip(self._trained, self._parts(vector), strict=True))

    def _flat(self, parts: Iterable[Tensor]) -> Tensor:
        return torch.cat([part.detach().to(self.device, self.dtype).flatten() for part in parts])

    def _parts(self, vector: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self._trained.values()]
        pieces = zip(torch.split(vector, sizes), self._trained.values(), strict=True)
        return [piece.view(parameter.shape) for piece, parameter in pieces]

    @contextmanager
    def _in_place(self) -> Generator[None]:
        mode = eval_mode(self._model) if self._mode == "eval" else nullcontext()
        with weights_in(self._model, self._weights), mode:
            yield

    def _probe(self) -> None:
        batch, size = self.batches[0]
        with self._in_place():
            probe = probe_determinism(
                self._model, self._loss, data=[batch], batch_size=lambda _: size
            )
        if not probe.deterministic:
            raise ValueError(
                f"The loss is not deterministic: {' and '.join(probe.suspects)}. Curvature needs a "
                "loss that is a function of the weights; mode='eval' switches dropout off."
            )


@takes_task
def hessian_product(
    vector: Weights, task: Task, *, weights: Weights | None = None, mode: Mode = "eval"
) -> dict[str, Tensor]:
    """Return the Hessian of the mean loss over `task.data`, times a vector.

    It is the gradient of `<gradient of the loss, vector>`, taken by a second pass backwards
    through the first ("Fast Exact Multiplication by the Hessian", Pearlmutter, 1994).

    Args:
        vector: Values by the names of trained parameters; zeros for those it lacks.
        task: The model, left as it was, the loss, and the data, which is kept in memory.
        weights: Where to take it, instead of at the model's own tensors.
        mode: `eval`: BatchNorm uses its running statistics, dropout is off. `own`: every module
            stays in the mode it is in.

    Returns:
        The product, by the same names, of every trained parameter.

    Raises:
        ValueError: If there is no data, the loss is not deterministic, a batch loss is not a
            finite number, or an operator has no second derivative.

    Example:
        >>> from torch import nn
        >>> data = [torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 3.0]])]
        >>> half = lambda model, batch: model(batch).square().mean() / 2
        >>> hessian_product(
        ...     {"weight": torch.ones(1, 2)}, Task(nn.Linear(2, 1, bias=False), data, half)
        ... )
        {'weight': tensor([[2.6667, 3.0000]])}
    """
    mean = MeanLoss(task, weights=weights, mode=mode)
    product = mean.named(mean.product(mean.flatten(vector)))
    if not norm(product) < torch.inf:
        raise ValueError("The Hessian holds a NaN or an infinity at these weights.")
    return product


def _check_twice_differentiable(along: Tensor) -> None:
    """Raise where autograd would silently take the second derivative of an operator for 0."""
    nodes, waiting = set[Any](), [along.grad_fn]
    while waiting:
        if (node := waiting.pop()) is not None and node not in nodes:
            nodes.add(node)
            waiting += [following for following, _ in node.next_functions]
    if any(node.name() == "torch::autograd::Error" for node in nodes):
        raise ValueError(
            "The Hessian cannot be taken, an operator has no second derivative: a function of the "
            "model or the loss, a torch.autograd.Function, is marked with once_differentiable. "
            "Use one whose backward is made of differentiable operators."
        )


@contextmanager
def _second_derivative() -> Generator[None]:
    """Report what has no second derivative, and how to repair it."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        if "inplace operation" in said:
            repair = (
                "an in-place operation overwrites what the derivative needs. Use the form that "
                "makes a new tensor, such as x = x + y instead of x += y"
            )
        elif "not implemented" in said and "derivative for" in said:
            repair = (
                "an operator has no second derivative. Use its plain form; for attention, call "
                "inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
            )
        else:
            raise
        raise ValueError(f"The Hessian cannot be taken, {repair}. PyTorch says: {said}") from error
