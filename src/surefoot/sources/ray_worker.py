"""What a Ray worker does: it holds a source of its own, and collects with it as it is told. Imports nothing slow."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from surefoot import config
from surefoot._version import __version__


class Described(NamedTuple):
    """What a worker is.

    Attributes:
        name: of its environments.
        observation_space, action_space: of one of them.
        process: its number on its machine.
        node: Ray's name of the machine.
        version: of surefoot.
    """

    name: str
    observation_space: Any
    action_space: Any
    process: int
    node: str
    version: str


class Share(NamedTuple):
    """What a worker brings back.

    Attributes:
        trajectory: of its environments.
        state: where they stand then; of their actions just those of this trajectory.
        begun_anew: whether what they did before is left out of it, as they were restarted.
        unrepeatable: whether that was because they could not be brought to where they had been.
    """

    trajectory: Any
    state: Any
    begun_anew: bool
    unrepeatable: bool


class Collector:
    """Final: the worker. Its environments stand where the last share that it brought back ended."""

    def __init__(self) -> None:
        self._source: Any = None
        self._standing: tuple[int, Any] = (-1, None)
        self._stopped = -1

    def prepare(self, path: list[str]) -> None:
        """Look for modules where the run does, too: what `begin` is given may be of one of them."""
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # devices are for the update
        sys.path.extend(folder for folder in path if folder not in sys.path)

    def begin(self, environment: str | Callable[[], Any], settings: config.Collection, threads: int) -> Described:
        """Make the environments."""
        import ray

        from surefoot.compilation import keep_compiled_programs
        from surefoot.sources import make_source

        keep_compiled_programs()
        self._source = source = make_source(environment, settings, threads=threads)
        node = ray.get_runtime_context().get_node_id()
        spaces = source.observation_space, source.action_space
        return Described(source.name, *spaces, os.getpid(), node, __version__)

    def reset(self, key: Any, number: int) -> Any:
        """The state in which every environment stands at the start of its first episode, called `number`."""
        state = self._source.reset(_key(key))
        self._standing = number, state
        return state

    def collect(self, policy: Any, before: int, state: Any, key: Any, number: int, *, anyhow: bool) -> Share:
        """Go on from the state called `before`, to the one called `number`.

        `state` is that state where the worker stands elsewhere. Where its environments cannot be brought to where they
        had been, they begin anew if that is better than nothing, `anyhow`; otherwise NotRepeatable is raised.
        """
        import jax

        from surefoot.sources.host import NotRepeatable

        known, standing = self._standing
        if known != before:
            assert state is not None, "a worker that stands elsewhere must be told where to go on from"
            standing = state
        self._standing = (-1, None)
        unrepeatable = False
        with jax.enable_x64(policy.normaliser.mean.dtype == "float64"):
            try:
                trajectory, after = self._collected(policy, standing, key, number)
            except NotRepeatable:
                if not anyhow:
                    raise
                unrepeatable = True
                standing = self._source.restarted(standing)
                trajectory, after = self._collected(policy, standing, key, number)
        self._standing = number, after
        begun_anew = unrepeatable or after.restarts != standing.restarts
        return Share(trajectory, replace(after, actions=after.actions[-1:]), begun_anew, unrepeatable)

    def stop(self, number: int) -> None:
        """End the share that leads to the state called `number` after the step under way."""
        self._stopped = max(self._stopped, number)

    def _collected(self, policy: Any, state: Any, key: Any, number: int) -> tuple[Any, Any]:
        return self._source.collect(policy, state, _key(key), enough=lambda: number <= self._stopped)


def _key(bits: Any) -> Any:
    import jax

    return jax.random.wrap_key_data(jax.numpy.asarray(bits))
