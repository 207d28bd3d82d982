"""Runs of a study made by Ray's workers, as many at once as there are workers, on this machine or a cluster's."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot._version import __version__
from surefoot.cluster import Cluster, answered
from surefoot.errors import Stopped, SurefootError
from surefoot.files import remove, write_atomically
from surefoot.progress import Together
from surefoot.reading import parse_json
from surefoot.sources.guard import line
from surefoot.turns import Plan, made

_MOST_LOSSES = 3
"""Workers that may be lost over one run before it is given up: it may be the run that ends them."""
_STOP = "stop"
"""The file in the study's folder that asks its runs to stop."""
_GRACE = 10.0  # seconds in which runs end by themselves, after their update, where something else went wrong
_SECONDS = 1.0  # between two looks at how the runs stand


class Spread(NamedTuple):
    """How a study's runs are spread.

    Attributes:
        workers: how many runs are made at once, each by a Ray worker; None: this process makes them.
        address: of Ray's cluster, as `config.Collection.ray_address`.
    """

    workers: int | None = None
    address: str | None = None


def train_by_workers(
    environment: str | Callable[[], Any],
    plans: Sequence[Plan],
    folder: Path,
    spread: Spread,
    *,
    title: str,
    progress: bool = True,
    stop: Callable[[], bool],
    ended: Callable[[int, str | None], None],
    told: Callable[[str], None],
) -> None:
    """Make the runs, each by a worker of its own; one that goes wrong stops no other.

    A worker that is lost is replaced, and the run goes on from its last checkpoint.

    Args:
        environment: as for `train`.
        plans: the runs, in the order in which they are begun.
        folder: the study's, which every node must see.
        spread: how many workers, and where.
        title: what the progress is of.
        stop: asked about once a second; where it says True, the runs under way end with a checkpoint.
        ended: is told of each run that has ended: its place among the plans, and a line of what went wrong, if it did.
        told: is given the lines that the runs tell, each once.

    Raises SettingError where Ray cannot be had.
    """
    assert spread.workers is not None
    cluster = Cluster(spread.address, spread.workers)
    # A worker's own folder may be another one than this process's.
    folder = folder.absolute()
    plans = [plan._replace(folder=plan.folder.absolute()) for plan in plans]
    remove(folder / _STOP)
    try:
        given = cluster.sent(environment)
        with Together(title, plans[0].run.steps, len(plans), shown=progress) as view:
            _spread(cluster.ray, given, plans, folder, spread.workers, view, stop, ended, told)
        remove(folder / _STOP)  # not where something went wrong: a run may still have to see it
    finally:
        cluster.close()


def _spread(
    ray: Any,
    environment: Any,
    plans: Sequence[Plan],
    folder: Path,
    workers: int,
    view: Together,
    stop: Callable[[], bool],
    ended: Callable[[int, str | None], None],
    told: Callable[[str], None],
) -> None:
    kept = [ray.put(plan) for plan in plans]
    path = [os.path.abspath(each) for each in sys.path]
    make = ray.remote(_made).options(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")
    waiting = deque(range(len(plans)))
    flying: dict[Any, int] = {}
    losses = [0] * len(plans)
    lines: set[str] = set()
    stopping = False
    try:
        while flying or (waiting and not stopping):
            if not stopping and stop():
                stopping = True
                write_atomically(folder / _STOP, b"")
            while waiting and not stopping and len(flying) < workers:
                place = waiting.popleft()
                # In a list, so that they are unpacked only where the run looks for modules.
                flying[make.remote([environment, kept[place]], path, str(folder), __version__)] = place
            done, _ = ray.wait(list(flying), num_returns=1, timeout=_SECONDS) if flying else ([], [])
            for promise in done:
                place = flying.pop(promise)
                answer, error = answered(ray, promise)
                lost = isinstance(error, ray.exceptions.RayError) and not isinstance(error, ray.exceptions.RayTaskError)
                if error is None:
                    said, each = answer
                    for text in each:
                        if text not in lines:
                            lines.add(text)
                            told(text)
                    ended(place, said)
                elif not lost:  # the run's own, and it would come again
                    ended(place, line(error))
                elif losses[place] < _MOST_LOSSES and not stopping:
                    losses[place] += 1
                    waiting.appendleft(place)
                else:
                    ended(place, f"its worker was lost: {line(error)}; surefoot resume {folder} goes on with it")
            for place in flying.values():
                if row := last_row(plans[place].folder / "metrics.jsonl"):
                    shown = [] if row.get("return_mean") is None else [row["return_mean"]]
                    view.show(plans[place].folder.name, row, np.asarray(shown, float))
    except BaseException:
        # Nobody waits for them any more. (Ray can end them by force, but ends this process too where one of them comes
        # to its end at that moment: 2.60 aborts with "Tried to complete task that was not pending".)
        write_atomically(folder / _STOP, b"")
        if flying:
            ray.wait(list(flying), num_returns=len(flying), timeout=_GRACE)
        raise


def _made(given: list[Any], path: list[str], study: str, version: str) -> tuple[str | None, list[str]]:
    """Make a run, or go on with it, on a worker: a line of what went wrong, if it did, and what the run told."""
    import ray

    sys.path.extend(each for each in path if each not in sys.path)
    environment, plan = ray.get(given)
    stop = Path(study) / _STOP
    lines: list[str] = []
    if version != __version__:
        return f"a worker has surefoot {__version__}, not {version}; install the same everywhere", []
    if not Path(study).is_dir():
        node = ray.util.get_node_ip_address()
        return f"node {node} sees no folder {study}; put the study on a file system that every node has", []
    if stop.exists():
        return None, []
    try:
        made(environment, plan, False, stop.exists, lines.append)
    except Stopped:
        pass
    except SurefootError as error:
        return str(error), lines
    return None, lines


def last_row(file: Path) -> dict[str, Any] | None:
    """The last whole line of a file of rows; None where there is none yet."""
    try:
        with open(file, "rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - 65536))
            lines = opened.read().split(b"\n")[:-1]
        row = parse_json(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and {"steps", "accepted"} <= row.keys() else None
