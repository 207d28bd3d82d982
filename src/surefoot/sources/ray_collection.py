"""One collection of Ray's workers: who is asked, who answers, and what becomes of a share whose worker is lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from surefoot.errors import EnvironmentFault, SurefootError
from surefoot.sources.guard import line
from surefoot.sources.host import NotRepeatable
from surefoot.sources.ray_worker import Share

if TYPE_CHECKING:
    from surefoot.sources.ray import RaySource, RayState

MOST_LOSSES = 5
"""Workers that may be lost over one share before the run is given up: it is not they that are at fault."""


class Asked(NamedTuple):
    """A worker that is at its share.

    Attributes:
        worker: which.
        begun: when it was asked, in seconds of `time.monotonic`.
        limit: seconds that it may take; None for any time.
    """

    worker: int
    begun: float
    limit: float | None


class Collection:
    """Final: one collection, from the asking to the last share."""

    def __init__(self, source: RaySource, cluster: Any, policy: Any, state: RayState, keys: list, number: int):
        self.number, self.replaced = number, 0
        self._source, self._ray, self._state, self._keys = source, cluster.ray, state, keys
        self._policy = self._ray.put(jax.tree.map(np.asarray, policy))  # once, whatever the number of workers
        self._asked: dict[Any, Asked] = {}
        self._losses: dict[int, list[str]] = {}

    def made(self, enough: float) -> list[Share]:
        """Every worker's share, once so much of all transitions is there."""
        shares: dict[int, Share] = {}
        for worker in range(len(self._keys)):
            self._ask(worker)
        stopped = False
        while self._asked:
            done, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=self._patience())
            for promise in done:
                self._take(promise, shares)
            self._give_up()
            there = sum(share.trajectory.reward.size for share in shares.values())
            if not stopped and enough < 1 and there >= enough * self._source.horizon * self._source.envs:
                stopped = True
                for asked in self._asked.values():
                    self._source.stop(asked.worker, self.number)
        return [shares[worker] for worker in range(len(self._keys))]

    def _ask(self, worker: int) -> None:
        lost = worker in self._losses
        promise, asked = self._source.ask(
            worker, self._policy, self._state, self._keys[worker], self.number, anyhow=lost
        )
        self._asked[promise] = asked

    def _take(self, promise: Any, shares: dict[int, Share]) -> None:
        worker = self._asked.pop(promise).worker
        share, error = answered(self._ray, promise)
        if error is not None:
            self._lost(worker, error)
        elif not self._source.fits(worker, share, self._state.parts[worker]):
            self._lost(worker, EnvironmentFault("it brought back what is no trajectory of its environments"))
        else:
            shares[worker] = share

    def _patience(self) -> float | None:
        """Seconds until the first worker has taken too long; None where they may take any time."""
        ends = [asked.begun + asked.limit for asked in self._asked.values() if asked.limit is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _give_up(self) -> None:
        now = time.monotonic()
        for promise, (worker, begun, limit) in list(self._asked.items()):
            if limit is not None and now - begun >= limit:
                del self._asked[promise]
                what = (
                    f"it has not come back with its share after {limit:g} s; raise worker_seconds if it may take longer"
                )
                self._lost(worker, EnvironmentFault(what))

    def _lost(self, worker: int, error: Exception) -> None:
        """Have another worker make the share. Raises EnvironmentFault where that is of no use."""
        said = self._losses.setdefault(worker, [])
        fault = told_by(worker, error)
        again = isinstance(error, SurefootError) and said[-1:] == [str(error)]
        said.append(str(error))
        if again or isinstance(error, NotRepeatable) or len(said) > MOST_LOSSES:
            raise fault from error
        self.replaced += 1
        try:
            self._source.replace(worker)
        except EnvironmentFault as failed:
            self._lost(worker, failed)
            return
        self._ask(worker)


def answered(ray: Any, promise: Any) -> tuple[Any, Exception | None]:
    """What a worker answered, or what came in its place."""
    try:
        return ray.get(promise), None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        return None, cause if isinstance(cause, Exception) else error
    except ray.exceptions.RayError as error:
        return None, error


def told_by(worker: int, error: Exception) -> SurefootError:
    """The error as the run tells it, with the worker's number."""
    if isinstance(error, SurefootError):
        return type(error)(f"{error} (worker {worker})")
    return EnvironmentFault(f"worker {worker} is lost: {line(error)}")
