"""The client's side: follows the server's versions, and sends changes of the coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slipstream.federated.encodings import Arrays, Encoding, encoding_from
from slipstream.federated.messages import Order, RefusedError, Reply
from slipstream.federated.shared import Form, Shared, buffer_arrays, part
from slipstream.weights import Weights


@dataclass(frozen=True)
class Client:
    """What a client keeps from one round to the next; each round makes a new one of it."""

    form: Form
    encoding: Encoding
    shared: Shared
    settings: Mapping[str, Any]  # as the server sent them: form and encoding as plain data
    residual: Tensor  # (weights,) what the encoding has lost so far, to be sent with what follows
    residual_before: Tensor  # (weights,) the same before the last reply
    replied: int = -1  # the version of the last reply

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to train, under every name of the state dict."""
        return self.shared.weights(self.form)

    def reply(self, trained: Weights, *, examples: int) -> tuple["Client", Reply]:
        """Describe what training has changed.

        Args:
            trained: The weights after training, which began at `weights`.
            examples: How many examples this client has trained on: its share in the mean.

        Returns:
            The client to continue with, and what to send.

        Raises:
            ValueError: If the weights are of another architecture, or there were no examples.

        Example:
            >>> from slipstream.federated import Server, follow
            >>> server = Server(torch.nn.Linear(2, 1))
            >>> client = follow(None, server.order(7))
            >>> trained = {name: value + 1 for name, value in client.weights.items()}
            >>> client, reply = client.reply(trained, examples=5)
            >>> server.accept(7, reply)
            >>> server.finish_round().accepted
            (7,)
        """
        if examples < 1:
            raise ValueError(
                f"This client trained on {examples} examples: one without data must stay away."
            )
        own = self.form.layout.untie(trained, where="The weights that this client trained")
        embedding = self.shared.embedding
        change = self.form.flatten(own) - self.shared.vector + self.residual
        wanted = embedding.project(change)
        arrays = self.encoding.encode(wanted)
        lost = wanted - self.encoding.decode(arrays, len(wanted))
        reply = Reply(
            self.shared.version,
            examples,
            self.shared.checksum,
            {f"step/{name}": array for name, array in arrays.items()}
            | buffer_arrays(self.form.buffers(own)),
        )
        client = replace(
            self,
            residual=embedding.lift(lost),
            residual_before=self.residual,
            replied=self.shared.version,
        )
        return client, reply

    def pack(self) -> tuple[Arrays, dict[str, Any]]:
        """Return all of it as arrays and plain data, for `unpack`."""
        arrays = {f"shared/{name}": array for name, array in self.shared.pack().items()}
        arrays |= {"residual": self.residual.numpy(), "before": self.residual_before.numpy()}
        plain = {"version": self.shared.version, "replied": self.replied, **self.settings}
        return arrays, plain

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> "Client":
        """Return what `pack` wrote."""
        shared = Shared.unpack(part(arrays, "shared"), plain["version"])
        residual, before = (torch.from_numpy(arrays[n].copy()) for n in ("residual", "before"))
        form, encoding = Form.from_json(plain["form"]), encoding_from(plain["encoding"])
        settings = {name: plain[name] for name in ("form", "encoding")}
        return cls(form, encoding, shared, settings, residual, before, plain["replied"])


def follow(client: Client | None, order: Order) -> Client:
    """Bring a client to the version of an order.

    Args:
        client: What the client kept of its last round; None if it is new.
        order: What the server sent.

    Returns:
        The client at the version of the order.

    Raises:
        RefusedError: If the order builds on a version that this client does not hold.
    """
    if order.base is None:
        shared = Shared.unpack(part(order.arrays, str(order.version)), order.version)
        nothing = torch.zeros_like(shared.vector)
        form = Form.from_json(order.settings["form"])
        encoding = encoding_from(order.settings["encoding"])
        return Client(form, encoding, shared, order.settings, nothing, nothing)
    if client is None or not order.base <= client.shared.version <= order.version:
        held = "nothing" if client is None else f"version {client.shared.version}"
        raise RefusedError(
            f"The order for version {order.version} builds on version {order.base}, but this "
            f"client holds {held}: the order is stale, or the server must send everything."
        )
    shared = client.shared
    while shared.version < order.version:
        shared = shared.after(part(order.arrays, str(shared.version + 1)), client.encoding)
    arrived = order.base >= client.replied
    return replace(
        client, shared=shared, residual=client.residual if arrived else client.residual_before
    )
