"""Finite MDPs and policies in files: .npz, .json and .npy, none of which can hold code."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse

from surefoot.errors import ModelError, did_you_mean, shown
from surefoot.reading import read_bytes, read_json
from surefoot.tabular.model import MDP

_PARTS = ("data", "indices", "indptr", "shape")
_SPARSE = [f"transition_{part}" for part in _PARTS]
_REQUIRED = ["reward", "discount", "start"]
_KNOWN = ["transition", *_SPARSE, *_REQUIRED, "horizon"]
_LARGEST = 2**32  # bytes unpacked; an archive of a few kilobytes can hold terabytes of zeros


def read_mdp(file: str | os.PathLike) -> MDP:
    """The MDP of a .npz or .json file.

    Both hold `transition` [S, A, S], `reward` [S, A] or [S, A, S], `discount`, `start` ([S] or one state)
    and, if finite, `horizon`. Instead of `transition` an .npz may hold the CSR matrix [S*A, S], row s*A + a,
    as `transition_data`, `transition_indices`, `transition_indptr` and `transition_shape`.

    Raises ModelError for a file that is missing, of another kind, or no MDP. Nothing in it is ever run.
    """
    path = Path(file)
    if path.suffix == ".npz":
        held = _read_npz(path)
    elif path.suffix == ".json":
        held = _read_json(path)
    else:
        raise ModelError(f"{path} must be a .npz or .json file")
    return _mdp(path, held)


def save_mdp(mdp: MDP, file: str | os.PathLike) -> None:
    """Write a .npz file that `read_mdp` reads back to the same bits. Raises ModelError for another suffix."""
    path = Path(file)
    if path.suffix != ".npz":
        raise ModelError(f"{path} must end in .npz")
    held: dict[str, Any] = {"reward": mdp.reward, "discount": mdp.discount, "start": mdp.start}
    if sparse.issparse(mdp.matrix):
        held |= {f"transition_{part}": getattr(mdp.matrix, part) for part in _PARTS}
    else:
        held["transition"] = mdp.transition
    if mdp.horizon is not None:
        held["horizon"] = mdp.horizon
    np.savez_compressed(path, **held)


def read_policy(file: str | os.PathLike, mdp: MDP, name: str = "policy") -> np.ndarray:
    """Action probabilities from a .npy file, [S, A] or [T, S, A], checked against `mdp`. Raises ModelError."""
    path = Path(file)
    try:
        array = np.lib.format.read_array(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except OSError as error:
        raise ModelError(f"{name}: {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # NumPy promises nothing of what a broken header raises
        raise ModelError(f"{name}: {path} is no .npy array of numbers") from error
    return mdp.probabilities(array, f"{name} ({path})")


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        content = io.BytesIO(read_bytes(path))
        with zipfile.ZipFile(content) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > _LARGEST:
            raise ModelError(f"{path} unpacks to {unpacked} bytes, more than the {_LARGEST} that are read")
        with np.load(content, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # zipfile, zlib and NumPy promise nothing of what a broken archive raises
        raise ModelError(f"{path} is no .npz archive of plain arrays") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        held = read_json(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    if not isinstance(held, dict):
        raise ModelError(f"{path} must hold a JSON object with {', '.join(['transition', *_REQUIRED])}")
    return held


def _mdp(path: Path, held: dict[str, Any]) -> MDP:
    for name in held:
        if name not in _KNOWN:
            raise ModelError(f"{path} holds {name!r}, which is no part of an MDP{did_you_mean(name, _KNOWN)}")
    is_sparse = "transition" not in held and any(name in held for name in _SPARSE)
    for name in [*(_SPARSE if is_sparse else ["transition"]), *_REQUIRED]:
        if name not in held:
            raise ModelError(f"{path} has no {name!r}")
    transition = held["transition"] if not is_sparse else _csr(path, held)
    # JSON's null stands for no horizon.
    try:
        return MDP(transition, held["reward"], held["discount"], held["start"], held.get("horizon"))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _csr(path: Path, held: dict[str, Any]) -> sparse.csr_array:
    data, indices, indptr, shape = (held[name] for name in _SPARSE)
    for name in _SPARSE[1:]:
        if np.asarray(held[name]).dtype.kind not in "iu":
            raise ModelError(f"{path}: {name} must hold whole numbers, but {shown(held[name])} came")
    try:
        matrix = sparse.csr_array((data, indices, indptr), shape=tuple(map(int, shape)))
        matrix.check_format(full_check=True)
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise ModelError(f"{path}: transition is no CSR matrix: {error}") from error
    return matrix
