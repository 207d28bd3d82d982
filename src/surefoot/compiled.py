"""Iterations without leaving the compiler: a chunk of them is one program.

For sources that are functions themselves. The stages are those of `iteration`; what a chunk leaves for the account of
each iteration is fetched at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from surefoot import config
from surefoot.critic import CriticReport
from surefoot.iteration import Iteration, Learner, Told, learn, told_of
from surefoot.rules import Rule
from surefoot.sources.functional import Fault, FunctionalSource, FunctionalState, first_fault

CAPACITY = 64
_SECONDS = 1.0  # of a chunk: as long as a panel may stand still and Ctrl-C be waited for


class Chunk(NamedTuple):
    """What a program of several iterations gives; the arrays of `told` and `critic` lead with the iteration.

    Attributes:
        learner, state: after the last.
        count: how many iterations were made: those asked for, or those before an environment failed.
        told: for their accounts.
        critic: the fits' reports.
        fault: of the environment that failed.
    """

    learner: Learner
    state: FunctionalState
    count: Any
    told: Told
    critic: CriticReport
    fault: Fault


def make_chunk(source: FunctionalSource, rule: Rule, run: config.Run) -> Callable[..., Chunk]:
    """The program: from learner, state and how many iterations to make (at most CAPACITY) to a Chunk.

    How many is an argument, so that a run's last few and its first thousand are the same program: the bits of an
    iteration do not depend on where chunks end. The loop writes in place what it carries; what it was given stays, so
    that there is something to save where an environment fails.
    """

    def advance(learner: Learner, state: FunctionalState) -> tuple[Learner, FunctionalState, Any]:
        key, collect_key, update_key, critic_key = jax.random.split(learner.key, 4)
        trajectory, after = source.roll_out(learner.policy, state, collect_key)
        learned, told, critic = learn(rule, run, learner, trajectory, (key, update_key, critic_key))
        return learned, after, (told, critic, first_fault(trajectory))

    def chunk(learner: Learner, state: FunctionalState, count: Any) -> Chunk:
        told, critic, fault = jax.eval_shape(advance, learner, state)[2]
        rows = jax.tree.map(lambda leaf: jnp.zeros((CAPACITY, *leaf.shape), leaf.dtype), (told, critic))
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), fault)

        def going(carry: Any) -> Any:
            done, _, _, _, fault = carry
            return (done < count) & ~fault.found

        def body(carry: Any) -> Any:
            done, learner, state, rows, _ = carry
            learned, after, (told, critic, fault) = advance(learner, state)
            rows = jax.tree.map(lambda every, one: every.at[done].set(one), rows, (told, critic))
            # An iteration that an environment spoiled did not happen.
            learner, state = jax.tree.map(
                lambda new, old: jnp.where(fault.found, old, new), (learned, after), (learner, state)
            )
            return done + ~fault.found, learner, state, rows, fault

        begun = jnp.zeros((), jnp.int32), learner, state, rows, none
        done, learner, state, (told, critic), fault = jax.lax.while_loop(going, body, begun)
        return Chunk(learner, state, done, told, critic, fault)

    return jax.jit(chunk)


def iterations(chunk: Chunk, run: config.Run) -> list[Iteration]:
    """The account of every iteration of a chunk, in order."""
    told, critic, count = jax.device_get((chunk.told, chunk.critic, chunk.count))
    each = [jax.tree.map(lambda leaf, i=index: leaf[i], (told, critic)) for index in range(int(count))]
    return [told_of(*one, run) for one in each]


def how_many(steps: int, per_iteration: int, pace: float | None) -> int:
    """Iterations of the next chunk: none of them is begun after `steps` more steps are done, whatever of them is
    experience; about a second of them at `pace` iterations a second, 2 while that is not known."""
    left = -(-steps // per_iteration)
    return max(1, min(left, CAPACITY, 2 if pace is None else int(pace * _SECONDS)))
