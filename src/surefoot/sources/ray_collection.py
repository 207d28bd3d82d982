"""One collection of Ray's workers: who is asked, who answers, and what becomes of a share whose worker is lost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from surefoot.batch import Trajectory
from surefoot.cluster import answered
from surefoot.errors import EnvironmentFault, SurefootError
from surefoot.sources.guard import line
from surefoot.sources.host import HostState, NotRepeatable
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
        self._stopped = False

    def made(self, enough: float) -> list[Share]:
        """Every worker's share, once so much of all transitions is there."""
        shares: dict[int, Share] = {}
        for worker in range(len(self._keys)):
            self._ask(worker)
        while self._asked:
            self._ray.wait(list(self._asked), num_returns=1, timeout=self._patience())
            done, _ = self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
            lost = [pair for promise in done if (pair := self._take(promise, shares)) is not None]
            lost += self._overdue()
            if lost:
                self._replace(dict(lost))
            there = sum(share.trajectory.reward.size for share in shares.values())
            if not self._stopped and enough < 1 and there >= enough * self._source.horizon * self._source.envs:
                self._stopped = True
                for asked in self._asked.values():
                    self._source.stop(asked.worker, self.number)
        return [shares[worker] for worker in range(len(self._keys))]

    def _ask(self, worker: int) -> None:
        lost = worker in self._losses
        promise, asked = self._source.ask(
            worker, self._policy, self._state, self._keys[worker], self.number, anyhow=lost
        )
        self._asked[promise] = asked
        if self._stopped:
            self._source.stop(worker, self.number)

    def _take(self, promise: Any, shares: dict[int, Share]) -> tuple[int, Exception] | None:
        """Keep the share that a worker has brought back, or say which worker is lost and why."""
        worker = self._asked.pop(promise).worker
        share, error = answered(self._ray, promise)
        if error is None and not fits(share, self._state.parts[worker], self._source.horizon):
            error = EnvironmentFault("it brought back what is no trajectory of its environments")
        if error is not None:
            return worker, error
        shares[worker] = share
        return None

    def _patience(self) -> float | None:
        """Seconds until the first worker has taken too long; None where they may take any time."""
        ends = [asked.begun + asked.limit for asked in self._asked.values() if asked.limit is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _overdue(self) -> list[tuple[int, Exception]]:
        """The workers that have taken too long, which are not waited for any more."""
        now = time.monotonic()
        found: list[tuple[int, Exception]] = []
        for promise, (worker, begun, limit) in list(self._asked.items()):
            if limit is not None and now - begun >= limit:
                del self._asked[promise]
                late = f"it has not come back with its share after {limit:g} s"
                found.append((worker, EnvironmentFault(f"{late}; raise worker_seconds if it may take longer")))
        return found

    def _replace(self, lost: dict[int, Exception]) -> None:
        """Have other workers make the shares of these. Raises EnvironmentFault where that is of no use."""
        begun = time.monotonic()
        failed: Exception | None = None
        while True:
            for worker, error in lost.items():
                said = self._losses.setdefault(worker, [])
                cause = failed or error
                again = isinstance(cause, SurefootError) and said[-1:] == [str(cause)]
                said.append(str(cause))
                if again or isinstance(cause, NotRepeatable) or len(said) > MOST_LOSSES:
                    raise told_by(worker, cause) from cause
            self.replaced += len(lost)
            try:
                self._source.replace(list(lost))
                break
            except EnvironmentFault as error:
                failed = error
        # Nobody answers for the time that others took to begin.
        spent = time.monotonic() - begun
        self._asked = {promise: one._replace(begun=one.begun + spent) for promise, one in self._asked.items()}
        for worker in lost:
            self._ask(worker)


def fits(share: Any, before: HostState, steps: int) -> bool:
    """Whether what a worker brought back is its share: so many steps on from this state of its environments."""
    if not isinstance(share, Share) or not isinstance(share.trajectory, Trajectory):
        return False
    rows, after, shape = share.trajectory, share.state, (steps, len(before.time))
    try:
        shaped = all(getattr(rows, name).shape == shape for name in ("reward", "log_prob", "time"))
        flags = (rows.terminated, rows.truncated, rows.reset)
        shaped &= all(flag.shape == shape and flag.dtype == bool for flag in flags)
        shaped &= rows.action.shape[:2] == shape and len(after.actions) == 1 and after.time.shape == before.time.shape
        shown = zip(jax.tree.leaves(rows.observation), jax.tree.leaves(before.observed.observation), strict=True)
        shaped &= all(leaf.shape == (steps + 1, *first.shape) for leaf, first in shown)
        return bool(shaped and np.isfinite(rows.reward).all() and np.isfinite(rows.log_prob[~rows.reset]).all())
    except (AttributeError, LookupError, TypeError, ValueError):
        return False


def told_by(worker: int, error: Exception) -> SurefootError:
    """The error as the run tells it, with the worker's number."""
    if isinstance(error, SurefootError):
        return type(error)(f"{error} (worker {worker})")
    return EnvironmentFault(f"worker {worker} is lost: {line(error)}")
