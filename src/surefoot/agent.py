"""The artefact: a trained policy as safetensors and JSON, and the agent that it loads as.

Nothing in it can run code. It holds all that acting takes: spaces, normaliser, network, head and the
mapping of actions; not the trainer's settings.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from surefoot import config
from surefoot._version import __version__
from surefoot.convolution import layer_shapes
from surefoot.errors import RunError, SettingError, SurefootError, printable, shown
from surefoot.files import write_atomically
from surefoot.observations import make_reader
from surefoot.policy import HostPolicy, NeuralPolicy, make_policy
from surefoot.reading import parse_json, read_bytes, read_json
from surefoot.settings import as_json, digest, dumps
from surefoot.spaces import describe, first_entries, lawful, make_encoder, make_head, one_line, parse, some_allowed

FORMAT_VERSION = 2


class Agent:
    """A policy outside the trainer: NumPy in, NumPy out.

    Attributes:
        policy: the policy itself.
        observation_space: what it observes.
        action_space: what it returns actions of.
        environment: the name of the environment that it was trained in.
    """

    def __init__(
        self,
        policy: NeuralPolicy,
        observation_space: gymnasium.Space,
        action_space: gymnasium.Space,
        environment: str = "",
    ):
        self.policy = policy
        self._actor = HostPolicy(policy)
        self._read = make_reader(observation_space, self._actor.dtype)
        maskable = self._actor.head.kind.endswith("Categorical")
        self._firsts = first_entries(action_space) if maskable else None
        self.observation_space = observation_space
        self.action_space = action_space
        self.environment = environment

    def act(
        self,
        observation: Any,
        mask: np.ndarray | None = None,
        *,
        deterministic: bool = True,
        generator: np.random.Generator | None = None,
    ) -> np.ndarray:
        """The environment's action for one observation, or one a row for a batch of them.

        Arguments:
            observation: as the observation space has it, or a batch with one leading axis.
            mask: which actions are allowed, [K] or [batch, K]; categorical policies only.
            deterministic: the most probable action, else a sampled one.
            generator: where sampling takes its randomness from; fresh by default.

        Raises SettingError for an observation that does not fit the space.
        """
        actor = self._actor
        arrays, size = self._read(observation)
        allowed = None if mask is None else self._mask(mask, size)
        outputs = actor.outputs(arrays)
        if deterministic:
            action = actor.mode(outputs, allowed)
        else:
            noise = actor.noise(() if size is None else (size,), generator or np.random.default_rng())
            action = actor.sample(outputs, allowed, noise)
        return lawful(actor.action_map(action), self.action_space)

    def _mask(self, mask: Any, size: int | None) -> np.ndarray:
        if self._firsts is None:
            raise SettingError(f"mask must be None for {one_line(self.action_space)}, but {type(mask).__name__} came")
        entries = self._actor.head.outputs
        wanted = (entries,) if size is None else (size, entries)
        try:
            allowed = np.asarray(mask).astype(bool)
        except (TypeError, ValueError):
            raise SettingError(f"mask must be an array of shape {wanted}, but {shown(mask)} came") from None
        if size is not None and allowed.shape == wanted[-1:]:  # one mask for a whole batch
            allowed = np.broadcast_to(allowed, wanted)
        if allowed.shape != wanted:
            raise SettingError(f"mask must have shape {wanted}, but {allowed.shape} came")
        if not some_allowed(allowed, self._firsts).all():
            raise SettingError("mask must allow at least one action of each choice, but one with nothing allowed came")
        return allowed


def save(agent: Agent, folder: str | Path, network: config.Network) -> None:
    """Write the artefact into `folder`: policy.json and policy.safetensors, each whole or not at all.

    The description is written last and holds the tensors' digest and its own, so a torn pair and a flipped
    bit are recognised.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = safetensors.numpy.save(_tensors(agent.policy))
    description = {
        "format_version": FORMAT_VERSION,
        "surefoot_version": __version__,
        "environment": agent.environment,
        "observation_space": describe(agent.observation_space),
        "action_space": describe(agent.action_space),
        "network": as_json(network),
        "dtype": str(agent.policy.normaliser.mean.dtype),
        "tensor_bytes": len(tensors),
        "tensor_sha256": hashlib.sha256(tensors).hexdigest(),
    }
    write_atomically(folder / "policy.safetensors", tensors)
    write_atomically(folder / "policy.json", dumps(description | {"sha256": digest(description)}, indent=1).encode())


def policy_folder(path: str | os.PathLike) -> Path:
    """Where the artefact is: the folder itself, or its `policy` folder where it is a run's."""
    folder = Path(path)
    return folder if (folder / "policy.json").exists() else folder / "policy"


def load(path: str | os.PathLike) -> Agent:
    """The agent of a run folder, or of its `policy` folder.

    Raises RunError where there is none or it does not fit together, naming the key.
    """
    folder = Path(path)
    try:
        folder = policy_folder(path)
        description = read_json(folder / "policy.json")
        blob = read_bytes(folder / "policy.safetensors")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} holds no policy that can be read: {error}") from None
    return _assemble(description, blob, str(folder))


def _assemble(description: Any, blob: bytes, where: str) -> Agent:
    def entry(key: str) -> Any:
        if not isinstance(description, dict) or key not in description:
            raise RunError(f"{where}/policy.json has no {key!r}")
        return description[key]

    version = entry("format_version")
    if version != FORMAT_VERSION:
        raise RunError(f"{where}/policy.json: format_version {version!r} is not {FORMAT_VERSION}, the one read here")
    if entry("tensor_bytes") != len(blob):
        raise RunError(
            f"{where}/policy.safetensors has {len(blob)} bytes, not {entry('tensor_bytes')} as policy.json says"
        )
    dtype = entry("dtype")
    if dtype not in ("float32", "float64"):
        raise RunError(f"{where}/policy.json: dtype must be 'float32' or 'float64', but {dtype!r} came")
    try:
        spaces = parse(entry("observation_space")), parse(entry("action_space"))
        network = config.Network(**entry("network"))
        check_size(spaces, network, np.dtype(dtype).itemsize, len(blob), f"{where}/policy.json")
        with jax.enable_x64(dtype == "float64"):
            skeleton = make_policy(*spaces, network, jax.random.key(0), np.dtype(dtype))
            _check_types(blob, dtype, where)
            policy = _fill(skeleton, safetensors.numpy.load(blob), where)
    except RunError:
        raise
    except (SurefootError, LookupError, TypeError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise RunError(f"{where} does not fit together: {printable(error)}") from None
    # After what does not fit was named, which says more.
    environment = str(entry("environment"))
    told = {"policy.safetensors": entry("tensor_sha256"), "policy.json": entry("sha256")}
    rest = {key: value for key, value in description.items() if key != "sha256"}
    for file, found in (("policy.safetensors", hashlib.sha256(blob).hexdigest()), ("policy.json", digest(rest))):
        if told[file] != found:
            raise RunError(f"{where}/{file} is not as it was written: its sha256 is {found}, not {shown(told[file])}")
    return Agent(policy, *spaces, environment=environment)


def check_size(spaces: Any, network: config.Network, itemsize: int, available: int, where: str) -> None:
    """Refuse layers far larger than the tensors before memory is taken for them; small differences are named later.

    Raises RunError.
    """
    shapes = layer_shapes(make_encoder(spaces[0]), network, make_head(spaces[1])[0].outputs)
    wanted = itemsize * sum(fan_in * fan_out + fan_out for fan_in, fan_out in shapes)
    if wanted > available + 2**20:
        raise RunError(
            f"{where}: network.hidden {list(network.hidden)} takes {wanted} bytes, but the tensors have {available}"
        )


def _check_types(blob: bytes, dtype: str, where: str) -> None:
    """Name a tensor whose number type NumPy may not even have. The header is JSON behind its length."""
    header = parse_json(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] != {"float32": "F32", "float64": "F64"}[dtype]:
            raise RunError(f"{where}/policy.safetensors: tensor {name!r} is {entry['dtype']}, not {dtype}")


def _names(policy: NeuralPolicy) -> list[str]:
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(policy)]


def _tensors(policy: NeuralPolicy) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in zip(_names(policy), jax.tree.leaves(policy), strict=True)}


def _fill(skeleton: NeuralPolicy, tensors: dict[str, np.ndarray], where: str) -> NeuralPolicy:
    wanted = _tensors(skeleton)
    for name in wanted.keys() ^ tensors.keys():
        problem = "is missing" if name in wanted else "belongs to no part of the policy"
        raise RunError(f"{where}/policy.safetensors: tensor {name!r} {problem}")
    for name, like in wanted.items():
        if tensors[name].shape != like.shape or tensors[name].dtype != like.dtype:
            raise RunError(
                f"{where}/policy.safetensors: tensor {name!r} is {tensors[name].dtype}{list(tensors[name].shape)}, "
                f"but the policy has {like.dtype}{list(like.shape)}"
            )
        if not np.isfinite(tensors[name]).all():
            raise RunError(f"{where}/policy.safetensors: tensor {name!r} holds values that are not finite")
    leaves = [jnp.asarray(tensors[name]) for name in _names(skeleton)]
    return jax.tree.unflatten(jax.tree.structure(skeleton), leaves)
