"""Finite MDPs and policies for tests: generated ones of every awkward kind, and a naive evaluation."""

import numpy as np
from hypothesis import strategies as st

from surefoot.tabular import MDP

DISCOUNTS = (0.0, 0.3, 0.9, 0.99, 0.999)


def random_policy(rng, shape):
    """Dirichlet rows, some of them deterministic, some with actions of probability 0."""
    rows = rng.dirichlet(np.full(shape[-1], rng.choice([0.1, 1.0])), size=shape[:-1])
    kind = rng.integers(3)
    if kind == 0:
        return np.eye(shape[-1])[rows.argmax(axis=-1)]
    if kind == 1:
        rows = np.where(rows < rows.max(axis=-1, keepdims=True) / 3, 0, rows)
    return rows / rows.sum(axis=-1, keepdims=True)


def mixed(old, new, share):
    """The policy that follows `new` with probability `share`."""
    return (1 - share) * old + share * new


def random_model(rng, horizon=None, largest_states=12, fewest_actions=1, discounts=DISCOUNTS):
    """Up to 12 states and 4 actions; deterministic or branching, ends, signed or nonnegative rewards."""
    states, actions = rng.integers(1, largest_states + 1), rng.integers(fewest_actions, 5)
    branching = rng.integers(1, states + 1)
    transition = np.zeros((states, actions, states))
    for s in range(states):
        for a in range(actions):
            to = rng.choice(states, size=branching, replace=False)
            transition[s, a, to] = rng.dirichlet(np.ones(branching))
    reward = rng.standard_normal((states, actions)) * rng.choice([1.0, 100.0])
    if rng.random() < 0.3:
        reward = np.abs(reward)
    if states > 1 and rng.random() < 0.3:
        transition[-1], reward[-1] = np.eye(states)[-1], 0
    start = rng.dirichlet(np.ones(states)) if rng.random() < 0.5 else int(rng.integers(states))
    if horizon is None:
        return MDP(transition, reward, rng.choice(discounts), start)
    return MDP(transition, reward, rng.choice([*discounts, 1.0]), start, horizon=horizon)


HORIZONS = st.none() | st.integers(1, 6)


@st.composite
def problems(draw, horizon=HORIZONS):
    """(MDP, old policy, new policy), the new one anywhere from near the old to unrelated."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mdp = random_model(rng, draw(horizon))
    old, new = random_policy(rng, mdp.policy_shape), random_policy(rng, mdp.policy_shape)
    return mdp, old, mixed(old, new, draw(st.sampled_from([1.0, 0.1, 1e-3, 0.0])))


def rollout_law(mdp, policy, steps):
    """p_t by loops over states and actions, [steps + 1, S]."""
    transition = np.asarray(mdp.matrix if isinstance(mdp.matrix, np.ndarray) else mdp.matrix.toarray())
    transition = transition.reshape(mdp.states, mdp.actions, mdp.states)
    laws = [mdp.start]
    for t in range(steps):
        now = policy[t] if policy.ndim == 3 else policy
        law = np.zeros(mdp.states)
        for s in range(mdp.states):
            for a in range(mdp.actions):
                law += laws[-1][s] * now[s, a] * transition[s, a]
        laws.append(law)
    return np.array(laws)


def summed_return(mdp, policy):
    """J as the sum of what is earned at each time, and d as the weighted sum of the laws of states."""
    steps = mdp.horizon or (1 if mdp.discount == 0 else int(np.ceil(np.log(1e-15) / np.log(mdp.discount))))
    laws = rollout_law(mdp, policy, steps - 1)
    weights = mdp.discount ** np.arange(steps)
    earned = np.sum(policy * mdp.reward, axis=-1)
    return float(np.sum(weights * np.sum(laws * earned, axis=1))), weights @ laws / weights.sum()
