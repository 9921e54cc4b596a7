"""A Flower grid without a network: clients run one after the other, in the server's process."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from slipstream.federated.flower_api import (
    SUPERLINK_NODE_ID,
    ClientApp,
    Context,
    Error,
    ErrorCode,
    Grid,
    Message,
    RecordDict,
    Run,
    TaskIdentity,
)

_IDENTITY = ("_task_id", "_run_id", "_node_id")  # of the process, without which Flower refuses work
_alive: set[int] = set()  # the grids that need one which was not there before
Fate = Literal["arrives", "order lost", "reply lost"]


class InProcessGrid(Grid):
    """Runs a client app for every message, at once; for tests, demos and comparisons.

    It needs neither Ray nor a network, and repeats bit by bit. An app that raises becomes an error
    reply, as in Flower's own runtimes; what a client keeps in its context stays from message to
    message.

    Example:
        >>> app = ClientApp()
        >>> @app.query()
        ... def echo(message, context):
        ...     return Message(RecordDict(), reply_to=message)
        >>> grid = InProcessGrid(app, {7: {}})
        >>> (reply,) = grid.send_and_receive([Message(RecordDict(), 7, "query")])
        >>> reply.metadata.src_node_id
        7
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: Mapping[int, Mapping[str, bool | float | int | str]],
        *,
        fate: Callable[[int, int], Fate] | None = None,
    ) -> None:
        """Set up the nodes.

        Args:
            app: What every node runs.
            nodes: Node numbers to the configuration of the node, `context.node_config`.
            fate: What becomes of a message, by its node and its number among those to that node;
                if not given, all arrive.
        """
        self._app, self._fate = app, fate
        self.contexts = {
            node: Context(0, node, dict(config), RecordDict(), {}) for node, config in nodes.items()
        }
        self._sent = dict.fromkeys(nodes, 0)
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(0)
        _begin_identity(self)

    @property
    def run(self) -> Run:
        """An empty run."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Replace the run."""
        self._run = run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the numbers of the nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the app for each message."""
        numbers = []
        for message in messages:
            numbers.append(str(len(self._replies)))
            self._replies[numbers[-1]] = self._deliver(message)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to messages that were pushed."""
        return [self._replies[number] for number in message_ids]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the app for each message and return the replies."""
        return [self._deliver(message) for message in messages]

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self._sent[node] += 1
        fate = self._fate(node, self._sent[node]) if self._fate else "arrives"
        lost = Message(Error(ErrorCode.NODE_UNAVAILABLE, fate), reply_to=message)
        if fate == "order lost":
            return lost
        try:
            reply = self._app(message, self.contexts[node])
        except Exception as error:  # ruff: ignore[blind-except] - apps raise anything
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        return lost if fate == "reply lost" else reply


def _begin_identity(grid: InProcessGrid) -> None:
    """Give the process an identity while grids are alive; one that it has already is left alone."""
    if all(getattr(TaskIdentity, name) is None for name in _IDENTITY) or _alive:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 0, SUPERLINK_NODE_ID, 0
        _alive.add(id(grid))
        weakref.finalize(grid, _end_identity, id(grid))


def _end_identity(number: int) -> None:
    _alive.discard(number)
    if not _alive:
        for name in _IDENTITY:
            setattr(TaskIdentity, name, None)
