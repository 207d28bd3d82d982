"""Gymnasium environments, stepped in this process or in one process each."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from surefoot import config
from surefoot.errors import EnvironmentFault, SurefootError
from surefoot.sources.environments import Spaces, environment_name, guarded, maker, spaces_of
from surefoot.sources.guard import Guarded, choices, line, overdue
from surefoot.sources.host import HostSource, Observed, Stepped
from surefoot.sources.watch import Overdue, Watch
from surefoot.sources.worker import work
from surefoot.spaces import make_encoder, make_head

_SLOW_STEP_SECONDS = 0.5e-3
_ASSUMED_EPISODE_LIMIT = 1000
_Maker = Callable[[Spaces | None], Guarded]
_BEGINNING_SECONDS = 60.0  # of all worker processes together


def gymnasium_source(
    environment: str | Callable[[], Any], settings: config.Collection, threads: int | None = None
) -> HostSource:
    """`settings.envs` copies of a Gymnasium environment, for as many cores; by default all.

    Raises EnvironmentNotFound, UnsupportedSpace.
    """
    make = maker(environment)
    name = environment_name(environment)
    with Watch(settings.step_seconds) as watch:
        probe = guarded(make, 0, watch)
        try:
            make_encoder(probe.observation_space)
            make_head(probe.action_space)
            limit = getattr(probe.spec, "max_episode_steps", None) or _ASSUMED_EPISODE_LIMIT
            mode = settings.vectorisation
            if mode == "auto":
                several = settings.envs > 1 and (threads or os.cpu_count() or 1) > 1
                slow = several and _step_seconds(probe) > _SLOW_STEP_SECONDS
                mode = "async" if slow else "sync"
        finally:
            probe.close()
    return HostSource(
        functools.partial(
            GymnasiumSimulator,
            make,
            settings.envs,
            step_seconds=settings.step_seconds,
            asynchronous=mode == "async",
            spaces=spaces_of(probe),
        ),
        name=name,
        envs=settings.envs,
        horizon=settings.horizon,
        restart_every=settings.restart_every or 10 * limit,
    )


def _step_seconds(env: gymnasium.Env) -> float:
    """Median time of a few random steps; 0 where they cannot be taken, for collection to say why."""
    spent = []
    try:
        _, info = env.reset(seed=0)
        for _ in range(20):
            action = env.action_space.sample(info.get("action_mask")) if _maskable(env) else env.action_space.sample()
            before = time.perf_counter()
            _, _, terminated, truncated, info = env.step(action)
            spent.append(time.perf_counter() - before)
            if terminated or truncated:
                _, info = env.reset()
    except Exception:
        return 0.0
    return float(np.median(spent))


def _maskable(env: gymnasium.Env) -> bool:
    return isinstance(env.action_space, spaces.Discrete)


class GymnasiumSimulator:
    """A Gymnasium vector environment under next-step autoreset, with action masks from `info`.

    An environment that takes longer than `step_seconds` over a step, a reset or being made is a fault: in one process
    by interrupting it (see `Watch`), in processes of their own by no longer waiting.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        count: int,
        *,
        step_seconds: float | None,
        asynchronous: bool = False,
        spaces: Spaces | None = None,
    ):
        """`spaces` are what every environment must have; by default those of the first."""
        self._watch = Watch(step_seconds)
        makers: list[_Maker] = [functools.partial(guarded, make, index, self._watch) for index in range(count)]
        self._asynchronous = asynchronous
        if asynchronous:
            self._vector: Any = _processes(makers, spaces, step_seconds)
        else:
            with self._watch:
                self._vector = _side_by_side(makers, spaces)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        self._choices = choices(self.action_space)
        self._masked = False
        self._actions: np.ndarray | None = None

    def watched(self) -> contextlib.AbstractContextManager:
        """Within it, environments of this process that do not come back are interrupted."""
        return contextlib.nullcontext() if self._asynchronous else self._watch

    def reset(self, seeds: list[int]) -> Observed:
        """Start every environment from its own seed."""
        if self._asynchronous:
            self._called("reset", self._vector.reset_async, seed=seeds)
            observation, info = self._called("reset", self._vector.reset_wait, self._watch.seconds)
        else:
            observation, info = self._called("reset", self._vector.reset, seed=seeds)
        self._masked = self._choices is not None and "action_mask" in info
        return Observed(observation, self._mask(info))

    def send(self, actions: np.ndarray) -> None:
        """Begin to step every environment; one whose episode has just ended is reset instead."""
        if self._asynchronous:
            self._called("step", self._vector.step_async, actions)
        else:
            self._actions = actions.copy()  # an environment may write into what it is given

    def receive(self) -> Stepped:
        """What that step gave. The observations are overwritten by the next one."""
        if self._asynchronous:
            results = self._called("step", self._vector.step_wait, self._watch.seconds)
        else:
            results = self._called("step", self._vector.step, self._actions)
        observation, reward, terminated, truncated, info = results
        return Stepped(Observed(observation, self._mask(info)), reward, terminated, truncated)

    def close(self) -> None:
        """Let the environments go, also those whose process is gone already or does not answer."""
        if self._asynchronous:
            _end(self._vector.processes)
        else:
            with self._watch, contextlib.suppress(Exception):
                self._vector.close()
        self._vector.closed = True  # or Gymnasium tries again, and complains, when it is collected

    def _called(self, what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            if not self._asynchronous:
                return function(*arguments, **options)
            # Gymnasium prints a worker's traceback as warnings; the fault that it raises says it in a line.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return function(*arguments, **options)
        except SurefootError:
            raise
        except multiprocessing.TimeoutError:
            raise EnvironmentFault(f"{self._silent()} {overdue(what, self._watch.seconds)}") from None
        except (EOFError, OSError) as error:
            if not self._asynchronous:
                raise
            raise EnvironmentFault(_lost(self._vector.processes, error)) from error
        except Exception as error:
            raise EnvironmentFault(f"the environments cannot be stepped together: {line(error)}") from error

    def _silent(self) -> str:
        """The environments that have not answered, by index."""
        pipes = enumerate(self._vector.parent_pipes)
        silent = [str(index) for index, pipe in pipes if pipe is not None and not pipe.closed and not pipe.poll(0)]
        if len(silent) < 2:
            return f"environment {''.join(silent)}"
        return f"environment {silent[0]} (and {len(silent) - 1} more: {', '.join(silent[1:9])})"

    def _mask(self, info: dict[str, Any]) -> np.ndarray | None:
        if not self._masked:
            return None
        assert self._choices is not None
        allowed = np.ones((self._vector.num_envs, self._choices), bool)
        if "action_mask" in info:
            given = info["_action_mask"]
            allowed[given] = info["action_mask"][given]
        return allowed


def _side_by_side(makers: list[_Maker], spaces: Spaces | None) -> SyncVectorEnv:
    """The environments in this process."""
    made: list[Guarded] = []
    try:
        for make in makers:
            made.append(make(spaces))
            spaces = spaces or spaces_of(made[0])
    except BaseException:
        for env in made:
            env.close()
        raise
    return SyncVectorEnv(
        [functools.partial(_itself, env) for env in made], copy=False, autoreset_mode=AutoresetMode.NEXT_STEP
    )


def _itself(env: gymnasium.Env) -> gymnasium.Env:
    return env


def _processes(makers: list[_Maker], spaces: Spaces | None, step_seconds: float | None) -> AsyncVectorEnv:
    """The environments in one process each."""
    # A fork of this process would copy JAX's threads in the middle of whatever they do. What every
    # worker imports is imported once, by the server that they are forked from.
    multiprocessing.set_forkserver_preload(["__main__", "surefoot.sources.worker"])
    # Made and begun apart, so that its processes are known also where it fails.
    vector: Any = object.__new__(AsyncVectorEnv)
    # Gymnasium waits for the first word of every worker without end; beginning the processes takes time too.
    watch = Watch(None if step_seconds is None else step_seconds + _BEGINNING_SECONDS)
    watch.begin()
    try:
        with watch, warnings.catch_warnings(), _terminated_by_nobody():
            warnings.simplefilter("ignore")
            vector.__init__(
                [functools.partial(make, spaces) for make in makers],
                copy=False,
                context="forkserver",
                worker=work,
                autoreset_mode=AutoresetMode.NEXT_STEP,
            )
            return vector
    except BaseException as error:
        begun = list(getattr(vector, "processes", ()))
        lost = _lost(begun, error) if isinstance(error, (EOFError, OSError)) else None
        _end(begun)
        vector.closed = True  # what is left of it would end them once more
        if isinstance(error, Overdue):
            raise EnvironmentFault(f"an environment {overdue('being made', watch.seconds)}") from None
        if lost is None or isinstance(error, SurefootError):
            raise
        raise EnvironmentFault(lost) from error
    finally:
        watch.end()


@contextlib.contextmanager
def _terminated_by_nobody() -> Iterator[None]:
    """Processes begun within it take no notice of SIGTERM, which may be sent to the whole group of the trainer: what is
    done about it is up to the trainer, whose workers have to last until its update is done."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _lost(processes: list[Any], error: BaseException) -> str:
    """What a fault says of an environment whose process has ended."""
    gone = multiprocessing.connection.wait([process.sentinel for process in processes], timeout=1)
    for index, process in enumerate(processes):
        if process.sentinel in gone:
            process.join()
            code = process.exitcode or 0
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return f"environment {index} lost its worker process, which {how}"
    return f"an environment lost its worker process: {line(error)}"


def _end(processes: list[Any]) -> None:
    """End worker processes, those that do not listen too. Politely would take as long as the slowest step."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
