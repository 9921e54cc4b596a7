"""Tensors chosen by patterns of their names, such as `head.*`."""

import fnmatch
from collections.abc import Collection

MOST = 10  # names in a message


def as_patterns(given: Collection[str], *, name: str) -> tuple[str, ...]:
    """Return patterns as a tuple.

    Args:
        given: What the user gave.
        name: What to call it in a message.

    Returns:
        The patterns.

    Raises:
        ValueError: If it is a single string: its letters would be taken for patterns.

    Example:
        >>> as_patterns("head.*", name="exclude")
        Traceback (most recent call last):
        ...
        ValueError: exclude must be a tuple of patterns, got a string: write exclude=('head.*',).
    """
    if isinstance(given, str):
        raise ValueError(
            f"{name} must be a tuple of patterns, got a string: write {name}=({given!r},)."
        )
    return tuple(given)


def matching(names: Collection[str], pattern: str, *, name: str) -> list[str]:
    """Return the names that match a pattern.

    Args:
        names: Of tensors.
        pattern: Such as `head.*`.
        name: What to call it in a message.

    Returns:
        At least one name.

    Raises:
        ValueError: If there is none.
    """
    found = [one for one in names if fnmatch.fnmatchcase(one, pattern)]
    if not found:
        some = [*names][:MOST] + ["and more"] * (len(names) > MOST)
        raise ValueError(f"{name}: {pattern!r} matches no parameter; there are {', '.join(some)}.")
    return found


def matches(name: str, patterns: Collection[str]) -> bool:
    """Return whether a name matches one of some patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
