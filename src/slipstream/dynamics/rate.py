"""What a learning rate may be given as."""

from collections.abc import Callable, Sequence

Rate = float | Sequence[float] | Callable[[int], float]  # at each step, counted from 0
