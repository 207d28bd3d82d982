"""Files that anyone may have written, read so that nothing in them can do harm: plain bytes, and JSON as plain values.

Whatever is wrong with a file is an OSError or a ValueError, which its reader turns into a line of its own.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any

_LARGEST = 2**31  # bytes; a billion steps of training leave less
_DEEPEST = 64  # our own files nest five deep; what recurses over a value must not meet Python's limit
_DIGITS = 300  # more of them are beyond every floating-point number


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of a regular file (a pipe would never end). Raises OSError, or ValueError for an impossible name."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if found.st_size > _LARGEST:
        raise OSError(errno.EFBIG, "too large to be read", str(path))
    with open(path, "rb") as file:
        return file.read()


def read_json(path: str | os.PathLike) -> Any:
    """The value that a JSON file holds. Raises OSError, and ValueError as `parse_json` does."""
    return parse_json(read_bytes(path))


def parse_json(content: bytes | str) -> Any:
    """The value that JSON text holds, bytes as UTF-8 with or without its mark.

    Raises ValueError where it is none, nests more than 64 deep, has a whole number of more than 300 digits, or half
    of a surrogate pair, which no file and no terminal could take.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("it nests too deep") from None
    if text.count("[") + text.count("{") > _DEEPEST and _nests_deeper(value, _DEEPEST):
        raise ValueError(f"it nests more than {_DEEPEST} deep")
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half of a surrogate pair") from None
    return value


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)


def _nests_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        if not inner:
            return False
        level = inner
    return True
