"""Text as a zstd frame, by an optional package."""

from typing import Any

_LONGEST = 256 << 20  # bytes, of a description


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


def unpack_text(packed: bytes, *, longest: int = _LONGEST) -> bytes:
    """Return what `pack_text` packed.

    Args:
        packed: A zstd frame that states the size of its content.
        longest: Bytes that it may unpack to; more are refused before memory is taken.

    Returns:
        The text.

    Raises:
        ValueError: If it is damaged.
    """
    zstandard = require_zstandard()
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= longest:
            raise ValueError(f"the file is damaged: a frame of {size} bytes, at most {longest} fit")
        text: bytes = zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError as error:
        raise ValueError(f"the file is damaged: {error}") from error
    return text
