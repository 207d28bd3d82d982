"""A run's whole state as files: written whole or not at all, checked when read.

A checkpoint is two files in the run's `checkpoints` folder, update-N.safetensors with every array and
update-N.json with the rest and a digest of the first. The JSON is written last: where it stands, the other
was whole. The newest sound one is the one to go on from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from surefoot.errors import RunError
from surefoot.reading import parse_json, read_bytes
from surefoot.record import write_atomically
from surefoot.settings import dumps

FORMAT_VERSION = 1
KEPT = 3
_FOLDER = "checkpoints"


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        arrays: by name.
        facts: plain values, as JSON has them.
        file: where it was read from.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    file: Path


def write(run: Path, update: int, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write the checkpoint of an update and let go of all but the newest few. Raises RunError."""
    folder = run / _FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error.strerror or error}") from error
    stem = folder / f"update-{update:08d}"
    blob = safetensors.numpy.save(arrays)
    described = {
        "format_version": FORMAT_VERSION,
        "update": update,
        "bytes": len(blob),
        "sha256": hashlib.sha256(blob).hexdigest(),
        "facts": facts,
    }
    write_atomically(stem.with_suffix(".safetensors"), blob)
    write_atomically(stem.with_suffix(".json"), _sealed(described))
    for old in sorted(folder.glob("update-*.json"))[:-KEPT]:
        # The JSON goes first, as it came last.
        old.unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def newest(run: Path, told: Callable[[str], None]) -> Checkpoint | None:
    """The newest sound checkpoint of a run, None where there is none; `told` is given a line for each unsound one."""
    for file in sorted((run / _FOLDER).glob("update-*.json"), reverse=True):
        try:
            return read(file)
        except RunError as error:
            told(str(error))
    return None


def read(file: Path) -> Checkpoint:
    """The checkpoint whose JSON is `file`. Raises RunError where a byte of it is not as it was written."""
    try:
        described = _unsealed(read_bytes(file))
        blob = read_bytes(file.with_suffix(".safetensors"))
        if described["format_version"] != FORMAT_VERSION:
            raise RunError(
                f"{file}: format_version {described['format_version']!r} is not {FORMAT_VERSION}, the one read here"
            )
        if described["bytes"] != len(blob) or described["sha256"] != hashlib.sha256(blob).hexdigest():
            raise RunError(f"{file.with_suffix('.safetensors')} is not as it was written")
        return Checkpoint(safetensors.numpy.load(blob), described["facts"], file)
    except RunError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise RunError(f"{file} is no checkpoint that can be read: {error}") from None


def _sealed(described: dict[str, Any]) -> bytes:
    """The description as JSON, with its own digest as the first entry."""
    return dumps({"digest": _digest(described), **described}).encode()


def _unsealed(content: bytes) -> dict[str, Any]:
    described = parse_json(content)
    if described.pop("digest") != _digest(described):
        raise ValueError("its digest does not fit")
    return described


def _digest(described: dict[str, Any]) -> str:
    # Python writes what it read from JSON in the same characters again.
    return hashlib.sha256(dumps(described).encode()).hexdigest()


def arrays_of(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    """Every leaf of a tree of arrays as NumPy, by its path behind `prefix`; keys as their bits."""
    return {name: _as_numpy(leaf) for name, leaf in _named(tree, prefix)}


def tree_of(skeleton: Any, arrays: dict[str, np.ndarray], prefix: str) -> Any:
    """The tree of `skeleton`'s structure with its leaves from `arrays`.

    Raises RunError where a leaf is missing, too many, or of another shape or type, naming it.
    """
    wanted = _named(skeleton, prefix)
    extra = {name for name in arrays if name.startswith(f"{prefix}/")} - {name for name, _ in wanted}
    if extra:
        raise RunError(f"the checkpoint has {sorted(extra)[0]!r}, which belongs to no part of the run")
    leaves = []
    for name, like in wanted:
        if name not in arrays:
            raise RunError(f"the checkpoint has no {name!r}")
        found, expected = arrays[name], _as_numpy(like)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise RunError(
                f"the checkpoint's {name!r} is {found.dtype}{list(found.shape)}, "
                f"but the run has {expected.dtype}{list(expected.shape)}"
            )
        leaves.append(_like(found, like))
    return jax.tree.unflatten(jax.tree.structure(skeleton), leaves)


def _named(tree: Any, prefix: str) -> list[tuple[str, Any]]:
    leaves = jax.tree.leaves_with_path(tree)
    return [(f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='.')}", leaf) for path, leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _like(found: np.ndarray, like: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(found), impl=jax.random.key_impl(like))
    return jax.device_put(found) if isinstance(like, jax.Array) else found
