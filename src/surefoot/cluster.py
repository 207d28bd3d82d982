"""Ray, where it is wanted: a cluster's machines, or the cores of this one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from typing import Any

from surefoot.compilation import cores
from surefoot.errors import SettingError, shown


class Cluster:
    """Final: a connection to Ray, ended by `close` where it was begun here.

    Attributes:
        ray: the module.
        here: whether the workers are all on this machine, in a cluster of this process's own.
    """

    def __init__(self, address: str | None, workers: int):
        """Connect to the cluster at `address` ("auto": the one at hand). With None to the one that the process is
        connected to already, or that RAY_ADDRESS names, or one begun on this machine for so many workers.

        Raises SettingError where Ray is not installed or the cluster cannot be reached.
        """
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            import ray
        except ImportError:
            raise SettingError(
                f"workers={workers} needs Ray, which is not installed; install it with: pip install 'surefoot[ray]'"
            ) from None
        self.ray: Any = ray
        self._ours = not ray.is_initialized()
        try:
            self._join(ray, address, workers)
        finally:
            if threading.current_thread() is threading.main_thread():
                # Ray puts its own in their place, which end the process at once and without a checkpoint.
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    def _join(self, ray: Any, address: str | None, workers: int) -> None:
        self.here = address is None and not os.environ.get("RAY_ADDRESS") and self._ours
        if not self._ours:
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        # It warns of its own ways with clusters that have no token, which is not what a user asked about.
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                # Of JAX, that its threads do not outlive a fork; Ray's processes begin with another program at once.
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                if self.here:
                    # One processor for each worker, or those beyond the machine's would wait for ever.
                    count = max(workers, len(cores()))
                    ray.init("local", num_cpus=count, include_dashboard=False, **quiet)
                else:
                    ray.init(address, **quiet)
            # Ray prints what its machines warn of on standard output, whatever it is told of logs; a worker that is
            # lost is counted in the run's metrics.
            ray._private.worker.print_to_stdstream = lambda *_, **__: None
        except Exception as error:
            where = "this machine" if self.here else f"{address or os.environ.get('RAY_ADDRESS')!r}"
            reason = " ".join(str(error).split())[:300]
            raise SettingError(
                f"ray_address: no Ray cluster could be reached at {where} ({reason}); begin one with: ray start --head"
            ) from error

    def sent(self, environment: Any) -> Any:
        """The environment in Ray's object store, once for all workers. Raises SettingError where it cannot be sent."""
        try:
            return self.ray.put(environment)
        except Exception as error:
            # What Ray says itself has many lines, and begins with this.
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise SettingError(
                f"environment {shown(environment)} cannot be sent to workers ({reason}); "
                "name it as package.module:callable"
            ) from None

    @property
    def processors(self) -> int:
        """Of all its machines together."""
        return len(cores()) if self.here else int(self.ray.cluster_resources().get("CPU", 0))

    def close(self) -> None:
        """Let go of the cluster, and end it where it is this process's own."""
        if self._ours:
            self._ours = False
            with contextlib.suppress(Exception):
                self.ray.shutdown()


def answered(ray: Any, promise: Any) -> tuple[Any, Exception | None]:
    """What a worker answered, or what came in its place: what it raised, or Ray's own error where it is lost."""
    try:
        return ray.get(promise), None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        return None, cause if isinstance(cause, Exception) else error
    except ray.exceptions.RayError as error:
        return None, error
