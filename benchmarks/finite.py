"""What updates really do in four finite MDPs, where the truth about each can be computed.

    python benchmarks/finite.py exact [--out docs] [--quick]
    python benchmarks/finite.py sampled [--out docs] [--quick]

`exact`: every rule on exact batches from the uniform policy; for each update the true gain, the surrogate gain
and the best lower bound. Nothing is sampled.

`sampled`: single updates of TRPO and PPO from sampled batches, their effect computed from the model: the share
that lowers the true return, the share whose true mean KL exceeds TRPO's radius, the gain beside that of an exact
step. Old policies are eight of an exact TRPO run of radius .001, evenly spaced in updates from the uniform policy
to the first with 95 % of the way to the optimum. A batch is 16 environments in lockstep; an episode ends as its
environment has it or, after each step, with probability 1 - g, and a new one starts, so states follow the
discounted visitation d of episodes that are not over; the first states are drawn from it. Actions and rewards are
sampled. Advantages are, for the same transitions,

- `exact A`: A(s, a) of the model;
- `exact V`: GAE(.95) from the sampled rewards and the exact values of the old policy;
- `fitted V`: GAE(.95) with the values that satisfy the Bellman equation of an independent batch of the same size,
  as if it were the model (states that it does not have: 0).

Every update is the first of its rule. Advantages are standardised. Seeded; no setting was tuned.
"""

import argparse
import csv
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium
import jax
import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import spsolve
from scipy.special import log_softmax

import surefoot as sf
from surefoot.batch import sampled_batch
from surefoot.improvement import EXACT_DEFAULTS
from surefoot.rules import PPO, RULES, TRPO
from surefoot.tabular import MDP, TabularPolicy
from surefoot.tabular.toy_text import TOY_TEXT

Array = np.ndarray

SEED, RADIUS, ROUNDING = 0, 0.01, 1e-10
ENVIRONMENTS, GAE_LAMBDA = 16, 0.95
NAMES = ("pi", "pg", "npg", "trpo", "kl-penalty", "dual", "ppo")
MEASURED = ("gain", "surrogate_gain", "best_bound", "bound", "proven", "vacuous", "lowered", "accepted")
EXACT_COLUMNS = ("mdp", "rule", "radius", "update", "old_return", "new_return", *MEASURED, "mean_kl", "max_kl")
SHOWN = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 30, 40, 50)
ESTIMATORS = ("exact A", "exact V", "fitted V")
KEYS = ("mdp", "rule", "advantages", "size")
EFFECTS = ("accepted", "lowered", "left", "gain", "exact_gain", "kl")
SAMPLED_COLUMNS = (*KEYS, "policy", "old_return", "entropy", *EFFECTS)
SAMPLED_RULES = {
    "trpo": TRPO(radius=RADIUS, damping=0.1),
    "trpo, damping 0": TRPO(radius=RADIUS, damping=0.0),
    "ppo": PPO(step_size=EXACT_DEFAULTS["step_size"]),
    "ppo, step_size 3e-4": PPO(),
}
STYLE = dict(zip(SAMPLED_RULES, ("C0-", "C0:", "C1-", "C1:"), strict=True))


def line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def head(cells: list[str]) -> str:
    return line(cells) + "\n|" + "---|" * len(cells)


def save(rows: list[dict[str, Any]], file: Path) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def optimal_return(mdp: MDP) -> float:
    return mdp.evaluate(np.eye(mdp.actions)[mdp.policy_iteration().action]).expected_return


def exact_updates(names: Iterable[str], updates: int) -> Iterator[dict[str, Any]]:
    """One row for every MDP, rule, radius and update."""
    for name in names:
        mdp = sf.tabular.load(name)
        for rule in NAMES:
            trusted = any(field.name == "radius" for field in dataclasses.fields(RULES[rule]))
            for radius in (None, 0.1) if trusted else (None,):
                made = sf.exact_rule(rule) if radius is None else sf.exact_rule(rule, radius=radius)
                for number, step in enumerate(sf.improve(mdp, made, updates=updates, seed=SEED), 1):
                    c = step.certificate
                    told = (c.old_return, c.new_return, c.gain, c.surrogate_gain, c.best_bound, c.best)
                    flags = (c.proves_improvement, c.vacuous, c.gain < -ROUNDING * mdp.scale, step.report.accepted)
                    of = name, rule, float(made.radius) if trusted else "", number
                    yield dict(zip(EXACT_COLUMNS, (*of, *told, *map(int, flags), c.mean_kl, c.max_kl), strict=True))


def grouped(rows: list[dict[str, Any]], *keys: str) -> dict[tuple, list[dict[str, Any]]]:
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def exact_summary(rows: list[dict[str, Any]]) -> None:
    """One line for every MDP, rule and radius."""
    columns = ["return after 1", "10", str(rows[-1]["update"]), "share of the way"]
    columns = ["rule", "radius", *columns, "moved", "lowered", "proven", "vacuous", "median bound / gain"]
    for (name,), of_mdp in grouped(rows, "mdp").items():
        first, best = of_mdp[0]["old_return"], optimal_return(sf.tabular.load(name))
        print(f"\n{name}: uniform {first:.4g}, optimum {best:.4g}\n\n{head(columns)}")
        for (rule, radius), run in grouped(of_mdp, "rule", "radius").items():
            moved = [row for row in run if row["accepted"]]
            ratios = [row["best_bound"] / row["gain"] for row in moved if row["gain"] > ROUNDING * abs(best)]
            counts = (sum(row[key] for row in moved) for key in ("lowered", "proven", "vacuous"))
            at = (f"{run[min(n, len(run)) - 1]['new_return']:.4g}" for n in (1, 10, len(run)))
            median = f"{np.median(ratios):.3g}" if ratios else "none"
            way = f"{(run[-1]['new_return'] - first) / (best - first):.4f}"
            print(line([rule, radius, *at, way, len(moved), *counts, median]))


def told(row: dict[str, Any]) -> str:
    numbers = ", ".join(f"{row[key]:.2g}" for key in ("gain", "surrogate_gain", "best_bound"))
    return f"{numbers} {row['bound']}" if row["accepted"] else "refused"


def each_update(rows: list[dict[str, Any]]) -> None:
    """Gain, surrogate gain and best bound of each update, a folded table for every MDP."""
    for (name,), of_mdp in grouped(rows, "mdp").items():
        runs = {rule: run for (rule, r), run in grouped(of_mdp, "rule", "radius").items() if r != 0.1}
        print(f"\n<details>\n<summary>{name}</summary>\n\n{head(['update', *runs])}")
        for number in (n for n in SHOWN if n <= rows[-1]["update"]):
            print(line([number, *(told(run[number - 1]) for run in runs.values())]))
        print("\n</details>")


def run_exact(out: Path | None, quick: bool) -> None:
    rows = list(exact_updates(TOY_TEXT[:1] if quick else TOY_TEXT, 3 if quick else 50))
    exact_summary(rows)
    each_update(rows)
    if out is not None:
        save(rows, out / "finite.csv")


class Table(NamedTuple):
    """An environment's own table P, padded to K outcomes of each state and action: arrays [S, A, K]."""

    cumulative: Array
    successor: Array
    reward: Array
    terminated: Array
    start: Array


def own_table(name: str) -> Table:
    environment = gymnasium.make(name).unwrapped
    table = [[environment.P[s][a] for a in range(len(environment.P[s]))] for s in range(len(environment.P))]
    width = max(len(outcomes) for row in table for outcomes in row)
    padded = np.array([[[*o, *[(0, 0, 0, False)] * (width - len(o))] for o in row] for row in table], float)
    probability, successor, reward, terminated = np.moveaxis(padded, -1, 0)
    cumulative, start = np.cumsum(probability, axis=-1), np.cumsum(environment.initial_state_distrib)
    return Table(cumulative, successor.astype(int), reward, terminated > 0, start)


class Transitions(NamedTuple):
    """Sampled transitions [T, draws * environments]; `ended` where the next row starts an episode."""

    state: Array
    action: Array
    reward: Array
    successor: Array
    terminated: Array
    ended: Array


def drawn(cumulative: Array, rng: np.random.Generator) -> Array:
    """One draw from each row of cumulative probabilities [n, K]."""
    above = rng.random((len(cumulative), 1)) * cumulative[:, -1:] >= cumulative
    return np.minimum(above.sum(axis=1), cumulative.shape[1] - 1)


def sample(table: Table, policy: Array, law: Array, g: float, steps: int, count: int, rng: Any) -> Transitions:
    """`count` environments, each from a state of `law`, `steps` transitions long."""
    cumulative = np.cumsum(policy, axis=1)
    state = rng.choice(len(law), size=count, p=law)
    rows = []
    for _ in range(steps):
        action = drawn(cumulative[state], rng)
        outcome = drawn(table.cumulative[state, action], rng)
        at = state, action, outcome
        successor, terminated = table.successor[at], table.terminated[at]
        ended = terminated | (rng.random(count) >= g)
        rows.append((state, action, table.reward[at], successor, terminated, ended))
        again = np.minimum(np.searchsorted(table.start, rng.random(count), side="right"), len(law) - 1)
        state = np.where(ended, again, successor)
    return Transitions(*(np.array(column) for column in zip(*rows, strict=True)))


def by_draw(rows: Array, draws: int) -> Array:
    """[T, draws * environments] as batches [draws, T * environments], time outermost."""
    return np.moveaxis(rows.reshape(len(rows), draws, -1), 1, 0).reshape(draws, -1)


def gae(t: Transitions, value: Array, draws: int, g: float) -> Array:
    """Generalised advantages [T, draws * environments] from one row of values for every draw, [draws, S]."""
    of = np.repeat(np.arange(draws), t.state.shape[1] // draws)
    delta = t.reward + g * ~t.terminated * value[of, t.successor] - value[of, t.state]
    advantage, later = np.empty_like(delta), np.zeros(delta.shape[1])
    for k in reversed(range(len(delta))):
        later = advantage[k] = delta[k] + g * GAE_LAMBDA * ~t.ended[k] * later
    return advantage


def fitted_values(t: Transitions, states: int, draws: int, g: float) -> Array:
    """The solution of each draw's own Bellman equation, [draws, S]; 0 in states that it does not have."""
    state, _, reward, successor, terminated, _ = (by_draw(rows, draws) for rows in t)
    value = np.empty((draws, states))
    for k in range(draws):
        system, earned = np.zeros((states, states)), np.bincount(state[k], reward[k], states)
        np.add.at(system, (state[k], successor[k]), -g * ~terminated[k])
        count = np.bincount(state[k], minlength=states)
        system[np.diag_indices(states)] += np.where(count > 0, count, 1)
        value[k] = np.linalg.solve(system, earned)
    return value


@eqx.filter_jit
def update_each(rule: Any, logits: Array, state: Array, action: Array, advantage: Array, key: Any) -> Any:
    """One update of each of a stack of batches [draws, B]: (logits [draws, S, A], accepted [draws])."""

    def one(state: Array, action: Array, advantage: Array) -> Any:
        policy = TabularPolicy(logits)
        batch = sampled_batch(state, None, action, advantage, policy(state), jax.numpy.ones(state.shape))
        new, _, report = rule.update(policy, rule.init(policy), batch, key)
        return new.logits, report.accepted

    return jax.vmap(one)(state, action, advantage)


def unfinished(mdp: MDP) -> Array:
    """Which states are not an end, [S]."""
    here = (mdp.matrix @ np.eye(mdp.states)).reshape(mdp.states, mdp.actions, mdp.states)
    stays = here[np.arange(mdp.states), :, np.arange(mdp.states)] == 1
    return ~np.all(stays & (mdp.reward == 0), axis=1)


def old_policies(mdp: MDP, count: int) -> list[Array]:
    """Evenly spaced in updates over an exact TRPO run of radius .001, to 95 % of the way to the optimum."""
    run = [mdp.uniform()]
    first, best = mdp.evaluate(run[0]).expected_return, optimal_return(mdp)
    for step in sf.improve(mdp, sf.exact_rule("trpo", radius=0.001), updates=500):
        run.append(step.policy.probabilities())
        if step.certificate.new_return >= first + 0.95 * (best - first):
            break
    return [run[k] for k in np.linspace(0, len(run) - 1, count).round().astype(int)]


def returned(mdp: MDP, policy: Array) -> float:
    """J(pi), by a sparse factorisation: what `mdp.evaluate` says to rounding, ten times as fast."""
    system = sparse.csc_array(sparse.eye_array(mdp.states) - mdp.discount * mdp.under(policy))
    return float(mdp.start @ spsolve(system, np.sum(policy * mdp.reward, axis=1)))


def exact_gain(mdp: MDP, policy: Array, live: Array) -> float:
    """The gain of the exact TRPO update, its KL averaged over the same states that samples have."""
    batch = sf.tabular.exact_batch(mdp, policy)
    inside: Any = live[np.asarray(batch.observation)]
    mass = np.sum(np.where(inside, batch.weight, 0))
    log_base = np.where(inside, batch.log_base - np.log(mass), -np.inf)
    batch = dataclasses.replace(batch, weight=np.where(inside, batch.weight, 0) / mass, log_base=log_base)
    new, _, _ = sf.tabular.update(sf.exact_rule("trpo", radius=RADIUS), policy, (), batch)
    return sf.certify(policy, new, mdp).gain


def sampled_updates(name: str, sizes: list[int], policies: int, draws: int) -> Iterator[dict[str, Any]]:
    """One row for every update."""
    mdp, table = sf.tabular.load(name), own_table(name)
    states, g, live = len(table.successor), mdp.discount, unfinished(mdp)
    for index, policy in enumerate(old_policies(mdp, policies)):
        account = mdp.evaluate(policy)
        law = np.where(live, account.visitation, 0) / account.visitation[live].sum()
        truth, before_it = exact_gain(mdp, policy, live), returned(mdp, policy)
        logits: Any = TabularPolicy.of(policy).logits
        entropy = -law @ np.sum(policy * log_softmax(logits, axis=-1), axis=1)
        for size in sizes:
            rng = np.random.default_rng([SEED, TOY_TEXT.index(name), index, size])
            draw = functools.partial(sample, table, policy, law[:states], g, size // ENVIRONMENTS, draws * ENVIRONMENTS)
            t, before = draw(rng), draw(rng)
            values = np.tile(account.value[:states], (draws, 1)), fitted_values(before, states, draws, g)
            # Estimators are stacked, so that every rule has one call: lane e * draws + k is draw k with estimator e.
            advantage = [account.advantage[t.state, t.action], *(gae(t, value, draws, g) for value in values)]
            stacked = np.concatenate([by_draw(rows, draws) for rows in advantage])
            state, action = (np.tile(by_draw(rows, draws), (len(ESTIMATORS), 1)) for rows in (t.state, t.action))
            for rule_name, rule in SAMPLED_RULES.items():
                with jax.enable_x64(True):
                    result = update_each(rule, logits, state, action, stacked, jax.random.key(SEED))
                new, accepted = (np.asarray(leaf) for leaf in result)
                apart = np.sum(policy * (log_softmax(logits, axis=-1) - log_softmax(new, axis=-1)), axis=-1) @ law
                for lane in range(len(stacked)):
                    after = returned(mdp, TabularPolicy(new[lane]).probabilities()) if accepted[lane] else before_it
                    gain = after - before_it
                    of = name, rule_name, ESTIMATORS[lane // draws], size, index, account.expected_return, entropy
                    flags = bool(accepted[lane]), gain < -ROUNDING * mdp.scale, apart[lane] > RADIUS
                    numbers = gain, truth, apart[lane]
                    yield dict(zip(SAMPLED_COLUMNS, (*of, *flags, *numbers), strict=True))


def cells(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows' summary for every MDP, rule, estimator and size; only accepted updates lower, leave or move."""
    result = []
    for key, group in grouped(rows, *KEYS).items():
        moved = [row for row in group if row["accepted"]]
        cell = dict(zip(KEYS, key, strict=True)) | {"updates": len(group), "refused": 1 - len(moved) / len(group)}
        for flag in ("lowered", "left"):
            p = cell[flag] = float(np.mean([row[flag] for row in moved])) if moved else np.nan
            cell[flag + "_error"] = float(np.sqrt(p * (1 - p) / max(len(moved), 1)))
        cell["median_kl"] = float(np.median([row["kl"] for row in moved])) if moved else np.nan
        gains, exact = np.array([(row["gain"], row["exact_gain"]) for row in group]).T
        result.append(cell | {"gain_ratio": gains.sum() / exact.sum(), "median_gain_ratio": np.median(gains / exact)})
    return result


def sampled_tables(summary: list[dict[str, Any]]) -> None:
    """Three tables for every estimator of the advantages."""

    def percent(c: dict[str, Any], key: str) -> str:
        return f"{100 * c[key]:.0f} ± {100 * c[key + '_error']:.0f}"

    def more(c: dict[str, Any]) -> str:
        return f"{100 * c['refused']:.0f}; {c['median_kl']:.2g}; {c['gain_ratio']:.2f}, {c['median_gain_ratio']:.2f}"

    tables = (
        ("Updates that lower the true return, %", lambda c: percent(c, "lowered")),
        (f"Updates whose true mean KL exceeds {RADIUS:g}, %", lambda c: percent(c, "left")),
        ("Refused, %; median true KL; gain over the exact update's, mean and median", more),
    )
    sizes = sorted({c["size"] for c in summary})
    for estimator in ESTIMATORS:
        chosen = [cell for cell in summary if cell["advantages"] == estimator]
        for title, text in tables:
            print(f"\n{title}, advantages: {estimator}\n\n{head(['MDP', 'rule', *map(str, sizes)])}")
            for (name, rule), group in grouped(chosen, "mdp", "rule").items():
                print(line([name, rule, *(text(cell) for cell in group)]))


def draw_shares(summary: list[dict[str, Any]], file: Path, estimator: str) -> None:
    """Both shares against the batch size, a column for every MDP."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(TOY_TEXT), sharex=True, sharey=True, squeeze=False)
    for row, (key, label) in zip(panels, (("lowered", "return lowered"), ("left", "KL above .01")), strict=True):
        for axes, name in zip(row, TOY_TEXT, strict=True):
            for rule, style in STYLE.items():
                run = [c for c in summary if (c["mdp"], c["rule"], c["advantages"]) == (name, rule, estimator)]
                x, y, error = ([c[of] for c in run] for of in ("size", key, key + "_error"))
                axes.errorbar(x, y, error, fmt=style, marker=".", capsize=2, label=rule)
            axes.set(xscale="log", ylim=(-0.03, 1.03), title=name, xlabel="transitions in the batch")
            axes.set_xticks(x, map(str, x), minor=False)
            axes.minorticks_off()
            axes.grid(alpha=0.25)
        row[0].set_ylabel(f"share of updates, {label}")
    panels[0][2].legend(frameon=False, title=f"advantages: {estimator}")
    figure.savefig(file, dpi=120)


def run_sampled(out: Path | None, quick: bool) -> None:
    sizes, policies, draws = ([64], 2, 4) if quick else ([64, 256, 1024, 4096], 8, 16)
    names = TOY_TEXT[:1] if quick else TOY_TEXT
    rows = [row for name in names for row in sampled_updates(name, sizes, policies, draws)]
    summary = cells(rows)
    print(f"\nOld policies: return and mean entropy (nats)\n\n{head(['MDP', *map(str, range(1, policies + 1))])}")
    for (name,), group in grouped(rows, "mdp").items():
        each = [run[0] for run in grouped(group, "policy").values()]
        print(line([name, *(f"{row['old_return']:.3g}, {row['entropy']:.2f}" for row in each)]))
    sampled_tables(summary)
    if out is not None:
        draw_shares(summary, out / "images" / "finite_share.png", "fitted V")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["exact", "sampled"])
    parser.add_argument("--out", type=Path, help="folder for the CSV file and, in its images/, the figure")
    parser.add_argument("--quick", action="store_true", help="a smoke run whose numbers mean nothing")
    arguments = parser.parse_args()
    {"exact": run_exact, "sampled": run_sampled}[arguments.study](arguments.out, arguments.quick)


if __name__ == "__main__":
    main()
