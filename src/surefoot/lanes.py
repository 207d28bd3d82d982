"""Many runs in one program: seeds, and settings that are numbers, side by side as the lanes of a vmap.

Where JAX sees several devices, each has its share of the lanes and waits for no other. A lane's arithmetic is that of
the same run alone; sums over a batch may be taken in another order, so their last bits may differ. A lane in which an
environment fails is stopped and told of, and the others go on.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Collection, Hashable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from surefoot import config
from surefoot.arrays import bits, from_bits
from surefoot.compilation import keep_compiled_programs, of_whole_iterations
from surefoot.compiled import Chunk, fetched, how_many, iterations, make_chunk, numbers_of
from surefoot.errors import EnvironmentFault, RunError, SettingError, SurefootError
from surefoot.files import held, remove
from surefoot.iteration import begin
from surefoot.ledger import Ledger
from surefoot.progress import Together
from surefoot.recipe import read_recipe
from surefoot.record import new_run_folder
from surefoot.report.page import PAGE
from surefoot.resuming import Begun, newest, refuse_links
from surefoot.rules import Rule
from surefoot.sources import caution, make_source
from surefoot.sources.environments import environment_name
from surefoot.sources.functional import FunctionalEnvironment, FunctionalSource
from surefoot.standing import Standing, evaluation_due, further, next_pause
from surefoot.training import conclude, warn
from surefoot.turns import Outcome, Plan


def kind(rule: Rule, run: config.Run) -> Hashable:
    """What two plans must have in common to be lanes of one program; None where a run has to be made alone."""
    if run.certification.guard or run.keep_batches:
        return None  # what is decided or kept between two updates, is so on the host
    numbers = numbers_of(rule, run, np.float32)
    return jax.tree.structure(numbers), run.steps


def train_together(
    environment: str | Callable[[], Any],
    plans: Sequence[Plan],
    *,
    finished: Collection[int] = (),
    lanes: int | None = None,
    progress: bool = True,
    stop: Callable[[], bool] | None = None,
    told: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Train every plan, as many of them at once as fit; an outcome for each, in order.

    Arguments:
        environment: one written in JAX.
        plans: with one value of `kind` for all of them.
        finished: the places of plans that are finished. They keep their lanes, so that the others' bits do not change,
            and are left as they are.
        lanes: the most of them in one program; by default as many as fit half of the device's memory.
        progress, stop, told: as for `training.train`; `stop` is asked about once a second.

    Returns: an outcome for each plan; an empty one for those that were finished or were not begun. What goes wrong with
    one run is its outcome and stops no other.

    Raises SettingError where they cannot be lanes of one program, and EnvironmentFault where that fails as a whole.
    """
    if len({kind(plan.rule, plan.run) for plan in plans} | {None}) > 2:
        raise SettingError("plans must differ only in seeds and in numbers; make the others by themselves")
    keep_compiled_programs()
    source = make_source(environment, plans[0].run.collection)
    if not isinstance(source, FunctionalSource):
        raise SettingError(f"environment must be one written in JAX, but {source.name} came; train its runs one by one")
    name = environment_name(environment)
    told = told or warn
    if line := caution(source):
        told(line)
    outcomes: list[Outcome] = []
    with Together(f"{name} · {len(plans)} runs", plans[0].run.steps, len(plans), shown=progress) as view:
        for part in _groups(source, plans, lanes):
            left = set(range(len(part))) - {place - len(outcomes) for place in finished}
            if not left or (stop is not None and outcomes and stop()):
                outcomes += [_NOTHING] * len(part)
            else:
                outcomes += _group(environment, name, source, part, left, view, stop, told)
    return outcomes


_NOTHING = Outcome(None, None)


def _groups(source: FunctionalSource, plans: Sequence[Plan], lanes: int | None) -> list[Sequence[Plan]]:
    """The plans in groups of nearly one size, each of which fits."""
    size = min(len(plans), lanes or len(plans), _most_open())
    room = _room()
    while lanes is None and size > 1 and room is not None and _program(source, plans[:size]).size > room:
        size = -(-size // 2)
    count = -(-len(plans) // size)
    bounds = [len(plans) * index // count for index in range(count + 1)]
    return [plans[first:last] for first, last in pairwise(bounds)]


def _room() -> int | None:
    """Bytes that a program may take: half of what the device has; None where nobody says."""
    told = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in told:
        return told["bytes_limit"] // 2
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return None


def _most_open() -> int:
    """How many runs this process may hold the files of at once: three each."""
    return max((_files() - _FILES_OF_OTHERS) // 3, 1)


_FILES_OF_OTHERS = 128


def _files() -> int:
    try:
        import resource
    except ImportError:  # not on Windows, which has no limit that matters here
        return 8192
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**20 if limit == resource.RLIM_INFINITY else limit


class _Program(NamedTuple):
    """A compiled chunk of several lanes.

    Attributes:
        run: the chunk.
        lanes: how many it has: as many on each device, so that some may be nobody's.
        spread: how they lie on the devices.
        size: how many bytes it takes of one memory while it runs.
    """

    run: Callable[..., Chunk]
    lanes: int
    spread: NamedSharding
    size: int


def _program(source: FunctionalSource, plans: Sequence[Plan]) -> _Program:
    one = numbers_of(plans[0].rule, plans[0].run, np.float32), *_any_begun(source, plans)
    leaves, structure = jax.tree.flatten(one)
    devices = tuple(jax.local_devices()[: len(plans)])
    lanes = -(-len(plans) // len(devices)) * len(devices)
    shapes = tuple(jax.ShapeDtypeStruct((lanes, *leaf.shape), leaf.dtype) for leaf in leaves)
    return _compiled(source.environment, source.envs, source.horizon, structure, shapes, devices)


@lru_cache(maxsize=8)
def _compiled(
    environment: FunctionalEnvironment, envs: int, horizon: int, structure: Any, shapes: Any, devices: tuple[Any, ...]
) -> _Program:
    source = FunctionalSource(environment, name="", envs=envs, horizon=horizon)
    every = jax.vmap(make_chunk(source), in_axes=(0, 0, 0, None, 0))
    mesh = Mesh(np.asarray(devices), ("lanes",))
    lane, shared = PartitionSpec("lanes"), PartitionSpec()
    # Not left to the partitioner: no lane needs another's numbers, so each device has loops of its own.
    every = jax.shard_map(every, mesh=mesh, in_specs=(lane, lane, lane, shared, lane), out_specs=lane, check_vma=False)
    spread, whole = NamedSharding(mesh, lane), NamedSharding(mesh, shared)
    placed = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=spread) for leaf in shapes]
    numbers, learner, state = jax.tree.unflatten(structure, placed)
    limit = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
    wanted = jax.ShapeDtypeStruct(shapes[0].shape[:1], np.int32, sharding=spread)
    # One set of lanes is written in place of the other, so nothing is there twice.
    jitted = jax.jit(every, donate_argnums=(1, 2), compiler_options=of_whole_iterations())
    program = jitted.lower(numbers, learner, state, limit, wanted).compile()
    told = program.memory_analysis()
    size = 0 if told is None else told.temp_size_in_bytes + told.argument_size_in_bytes + told.output_size_in_bytes
    together = len(devices) if devices[0].platform == "cpu" else 1  # what is told is one device's
    return _Program(program, shapes[0].shape[0], spread, size * together)


def _begin(source: FunctionalSource, plan: Plan) -> tuple[Any, Any]:
    return begin(source, plan.rule, plan.run)


def _any_begun(source: FunctionalSource, plans: Sequence[Plan]) -> tuple[Any, Any]:
    """What one of the runs begins with, for its shapes: an environment may fail in the others' first reset.

    Raises EnvironmentFault where it fails in all.
    """
    for plan in plans[:-1]:
        with contextlib.suppress(EnvironmentFault):
            return _begin(source, plan)
    return _begin(source, plans[-1])


class _Lane:
    """Final: one run of a group, its place in it and in its records, and what went wrong with it."""

    def __init__(self, index: int, plan: Plan, ledger: Ledger):
        self.index = index
        self.plan = plan
        self.ledger = ledger
        self.error: SurefootError | None = None

    @property
    def left(self) -> int:
        """Environment steps that are still to be taken."""
        return 0 if self.error else max(self.plan.run.steps - self.ledger.standing.steps, 0)

    @property
    def due(self) -> bool:
        """Whether its policy is to be evaluated before it learns on."""
        return self.error is None and evaluation_due(self.ledger.standing, self.plan.run.evaluate_every)

    def until_pause(self) -> int:
        """Environment steps until it ends or is to be evaluated."""
        standing, run = self.ledger.standing, self.plan.run
        return next_pause(standing, run.steps, run.evaluate_every) - standing.steps if self.left else 0


def _group(
    environment: str | Callable[[], Any],
    name: str,
    source: FunctionalSource,
    plans: Sequence[Plan],
    left: Collection[int],
    view: Together,
    stop: Callable[[], bool] | None,
    told: Callable[[str], None],
) -> list[Outcome]:
    """Train those of these plans that are `left` as lanes of one program that has a lane for all."""
    outcomes = [_NOTHING] * len(plans)
    group: list[_Lane] = []
    with contextlib.ExitStack() as stack:
        for index in sorted(left):
            try:
                group.append(_opened(index, name, source, plans[index], view, told, stack))
            except SurefootError as error:
                outcomes[index] = Outcome(None, str(error))
        stopped = _learn(environment, source, plans, group, stop) if group else False
        for lane in group:
            try:
                outcomes[lane.index] = _concluded(lane, environment, told, stopped=stopped)
            except SurefootError as error:
                outcomes[lane.index] = Outcome(None, str(error))
    return outcomes


def _concluded(
    lane: _Lane, environment: str | Callable[[], Any], told: Callable[[str], None], *, stopped: bool
) -> Outcome:
    """The lane's last row and policy, and where it is finished its evaluation."""
    folder, standing = lane.ledger.begun.folder, lane.ledger.standing
    lane.ledger.end()
    if lane.error is not None:
        lane.ledger.rescue(lane.error)
        return Outcome(None, str(lane.error))
    trained = lane.ledger.save_policy()
    if stopped and lane.left:
        return Outcome(None, f"stopped after update {standing.updates}")
    return Outcome(conclude(folder, standing, trained, environment, lane.plan.run, told, pictures=False), None)


def _opened(
    index: int,
    name: str,
    source: FunctionalSource,
    plan: Plan,
    view: Together,
    told: Callable[[str], None],
    stack: contextlib.ExitStack,
) -> _Lane:
    """The run where it stands, with its records open until `stack` ends."""
    going_on = (plan.folder / "config.json").exists()
    folder = plan.folder if going_on else new_run_folder(plan.folder, "")
    stack.enter_context(held(folder))
    fresh = Standing(*_begin(source, plan))
    begun = Begun(folder, uuid.uuid4().hex, name, fresh, [])
    if going_on:
        refuse_links(folder)
        remove(folder / PAGE)  # that of where it went wrong; the study draws what is missing
        begun = newest(begun._replace(identity=read_recipe(folder / "config.json").identity), source, told)
    ledger = Ledger(begun, source, plan.rule, plan.run, told=told, shown=partial(view.show, folder.name))
    stack.callback(ledger.close)
    return _Lane(index, plan, ledger)


def _learn(
    environment: str | Callable[[], Any],
    source: FunctionalSource,
    plans: Sequence[Plan],
    group: Sequence[_Lane],
    stop: Callable[[], bool] | None,
) -> bool:
    """Learn until the last step of every lane in `group`, or until `stop` says so: whether it did.

    The program has a lane for every plan; those of none in the group, and those that fill a device up, stand still.
    Each ledger then holds what its run has learned.
    """
    program = _program(source, plans)
    plans = [*plans, *[plans[-1]] * (program.lanes - len(plans))]
    # Where nothing is learned any run's numbers will do.
    fresh = [(group[0].ledger.standing.learner, group[0].ledger.standing.state)] * len(plans)
    for lane in group:
        fresh[lane.index] = lane.ledger.standing.learner, lane.ledger.standing.state
    numbers = _stacked([numbers_of(plan.rule, plan.run, np.float32) for plan in plans])
    numbers, (learner, state) = jax.device_put((numbers, _stacked(fresh)), program.spread)
    started = time.perf_counter() - max((lane.ledger.standing.seconds for lane in group), default=0.0)
    saved = time.monotonic()
    pace: float | None = None
    stopped = False
    try:
        while any(lane.left for lane in group) and not stopped:
            begun = time.perf_counter()
            wanted, size = np.zeros(len(plans), np.int32), source.envs * source.horizon
            for lane in group:
                wanted[lane.index] = how_many(lane.until_pause(), size, pace) if lane.left else 0
            made = fetched(source.name, program.run, numbers, learner, state, wanted.max(), wanted)
            learner, state = made.learner, made.state
            spent = time.perf_counter() - begun
            pace = wanted.max() / spent
            for lane in group:
                if wanted[lane.index]:
                    _enter(source, lane, made, begun - started, spent)
            started += _evaluate([lane for lane in group if wanted[lane.index] and lane.due], fresh, made, environment)
            stopped = stop is not None and stop()
            if time.monotonic() - saved >= group[0].plan.run.checkpoint_seconds:
                _save(group, fresh, learner, state)
                saved = time.monotonic()
        _save(group, fresh, learner, state)
    except BaseException as error:
        there = not any(leaf.is_deleted() for leaf in jax.tree.leaves(learner))  # a program that failed keeps it
        if there:
            _place(group, fresh, learner, state)
        for lane in group:
            with contextlib.suppress(RunError):
                lane.ledger.end()
            if there:
                lane.ledger.rescue(lane.error or error)
        raise
    return stopped


def _enter(source: FunctionalSource, lane: _Lane, made: Chunk, begun: float, spent: float) -> None:
    """Take the lane's part of a chunk into its records."""
    each, standing = iterations(made, lane.plan.rule, lane.plan.run, lane.index), lane.ledger.standing
    try:
        lane.ledger.enter(*further(standing, each, standing.learner, standing.state, begun, spent))
        source.check(jax.tree.map(lambda leaf: leaf[lane.index], made.fault), int(made.state.steps[lane.index]))
    except SurefootError as error:
        lane.error = error


def _evaluate(lanes: Sequence[_Lane], fresh: Sequence[Any], made: Chunk, environment: str | Callable[[], Any]) -> float:
    """Evaluate what these lanes have learned; the seconds that it took."""
    begun = time.perf_counter()
    if lanes:
        _place(lanes, fresh, made.learner, made.state)
    for lane in lanes:
        try:
            lane.ledger.evaluate_if_due(environment)
        except SurefootError as error:
            lane.error = error
    return time.perf_counter() - begun


def _save(group: Sequence[_Lane], fresh: Sequence[Any], learner: Any, state: Any) -> None:
    """Write a checkpoint of every run in which nothing went wrong."""
    _place(group, fresh, learner, state)
    for lane in group:
        if lane.error is None:
            try:
                lane.ledger.checkpoint(now=True)
            except RunError as error:
                lane.error = error


def _place(group: Sequence[_Lane], fresh: Sequence[Any], learner: Any, state: Any) -> None:
    """Fetch what every run has learned from the device into its ledger."""
    every = jax.tree.map(bits, (learner, state))
    for lane in group:
        mine = jax.tree.map(lambda like, leaf, i=lane.index: from_bits(leaf[i], like), fresh[lane.index], every)
        lane.ledger.enter(lane.ledger.standing._replace(learner=mine[0], state=mine[1]), [])


def _stacked(trees: Sequence[Any]) -> Any:
    """The trees as one, whose leaves lead with the lane. Stacked by NumPy, which compiles nothing."""
    return jax.tree.map(lambda *leaves: from_bits(np.stack([bits(leaf) for leaf in leaves]), leaves[0]), *trees)
