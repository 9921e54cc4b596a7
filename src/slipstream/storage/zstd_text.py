"""Text as a zstd frame, by a package that not everybody has."""

from typing import Any


def require_zstandard() -> Any:
    """Return the package zstandard, or raise with the line that installs it."""
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Compressed runs need zstandard: pip install "slipstream[zstd]".', name="zstandard"
        ) from error
    return zstandard


def pack_text(text: bytes) -> bytes:
    """Return text as a zstd frame."""
    packed: bytes = require_zstandard().ZstdCompressor(write_checksum=True).compress(text)
    return packed


def unpack_text(packed: bytes) -> bytes:
    """Return what `pack_text` packed, or raise a ValueError if it is damaged."""
    zstandard = require_zstandard()
    try:
        text: bytes = zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError as error:
        raise ValueError(f"the file is damaged: {error}") from error
    return text
