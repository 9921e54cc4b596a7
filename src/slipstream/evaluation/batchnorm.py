"""The running statistics of BatchNorm, re-estimated: part of the state, not of the path."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from slipstream.evaluation.batches import Batch, batch_size, inputs_of, sized_batches
from slipstream.evaluation.swapped_weights import eval_mode, weights_in
from slipstream.weights import Weights


def forward_inputs(model: nn.Module, batch: Batch) -> object:
    """Call `model` on the inputs of `batch`; a mapping's items are passed by name."""
    inputs = inputs_of(batch)
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def batchnorm_layers(model: nn.Module) -> dict[str, _NormBase]:
    """Return the Batch- and InstanceNorm layers that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm | _InstanceNorm) and module.running_mean is not None
    }


@contextmanager
def batch_statistics(model: nn.Module) -> Generator[None]:
    """Let BatchNorm layers normalise by the batch alone for a `with` block, in every mode.

    Their running statistics are neither used nor touched, and are there again afterwards.

    Args:
        model: Any module.

    Yields:
        Nothing.

    Example:
        >>> layer = nn.BatchNorm1d(1).eval()
        >>> with batch_statistics(layer):
        ...     layer(torch.tensor([[-8.0], [8.0]])).round().flatten().tolist()
        [-1.0, 1.0]
        >>> layer.running_mean.item()
        0.0
    """
    saved = [(layer, dict(layer._buffers)) for layer in batchnorm_layers(model).values()]
    try:
        for layer, buffers in saved:
            # Without them a layer takes those of the batch, which also holds under vmap.
            layer._buffers.update(dict.fromkeys(buffers))
            layer.track_running_stats = False
        yield
    finally:
        for layer, buffers in saved:
            layer._buffers.update(buffers)
            layer.track_running_stats = True


def recalibrate_batchnorm(
    model: nn.Module,
    *,
    weights: Weights | None = None,
    data: Iterable[Batch],
    forward: Callable[[nn.Module, Batch], object] = forward_inputs,
    batch_size: Callable[[Batch], int] = batch_size,
) -> dict[str, Tensor]:
    """Re-estimate the running statistics of every BatchNorm and InstanceNorm over all of `data`.

    These layers normalise by batch statistics, as in training; all else is in eval mode. The
    variance of BatchNorm is unbiased, over all examples at once: unequal batches weigh what they
    hold. InstanceNorm's statistics are means over the examples, as its own running ones.

    Args:
        model: Any module; left as it was.
        weights: What to run instead of the model's own tensors.
        data: Batches, not necessarily of equal size.
        forward: Runs the model on a batch; a loss will do.
        batch_size: Sizes a batch; the statistics themselves weigh what each layer saw.

    Returns:
        The new buffers under their state-dict names, of layers that ran; empty if no layer keeps
        such statistics.

    Raises:
        ValueError: If `data` is empty, or all of it has one value per channel of a layer.

    Example:
        >>> batches = [torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[4.0], [5.0]])]
        >>> new = recalibrate_batchnorm(nn.BatchNorm1d(1), data=batches)
        >>> new["running_mean"].item(), new["running_var"].item()
        (3.0, 2.5)
    """
    layers = batchnorm_layers(model)
    if not layers:
        return {}
    pools = {name: _pool_of(layer) for name, layer in layers.items()}
    hooks = [layer.register_forward_hook(pools[name].add) for name, layer in layers.items()]
    hooks += [layer.register_forward_pre_hook(pools[name].before) for name, layer in layers.items()]
    momenta = {name: layer.momentum for name, layer in layers.items()}
    try:
        with weights_in(model, weights), eval_mode(model), torch.no_grad():
            for layer in layers.values():
                layer.training, layer.momentum = True, 1.0  # the buffers are the batch's own
            for batch, _ in sized_batches(model, data, batch_size):
                forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.momentum = momenta[name]
    return {
        f"{name}.{buffer}".lstrip("."): value
        for name, pool in pools.items()
        for buffer, value in pool.buffers().items()
    }


def _pool_of(layer: _NormBase) -> "_Pool":
    return _InstancePool(layer) if isinstance(layer, _InstanceNorm) else _Pool(layer)


class _Pool:
    """Mean and variance of each channel over all batches that passed a BatchNorm layer."""

    def __init__(self, layer: _NormBase) -> None:
        self._layer = layer
        self._passes = self._count = 0
        self._single = False  # whether a batch of one value per channel is passing
        self._mean = torch.zeros_like(layer.get_buffer("running_mean"), dtype=torch.float64)
        self._squares = torch.zeros_like(self._mean)  # of deviations from the mean, summed

    def before(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Let a batch of one value per channel pass, which train mode refuses.

        Its own statistics are the value itself and a variance of 0.
        """
        values = inputs[0]
        self._single = self._layer.running_mean is not None and self._is_single(values)
        if self._single:
            self._layer.get_buffer("running_mean").copy_(values.flatten())
            self._layer.get_buffer("running_var").zero_()
            self._layer.training = False

    def _is_single(self, values: Tensor) -> bool:
        return values.dim() > 1 and values.numel() == values.shape[1]

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        """Merge a batch: the pooled sum of squares grows by the distance of the two means."""
        if self._layer.running_mean is None:  # a loss that normalises by batches alone
            return
        self._layer.training = True
        values = inputs[0]  # (examples, channels, *positions)
        size = values.numel() // values.shape[1]
        # The layer has just computed them: with a momentum of 1 its buffers hold nothing else.
        mean = self._layer.get_buffer("running_mean").double()
        variance = self._layer.get_buffer("running_var").double() * ((size - 1) / size)
        self._passes += 1
        self._count += size
        share = size / self._count
        self._squares += size * (variance + (1 - share) * (mean - self._mean).square())
        self._mean.lerp_(mean, share)

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers that the pooled batches make; none if the layer never ran."""
        if not self._count:
            return {}
        if self._count == 1:
            raise ValueError(
                "BatchNorm's variance needs more than one value per channel: data holds one batch "
                "of one example."
            )
        new = {
            "running_mean": self._mean,
            "running_var": self._squares / max(self._count - 1, 1),
            "num_batches_tracked": torch.tensor(self._passes),
        }
        return {name: value.to(self._layer.get_buffer(name)) for name, value in new.items()}


class _InstancePool(_Pool):
    """Means over the examples of what an InstanceNorm layer measures in each of them."""

    def _is_single(self, values: Tensor) -> bool:
        return False

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        """Merge a batch: both statistics are means over examples."""
        if self._layer.running_mean is None:
            return
        batched = inputs[0].dim() == self._layer._get_no_batch_dim() + 1  # type: ignore[operator]
        examples = len(inputs[0]) if batched else 1
        self._passes += 1
        self._count += examples
        share = examples / self._count
        self._mean.lerp_(self._layer.get_buffer("running_mean").double(), share)
        self._squares.lerp_(self._layer.get_buffer("running_var").double(), share)

    def buffers(self) -> dict[str, Tensor]:
        """Return the means."""
        if not self._count:
            return {}
        new = {
            "running_mean": self._mean,
            "running_var": self._squares,
            "num_batches_tracked": torch.tensor(self._passes),
        }
        return {name: value.to(self._layer.get_buffer(name)) for name, value in new.items()}
