"""What some updates of a run were functions of, kept as files: their inputs, from which they can be made again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import checkpoint, config
from surefoot.agent import check_size
from surefoot.batch import Batch
from surefoot.errors import RunError, SurefootError, printable, shown
from surefoot.policy import NeuralPolicy, make_policy
from surefoot.rules import Memory, Rule
from surefoot.spaces import describe, parse, space_tree

_FOLDER = "batches"
_PREFIX = "inputs"
_WHAT = "kept batch"
_ROUNDING = 1e-3  # of the sum of a batch's weights


class Inputs(NamedTuple):
    """All that an update is a function of.

    Attributes:
        policy: the one before the update, with its normaliser.
        memory: the rule's before it.
        share: of the trust region that annealing and the guard had left.
        batch: as the rule saw it, without what was held out.
        key: as the rule was given it.
    """

    policy: NeuralPolicy
    memory: Memory
    share: Float[Array, ""]
    batch: Batch
    key: PRNGKeyArray


def due(run: config.Run, before: int, after: int) -> bool:
    """Whether the update is to be kept whose batch brought a run from `before` environment steps to `after`.

    It is that which saw one of `keep_batches` steps spread evenly from the run's first to its last. So a run that goes
    on keeps what it would have kept without having stopped.
    """
    mark = _next_mark(run, before)
    return mark is not None and mark <= after


def surely_not_due(run: config.Run, before: int, most: int) -> int:
    """How many of the next updates are not to be kept whatever they see, of at most `most` environment steps each."""
    mark = _next_mark(run, before)
    return run.steps if mark is None else (mark - 1 - before) // most


def _next_mark(run: config.Run, before: int) -> int | None:
    count = run.keep_batches
    if count < 2:
        marks = [(run.steps + 1) // 2] * count
    else:
        marks = [1 + number * (run.steps - 1) // (count - 1) for number in range(count)]
    return min((mark for mark in marks if mark > before), default=None)


def save(
    run: Path, identity: str, update: int, inputs: Inputs, observation_space: Any, action_space: gymnasium.Space
) -> None:
    """Write an update's inputs into a run's folder. Raises RunError where the disk refuses it."""
    facts = {"observation_space": describe(observation_space), "action_space": describe(action_space)}
    checkpoint.write_pair(run / _FOLDER, identity, update, checkpoint.arrays_of(inputs, _PREFIX), facts)


def kept_updates(run: str | os.PathLike) -> list[int]:
    """The updates of which a run's folder holds the inputs, in order."""
    return sorted(checkpoint.updates(Path(run) / _FOLDER, ".json"))


def load(run: Path, identity: str, update: int, rule: Rule, network: config.Network) -> Inputs:
    """The inputs of an update, on the device.

    Arguments:
        run: the run's folder.
        identity: of the run.
        update: one of `kept_updates`.
        rule: the run's.
        network: the policy's.

    Raises RunError where there are none, a byte of them is not as it was written, or they are of another run, and where
    they do not fit the run or one another, naming the part.
    """
    updates = kept_updates(run)
    if update not in updates:
        there = ", ".join(map(str, updates)) or "none; train with --keep-batches"
        raise RunError(f"{run} has not kept the inputs of update {shown(update)}; kept are: {there}")
    file = checkpoint.file_of(run / _FOLDER, update)
    found = checkpoint.read(file, _WHAT)
    if found.identity != identity:
        raise RunError(f"{file} is of another run")
    try:
        return jax.device_put(_fitting(found, rule, network))
    except RunError as error:
        raise RunError(f"{file}: {error}") from None
    except (SurefootError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RunError(f"{file} does not fit this run: {printable(error)}") from None


def _fitting(found: checkpoint.Checkpoint, rule: Rule, network: config.Network) -> Inputs:
    """The inputs as NumPy arrays, whose shapes, types and numbers are checked."""
    facts, arrays = found.facts, found.arrays
    spaces = parse(facts["observation_space"]), parse(facts["action_space"])
    dtype = np.dtype(np.float32)
    check_size(spaces, network, dtype.itemsize, sum(array.nbytes for array in arrays.values()), "config.json")
    policy = make_policy(*spaces, network, jax.random.key(0), dtype)
    skeleton = Inputs(policy, rule.init(policy), jnp.ones((), dtype), _like(policy, spaces, arrays), jax.random.key(0))
    inputs = checkpoint.tree_of(skeleton, arrays, _PREFIX, _WHAT)
    _check_numbers(inputs)
    return inputs


def _like(policy: NeuralPolicy, spaces: tuple[Any, gymnasium.Space], arrays: dict[str, np.ndarray]) -> Any:
    """A Batch of the shapes and types that this policy's batches of so many rows have. It takes no memory."""

    def named(name: str) -> np.ndarray:
        return arrays.get(f"{_PREFIX}/batch.{name}", np.zeros(0, np.float32))

    rows = named("weight").shape[:1]
    if not rows or not rows[0]:
        raise RunError(f"the {_WHAT} has no rows")

    def part(path: Any, space: gymnasium.Space) -> np.ndarray:
        # Of which type an environment's numbers are, its space does not say.
        name = jax.tree_util.keystr((jax.tree_util.GetAttrKey("observation"), *path), simple=True, separator=".")
        return _empty((*rows, *(space.shape or ())), _plain(name, named(name).dtype))

    is_space = lambda node: isinstance(node, gymnasium.Space)  # noqa: E731
    observation = jax.tree.map_with_path(part, space_tree(spaces[0]), is_leaf=is_space)
    mask: Any = None
    if f"{_PREFIX}/batch.mask" in arrays:
        mask = _empty((*rows, policy.head.outputs), np.dtype(bool))
    old = jax.eval_shape(lambda policy, *seen: policy(*seen), policy, observation, mask)
    action = jax.eval_shape(lambda old: old.mode(), old)
    number = _empty(rows, np.dtype(np.float32))
    empty = lambda leaf: _empty(leaf.shape, leaf.dtype)  # noqa: E731
    return Batch(observation, mask, empty(action), number, jax.tree.map(empty, old), number, number)


def _plain(name: str, dtype: np.dtype) -> np.dtype:
    if dtype.kind not in "biuf" or dtype.itemsize > 4:
        raise RunError(f"the {_WHAT}'s {shown(name)} is {dtype}, which no run keeps")
    return dtype


def _empty(shape: tuple[int, ...], dtype: Any) -> Any:
    return np.broadcast_to(np.zeros((), dtype), shape)


def _check_numbers(inputs: Inputs) -> None:
    """Refuse what no run has, and what would make every number that is told of a step mean nothing."""
    batch = inputs.batch
    weight, log_base = np.asarray(batch.weight, np.float64), np.asarray(batch.log_base)
    finite = (("policy", inputs.policy), ("memory", inputs.memory), ("observation", batch.observation))
    for name, tree in (*finite, ("old policy's distribution", batch.old), ("advantage", batch.advantage)):
        for leaf in jax.tree.leaves(tree):
            if np.issubdtype(np.asarray(leaf).dtype, np.floating) and not np.isfinite(leaf).all():
                raise RunError(f"the {_WHAT}'s {name} holds values that are not finite")
    if not (weight >= 0).all() or not abs(weight.sum() - 1) < _ROUNDING:
        raise RunError(f"the {_WHAT}'s weights are not nonnegative with sum 1")
    if not (np.isfinite(log_base) == (weight > 0)).all() or np.isposinf(log_base).any():
        raise RunError(f"the {_WHAT}'s log_base is not finite where its weight is positive, and -inf elsewhere")
    if not 0 < float(inputs.share) <= 1:
        raise RunError(f"the {_WHAT}'s share of the trust region is not above 0 and at most 1")
