"""Flower: a strategy and a client mod that exchange only what still moves, in few bytes.

A Flower app keeps its training code: the mod hands it ordinary weights and takes ordinary weights
back. The server's strategy averages, and counts the bytes of both directions.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from slipstream.federated import (
    Arrays,
    Client,
    Encoding,
    Order,
    Policy,
    RefusedError,
    Reply,
    Round,
    Server,
    follow,
)
from slipstream.federated.flower_api import (
    Array,
    ArrayRecord,
    ClientAppCallable,
    ConfigRecord,
    Context,
    ErrorCode,
    FedAvg,
    Grid,
    Message,
    MetricRecord,
    RecordDict,
)
from slipstream.storage.strict_json import read_json

logger = logging.getLogger(__name__)

RECORD = "slipstream"  # of our arrays in a message, and of what a client keeps
PLAIN = "slipstream-plain"  # of the plain data that go with them
LOST = (
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)
RAW = "slipstream.raw"  # how our arrays are written: their bytes and nothing else


class CompressedAveraging(FedAvg):
    """Federated averaging over what a policy lets move, written by an encoding.

    Clients need `compression_mod`. Replies that do not fit (NaN, a stale version, another
    architecture) are left out and named in `rounds`, and those clients are sent everything when
    they come back. All arguments of Flower's `FedAvg` are taken too.

    Example:
        >>> from slipstream.federated import EightBit, GrowingModes
        >>> strategy = CompressedAveraging(
        ...     nn.Linear(2, 1), policy=GrowingModes(), encoding=EightBit(), fraction_train=0.5
        ... )
        >>> strategy.rounds
        ()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        policy: Policy | None = None,
        encoding: Encoding | None = None,
        fraction_evaluate: float = 0.0,
        max_norm: float | None = None,
        **settings: Any,
    ) -> None:
        """Choose what is exchanged, and how it is written.

        Args:
            model: Says which tensors there are and which are trained; the first weights are those
                that `start` gets.
            policy: Decides what may move; everything, if not given.
            encoding: How changes are written, in both directions; exactly, if not given.
            fraction_evaluate: The share of the clients that evaluate the weights of every round.
            max_norm: The longest change of the weights that is taken from a client; a longer one
                is refused.
            settings: Further arguments of `FedAvg`.
        """
        super().__init__(fraction_evaluate=fraction_evaluate, **settings)
        self._model, self._policy, self._encoding = model, policy, encoding
        self._max_norm = max_norm
        self._state: Mapping[str, Any] | None = None
        self.server: Server | None = None

    def resume(self, state: Mapping[str, Any]) -> None:
        """Let the next start continue where `server.state_dict()` was taken."""
        self._state = state

    @property
    def rounds(self) -> tuple[Round, ...]:
        """What happened in every round so far: bytes, and who was refused and why."""
        return tuple(self.server.rounds) if self.server else ()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Write an order for every client of the round; the first round begins with `arrays`."""
        if server_round == 1:
            self.server = Server(
                self._model,
                weights=arrays.to_torch_state_dict(),
                policy=self._policy,
                encoding=self._encoding,
                max_norm=self._max_norm,
            )
            if self._state is not None:
                self.server.load_state_dict(self._state)
        messages = super().configure_train(server_round, arrays, config, grid)
        return [self._with_order(message) for message in messages]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Write an order for every client that evaluates."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        return [self._with_order(message) for message in messages]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies that fit.

        Args:
            server_round: The number of the round.
            replies: What the clients sent, or the errors that came instead.

        Returns:
            The new weights and the clients' metrics; nothing if no reply fits.
        """
        assert self.server is not None  # Flower configures a round before it aggregates it
        contents = {}
        for message in replies:
            node = message.metadata.src_node_id
            if message.has_error():
                error = message.error
                self.server.refuse(
                    node, error.reason or f"error {error.code}", forget=error.code not in LOST
                )
                continue
            try:
                reply = _read_reply(message.content, self.weighted_by_key)
            except RefusedError as error:
                self.server.refuse(node, str(error))
                continue
            self.server.accept(node, reply)
            contents[node] = RecordDict(dict(message.content.metric_records))
        done = self.server.finish_round()
        for node, reason in done.refused.items():
            logger.warning("Round %d goes without client %d: %s", server_round, node, reason)
        if not done.accepted:
            return None, None
        accepted = [contents[node] for node in done.accepted]
        metrics = self.train_metrics_aggr_fn(accepted, self.weighted_by_key)
        return ArrayRecord(self.server.weights), metrics

    def _with_order(self, message: Message) -> Message:
        assert self.server is not None  # the first round made it
        order = self.server.order(message.metadata.dst_node_id)
        plain = {
            "version": order.version,
            "base": order.base,
            "settings": order.settings,
            "arrays": self.arrayrecord_key,
            "examples": self.weighted_by_key,
        }
        content = RecordDict(dict(message.content.config_records))
        content[RECORD] = _record(order.arrays)
        content[PLAIN] = ConfigRecord({"json": json.dumps(plain)})
        return Message(
            content,
            dst_node_id=message.metadata.dst_node_id,
            message_type=message.metadata.message_type,
        )


def compression_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let a client app talk to `CompressedAveraging`: `ClientApp(mods=[compression_mod])`.

    The app finds ordinary weights in the message, as under `FedAvg`, and replies with ordinary
    weights. Between rounds, the client's copy of what the server knows is kept in `context.state`.

    Args:
        message: An order, to train or to evaluate.
        context: Keeps the client's state.
        call_next: The app.

    Returns:
        The app's reply; in place of the weights, what has changed.

    Raises:
        RefusedError: If the message is not of `CompressedAveraging`, or stale.
        ValueError: If the app's weights are of another architecture, or it had no examples.
    """
    if PLAIN not in message.content:
        raise RefusedError("The server does not use the strategy CompressedAveraging.")
    plain = json.loads(str(message.content.config_records[PLAIN]["json"]))
    order = Order(plain["version"], plain["base"], _arrays(message.content), plain["settings"])
    client = follow(_load(context), order)
    configs = {n: v for n, v in message.content.config_records.items() if n != PLAIN}
    message.content = RecordDict({plain["arrays"]: ArrayRecord(client.weights), **configs})
    reply = call_next(message, context)
    if reply.has_content() and plain["arrays"] in reply.content.array_records:
        trained = reply.content.array_records[plain["arrays"]].to_torch_state_dict()
        client, answer = client.reply(trained, examples=_examples(reply, plain["examples"]))
        facts = {name: getattr(answer, name) for name in ("version", "examples", "checksum")}
        del reply.content[plain["arrays"]]
        reply.content[RECORD] = _record(answer.arrays)
        reply.content[PLAIN] = ConfigRecord({"json": json.dumps(facts)})
    _save(context, client)
    return reply


def _read_reply(content: RecordDict, weighted_by: str) -> Reply:
    """Read what a client sent, which may be anything."""
    if PLAIN not in content:
        raise RefusedError("The message has no reply of compression_mod.")
    metrics = list(content.metric_records.values())
    if len(metrics) != 1 or not isinstance(metrics[0].get(weighted_by), int | float):
        raise RefusedError(f"The message has not one MetricRecord with {weighted_by!r}.")
    try:
        given = read_json(str(content.config_records[PLAIN]["json"]).encode())
        return Reply(**given, arrays=_arrays(content))
    except Exception as error:
        raise RefusedError(f"The reply cannot be read: {error}") from error


def _examples(reply: Message, key: str) -> int:
    for record in reply.content.metric_records.values():
        if key in record:
            return int(record[key])  # type: ignore[arg-type]
    raise ValueError(f"The app's reply must hold a MetricRecord with {key!r}, as under FedAvg.")


def _load(context: Context) -> Client | None:
    if RECORD not in context.state:
        return None
    plain = json.loads(str(context.state.config_records[PLAIN]["json"]))
    return Client.unpack(_arrays(context.state), plain)


def _save(context: Context, client: Client) -> None:
    arrays, plain = client.pack()
    context.state[RECORD] = _record(arrays)
    context.state[PLAIN] = ConfigRecord({"json": json.dumps(plain)})


def _record(arrays: Arrays) -> ArrayRecord:
    """Arrays as they are: Flower's own way adds 128 bytes to each."""
    return ArrayRecord(
        {n: Array(str(a.dtype), tuple(a.shape), RAW, a.tobytes()) for n, a in arrays.items()}
    )


def _arrays(content: RecordDict) -> Arrays:
    return {
        name: np.frombuffer(array.data, dtype=array.dtype).reshape(array.shape)
        for name, array in content.array_records[RECORD].items()
    }
