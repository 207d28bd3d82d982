"""A run's whole state as files: written whole or not at all, checked when read.

A checkpoint is two files in the run's `checkpoints` folder, update-N.safetensors with every array and
update-N.json with the rest and a digest of the first. The JSON is written last: where it stands, the other
was whole. The newest sound one of the run is the one to go on from.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from surefoot.arrays import bits, from_bits
from surefoot.errors import RunError, printable, shown
from surefoot.files import make_folder, write_atomically
from surefoot.reading import parse_json, read_bytes
from surefoot.settings import digest, dumps

FORMAT_VERSION = 1
KEPT = 3
_FOLDER = "checkpoints"
_NAME = re.compile(r"update-(\d{8,18})")


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        update: how many updates were made when it was written.
        identity: of the run that wrote it.
        arrays: by name.
        facts: plain values, as JSON has them.
        file: where it was read from.
    """

    update: int
    identity: str
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    file: Path


def write(
    run: Path, identity: str, update: int, arrays: dict[str, np.ndarray], facts: dict[str, Any], sound: Sequence[int]
) -> list[int]:
    """Write the checkpoint of an update and let go of those that are older than the newest few sound ones.

    Arguments:
        run: the run's folder.
        identity: of the run; a checkpoint with another one is not gone on from.
        update, arrays, facts: what the checkpoint holds.
        sound: updates whose checkpoints are known to be sound, in order. Others may be there, newer ones too, which a
            run that went on from an older one has passed by: they are no reason to remove a sound one.

    Returns: the updates whose checkpoints are now known to be sound and kept.

    Raises RunError where the disk refuses it; every older checkpoint is then still there.
    """
    folder = run / _FOLDER
    write_pair(folder, identity, update, arrays, facts)
    sound = [*(known for known in sound if known < update), update][-KEPT:]
    if len(sound) == KEPT:
        # The JSON goes first, as it came last.
        for kind in (".json", ".safetensors"):
            for old in updates(folder, kind):
                if old < sound[0]:
                    with contextlib.suppress(OSError):  # what cannot be removed must not end the run
                        file_of(folder, old).with_suffix(kind).unlink()
    return sound


def write_pair(folder: Path, identity: str, update: int, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Write what belongs to an update into a folder as two files, the JSON last. Raises RunError."""
    make_folder(folder)
    file = file_of(folder, update)
    blob = safetensors.numpy.save(arrays)
    described = {
        "format_version": FORMAT_VERSION,
        "run": identity,
        "update": update,
        "bytes": len(blob),
        "sha256": hashlib.sha256(blob).hexdigest(),
        "facts": facts,
    }
    write_atomically(file.with_suffix(".safetensors"), blob)
    write_atomically(file, _sealed(described))


def found(run: Path, identity: str, passed_by: Callable[[str], None]) -> Iterator[Checkpoint]:
    """The sound checkpoints of a run, newest first; `passed_by` is given a line for each other one in between."""
    folder = run / _FOLDER
    for update in sorted(updates(folder, ".json") | updates(folder, ".safetensors"), reverse=True):
        file = file_of(folder, update)
        try:
            checkpoint = read(file)
            if checkpoint.identity != identity:
                raise RunError(f"{file} is of another run")
        except RunError as error:
            passed_by(str(error))
        else:
            yield checkpoint


def read(file: Path, what: str = "checkpoint") -> Checkpoint:
    """The pair whose JSON is `file`, which messages call `what`. Raises RunError where a byte is not as it was
    written."""
    try:
        described = _unsealed(read_bytes(file))
        if described["format_version"] != FORMAT_VERSION:
            raise RunError(
                f"{file}: format_version {described['format_version']!r} is not {FORMAT_VERSION}, the one read here"
            )
        if _stem(described["update"]) != file.stem:
            raise RunError(f"{file} has another name than it was written under, {_stem(described['update'])}.json")
        blob = read_bytes(file.with_suffix(".safetensors"))
        if described["bytes"] != len(blob) or described["sha256"] != hashlib.sha256(blob).hexdigest():
            raise RunError(f"{file.with_suffix('.safetensors')} is not as it was written")
        arrays = safetensors.numpy.load(blob)
        return Checkpoint(described["update"], described["run"], arrays, described["facts"], file)
    except RunError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise RunError(f"{file} is no {what} that can be read: {printable(error)}") from None


def file_of(folder: Path, update: int) -> Path:
    """The JSON of an update's pair in a folder."""
    return folder / f"{_stem(update)}.json"


def _stem(update: int) -> str:
    return f"update-{update:08d}"


def updates(folder: Path, kind: str) -> set[int]:
    """The updates of which something is in the folder that is named as a pair's file of this kind."""
    named = (_NAME.fullmatch(file.stem) for file in folder.glob(f"update-*{kind}"))
    return {int(match[1]) for match in named if match}


def _sealed(described: dict[str, Any]) -> bytes:
    """The description as JSON, with its own digest as the first entry."""
    return dumps({"digest": digest(described), **described}).encode()


def _unsealed(content: bytes) -> dict[str, Any]:
    described = parse_json(content)
    if described.pop("digest") != digest(described):
        raise ValueError("its digest does not fit")
    return described


def arrays_of(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    """Every leaf of a tree of arrays as NumPy, by its path behind `prefix`; keys as their bits."""
    return {name: bits(leaf) for name, leaf in _named(tree, prefix)}


def tree_of(skeleton: Any, arrays: dict[str, np.ndarray], prefix: str, what: str = "checkpoint") -> Any:
    """The tree of `skeleton`'s structure with its leaves from `arrays`; messages call where they are from `what`.

    Raises RunError where a leaf is missing, too many, or of another shape or type, naming it.
    """
    wanted = _named(skeleton, prefix)
    extra = {name for name in arrays if name.startswith(f"{prefix}/")} - {name for name, _ in wanted}
    if extra:
        raise RunError(f"the {what} has {shown(sorted(extra)[0])}, which belongs to no part of the run")
    leaves = []
    for name, like in wanted:
        if name not in arrays:
            raise RunError(f"the {what} has no {name!r}")
        found, expected = arrays[name], bits(like)
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise RunError(
                f"the {what}'s {name!r} is {found.dtype}{list(found.shape)}, "
                f"but the run has {expected.dtype}{list(expected.shape)}"
            )
        leaves.append(from_bits(found, like))
    return jax.tree.unflatten(jax.tree.structure(skeleton), leaves)


def _named(tree: Any, prefix: str) -> list[tuple[str, Any]]:
    leaves = jax.tree.leaves_with_path(tree)
    return [(f"{prefix}/{jax.tree_util.keystr(path, simple=True, separator='.')}", leaf) for path, leaf in leaves]
