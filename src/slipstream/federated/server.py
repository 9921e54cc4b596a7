"""The server's side: averages what clients send, decides what may move, and keeps count."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.federated.encodings import Arrays, Encoding, Exact, describe_encoding
from slipstream.federated.messages import Order, RefusedError, Reply, bytes_of
from slipstream.federated.policies import Everything, Policy, load_policy_state_, policy_state
from slipstream.federated.shared import Form, Shared, buffer_arrays, buffers_in, part, write_change
from slipstream.weights import Weights, is_continuous, weights_of

MOST_EXAMPLES = 1 << 48  # of one client: more overflow the mean


@dataclass(frozen=True)
class Round:
    """What happened in a round."""

    version: int  # at which the clients trained
    coordinates: int  # how many numbers were trained: free weights and references
    bytes_down: int  # from the server to all its clients
    bytes_up: int
    accepted: tuple[int, ...]  # the clients whose replies were averaged
    refused: Mapping[int, str] = field(default_factory=dict)  # client to reason
    everything: tuple[int, ...] = ()  # the clients that were sent everything


class Server:
    """Keeps the weights, knows which version each client holds, and averages replies.

    A round is: `order` for each client, `accept` or `refuse` for each reply, `finish_round`.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> server = Server(model, weights={"weight": torch.zeros(1, 1)})
        >>> from slipstream.federated import follow
        >>> for node, value, examples in [(1, 1.0, 3), (2, 5.0, 1)]:
        ...     client = follow(None, server.order(node))
        ...     _, reply = client.reply({"weight": torch.tensor([[value]])}, examples=examples)
        ...     server.accept(node, reply)
        >>> server.finish_round().bytes_up
        8
        >>> server.weights
        {'weight': tensor([[2.]])}
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        weights: Weights | None = None,
        local: Collection[str] = (),
        policy: Policy | None = None,
        encoding: Encoding | None = None,
        max_norm: float | None = None,
    ) -> None:
        """Start at version 0.

        Args:
            model: Says which tensors there are and which are trained; it is not kept.
            weights: The first weights, if not those of the model; further names of tied tensors
                may be there.
            local: Names of tensors that every client keeps its own of: they are in no message. A
                client replies with the others.
            policy: Decides what is exchanged; everything, if not given.
            encoding: How changes are written, in both directions; exactly, if not given.
            max_norm: The longest change of the weights (Euclidean) that is taken from a client; a
                longer one is refused. Any length if not given.

        Raises:
            ValueError: If the weights are not of the model's architecture, `max_norm` is not
                above 0, or `local` names no tensor, one that is tied to another, or all.
        """
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {max_norm}.")
        self.max_norm = max_norm
        self.form = Form.of(model, local=local)
        if not self.form.trained:
            raise ValueError("local names all that is trained: there is nothing to exchange.")
        given = weights_of(model) if weights is None else weights
        given = {name: value for name, value in given.items() if name not in local}
        own = self.form.layout.untie(given, where="The first weights")
        self.policy = policy or Everything()
        self.encoding = encoding or Exact()
        self.shared = Shared.start(self.form, own)
        self.rounds: list[Round] = []
        self.policy.start(self.shared.vector, self.form.sizes)
        self._residual = torch.zeros_like(self.shared.vector)
        self._packets: dict[int, Arrays] = {}  # the version each leads to
        self._holds: dict[int, int] = {}  # client to the version of its last accepted reply
        self._begin_round()

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights of the latest version, under every name of the state dict."""
        return self.shared.weights(self.form)

    def order(self, node: int) -> Order:
        """Return what to send to a client; it is counted as sent.

        Args:
            node: The client's number.

        Returns:
            The packets after what the client holds; or everything, if that is shorter or the
            client is new.
        """
        version, base = self.shared.version, self._holds.get(node)
        packets = range((base or 0) + 1, version + 1)
        if base is not None and all(number in self._packets for number in packets):
            steps = {k: v for n in packets for k, v in _under(n, self._packets[n]).items()}
            return self._sent(Order(version, base, steps))
        self._everything.append(node)
        settings = {"form": self.form.to_json(), "encoding": describe_encoding(self.encoding)}
        return self._sent(Order(version, None, _under(version, self.shared.pack()), settings))

    def accept(self, node: int, reply: Reply) -> None:
        """Take a client's reply into this round; one that does not fit is refused.

        Args:
            node: The client's number.
            reply: What it sent, which may be anything.
        """
        try:
            self._up += bytes_of(reply.arrays)
            update = self._read(reply)
        except KeyError as error:
            self.refuse(node, f"The reply lacks {error}.")
        except (ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
            # Whatever a client sends must not end the round of the others.
            self.refuse(node, str(error), forget=node not in self._updates)
        else:
            if node in self._updates:
                why = "The client replied twice in this round; the first reply counts."
                self.refuse(node, why, forget=False)
            else:
                self._updates[node] = update

    def refuse(self, node: int, reason: str, *, forget: bool = True) -> None:
        """Note that a client failed.

        Args:
            node: The client's number.
            reason: What is known about it.
            forget: Whether it is sent everything when it comes back, as if it were new. A message
                that was lost on the way is no reason to.
        """
        self._refused[node] = reason
        if forget:
            self._holds.pop(node, None)

    def finish_round(self) -> Round:
        """Average the accepted replies, weighted by their examples, and make the next version.

        Returns:
            What happened; without any accepted reply, the version stays.
        """
        done = Round(
            self.shared.version,
            self.shared.embedding.coordinates,
            self._down,
            self._up,
            tuple(sorted(self._updates)),
            dict(self._refused),
            tuple(sorted(self._everything)),
        )
        if self._updates:
            # In the order of their numbers: the mean does not depend on who replied first.
            self._next_version([self._updates[node] for node in done.accepted])
            self._holds |= dict.fromkeys(self._updates, done.version)
        self.rounds.append(done)
        self._begin_round()
        return done

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs, between two rounds: tensors and plain data."""
        return {
            "version": self.shared.version,
            "shared": _tensors(self.shared.pack()),
            "residual": self._residual.clone(),
            "packets": {version: _tensors(arrays) for version, arrays in self._packets.items()},
            "holds": dict(self._holds),
            "policy": policy_state(self.policy),
            "rounds": [asdict(done) for done in self.rounds],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another server stopped; policy and encoding are this one's own.

        Args:
            state: What `state_dict` returned; `torch.save` keeps it.

        Raises:
            ValueError: If it is of a model of another size.
        """
        if len(state["residual"]) != len(self.shared.vector):
            raise ValueError(
                f"The state is of a model of {len(state['residual'])} weights; this one has "
                f"{len(self.shared.vector)}."
            )
        self.shared = Shared.unpack(_arrays(state["shared"]), state["version"])
        self._residual = state["residual"].clone()
        self._packets = {version: _arrays(kept) for version, kept in state["packets"].items()}
        self._holds = dict(state["holds"])
        load_policy_state_(self.policy, state["policy"])
        self.rounds = [Round(**done) for done in state["rounds"]]
        self._begin_round()

    def _begin_round(self) -> None:
        self._down = self._up = 0
        self._updates: dict[int, _Update] = {}
        self._refused: dict[int, str] = {}
        self._everything: list[int] = []

    def _sent(self, order: Order) -> Order:
        self._down += bytes_of(order.arrays)
        return order

    def _read(self, reply: Reply) -> "_Update":
        _check_facts(reply)
        if reply.version != self.shared.version:
            raise RefusedError(
                f"The reply is of version {reply.version}, this round is of version "
                f"{self.shared.version}: it comes too late."
            )
        if reply.checksum != self.shared.checksum:
            raise RefusedError(f"The client's copy of version {reply.version} is another one.")
        coordinates = self.shared.embedding.coordinates
        sent = part(reply.arrays, "step")
        if more := sorted(set(sent) - set(self.encoding.encode(torch.zeros(1)))):
            raise RefusedError(f"The client sent 'step/{more[0]}', which no reply has.")
        step = self.encoding.decode(sent, coordinates)
        if step.dtype != torch.float32 or step.shape != (coordinates,):
            raise RefusedError(f"The step is {step.dtype} {tuple(step.shape)}, not float32.")
        buffers = buffers_in(reply.arrays)
        self._check_buffers(buffers)
        for name, value in {"the step": step, **buffers}.items():
            if not torch.isfinite(value).all():
                raise RefusedError(f"The client sent a number that is not finite, in {name}.")
        length = float(torch.linalg.vector_norm(self.shared.embedding.lift(step)))
        if self.max_norm is not None and length > self.max_norm:
            raise RefusedError(
                f"The client's change has a norm of {length:.4g}; max_norm is {self.max_norm:g}."
            )
        return _Update(reply.examples, step, buffers)

    def _check_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        for name, value in self.shared.buffers.items():
            sent = buffers.get(name)
            if sent is None or sent.shape != value.shape or sent.dtype != value.dtype:
                raise RefusedError(
                    f"The client's buffer {name!r} is missing, or of another shape or dtype."
                )
            counts = name.rpartition(".")[2] in ("running_var", "num_batches_tracked")
            if counts and bool((sent < 0).any()):
                raise RefusedError(f"The client's buffer {name!r} has a negative entry.")
        if more := sorted(set(buffers) - set(self.shared.buffers)):
            raise RefusedError(f"The client sent a buffer {more[0]!r} that the model lacks.")

    def _next_version(self, updates: "list[_Update]") -> None:
        embedding, total = self.shared.embedding, sum(u.examples for u in updates)
        wanted = embedding.project(self._residual).double()
        for update in updates:
            wanted += update.step.double() * (update.examples / total)
        wanted = wanted.float()
        arrays = self.encoding.encode(wanted)
        step = self.encoding.decode(arrays, len(wanted))
        self._residual = embedding.lift(wanted - step)
        vector = self.shared.vector + embedding.lift(step)
        changed = self.policy.observe(vector, embedding)
        packet = {f"step/{name}": array for name, array in arrays.items()}
        packet |= {f"change/{n}": array for n, array in write_change(embedding, changed).items()}
        packet |= buffer_arrays(_mean_buffers(updates, total))
        self.shared = self.shared.after(packet, self.encoding)
        self._packets[self.shared.version] = packet
        # Who would need more than everything gets everything: older packets are of no use.
        while sum(map(bytes_of, self._packets.values())) > bytes_of(self.shared.pack()):
            del self._packets[min(self._packets)]


def _check_facts(reply: Reply) -> None:
    for name in ("version", "examples", "checksum"):
        if type(getattr(reply, name)) is not int:
            raise RefusedError(f"{name} must be a whole number, got {getattr(reply, name)!r}.")
    if not 1 <= reply.examples <= MOST_EXAMPLES:
        raise RefusedError(f"The client trained on {reply.examples} examples.")
    if unknown := [name for name in reply.arrays if not name.startswith(("step/", "buffer/"))]:
        raise RefusedError(f"The client sent {unknown[0]!r}, which no reply has.")


@dataclass(frozen=True)
class _Update:
    examples: int
    step: Tensor  # (coordinates,)
    buffers: Mapping[str, Tensor]


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def _arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: value.numpy().copy() for name, value in tensors.items()}


def _under(version: int, arrays: Arrays) -> Arrays:
    return {f"{version}/{name}": array for name, array in arrays.items()}


def _mean_buffers(updates: list[_Update], total: int) -> dict[str, Tensor]:
    """The mean by examples; of whole numbers, such as a count of batches, the largest."""
    means = {}
    for name, first in updates[0].buffers.items():
        values = torch.stack([update.buffers[name] for update in updates])
        if is_continuous(first):
            shares = torch.tensor([update.examples / total for update in updates]).double()
            means[name] = torch.tensordot(shares, values.double(), 1).to(first)
        else:
            means[name] = values.amax(0)
    return means
