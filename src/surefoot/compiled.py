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


class Chunk(NamedTuple):
    """What a program of several iterations gives; arrays lead with the iteration.

    Attributes:
        learner, state: after the last.
        count: how many iterations were made; fewer than asked where an environment failed.
        told: for their accounts.
        critic: the fits' reports.
        fault: where an environment failed, in the last iteration.
    """

    learner: Learner
    state: FunctionalState
    count: Any
    told: Told
    critic: CriticReport
    fault: Fault


def make_chunk(source: FunctionalSource, rule: Rule, run: config.Run, capacity: int) -> Callable[..., Chunk]:
    """The program: from learner, state and how many iterations to make (at most `capacity`) to a Chunk.

    How many is an argument, so that a run's last few and its first thousand are the same program: the bits of an
    iteration do not depend on where chunks end.
    """

    def advance(learner: Learner, state: FunctionalState) -> tuple[Learner, FunctionalState, Any]:
        key, collect_key, update_key, critic_key = jax.random.split(learner.key, 4)
        trajectory, after = source.roll_out(learner.policy, state, collect_key)
        learned, told, critic = learn(rule, run, learner, trajectory, (key, update_key, critic_key))
        return learned, after, (told, critic, first_fault(trajectory))

    def chunk(learner: Learner, state: FunctionalState, count: Any) -> Chunk:
        shapes = jax.eval_shape(advance, learner, state)[2]
        rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)

        def going(carry: Any) -> Any:
            done, _, _, (_, _, fault) = carry
            return (done < count) & ~jnp.any(fault.found)

        def body(carry: Any) -> Any:
            done, learner, state, rows = carry
            learned, after, row = advance(learner, state)
            rows = jax.tree.map(lambda all_rows, one: all_rows.at[done].set(one), rows, row)
            return done + 1, learned, after, rows

        done, learner, state, rows = jax.lax.while_loop(going, body, (jnp.zeros((), jnp.int32), learner, state, rows))
        told, critic, fault = rows
        last = jax.tree.map(lambda leaf: leaf[jnp.maximum(done - 1, 0)], fault)
        return Chunk(learner, state, done, told, critic, last)

    return jax.jit(chunk, donate_argnums=(0, 1))


def iterations(chunk: Chunk, run: config.Run) -> list[Iteration]:
    """The account of every iteration of a chunk, in order."""
    told, critic, count = jax.device_get((chunk.told, chunk.critic, chunk.count))
    at = [jax.tree.map(lambda leaf, i=index: leaf[i], (told, critic)) for index in range(int(count))]
    return [told_of(*one, run) for one in at]
