"""Iterations without leaving the compiler: a chunk of them is one program.

For sources that are functions themselves. The stages are those of `iteration`; what a chunk leaves for the account of
each iteration is fetched at its end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from surefoot import config
from surefoot.annealing import remaining
from surefoot.compilation import of_whole_iterations
from surefoot.errors import EnvironmentFault
from surefoot.iteration import Iteration, Learner, learn, told_of
from surefoot.kept import Inputs
from surefoot.rules import Rule
from surefoot.sources.functional import Fault, FunctionalEnvironment, FunctionalSource, FunctionalState
from surefoot.sources.guard import line
from surefoot.stages import estimate_stage, seen_stage

CAPACITY = 64
_ROWS = 2**22  # of the iterations of a chunk together, whose flags and returns are fetched
_SECONDS = 1.0  # of a chunk: as long as a panel may stand still and Ctrl-C be waited for


class Packed(eqx.Module):
    """A tree in few arrays: its small leaves are one row, as a compiler takes longer over sixty numbers that are
    written one by one than over what computes them. Whole numbers and truths are exact below 2^24.

    Attributes:
        row: every number of the small leaves, [..., K].
        large: the other leaves.
        structure, leaves: of the tree, and each leaf's shape and type.
    """

    row: Array
    large: list[Array]
    structure: Any = eqx.field(static=True)
    leaves: tuple[tuple[tuple[int, ...], np.dtype], ...] = eqx.field(static=True)

    def unpacked(self) -> Any:
        """The tree, whose leaves lead with the axes that `row` leads with."""
        found, rest, place = [], iter(self.large), 0
        for shape, dtype in self.leaves:
            size = math.prod(shape)
            if size > _SMALL:
                found.append(next(rest))
                continue
            part = self.row[..., place : place + size]
            found.append(part.reshape((*part.shape[:-1], *shape)).astype(dtype))
            place += size
        return jax.tree.unflatten(self.structure, found)


_SMALL = 64  # numbers of a leaf


def packed(tree: Any) -> Packed:
    """The tree in few arrays; at least one of its small leaves is floating-point."""
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, tree))
    small = [jnp.ravel(leaf) for leaf in leaves if leaf.size <= _SMALL]
    dtype = jnp.result_type(*(leaf.dtype for leaf in small if jnp.issubdtype(leaf.dtype, jnp.floating)))
    row = jnp.concatenate([leaf.astype(dtype) for leaf in small])
    shapes = tuple((leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves)
    return Packed(row, [leaf for leaf in leaves if leaf.size > _SMALL], structure, shapes)


class Chunk(NamedTuple):
    """What a program of several iterations gives; the arrays of `told` lead with the iteration.

    Attributes:
        learner, state: after the last.
        count: how many iterations were made: those wanted, or those before an environment failed.
        told: `Told` and the critic's report of each, packed.
        fault: of the environment that failed.
    """

    learner: Learner
    state: FunctionalState
    count: Any
    told: Packed
    fault: Fault


class Numbers(NamedTuple):
    """What a program is given and not compiled for: the leaves of a rule and of a run's settings."""

    rule: Rule
    run: config.Run


def numbers_of(rule: Rule, run: config.Run, dtype: Any) -> Numbers:
    """The numbers of a run as arrays. What neither they nor a program depends on (its seed …) is that of any run."""
    plain = config.Run()
    run = dataclasses.replace(
        run, seed=plain.seed, checkpoint_seconds=plain.checkpoint_seconds,
        evaluation_episodes=plain.evaluation_episodes, evaluate_every=plain.evaluate_every,
        keep_batches=plain.keep_batches,
    )  # fmt: skip
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype), Numbers(rule, run))


@lru_cache(maxsize=16)
def program(environment: FunctionalEnvironment, envs: int, horizon: int) -> Callable[..., Chunk]:
    """The compiled chunk of a source; it writes in the learner and the state that it is given.

    Kept for the next run in the same process, which then need not compile it anew.
    """
    source = FunctionalSource(environment, name="", envs=envs, horizon=horizon)
    options = of_whole_iterations()
    return jax.jit(make_chunk(source), donate_argnames=("learner", "state"), compiler_options=options)


def make_chunk(source: FunctionalSource) -> Callable[..., Chunk]:
    """The program: from Numbers, learner, state, and how many iterations to make, to a Chunk.

    How many is told twice, at most `capacity` each: `limit`, which the loop runs to, and `wanted`, after which nothing
    is changed any more; lanes share the first. They are arguments, so that a run's last few iterations and its first
    thousand are the same program: the bits of an iteration do not depend on where chunks end.
    """

    @jax.jit  # traced once, for its shapes and for the loop
    def advance(numbers: Numbers, learner: Learner, state: FunctionalState) -> Any:
        key, collect_key, update_key, critic_key = jax.random.split(learner.key, 4)
        trajectory, after = source.roll_out(learner.policy, state, collect_key)
        learned, told, critic = learn(*numbers, learner, trajectory, (key, update_key, critic_key))
        return learned, after, packed((told, critic)), source.first_fault(trajectory)

    def chunk(numbers: Numbers, learner: Learner, state: FunctionalState, limit: Any, wanted: Any) -> Chunk:
        _, _, one, fault = jax.eval_shape(advance, numbers, learner, state)
        most = capacity(source.envs * source.horizon)
        rows = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), one)
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), fault)

        def body(index: Any, carry: Any) -> Any:
            done, learner, state, rows, fault = carry
            learned, after, one, found = advance(numbers, learner, state)
            rows = jax.tree.map(lambda every, row: every.at[index].set(row), rows, one)
            going = (index < wanted) & ~fault.found
            # An iteration that an environment spoiled did not happen, nor did any after it.
            sound = going & ~found.found
            # Not chosen leaf by leaf, which would be a kernel each; lanes have to.
            learner, state = jax.lax.cond(sound, lambda: (learned, after), lambda: (learner, state))
            fault = jax.tree.map(lambda new, old: jnp.where(going, new, old), found, fault)
            return done + sound, learner, state, rows, fault

        begun = jnp.zeros((), jnp.int32), learner, state, rows, none
        done, learner, state, rows, fault = jax.lax.fori_loop(0, limit, body, begun)
        return Chunk(learner, state, done, rows, fault)

    return chunk


@jax.jit
def copied(tree: Any) -> Any:
    """The tree in buffers of its own, which a program may be given to write in."""
    return jax.tree.map(jnp.copy, tree)


def fetched(name: str, program: Callable[..., Chunk], *arguments: Any) -> Chunk:
    """The program's chunk once it is done, with all but what the next one goes on from on the host.

    Raises EnvironmentFault, naming the environment, where the program fails: what an environment checks while it runs
    is part of it.
    """
    try:
        chunk = program(*arguments)
        told, count, fault = jax.device_get((chunk.told, chunk.count, chunk.fault))
    except jax.errors.JaxRuntimeError as error:
        raise EnvironmentFault(f"{name}: the compiled program failed: {line(error)}") from error
    return chunk._replace(told=told, count=count, fault=fault)


@partial(jax.jit, static_argnames="source")
def inputs_again(source: FunctionalSource, learner: Learner, state: FunctionalState, run: config.Run) -> Inputs:
    """What the next update is a function of, from where its iteration begins.

    Collected anew by a program of its own, so that keeping it changes no bit of the run: equal but for rounding.
    """
    _, collect_key, update_key, _ = jax.random.split(learner.key, 4)
    trajectory, _ = source.roll_out(learner.policy, state, collect_key)
    batch, _ = estimate_stage(learner.policy, learner.critic.critic, learner.returns, trajectory, run.estimator)
    seen, key = seen_stage(trajectory, batch, update_key, held=run.held_out)
    return Inputs(learner.policy, learner.memory, remaining(run, learner.steps), seen, key)


def iterations(chunk: Chunk, rule: Rule, run: config.Run, lane: int | None = None) -> list[Iteration]:
    """The account of every iteration of a fetched chunk, in order; of one lane's where it has lanes."""
    told, count = chunk.told, chunk.count
    if lane is not None:
        told, count = jax.tree.map(lambda leaf: leaf[lane], (told, count))
    each = [jax.tree.map(lambda leaf, i=index: leaf[i], told).unpacked() for index in range(int(count))]
    return [told_of(told, critic, rule, run) for told, critic in each]


def capacity(per_iteration: int) -> int:
    """The most iterations of a chunk of so many rows each."""
    return max(1, min(CAPACITY, _ROWS // per_iteration))


def how_many(steps: int, per_iteration: int, pace: float | None) -> int:
    """Iterations of the next chunk: none of them is begun after `steps` more steps are done, whatever of them is
    experience; about a second of them at `pace` iterations a second, 2 while that is not known."""
    left = -(-steps // per_iteration)
    return max(1, min(left, capacity(per_iteration), 2 if pace is None else int(pace * _SECONDS)))
