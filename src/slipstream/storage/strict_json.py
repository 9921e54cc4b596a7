"""JSON that is read strictly, and carries a checksum of itself."""

import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slipstream.storage.reading import open_regular

_LONGEST = 256 << 20  # bytes: what is longer was not written by us
_CHECK = re.compile(rb',\s*"check": "([0-9a-f]{8})"\s*\}\s*\Z')
_DIGITS = re.compile(r"[0-9a-f]{8}")
_PIECE = 1 << 24  # bytes that are read at once


class Checksum:
    """CRC-32 of some bytes, as eight hexadecimal digits."""

    def __init__(self) -> None:
        self._value = 0

    def over(self, chunks: Any) -> Iterator[bytes | memoryview]:
        """Pass on chunks of bytes, and take them in."""
        for chunk in chunks:
            self._value = zlib.crc32(chunk, self._value)
            yield chunk

    def hex(self) -> str:
        """Return the checksum of what has passed."""
        return f"{self._value:08x}"

    @classmethod
    def of_file(cls, path: Path) -> str:
        """Return the checksum of a file."""
        found = cls()
        with open_regular(path) as file:
            for _ in found.over(iter(lambda: file.read(_PIECE), b"")):
                pass
        return found.hex()


def read_json(text: bytes) -> Any:
    """Read JSON as the standard says: no NaN, no name twice, not nested without end.

    Args:
        text: UTF-8.

    Returns:
        Plain data.

    Raises:
        ValueError: If it is not JSON.

    Example:
        >>> read_json(b'{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ...
        ValueError: the name 'a' is there twice
    """
    if len(text) > _LONGEST:
        raise ValueError(f"{len(text)} bytes of JSON are more than any of ours has")
    try:
        return _STRICT.decode(str(text, "utf-8"))
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error


def checked_json(data: dict[str, Any], *, indent: int | None = None) -> bytes:
    """Return JSON whose last entry is a checksum of all before it.

    Args:
        data: Plain data; numbers that are not finite become the texts "nan", "inf" and "-inf".
        indent: As of `json.dumps`; without it, one line that ends with a line break.

    Returns:
        What `read_checked_json` reads.

    Raises:
        TypeError: If something is not plain data.
    """
    text = json.dumps(_finite(data), indent=indent, allow_nan=False)
    body = text[:-1].rstrip().encode()
    gap = b", " if indent is None else b",\n" + b" " * indent
    end = b"}\n" if indent is None else b"\n}"
    return body + gap + f'"check": "{zlib.crc32(body):08x}"'.encode() + end


def read_checked_json(text: bytes) -> dict[str, Any]:
    """Read what `checked_json` wrote, or JSON of version 0.1, which has no checksum.

    Args:
        text: UTF-8.

    Returns:
        The data, without the checksum.

    Raises:
        ValueError: If it is damaged.
    """
    found = _CHECK.search(text)
    if found is None:
        data = json.loads(text, object_pairs_hook=_once) if len(text) < _LONGEST else None
        # A name that was "check" once is recognised by its value.
        last = next(reversed(data.values()), None) if isinstance(data, dict) else None
        damaged = isinstance(last, str) and _DIGITS.fullmatch(last)
        if not isinstance(data, dict) or "check" in data or damaged:
            raise ValueError("its checksum is damaged")
        return data
    if f"{zlib.crc32(text[: found.start()]):08x}".encode() != found[1]:
        raise ValueError("it is damaged, its checksum differs from what was written")
    data = read_json(text)
    del data["check"]
    return dict(data)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"the name {next(n for n in names if names.count(n) > 1)!r} is there twice"
        )
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse)  # slow to make
