"""Federated training that exchanges only what still moves, in few bytes; any transport."""

from slipstream.federated.client import Client, follow
from slipstream.federated.encodings import Arrays, EightBit, Encoding, Exact, TopK
from slipstream.federated.messages import Order, RefusedError, Reply, bytes_of
from slipstream.federated.policies import AdaptiveFreezing, Everything, GrowingModes, Policy
from slipstream.federated.server import Round, Server

__all__ = [
    "AdaptiveFreezing", "Arrays", "Client", "EightBit", "Encoding", "Everything", "Exact",
    "GrowingModes", "Order", "Policy", "RefusedError", "Reply", "Round", "Server", "TopK",
    "bytes_of", "follow",
]  # fmt: skip
