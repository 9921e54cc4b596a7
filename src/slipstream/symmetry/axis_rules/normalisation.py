"""Operators that divide by what they measure over some axes, and then scale."""

from slipstream.symmetry.atoms import Axis, Layout
from slipstream.symmetry.axis_rules.registry import Call, Value, rule


@rule("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm", signs=True)
def channel_norm(call: Call) -> Layout:
    """Statistics, gain and bias belong to the channels."""
    batch, channels, *places = call.axes("input")
    for axis in places:
        call.independent(batch, axis)
        call.independent(channels, axis)
    call.independent(channels, batch)
    for axis in (batch, *places):
        call.unsigned(axis)
    for name in ("running_mean", "bias"):
        if isinstance(call[name], Value):
            call.tie(channels, call.axes(name)[0])
    for name in ("running_var", "weight"):
        if isinstance(call[name], Value):
            channels = _scaled(call, channels, call.axes(name)[0])
    return (batch, channels, *places)


@rule("rms_norm", signs=True)
def rms_norm(call: Call) -> Layout:
    """The last axes are measured together, whatever the signs; the gain lies on them."""
    axes = call.axes("input")
    split = len(axes) - len(call["normalized_shape"])
    if isinstance(call["weight"], Value):
        scaled = (
            _scaled(call, *pair) for pair in zip(axes[split:], call.axes("weight"), strict=True)
        )
        axes = (*axes[:split], *scaled)
    return _measured(call, axes, list(range(split, len(axes))))


@rule("layer_norm")
def layer_norm(call: Call) -> Layout:
    """The last axes are measured together; gain and bias lie on them."""
    axes = call.axes("input")
    split = len(axes) - len(call["normalized_shape"])
    for name in ("weight", "bias"):
        if isinstance(call[name], Value):
            for axis, own in zip(axes[split:], call.axes(name), strict=True):
                call.tie(axis, own)
    return _measured(call, axes, list(range(split, len(axes))))


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(call: Call) -> Layout:
    """A weight with its length along one axis kept in a tensor of its own."""
    axes, lengths = call.axes("v"), call.axes("g")
    if not lengths:  # one length for all
        return axes
    dim = call["dim"] % len(axes)
    call.tie(axes[dim], lengths[dim])
    for number, axis in enumerate(axes):
        if number != dim:
            call.independent(axes[dim], axis)
    return axes


@rule("norm_except_dim")
def norm_except_dim(call: Call) -> Layout:
    """The lengths along one axis; the others are kept with one position."""
    axes, dim = call.axes("v"), call["dim"]
    if dim == -1:  # one length for all
        return ()
    one: Axis = ((),)
    return tuple(axis if number == dim % len(axes) else one for number, axis in enumerate(axes))


@rule("group_norm")
def group_norm(call: Call) -> Layout:
    """Channels are groups times positions inside, and each group is measured alone."""
    axes = call.axes("input")
    groups, inside = call.divide(axes[1], call["num_groups"])
    _tie_channels(call, axes[1], "weight", "bias")
    for measured in (inside, *axes[2:]):
        call.independent(axes[0], measured)
        call.independent(groups, measured)
    return axes


@rule("softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax", "softmin")
def softmax(call: Call) -> Layout:
    """Every position along the axis is compared with all the others, none is special."""
    axes = call.axes("self", "input")
    return _measured(call, axes, [call["dim"] % len(axes)])


def _measured(call: Call, axes: Layout, measured: list[int]) -> Layout:
    for number, axis in enumerate(axes):
        for other in measured:
            if number not in measured:
                call.independent(axis, axes[other])
    return axes


def _scaled(call: Call, axis: Axis, gain: Axis) -> Axis:
    """Gains keep their sign: see `elementwise.scale`."""
    call.unsigned(gain)
    return call.multiply(axis, gain)


def _tie_channels(call: Call, channels: Axis, *names: str) -> None:
    for name in names:
        if isinstance(call[name], Value):
            call.tie(channels, call.axes(name)[0])
