"""Claims 1 to 6: from policy iteration to the surrogate objective."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.advantage import estimate
from surefoot.batch import Trajectory, sampled_batch
from surefoot.distributions import Categorical
from surefoot.geometry import surrogate, surrogate_gradient
from surefoot.lecture.cases import (
    BANDIT_POLICY,
    Case,
    every_kind,
    exact_step,
    garnet,
    lake_case,
    random_cases,
)
from surefoot.lecture.statement import Claim, Evidence, excess, number, worst
from surefoot.rules import NPG
from surefoot.tabular import (
    MDP,
    TabularPolicy,
    evaluate,
    exact_batch,
    identities,
    library,
    policy_iteration,
    state_laws,
    tabular_policy,
)
from surefoot.tabular.penalty import softened, softened_value


def softened_policy_iteration(rng: np.random.Generator) -> Evidence:
    """Claim 1: the plain gradient, the natural gradient's step, its greedy limit, its convergence."""
    errors, weights = [], []
    for mdp, old, _ in random_cases(rng, 5):
        account, horizon = evaluate(mdp, old), mdp.effective_horizon
        predicted = account.visitation[:, None] * old * account.advantage * horizon
        errors.append(np.abs(identities.return_gradient(mdp, old) - predicted) / mdp.scale)
        weights.append(account.visitation.max() / account.visitation.min())
        # The last is far enough that the second-best action of every state has lost: exp(-60).
        gap = np.min(np.diff(np.sort(account.advantage, axis=1)[:, -2:], axis=1))
        quadratic = account.visitation @ np.sum(old * account.advantage**2, axis=1)
        for radius in (1e-4, 1e-2, 1.0, quadratic * (60 / gap) ** 2 / 2):
            stepped, report = exact_step(mdp, old, "npg", radius=radius)
            # The rule's own length of the step along F^-1 g: eta, in units of the advantage of one step.
            errors.append(np.abs(stepped - softened(old, account.advantage, float(report.multiplier))))
        greedy = np.eye(mdp.actions)[np.argmax(account.advantage, axis=1)]
        errors += [np.abs(greedy - softened(old, account.advantage, 0.0)), np.abs(stepped - greedy)]
    ties = softened(BANDIT_POLICY, np.array([1.0, 1.0, -4.0]), 0.0)
    errors.append(np.abs(ties - [0.625, 0.375, 0]))
    never = np.array([0.6, 0.4, 0.0])
    errors += [softened(never, np.array([-1.0, -1.0, 1.0]), multiplier)[2] for multiplier in (0.0, 0.1, 10.0)]
    improvement, gaps = _natural_convergence(rng)
    return Evidence(
        worst([*errors, improvement]),
        (
            "Between the states of one MDP the plain gradient's weight $d(s)$ differs by a factor of up to "
            f"{number(max(weights), 2)}: what is seldom met is seldom improved. The natural gradient has no such "
            "factor.",
            f"At the ties of $A = (1, 1, -4)$ with $\\pi = (.5, .3, .2)$ the greedy limit keeps the proportions: "
            f"({', '.join(number(p) for p in ties.ravel())}). An action of probability 0 keeps it.",
            f"From the uniform policy with rewards in $[0, 1]$ and $\\eta = 1$, ten natural steps leave "
            f"{number(gaps[0])} to the optimum; the proven rate $\\ln|A|/(\\eta n) + 1/((1-\\gamma)^2 n)$ "
            f"allows {number(gaps[1])}, and no step gained less than $(1-\\gamma)/\\eta \\cdot E_\\mu \\log Z \\ge 0$.",
        ),
    )


def _natural_convergence(rng: np.random.Generator) -> tuple[float, tuple[float, float]]:
    """By how much the rate of the natural gradient (Agarwal et al. 2021, theorem 16) or the gain of a step
    (their lemma 17) was missed, and (gap, rate) after the last step."""
    drawn = garnet(rng)
    reward = (drawn.reward - drawn.reward.min()) / np.ptp(drawn.reward)
    mdp = MDP(drawn.matrix.reshape(drawn.states, drawn.actions, -1), reward, drawn.discount, drawn.start)
    best, eta, missed = policy_iteration(mdp).expected_return, 1.0, 0.0
    multiplier = (1 - mdp.discount) / eta
    policy = mdp.uniform()
    account = evaluate(mdp, policy)
    gap = rate = np.inf
    for n in range(1, 11):
        promised = float(mdp.start @ softened_value(policy, account.advantage, multiplier))
        policy = softened(policy, account.advantage, multiplier)
        before, account = account.expected_return, evaluate(mdp, policy)
        rate = np.log(mdp.actions) / (eta * n) + 1 / ((1 - mdp.discount) ** 2 * n)
        gap = best - account.expected_return
        missed = worst(
            [missed, excess(promised, account.expected_return - before), excess(0, promised), excess(gap, rate)]
        )
    return missed / mdp.scale, (gap, rate)


def telescoping(rng: np.random.Generator) -> Evidence:
    """Claim 2: what is earned until t plus the discounted value of where one is then is J, for every t."""
    errors, left_out = [], []
    for mdp, old, _ in [*every_kind(rng, 4), _three_decisions()]:
        lengths = (0, 1, 7, 50) if mdp.horizon is None else range(mdp.horizon + 1)
        errors += [identities.telescoping(mdp, old, steps) / mdp.scale for steps in lengths]
        if mdp.horizon is None:
            after = state_laws(mdp, old, 50)[-1] @ evaluate(mdp, old).value
            left_out.append(mdp.discount**50 * abs(float(after)) / abs(evaluate(mdp, old).expected_return))
    return Evidence(
        worst(errors),
        (
            f"What is left after 50 steps, $\\gamma^{{50}} E V(s_{{50}})$, is up to {number(max(left_out), 2)} of $J$ "
            "in these MDPs: the sum telescopes to $J$ because this goes to 0, by $\\gamma < 1$ or by $V_T = 0$.",
        ),
    )


def one_sample_of_the_advantage(rng: np.random.Generator) -> Evidence:
    """Claim 3: A is the mean of r + g V(s') - V(s) over s'; one sample is off by what the next state varies."""
    errors, spreads = [], []
    for mdp, old, _ in [*random_cases(rng, 10), lake_case(rng)]:
        account = evaluate(mdp, old)
        errors.append(identities.zero_mean_advantage(mdp, old) / mdp.scale)
        variance = mdp.expected_next(account.value**2) - mdp.expected_next(account.value) ** 2
        each = account.probabilities * account.visitation[:, None]
        noise = mdp.discount * np.sqrt(np.sum(each * np.maximum(variance, 0)))
        spreads.append(noise / np.sqrt(np.sum(each * account.advantage**2)))
        successors = mdp.matrix.toarray() if not isinstance(mdp.matrix, np.ndarray) else mdp.matrix
        samples = (
            mdp.reward.reshape(-1, 1) + mdp.discount * account.value - np.repeat(account.value, mdp.actions)[:, None]
        )
        errors.append(np.abs(np.sum(successors * samples, axis=1) - account.advantage.ravel()) / mdp.scale)
    return Evidence(
        worst(errors),
        (
            f"One sample scatters about $A$ with {number(np.median(spreads), 2)} times the standard deviation of $A$ "
            f"itself (median of {len(spreads)} MDPs; from {number(min(spreads), 2)} to {number(max(spreads), 2)}).",
        ),
    )


def performance_difference(rng: np.random.Generator) -> Evidence:
    """Claim 4: exact with the exact V; with any f in two expectations; and indexed by time on a finite horizon."""
    errors, wrong = [], []
    for mdp, old, new in [*every_kind(rng, 5), _three_decisions()]:
        errors.append(identities.performance_difference(mdp, old, new) / mdp.scale)
        shape = (mdp.states,) if mdp.horizon is None else (mdp.horizon, mdp.states)
        anything = rng.standard_normal(shape)
        errors.append(identities.performance_difference_with(mdp, old, new, anything) / mdp.scale)
        if mdp.horizon is None:
            before, after = evaluate(mdp, old), evaluate(mdp, new)
            critic = before.value + 0.1 * anything
            estimated = mdp.reward + mdp.discount * mdp.expected_next(critic) - critic[:, None]
            promised = mdp.effective_horizon * float(after.visitation @ np.sum(after.probabilities * estimated, axis=1))
            gain = after.expected_return - before.expected_return
            wrong.append(abs(promised - gain) / abs(gain))
    mdp, old, new = _three_decisions()
    before, after = evaluate(mdp, old), evaluate(mdp, new)
    expected = np.sum(after.probabilities * before.advantage, axis=-1)
    each = np.sum(state_laws(mdp, new, mdp.horizon or 0)[:-1] * expected, axis=1)
    by_hand = np.abs(each - [0, 1.28, 1.02]).max()
    return Evidence(
        worst([*errors, by_hand]),
        (
            "With a critic that is off by .1 in each state, the lecture's sum misses the gain by "
            f"{number(np.median(wrong), 2)} of its size (median); the form with two expectations stays exact for "
            "every $f$.",
            f"Three decisions by hand: the gain {number(after.expected_return - before.expected_return)} is "
            f"{' + '.join(number(part) for part in each)} over the times $t = 0, 1, 2$.",
        ),
        shown=min(wrong) > 1e-6,
    )


def _three_decisions() -> Case:
    mdp = library.three_decisions()
    return Case(mdp, np.full((2, 2), 0.5), np.array([[0.2, 0.8], [0.9, 0.1]]))


def importance_sampling(rng: np.random.Generator) -> Evidence:
    """Claim 5: the ratio form is the action sum where pi covers pi'; for a deterministic pi it is always 0."""
    errors, ratios, sums = [], [], []
    for mdp, old, new in random_cases(rng, 4):
        errors.append(abs(np.subtract(*_both_forms(mdp, old, new))) / mdp.scale)
        ratio, action_sum = _both_forms(mdp, np.eye(mdp.actions)[np.argmax(old, axis=1)], new)
        ratios.append(abs(ratio) / mdp.scale)
        sums.append(abs(action_sum))
    return Evidence(
        worst([*errors, *ratios]),
        (
            f"From a deterministic $\\pi$ the ratio form is at most {number(max(ratios))} while the action sum is "
            f"{', '.join(number(value, 2) for value in sums)}: it never sees an action that $\\pi$ does not take.",
        ),
        shown=min(sums) > 1e-8,
    )


def _both_forms(mdp: MDP, old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """<d, E_pi (pi'/pi) A> and <d, sum_a pi' A>, in units of one step: two batches through one surrogate."""
    policy, changed = tabular_policy(old), tabular_policy(new)
    with jax.enable_x64(True):
        rows = exact_batch(mdp, policy)
        weight = np.exp(rows.log_base) * np.asarray(old).ravel()
        samples = sampled_batch(rows.observation, None, rows.action, rows.advantage, rows.old, weight)
        return float(_surrogate(changed, samples)), float(_surrogate(changed, rows))


_surrogate = jax.jit(surrogate)


def surrogate_error(rng: np.random.Generator) -> Evidence:
    """Claim 6: value 0 and slope grad J at pi; the error is <d' - d, Abar>/(1-g), of second order in the step."""
    errors, shares = [], []
    for mdp, old, new in random_cases(rng, 5):
        missed = (
            identities.surrogate_at_old(mdp, old),
            identities.gradient_difference(mdp, old),
            identities.surrogate_error(mdp, old, new),
        )
        errors.append(max(missed) / mdp.scale)
        shares.append([_share_missed(mdp, old, radius) for radius in (1e-2, 1e-4, 1e-6)])
    large, middle, small = np.median(shares, axis=0)
    kept, dropped = dropped_discount_gradients()
    return Evidence(
        worst([*errors, abs(kept - 0.0625), abs(dropped + 0.125)]),
        (
            f"Natural steps of KL {number(1e-2)}, {number(1e-4)} and {number(1e-6)}: the surrogate's error is "
            f"{number(large, 2)}, {number(middle, 2)} and {number(small, 2)} of what it promises (medians): it falls "
            "with the square root of the KL.",
            "The weights $\\gamma^t$ belong to $d$. Leaving them out, as most samplers do, is another gradient: in "
            f"`library.dropped_discount` it is {number(dropped)} where the true one is {number(kept)}, of the other "
            "sign.",
        ),
        shown=small < large / 10 and kept > 0 > dropped,
    )


def _share_missed(mdp: MDP, old: np.ndarray, radius: float) -> float:
    """The surrogate's error for a natural step of this KL, as a share of the gain that it promises."""
    stepped, report = exact_step(mdp, old, "npg", radius=radius)
    gain = evaluate(mdp, stepped).expected_return - evaluate(mdp, old).expected_return
    promised = float(report.surrogate_gain) * mdp.effective_horizon
    return abs(gain - promised) / promised


def dropped_discount_gradients() -> tuple[float, float]:
    """The gradient in one logit shared by all states of `library.dropped_discount`, with and without g^t.

    Both from the estimator that training uses, on the four episodes that there are, each as likely.
    """
    mdp = library.dropped_discount()
    action = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    state = np.repeat(np.arange(3)[:, None], 4, axis=1)
    with jax.enable_x64(True):
        policy, nowhere = TabularPolicy(jnp.zeros((3, 2))), jnp.zeros((2, 4), bool)
        experience = Trajectory(
            observation=state,
            mask=None,
            action=jnp.asarray(action),
            log_prob=jnp.full((2, 4), np.log(0.5)),
            reward=mdp.reward[state[:2], action],
            terminated=jnp.array([[False] * 4, [True] * 4]),
            truncated=nowhere,
            reset=nowhere,
            time=jnp.asarray(state[:2]),
        )
        value = jnp.asarray(evaluate(mdp, mdp.uniform()).value[state])
        old = Categorical(jnp.zeros((2, 4, 2)))
        kept, dropped = _shared_logit_gradients(policy, experience, value, old, mdp.discount)
        # Weights of a batch sum to 1; those of an episode of two steps to 1 + g, or to 2.
        return float(kept) * (1 + mdp.discount), float(dropped) * 2


@jax.jit
def _shared_logit_gradients(policy: Any, experience: Trajectory, value: Any, old: Any, discount: Any) -> list[Any]:
    """The derivative of the batch's surrogate in the logit of action 1 of all states at once, for both weightings."""
    gradients = []
    for weighting in ("discounted", "undiscounted"):
        batch, _ = estimate(
            experience,
            value,
            old,
            discount=discount,
            gae_lambda=0.0,
            weighting=weighting,
        )
        gradients.append(jnp.sum(surrogate_gradient(policy, batch).reshape(3, 2)[:, 1]))
    return gradients


CLAIMS = (
    Claim(
        1,
        "The policy gradient is softened policy iteration",
        r"\theta \leftarrow \theta + \eta \, \nabla_\theta J(\theta) \quad \text{softens} \quad "
        r"\pi'(s) = \underset{a}{\mathrm{argmax}}\, A^\pi(s,a)",
        "Policy iteration jumps to the best action; the policy gradient estimates the same advantages and moves a "
        "little towards it.",
        r"\frac{\partial J}{\partial \theta_{s,a}} = \frac{d(s)\,\pi(a|s)\,A^\pi(s,a)}{1-\gamma}, \qquad "
        r"\pi' \propto \pi \exp\!\left(\frac{\eta A^\pi}{1-\gamma}\right)",
        "The plain gradient of a softmax table moves logits in proportion to $d(s)\\pi(a|s)$ as well. It is the "
        "natural gradient whose step softens policy iteration exactly, and is greedy for $\\eta \\to \\infty$.",
        "loose",
        "exact for the natural gradient",
        (NPG.update, identities.return_gradient, softened),
        softened_policy_iteration,
    ),
    Claim(
        2,
        "The return is the first state's value",
        r"J(\theta) = E_{s_0 \sim p(s_0)}\left[V^{\pi}(s_0)\right]",
        "So the old policy's return can be written over the new policy's trajectories, and the sum telescopes.",
        r"J = \sum_{t<n} \gamma^t \langle p_t, r_\pi \rangle + \gamma^n \langle p_n, V^\pi \rangle \quad \text{for "
        r"every } n",
        "It needs $\\gamma < 1$, or a finite horizon with $V_T = 0$.",
        "right",
        "for $\\gamma < 1$ or a finite horizon with $V_T = 0$",
        (identities.telescoping,),
        telescoping,
    ),
    Claim(
        3,
        "The advantage",
        r"A^\pi(s_t, a_t) = r(s_t, a_t) + \gamma V^\pi(s_{t+1}) - V^\pi(s_t)",
        "The advantage is the reward plus the discounted change of the value.",
        r"A^\pi(s,a) = r(s,a) + \gamma\, E_{s'}[V^\pi(s')] - V^\pi(s), \qquad \sum_a \pi(a|s) A^\pi(s,a) = 0",
        "The lecture's expression is one sample; the advantage is its mean over the next state.",
        "loose",
        "it is one sample of $A$",
        (evaluate, identities.zero_mean_advantage),
        one_sample_of_the_advantage,
    ),
    Claim(
        4,
        "Performance difference",
        r"J(\theta') - J(\theta) = E_{\tau \sim p_{\theta'}(\tau)}\left[\sum_t \gamma^t A^{\pi_\theta}(s_t, "
        r"a_t)\right]",
        "What a new policy gains is the old policy's advantage, collected along the new policy's trajectories.",
        r"J(\pi') - J(\pi) = \frac{\langle d', \bar A \rangle}{1-\gamma} = "
        r"\frac{\langle d', E_{\pi'}\delta_f\rangle - \langle d, E_\pi \delta_f \rangle}{1-\gamma}",
        "The first form needs the exact $V^\\pi$. The second, with $\\delta_f = r + \\gamma P f - f$, holds for any "
        "function $f$ of the state; a finite horizon sums $\\gamma^t \\langle p'_t, \\bar A_t \\rangle$.",
        "right",
        "with the exact $V$",
        (identities.performance_difference, identities.performance_difference_with),
        performance_difference,
    ),
    Claim(
        5,
        "Importance sampling over actions",
        r"E_{a \sim \pi_{\theta'}}\left[A(s,a)\right] = "
        r"E_{a \sim \pi_\theta}\left[\frac{\pi_{\theta'}(a|s)}{\pi_\theta(a|s)} A(s,a)\right]",
        "The new policy's actions can be replaced by the old one's, weighted by the ratio.",
        r"\sum_a \pi'(a|s) A(s,a) = \sum_{a:\,\pi(a|s) > 0} \pi(a|s) \frac{\pi'(a|s)}{\pi(a|s)} A(s,a) "
        r"\quad \text{if } \pi' \ll \pi",
        "Where $\\pi$ never takes an action, no ratio sees it. For a deterministic $\\pi$ the ratio form is "
        "identically 0, so exact work sums over actions.",
        "right",
        "if $\\pi$ covers $\\pi'$",
        (surrogate, sampled_batch, exact_batch),
        importance_sampling,
    ),
    Claim(
        6,
        "Old states for new ones",
        r"\sum_t E_{s_t \sim p_{\theta'}(s_t)}[\ldots] \approx \sum_t E_{s_t \sim p_{\theta}(s_t)}[\ldots] "
        r"\;\Rightarrow\; J(\theta') - J(\theta) \approx \bar A(\theta')",
        "The states, too, are taken from the old policy, which makes the objective computable.",
        r"J(\pi') - J(\pi) = L(\pi') + \frac{\langle d' - d, \bar A \rangle}{1-\gamma}, \qquad "
        r"L(\pi) = 0, \quad \nabla L(\pi) = \nabla J(\pi)",
        "The surrogate $L = \\langle d, \\bar A \\rangle/(1-\\gamma)$ agrees with the gain in value and gradient at "
        "the old policy; the error is known exactly and of second order.",
        "approximation",
        "of second order in the step",
        (
            identities.surrogate_at_old,
            identities.gradient_difference,
            identities.surrogate_error,
            estimate,
        ),
        surrogate_error,
    ),
)
