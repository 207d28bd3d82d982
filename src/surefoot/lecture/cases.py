"""The finite MDPs and policies that the lecture's claims are run on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from surefoot.batch import Batch
from surefoot.geometry import fisher_operator, surrogate_gradient, tabular_natural_gradient
from surefoot.improvement import exact_rule
from surefoot.tabular import MDP, PolicyLike, exact_batch, library, load, tabular_policy, update

Array = np.ndarray

BANDIT_POLICY = np.array([0.5, 0.3, 0.2])
"""The old policy of the worked cases on `library.bandit`, whose rewards (1, -1, -1) are its advantages."""


class Case(NamedTuple):
    """An MDP with an old policy and a new one, as probabilities."""

    mdp: MDP
    old: Float[Array, "... S A"]
    new: Float[Array, "... S A"]


def garnet(rng: np.random.Generator, discount: float = 0.9, **shape: Any) -> MDP:
    """A random MDP of 8 states, 3 actions and 3 successors each, or of another shape."""
    return library.garnet(discount=discount, seed=int(rng.integers(2**32)), **shape)


def random_policy(rng: np.random.Generator, mdp: MDP, concentration: float = 1.0) -> Float[Array, "... S A"]:
    """Action probabilities from a symmetric Dirichlet law in every state (and time)."""
    drawn = rng.dirichlet(np.full(mdp.actions, concentration), mdp.policy_shape[:-1])
    # A concentration far below 1 may round every entry to 0.
    return np.where(np.isfinite(drawn).all(axis=-1, keepdims=True), drawn, 1 / mdp.actions)


def mixture(rng: np.random.Generator, mdp: MDP, old: Float[Array, "... S A"]) -> Float[Array, "... S A"]:
    """A new policy some way from `old`: the share that is new is drawn on a logarithmic scale from .01 to 1."""
    share = 10 ** rng.uniform(-2, 0)
    return (1 - share) * old + share * random_policy(rng, mdp)


def random_cases(rng: np.random.Generator, count: int, *, discount: float = 0.9, horizon: Any = None) -> Iterator[Case]:
    """`count` Garnet MDPs, each with a random policy and a new one some way from it."""
    for _ in range(count):
        mdp = garnet(rng, discount)
        mdp = mdp if horizon is None else mdp.with_horizon(horizon)
        old = random_policy(rng, mdp)
        yield Case(mdp, old, mixture(rng, mdp, old))


def lake_case(rng: np.random.Generator) -> Case:
    """Gymnasium's FrozenLake, discount .99, from the uniform policy to a random one."""
    mdp = load("FrozenLake-v1")
    return Case(mdp, mdp.uniform(), random_policy(rng, mdp))


def every_kind(rng: np.random.Generator, count: int) -> list[Case]:
    """`count` cases each of discount .9, of .99 and of horizon 12, and FrozenLake."""
    return [
        *random_cases(rng, count),
        *random_cases(rng, count, discount=0.99),
        *random_cases(rng, count, horizon=12),
        lake_case(rng),
    ]


def deterministic_case(rng: np.random.Generator) -> tuple[Case, float]:
    """A deterministic old policy, a new one that departs from it in each state with probability e or less, and e."""
    mdp = garnet(rng)
    old = np.eye(mdp.actions)[rng.integers(mdp.actions, size=mdp.states)]
    largest = rng.uniform(0.05, 0.5)
    mistake = largest * rng.random((mdp.states, 1))
    mistake[rng.integers(mdp.states)] = largest
    other = random_policy(rng, mdp) * (1 - old)
    other /= other.sum(axis=-1, keepdims=True)
    return Case(mdp, old, (1 - mistake) * old + mistake * other), float(largest)


def decisions(reward: Any, start: Any) -> MDP:
    """One decision in each state and no more: a discount of 0, and states that lead to themselves."""
    reward = np.asarray(reward, np.float64)
    successor = np.repeat(np.arange(len(reward))[:, None], reward.shape[1], axis=1)
    return library.deterministic(successor, reward, 0.0, start)


def worked_bandit() -> Case:
    """The bandit of the worked cases as the first of eight states, the only one that is met.

    In the shape of all other cases, so that no program is compiled for it alone. No new policy: the old twice.
    """
    reward, old = np.zeros((8, 3)), np.full((8, 3), 1 / 3)
    reward[0], old[0] = [1, -1, -1], BANDIT_POLICY
    return Case(decisions(reward, 0), old, old)


def exact_step(mdp: MDP, policy: PolicyLike, name: str, **settings: Any) -> tuple[Float[Array, "... S A"], Any]:
    """The new probabilities and the report of one exact update of the rule `name`."""
    rule = exact_rule(name, **settings)
    policy = tabular_policy(policy)
    new, _, report = update(rule, policy, rule.init(policy), exact_batch(mdp, policy))
    return np.reshape(new.probabilities(), mdp.policy_shape), report


class Local(NamedTuple):
    """The geometry at a policy's logits, on its exact batch; in units of one step, not of the return.

    Attributes:
        policy, batch: the policy and its batch.
        gradient: g, of the surrogate, [S*A].
        natural: a solution x of F x = g, in closed form, [S*A].
        fisher: F as a matrix, the Fisher operator applied to every unit vector, [S*A, S*A].
    """

    policy: Any
    batch: Batch
    gradient: Float[Array, " P"]
    natural: Float[Array, " P"]
    fisher: Float[Array, "P P"]


def local_geometry(mdp: MDP, policy: PolicyLike) -> Local:
    """Gradients and Fisher matrix of the exact batch; call it with 64 bits enabled."""
    policy = tabular_policy(policy)
    batch = exact_batch(mdp, policy)
    return Local(policy, batch, *map(np.asarray, _gradients_and_fisher(policy, batch)))


@jax.jit
def _gradients_and_fisher(policy: Any, batch: Batch) -> tuple[Any, Any, Any]:
    gradient = surrogate_gradient(policy, batch)
    return (
        gradient,
        tabular_natural_gradient(policy, batch).ravel(),
        jax.vmap(fisher_operator(policy, batch))(jnp.eye(gradient.size)),
    )
