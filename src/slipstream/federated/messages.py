"""What goes over the wire, in both directions, and how many bytes it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slipstream.federated.encodings import Arrays


class RefusedError(ValueError):
    """A message that does not fit what the receiver has; it changes nothing there."""


@dataclass(frozen=True)
class Order:
    """From the server to a client: everything it needs to be at `version`, and to train there."""

    version: int
    base: int | None  # the version that the client is known to hold; None: it gets everything
    arrays: Arrays  # `17/step/values`, ...: the packets after `base`; or all of `version`
    settings: Mapping[str, Any] = field(default_factory=dict)  # plain data, with everything only


@dataclass(frozen=True)
class Reply:
    """From a client to the server: how training at `version` changed the coordinates."""

    version: int
    examples: int
    checksum: int  # of what the client held at `version`
    arrays: Arrays


def bytes_of(arrays: Mapping[str, np.ndarray]) -> int:
    """Return how many bytes the arrays hold.

    Example:
        >>> bytes_of({"values": np.zeros(3, dtype=np.int8), "scales": np.zeros(1)})
        11
    """
    return sum(array.nbytes for array in arrays.values())
