"""Recurrent layers: the hidden units of every layer and direction, listed gate by gate."""

from collections.abc import Iterator, Sequence

from slipstream.symmetry.atoms import Axis, Layout, renewed
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, Value, rule

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
def recurrence(call: Call) -> list[Value]:
    """Rows of the weights are gates times units; the state lists the same units."""
    if call["train"] and call["dropout"]:
        raise UnsupportedError("it draws random numbers")
    first, second, features = call.axes("input")
    time, batch = (second, first) if call["batch_first"] else (first, second)
    call.pin(time, "each step follows on the one before")
    states = [item.axes for item in (call["hx"] if call.operator == "lstm" else [call["hx"]])]
    for state in states:
        call.tie(state[1], batch)
        call.pin(state[0], "layers and directions are numbered")
    weights = _cells(call)
    rows: list[list[Layout]] = [[] for _ in states]
    for _ in range(call["num_layers"]):
        outputs: Axis = ()
        for _ in range(1 + call["bidirectional"]):
            listed = _cell(call, features, next(weights), states)
            outputs += listed[0]
            for row, axis in zip(rows, listed, strict=False):
                row.append((batch, axis))
        features = outputs
    ends = [Value((*call.places([len(row)]), *row[0]), rows=tuple(row)) for row in rows]
    return [Value((first, second, features)), *ends]


@rule("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def one_step(call: Call) -> list[Layout] | Layout:
    """One step of one layer: the same units in the weights and in the states."""
    batch, features = call.axes("input")
    given = call["hx"] if call.operator == "lstm_cell" else [call["hx"]]
    states = [item.axes for item in given]
    for state in states:
        call.tie(state[0], batch)
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    weights = [call.axes(name) for name in names if isinstance(call[name], Value)]
    units = _cell(call, features, weights, states)
    result: Layout = (batch, units[0])
    return [result, result] if call.operator == "lstm_cell" else result


def _cells(call: Call) -> Iterator[Sequence[Layout]]:
    """The weights of every layer and direction: of inputs, of the state, biases, projection."""
    given = [item.axes for item in call["params"]]
    cells = call["num_layers"] * (1 + call["bidirectional"])
    size = len(given) // cells
    return iter([given[size * number : size * (number + 1)] for number in range(cells)])


def _cell(
    call: Call, features: Axis, weights: Sequence[Layout], states: Sequence[Layout]
) -> list[Axis]:
    """Tie the weights of one layer in one direction; return its output units and its cell units."""
    (rows, inputs), (again, previous), *others = weights
    call.tie(inputs, features)
    for bias in [rows, *(axes[0] for axes in others if len(axes) == 1)]:
        call.tie(again, bias)
    gates, units = call.divide(rows, GATES[call.operator.removesuffix("_cell")])
    call.pin(gates, "the gates are in a given order")
    shown = units
    for axes in others:
        if len(axes) == 2:  # an LSTM's projection
            shown = axes[0]
            call.tie(axes[1], units)
    call.tie(previous, shown)
    for state, axis in zip(states, (shown, units), strict=False):
        # Equal positions, such as the zeros of the usual start, do not tie one layer with another.
        call.tie(renewed(state)[-1], axis)
    return [shown, units]
