"""Broken inputs: what becomes of files, settings and command lines on their way from people and disks."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import struct
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from gymnasium import spaces
from hypothesis import strategies as st

from surefoot.settings import digest

# JSON.

_RAW = [  # JSON text, and what almost is
    *("NaN", "-Infinity", "1e400", "-1e400", "1" * 5000, "1" * 400, str(2**63), str(-(2**63)), "1e-400", "0.0", "-0"),
    *("[" * 5000, "[" * 200 + "]" * 200, '{"a":' * 300 + "1" + "}" * 300, "[" * 70 + "]" * 70, "", ",", "undefined"),
    *('"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"\\u202e"', '"' + "x" * 20_000 + '"', '"../../../etc/passwd"'),
    *('"\\n"', '"</script><b>"', '"inf"', '"nan"', '"$\\\\frac{"', "1e308", "-1e308", "5e-324", "1e30", "10000000000"),
]
_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from([[], {}, [[]], [1, 2], {"a": 1}, [None], ["inf"], [[0.5, 0.5]], [10**9], [1] * 100, [0], [-1]]),
)


def _places(value: Any, at: tuple = ()) -> list[tuple]:
    """Every place in a JSON value, as the keys that lead there."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inside for place in _places(item, (*at, key)))]


@st.composite
def broken_json(draw: Any, value: Any) -> bytes:
    """A JSON value as text, with one to three changes somewhere in it."""
    value, raw = copy.deepcopy(value), {}
    for number in range(draw(st.integers(1, 3))):
        places = _places(value)
        place = places[draw(st.integers(0, len(places) - 1))]
        if not place:
            place = places[min(1, len(places) - 1)]
        if not place:
            break
        holder = value
        for key in place[:-1]:
            holder = holder[key]
        key = place[-1]
        change = draw(st.sampled_from(["value", "raw", "raw", "delete", "rename", "double", "reorder"]))
        if change == "value":
            holder[key] = copy.deepcopy(draw(_VALUES))  # one of the next changes may be inside it
        elif change == "raw":
            holder[key] = f"@{number}@"
            raw[f'"@{number}@"'] = draw(st.sampled_from(_RAW))
        elif change == "delete":
            del holder[key]
        elif change == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = holder.pop(key)
        elif change == "double":
            if isinstance(holder, list):
                holder.insert(key, holder[key])
            else:
                raw[f"{json.dumps(key)}:"] = f"{json.dumps(key)}: 7, {json.dumps(key)}:"
        elif change == "reorder" and isinstance(holder, dict):
            holder[key] = holder.pop(key)
    text = json.dumps(value)
    for sign, instead in raw.items():
        text = text.replace(sign, instead)
    return text.encode()


# Bytes.


@st.composite
def broken_bytes(draw: Any, content: bytes, others: list[bytes]) -> bytes:
    """A file's bytes after an accident."""
    size = len(content)
    at = draw(st.integers(0, max(size - 1, 0)))
    match draw(
        st.sampled_from(["flip", "flip", "cut", "empty", "lose", "double", "mark", "crlf", "swap", "noise", "utf16"])
    ):
        case "flip":
            changed = bytearray(content)
            for _ in range(draw(st.integers(1, 4))):
                if size:
                    changed[draw(st.integers(0, size - 1))] = draw(st.integers(0, 255))
            return bytes(changed)
        case "cut":
            return content[:at]
        case "lose":
            return content[:at] + content[at + draw(st.integers(1, 64)) :]
        case "double":
            return content[:at] + content[at : at + draw(st.integers(1, 64))] + content[at:]
        case "mark":
            return b"\xef\xbb\xbf" + content
        case "crlf":
            return content.replace(b"\n", b"\r\n") or b"\r\n"
        case "swap":
            return draw(st.sampled_from(others))
        case "noise":
            return content[:at] + draw(st.binary(max_size=32)) + content[at:]
        case "utf16":
            return content.decode("latin-1").encode("utf-16")
    return b""


def broken_lines(content: bytes) -> st.SearchStrategy[bytes]:
    """A file of JSON lines, one of which is changed, lost or given twice."""
    lines = content.splitlines()

    def put(at: int, line: bytes | None) -> bytes:
        return b"".join(each + b"\n" for each in [*lines[:at], *([] if line is None else [line]), *lines[at + 1 :]])

    def everywhere(changed: tuple[str, Any]) -> bytes:
        key, value = changed
        return b"".join(json.dumps(json.loads(line) | {key: value}).encode() + b"\n" for line in lines)

    places = st.integers(0, len(lines) - 1)
    keys = st.sampled_from(sorted(json.loads(lines[0])))
    numbers = st.sampled_from(
        [0, -1, 1e300, -1e300, 5e-324, "inf", "-inf", "nan", None, "word", [], True, 1e9, 10**200]
    )
    return st.one_of(
        places.flatmap(lambda at: broken_json(json.loads(lines[at])).map(lambda line: put(at, line))),
        places.map(lambda at: put(at, None)),
        st.tuples(keys, numbers).map(everywhere),
        st.tuples(keys, st.lists(st.floats(), min_size=len(lines), max_size=len(lines))).map(
            lambda told: b"".join(
                json.dumps(json.loads(line) | {told[0]: number if math.isfinite(number) else str(number)}).encode()
                + b"\n"
                for line, number in zip(lines, told[1], strict=True)
            )
        ),
    )


def with_header(content: bytes, header: bytes) -> bytes:
    """A safetensors file with another header."""
    size = struct.unpack("<Q", content[:8])[0]
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def header_of(content: bytes) -> Any:
    """The header of a safetensors file."""
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


def broken_tensors(content: bytes, others: list[bytes]) -> st.SearchStrategy[bytes]:
    """A safetensors file with a changed header, or changed bytes."""
    header = broken_json(header_of(content)).map(lambda text: with_header(content, text))
    return st.one_of(header, broken_bytes(content, others))


# Arrays.

_ARRAYS = [
    np.array(None),
    np.array([{}], object),
    np.array("word"),
    np.array(["1", "2"]),
    np.array([1 + 2j, 3]),
    np.array([(1, 2.0)], "i4,f8"),
    np.array(["2020-01-01"], "M8[D]"),
    np.array([3], "m8[s]"),
    np.zeros(0),
    np.zeros((0, 2, 2)),
    np.full((2, 2), np.nan),
    np.array([np.inf, -np.inf]),
    np.array(10**9),
    np.array(-1),
    np.array(0.5),
    np.array(True),
    np.array([[0.5, 0.5], [1e-320, 1.0]]),
    np.full((2, 2), 1e308),
    np.ones((2, 2), np.float16) / 2,
    np.zeros((1,) * 20),
    np.array([-1, 7, 3]),
    np.array([2**63], np.uint64),
    np.frombuffer(b"abcd", "V4"),
]


@st.composite
def arrays(draw: Any, like: np.ndarray) -> np.ndarray:
    """An array like this one, or nothing like it."""
    change = draw(st.sampled_from(["same", "same", "same", "odd", "value", "shape", "dtype", "order"]))
    if change == "odd":
        return draw(st.sampled_from(_ARRAYS))
    if change == "value" and like.size:
        changed = np.array(like, np.float64)
        changed.flat[draw(st.integers(0, like.size - 1))] = draw(st.one_of(st.floats(), st.sampled_from([0, 1, -1])))
        return changed
    if change == "shape":
        return draw(st.sampled_from([like[None], like.ravel(), like[..., :-1] if like.ndim else like, like.T]))
    if change == "dtype":
        kind = draw(st.sampled_from(["f4", ">f8", "i8", "U8", "O", "c16", "?", "S4"]))
        return like.astype(kind)
    return np.asfortranarray(like) if change == "order" else like


@st.composite
def archives(draw: Any, held: dict[str, np.ndarray]) -> bytes:
    """An .npz archive of these arrays, some of them changed, lost or renamed; objects as pickles."""
    held = dict(held)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(held)))
        match draw(st.sampled_from(["change", "change", "change", "lose", "rename"])):
            case "change":
                held[name] = draw(arrays(np.asarray(held[name])))
            case "lose":
                held.pop(name)
            case "rename":
                held[draw(st.sampled_from(["../../up", "/abs", "transitoin", "transition", "a/b"]))] = held.pop(name)
        if not held:
            break
    return npz(held)


def npz(held: dict[str, np.ndarray]) -> bytes:
    """An .npz archive, objects as pickles."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **held)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    """An .npy file, objects as pickles."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


# Settings and command lines.

_SETTINGS = st.one_of(
    _VALUES,
    st.floats(),
    st.integers(0, 100),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.tuples(st.integers(), st.integers()),
    st.lists(st.integers(-1, 70), max_size=70),
    st.sampled_from(_ARRAYS),
    st.sampled_from(
        [
            *(10**400, -(10**400), 1e400, Decimal("0.5"), Decimal("NaN"), Decimal("1e999"), Fraction(1, 3), 1j),
            *(np.float32(0.5), np.int64(3), np.float64("nan"), np.bool_(True), np.str_("tanh"), object(), int, len),
            *({1, 2}, frozenset(), range(3), b"", ..., "tanh", "1e3", "\x1b[2J", "\ud800", "a\nb", (10**9, 10**9)),
        ]
    ),
)


def settings_of(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """One to four settings by name, legal or not."""
    name = st.one_of(st.sampled_from(names), st.sampled_from(names), st.text(max_size=8))
    return st.dictionaries(name, _SETTINGS, min_size=1, max_size=4)


def command_lines(commands: dict[str, list[str]], subjects: list[str]) -> st.SearchStrategy[list[str]]:
    """What could be typed behind `surefoot`: a command with its options, in no good order, and values of all kinds."""
    value = st.one_of(
        st.sampled_from(
            [
                *("0", "1", "-1", "2", "0.5", "1e3", "1e400", "nan", "inf", "-inf", "1e-9", "1_0", "٣", "9" * 5000, ""),
                *("1e300", "1000000000", "x", "tanh", "trpo", "pi", "\x1b[2J", "\udc80", "a b", "=", "--", "-", "100%"),
            ]
        ),
        st.text(max_size=6).filter(lambda text: "\0" not in text),
        st.sampled_from(subjects),
    )

    def line(command: str) -> st.SearchStrategy[list[str]]:
        pairs = st.tuples(st.sampled_from(commands[command]), value).map(list)
        glued = st.tuples(st.sampled_from(commands[command]), value).map(lambda pair: ["=".join(pair)])
        rest = st.lists(st.one_of(pairs, glued, value.map(lambda word: [word])), max_size=4)
        return st.tuples(st.sampled_from(subjects), rest).map(
            lambda told: [command, told[0], *(word for part in told[1] for word in part)]
        )

    return st.one_of(st.sampled_from(sorted(commands)).flatmap(line), st.lists(value, max_size=3))


# Spaces.

_SIZES = st.integers(1, 4)
_PLAIN = st.one_of(
    st.builds(
        lambda n, start, dtype: spaces.Discrete(n, start=start, dtype=dtype),
        _SIZES,
        st.integers(-5, 5),
        st.sampled_from([np.int64, np.int32, np.int8]),
    ),
    st.builds(
        lambda nvec, dtype: spaces.MultiDiscrete(nvec, dtype=dtype),
        st.one_of(st.lists(_SIZES, min_size=1, max_size=3), st.just([[2, 3], [1, 4]])),
        st.sampled_from([np.int64, np.int32]),
    ),
    st.builds(spaces.MultiBinary, st.one_of(_SIZES, st.lists(_SIZES, min_size=1, max_size=2))),
    st.builds(
        lambda shape, bound, dtype: spaces.Box(
            *([-1, 1] if np.issubdtype(dtype, np.integer) else [dtype(bound[0]), dtype(bound[1])]), shape, dtype
        ),
        st.sampled_from([(), (1,), (3,), (2, 2), (0,), (2, 0), (8, 8, 3)]),
        st.sampled_from([(-1, 1), (-np.inf, np.inf), (0, np.inf), (-np.inf, 3), (0, 0), (-1e30, 1e30), (1e-30, 2e-30)]),
        st.sampled_from([np.float32, np.float64, np.int8, np.float16]),
    ),
    st.sampled_from(
        [
            spaces.Text(3),
            spaces.Sequence(spaces.Discrete(2)),
            spaces.Graph(spaces.Discrete(2), None),
            spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
            spaces.Dict({}),
            spaces.Tuple([]),
        ]
    ),
)
ANY_SPACE = st.recursive(
    _PLAIN,
    lambda inner: st.one_of(
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(spaces.Dict),
        st.lists(inner, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=4,
)
"""Spaces that surefoot supports, and others."""


# What is sealed, sealed again by someone who means no good.

NOTES = ("passed by: ", "going on from ", "no checkpoint is sound", "the bits may differ", "the same bits are not")
"""How lines begin that a command says before the one with which it refuses."""


def described_again(description: Any, blob: bytes) -> bytes:
    """An artefact's description with the digests that fit it and these tensors."""
    if not isinstance(description, dict):
        return json.dumps(description).encode()
    told = description | {"tensor_bytes": len(blob), "tensor_sha256": hashlib.sha256(blob).hexdigest()}
    told.pop("sha256", None)
    return json.dumps(told | {"sha256": digest(told)}).encode()
