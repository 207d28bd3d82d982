"""Ray workers: each collects with a source of its own, near or far, and what they bring back is one trajectory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from surefoot import config
from surefoot._version import __version__
from surefoot.arrays import bits
from surefoot.batch import Trajectory
from surefoot.cluster import Cluster, answered
from surefoot.errors import EnvironmentFault, RunError, SettingError
from surefoot.policy import NeuralPolicy
from surefoot.sources.base import Source
from surefoot.sources.guard import line
from surefoot.sources.host import HostState, packed, unpacked
from surefoot.sources.ray_collection import MOST_LOSSES, Asked, Collection, told_by
from surefoot.sources.ray_worker import Collector


@dataclass(frozen=True)
class RayState:
    """Where the environments of every worker stand.

    Attributes:
        parts: of each worker's own.
        number: of this state among those that the source has made; 0 for one that it was given.
        replaced: how many workers have been replaced so far.
        restarted: how many of these could not be brought to where they had been, and began anew.
        collected: share of the last trajectory's transitions that were waited for.
    """

    parts: tuple[HostState, ...]
    number: int
    replaced: int
    restarted: int
    collected: float


def ray_source(environment: str | Callable[[], Any], settings: config.Collection) -> RaySource:
    """`settings.workers` Ray workers with `settings.envs` environments between them.

    Raises SettingError, EnvironmentNotFound, UnsupportedSpace, EnvironmentFault.
    """
    from surefoot.sources import functional_environment

    if functional_environment(environment) is not None:
        raise SettingError(
            "workers are for environments that are stepped on the host, and this one is a function that is compiled "
            "with the update; leave workers out"
        )
    assert settings.workers is not None
    return RaySource(environment, settings, Cluster(settings.ray_address, settings.workers))


class RaySource(Source):
    """Final: workers that collect with the policy of the update under way, and with no other.

    Worker i has environments of its own, keys of its own, and its place in the trajectory, so what comes of a
    collection does not depend on who answers first. A worker that is lost, that takes too long or that brings back what
    is no trajectory is replaced: the new one makes the environments anew from their seed, replays what they were given,
    and collects the same share again.
    """

    def __init__(self, environment: str | Callable[[], Any], settings: config.Collection, cluster: Cluster):
        self.envs, self.horizon = settings.envs, settings.horizon
        self._cluster: Cluster | None = cluster
        self._environment, self._settings = environment, settings
        assert settings.workers is not None
        bounds = np.linspace(0, settings.envs, settings.workers + 1).astype(int)
        self._counts = [int(count) for count in np.diff(bounds)]
        self._numbers = 0
        self._actors: list[Any] = [None] * len(self._counts)
        self._standing = [-1] * len(self._counts)  # the state that each worker stands in
        self._first: Any = None  # what the first worker to begin is, and the others must be
        try:
            self._begin(range(len(self._counts)))
        except BaseException:
            self.close()
            raise
        described: Any = self._first
        self.name = described.name
        self.observation_space, self.action_space = described.observation_space, described.action_space

    def reset(self, key: PRNGKeyArray) -> RayState:
        """The start of every environment's first episode."""
        self._ready()
        keys, number = self._keys(key), self._next_number()
        found: dict[int, Any] = {}
        left = list(range(len(self._counts)))
        for _ in range(MOST_LOSSES):
            asked = {self._actors[worker].reset.remote(keys[worker], number): worker for worker in left}
            lost = self._wait(asked, lambda worker, state: found.update({worker: state}))
            left = list(lost)
            if not left:
                self._standing = [number] * len(self._counts)
                return RayState(tuple(found[i] for i in range(len(found))), number, 0, 0, 1.0)
            self._begin(left)
        raise told_by(left[0], lost[left[0]])

    def collect(self, policy: NeuralPolicy, state: RayState, key: PRNGKeyArray) -> tuple[Trajectory, RayState]:
        """T steps of each environment, worker after worker along the environments.

        Raises EnvironmentFault where workers are lost over one share again and again, or an environment fails twice in
        the same way.
        """
        self._ready()
        collection = Collection(self, self._cluster, policy, state, self._keys(key), self._next_number())
        shares = collection.made(self._settings.enough)
        parts = []
        for before, share in zip(state.parts, shares, strict=True):
            earlier = () if share.begun_anew else before.actions
            parts.append(replace(share.state, actions=(*earlier, *share.state.actions)))
        trajectory = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *(s.trajectory for s in shares))
        taken = np.repeat([len(share.state.actions[0]) for share in shares], self._counts)
        collected = float(taken.sum()) / (self.horizon * self.envs)
        if self._settings.enough < 1:
            trajectory = replace(trajectory, weight=_weight(taken, self.horizon))
        return trajectory, RayState(
            parts=tuple(parts),
            number=collection.number,
            replaced=state.replaced + collection.replaced,
            restarted=state.restarted + sum(share.unrepeatable for share in shares),
            collected=collected,
        )

    def told(self, state: RayState) -> dict[str, Any]:
        """Workers replaced so far, and what share of the transitions was waited for."""
        return {
            "workers_replaced": state.replaced,
            "workers_restarted": state.restarted,
            "collected_share": state.collected,
        }

    def pack(self, state: RayState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Every worker's state by its place."""
        pairs = [packed(part) for part in state.parts]
        arrays = {f"{i}/{name}": array for i, (part, _) in enumerate(pairs) for name, array in part.items()}
        facts = {"replaced": state.replaced, "restarted": state.restarted, "collected": state.collected}
        return arrays, {"workers": [fact for _, fact in pairs], **facts}

    def unpack(self, arrays: dict[str, np.ndarray], facts: dict[str, Any], like: RayState) -> RayState:
        """The state that was packed. Raises RunError where it is none of these workers."""
        try:
            each = facts["workers"]
            if len(each) != len(like.parts):
                raise ValueError(f"it is one of {len(each)} workers, not of {len(like.parts)}")
            replaced, restarted = facts["replaced"], facts["restarted"]
            if any(type(count) is not int or not 0 <= count < 2**63 for count in (replaced, restarted)):
                raise ValueError("a count is no whole number")
            collected = facts["collected"]
            if type(collected) is not float or not 0 <= collected <= 1:
                raise ValueError("its share of the transitions is none")
        except (LookupError, TypeError, ValueError) as error:
            raise RunError(f"{self.name}: the saved state does not fit: {error}") from None
        parts = []
        for i, (fact, part) in enumerate(zip(each, like.parts, strict=True)):
            own = {name.removeprefix(f"{i}/"): array for name, array in arrays.items() if name.startswith(f"{i}/")}
            parts.append(unpacked(own, fact, part, self.action_space, f"{self.name}, worker {i}"))
        return RayState(tuple(parts), 0, replaced, restarted, collected)

    def close(self) -> None:
        """Let the workers go, and the cluster where it was begun for them."""
        for worker in range(len(self._actors)):
            self.end(worker)
        if self._cluster is not None:
            self._cluster.close()
        self._cluster = None

    # For the collection under way.

    def ask(
        self, worker: int, policy: Any, state: RayState, key: np.ndarray, number: int, *, anyhow: bool
    ) -> tuple[Any, Asked]:
        """Have a worker collect its share: Ray's promise of it, and what is known of it.

        The state is sent along where the worker does not stand in it. `anyhow`: see `Collector.collect`.
        """
        before, part = state.number, state.parts[worker]
        there = before > 0 and self._standing[worker] == before
        self._standing[worker] = number
        sent = (0, part) if not there else (before, None)
        promise = self._actors[worker].collect.remote(policy, *sent, key, number, anyhow=anyhow)
        replayed = 0 if there else sum(len(block) for block in part.actions)
        limit = self._settings.worker_seconds
        if limit is not None:
            limit *= 1 + replayed / self.horizon
        return promise, Asked(worker, time.monotonic(), limit)

    def stop(self, worker: int, number: int) -> None:
        """Have a worker end its share after the step under way."""
        self._actors[worker].stop.remote(number)

    def replace(self, workers: list[int]) -> None:
        """Others in the place of these workers. Raises EnvironmentFault where none can be had."""
        for worker in workers:
            self.end(worker)
        self._begin(workers)

    def end(self, worker: int) -> None:
        """Let a worker go, whatever it is at."""
        actor, self._actors[worker] = self._actors[worker], None
        self._standing[worker] = -1
        if actor is not None and self._cluster is not None and self._cluster.ray.is_initialized():
            self._cluster.ray.kill(actor)

    def _begin(self, workers: Any) -> None:
        assert self._cluster is not None
        ray, settings, workers = self._cluster.ray, self._settings, list(workers)
        threads = max(1, self._cluster.processors // len(self._counts))
        stoppable = 2 if settings.enough < 1 else 1  # a second thread, which hears `stop`
        make = ray.remote(Collector).options(
            num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD", max_concurrency=stoppable
        )
        environment = self._cluster.sent(self._environment)
        path = [os.path.abspath(folder) for folder in sys.path]
        for _ in range(MOST_LOSSES):
            for worker in workers:
                self._actors[worker] = make.remote()
                self._standing[worker] = -1
            # Ready to import what the environment is of before they are given it.
            self._wait({self._actors[worker].prepare.remote(path): worker for worker in workers}, lambda *_: None)
            begun = {}
            for worker in workers:
                own = replace(
                    settings, envs=self._counts[worker], workers=None, ray_address=None, enough=1.0, devices=None
                )
                begun[self._actors[worker].begin.remote(environment, own, threads)] = worker
            lost = self._wait(begun, self._meet)
            workers = list(lost)
            if not workers:
                return
        first = workers[0]
        raise EnvironmentFault(
            f"worker {first} was lost before it had begun, {MOST_LOSSES} times: {line(lost[first])}; see that its "
            "machine has what the environment needs"
        )

    def _meet(self, worker: int, described: Any) -> None:
        self._first = first = self._first or described
        if described.version != __version__:
            raise EnvironmentFault(
                f"worker {worker} has surefoot {described.version}, not {__version__}; install the same everywhere"
            )
        for what in ("observation_space", "action_space"):
            one, other = getattr(described, what), getattr(first, what)
            if one != other:
                raise EnvironmentFault(f"worker {worker} has the {what} {one}, but that of the first is {other}")

    def _wait(self, asked: dict[Any, int], found: Callable[[int, Any], None]) -> dict[int, Exception]:
        """Hand over what each worker answers, of all that were asked, as it comes; the workers that are lost, and why.

        Raises EnvironmentFault where they take too long, and whatever one of them raised.
        """
        assert self._cluster is not None
        lost: dict[int, Exception] = {}
        ray, limit = self._cluster.ray, self._settings.worker_seconds
        until = None if limit is None else time.monotonic() + limit
        while asked:
            left = None if until is None else max(0.0, until - time.monotonic())
            ready, _ = ray.wait(list(asked), num_returns=1, timeout=left)
            if not ready:
                raise EnvironmentFault(
                    f"{len(asked)} of {len(self._counts)} workers have not begun after {limit:g} s, on a cluster of "
                    f"{self._cluster.processors} processors; take fewer workers, or raise worker_seconds"
                )
            for promise in ready:
                worker = asked.pop(promise)
                answer, error = answered(ray, promise)
                if isinstance(error, ray.exceptions.RayError):
                    lost[worker] = error
                elif error is not None:
                    raise told_by(worker, error) from error
                else:
                    found(worker, answer)
        return lost

    def _ready(self) -> None:
        if self._cluster is None:
            self._cluster = Cluster(self._settings.ray_address, len(self._counts))
        if missing := [worker for worker, actor in enumerate(self._actors) if actor is None]:
            self._begin(missing)

    def _keys(self, key: PRNGKeyArray) -> list[np.ndarray]:
        """A key for each worker, as its bits."""
        return list(bits(jax.random.split(key, len(self._counts))))

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers


def _weight(taken: np.ndarray, steps: int) -> np.ndarray:
    """What rows count for, [T, N], where environment i took `taken[i]` of T steps: N over how many took that step.

    Weighted so, every step of the horizon counts as much as if all had taken it, rather than the first ones more; it is
    unbiased where how far a worker comes has nothing to do with what its environments live through.
    """
    there = np.arange(steps)[:, None] < taken
    share = there.mean(axis=1, keepdims=True)
    return np.where(there, 1 / np.maximum(share, 1 / taken.size), 0).astype(np.float32)
