"""Checks on what the updates learn from: the critic, the rewards, the environment and the promise of each update."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from surefoot.doctor.finding import Check, Seen
from surefoot.doctor.record import Record, Unjudged, plain, share

_EXPLAINED = 0.1
# A solved task has targets that barely vary, and nothing of them to explain; but its critic then fits them, to less
# than 0.02 of their long-run variance in the median. A critic that cannot learn is left with most of it.
_UNFITTED = 0.1
_CRITIC_STEPS = 300  # of Adam at 1e-3 to the middle of the run; on CartPole the critic explains 0.4 by then
_TRUNCATED_SHARE = 0.9
_OFFSET = 1e4  # of seven digits, an offset this large leaves float32 fewer than three; solved CartPole reaches 140
_OUTLIER = 5.0  # standard deviations of its own batch
_JACKPOT = 100.0  # in usual standard deviations of the rewards
_KEPT = 0.1  # of the promised gain
_MOSTLY_KEPT = 0.5
_USUAL = 1.96  # half an interval of 95 % in standard errors
_HARMFUL_SHARE = 0.15  # of 95 % intervals, chance puts one in forty wholly below 0
_ERRORS = 2.0  # standard errors that make a difference certain enough to be told


def _poor_critic(record: Record) -> str | None:
    """What shows that the critic explains nothing, or None where it does its work."""
    explained = float(np.median(record.last_half("explained_variance")))
    loss = float(np.median(record.last_half("loss")))
    _had_time(record)
    if explained >= _EXPLAINED or loss <= _UNFITTED:
        return None
    return (
        f"explained variance {plain(explained)} and loss {plain(loss)} of the targets' variance "
        f"(medians over the last half of {record.updates} updates)"
    )


def _had_time(record: Record) -> None:
    """Raise Unjudged where the settings tell that the critic was hardly fitted by the middle of the run."""
    epochs, minibatch = record.setting("critic_epochs"), record.setting("critic_minibatch")
    pace = record.setting("critic_step_size")
    if not all(isinstance(value, (int, float)) and value > 0 for value in (epochs, minibatch, pace)):
        return
    rows = float(np.nansum(record["experience"][: record.updates // 2])) if "experience" in record else np.inf
    steps = rows * epochs / minibatch * pace / 1e-3
    if steps < _CRITIC_STEPS:
        raise Unjudged(f"too short to judge: by the middle the critic had taken {steps:.0f} steps of 1e-3")


def critic_explains_nothing(record: Record) -> Seen | None:
    """Whether the critic, once it had time to learn, still predicts nothing."""
    told = _poor_critic(record)
    return None if told is None else Seen(told)


def truncation(record: Record) -> Seen | None:
    """Whether almost every episode ends on the value of a critic that knows nothing."""
    truncated, terminated = np.nansum(record["truncations"]), np.nansum(record["terminations"])
    told = _poor_critic(record)
    ended = truncated + terminated
    if not ended > 0:
        raise Unjudged("no episode ended")
    if told is None or truncated <= _TRUNCATED_SHARE * ended:
        return None
    return Seen(f"{share(truncated, ended)} of {ended:.0f} episodes ended by truncation, with {told}")


def reward_scale(record: Record) -> Seen | None:
    """Whether rewards overflow, carry a huge constant, or are swamped by a few enormous ones."""
    return _not_finite(record) or _offset(record) or _rare(record)


def _not_finite(record: Record) -> Seen | None:
    keys = ("loss", "target_mean", "target_std")
    broken = np.zeros(record.updates, bool)
    for key in keys:
        values, there = record[key], np.array([row.get(key) is not None for row in record.history.rows], bool)
        broken |= there & ~np.isfinite(values)
    if not broken.any():
        return None
    return Seen(
        f"the critic's loss or targets are not finite in {record.named(broken)}",
        title="The critic's numbers overflow",
        cause="Rewards (or values) so large that their squares leave float32, or a critic that diverged.",
        remedy="Divide the rewards in the environment by a constant that brings them near 1; else a smaller "
        "--critic-step-size.",
        severity="severe",
    )


def _offset(record: Record) -> Seen | None:
    for mean, std, what in (("target_mean", "target_std", "value targets"), ("reward_mean", "reward_std", "rewards")):
        if mean not in record or std not in record:
            continue
        middle, spread = np.abs(record[mean]), record[std]
        # Rewards that do not vary at all are one for every step, and no harm.
        far = (spread > 0) & np.isfinite(middle) & (middle > _OFFSET * spread)
        if far.sum() <= 0.5 * record.updates:
            continue
        ratio = plain(float(np.median(middle[far] / spread[far])))
        return Seen(
            f"the mean of the {what} is {ratio} times their standard deviation (median) in {record.named(far)}",
            title="A huge constant in the rewards drowns their differences",
            cause="Advantages are small differences of huge numbers, and float32 has seven digits.",
            remedy="Subtract the constant from the rewards in the environment (it changes no comparison of policies "
            "where episodes have one length).",
        )
    return None


def _rare(record: Record) -> Seen | None:
    if any(key not in record for key in ("reward_largest", "reward_mean", "reward_std")):
        return None
    largest, spread = record["reward_largest"], record["reward_std"]
    known = np.isfinite(spread)
    if not known.any():
        return None
    # The lower quartile: a batch that holds a jackpot has a large spread of its own. Where it is 0, rewards are
    # sparse, the rare ones are all there is to learn, and nothing is drowned.
    usual = float(np.percentile(spread[known], 25))
    beyond = largest - np.abs(record["reward_mean"])
    # Rare in its own batch too: where rewards are nearly constant but for falls, a fall is no jackpot.
    rare = (beyond > _JACKPOT * usual) & (beyond > _OUTLIER * spread)
    if usual <= 0 or not rare.any():
        return None
    return Seen(
        f"the largest reward is {plain(float(np.nanmax(largest)))}, where an ordinary batch's have a standard "
        f"deviation of {plain(usual)}; such rewards came in {record.named(rare)}"
    )


def gain_not_realised(record: Record) -> Seen | None:
    """Whether the batches after the updates show nothing of the gains that were promised."""
    promised, realised = record["promised_gain"], record["realised_gain"]
    lower, upper = record["realised_gain_lower"], record["realised_gain_upper"]
    known = record.accepted & (promised > 0) & np.isfinite(promised)
    if "undone" in record:
        known &= ~(record["undone"] > 0)  # what the guard took back is not in force
    known &= np.isfinite(realised) & np.isfinite(lower) & np.isfinite(upper)
    record.enough(known, "updates whose gain was both promised and measured")
    # Half an interval in standard errors: 1.96 at 95 %.
    half = NormalDist().inv_cdf(0.5 + 0.5 * _confidence(record))
    error = float(np.sqrt(np.sum(((upper - lower)[known] / (2 * half)) ** 2)))
    gained, hoped = float(np.sum(realised[known])), float(np.sum(promised[known]))
    highest = gained + _ERRORS * error
    # The share that chance alone gives depends on the interval's confidence: judged as those of 95 % are.
    harmful = known & (realised + (upper - realised) * (_USUAL / half) < 0)
    sums = f"promised in all {plain(hoped)}, realised {plain(gained)} ± {plain(error)}, over {known.sum()} updates"
    # At a plateau the promises are small and intervals of a critic's leftover errors fall on either side of 0: where
    # most of what was promised came true, the harmful ones are outweighed.
    if gained < _MOSTLY_KEPT * hoped and harmful.sum() > _HARMFUL_SHARE * known.sum():
        return Seen(f"{sums}; certainly lost was something by {record.named(harmful)}")
    if highest < 0 or (highest < _KEPT * hoped and not _return_rose(record)):
        return Seen(sums)
    return None


def _confidence(record: Record) -> float:
    told = record.setting("confidence")
    # Nearer to 0 or 1 there is no interval to go by.
    return min(max(told, 1e-6), 1 - 1e-12) if isinstance(told, float) and 0 < told < 1 else 0.95


def _return_rose(record: Record) -> bool:
    """Whether the return of the last quarter is above that of the first by more than chance (or that is unknown)."""
    if "return_mean" not in record:
        return True
    returns = record["return_mean"]
    returns = returns[np.isfinite(returns)]
    quarter = len(returns) // 4
    if quarter < 2:
        return True
    first, last = returns[:quarter], returns[-quarter:]
    error = np.sqrt((np.var(first, ddof=1) + np.var(last, ddof=1)) / quarter)
    return bool(np.mean(last) - np.mean(first) > _ERRORS * error)


def not_repeatable(record: Record) -> Seen | None:
    """Whether the environment answers the same seed and actions differently."""
    evaluation = record.history.evaluation
    told = evaluation.get("repeatable") if isinstance(evaluation, dict) else None
    if not isinstance(told, bool):
        raise Unjudged("the run was not evaluated, or repeatability could not be tried")
    return None if told else Seen("twice under one seed and the same actions, the environment showed different things")


CRITIC = Check(
    name="critic-explains-nothing",
    severity="warning",
    looks_at="`explained_variance` and `loss` in the last half",
    threshold=f"medians below {_EXPLAINED:g} and above {_UNFITTED:g}, once the critic took {_CRITIC_STEPS} minibatch "
    "steps (of 1e-3) by the middle of the run",
    title="The critic explains nothing of the returns",
    cause="What the observations show does not tell what reward follows (noise, hidden state, time left), or the "
    "critic is too small or learns too slowly; the advantages are then raw returns, full of noise.",
    remedy="Show the policy what the reward depends on (the time left, the last observations); raise --critic-epochs "
    "or --critic-step-size; a larger batch (--envs, --horizon) averages noise out.",
    judge=critic_explains_nothing,
)

TRUNCATION = Check(
    name="truncation",
    severity="warning",
    looks_at="`truncations`, `terminations`, and the critic as above",
    threshold=f"more than {_TRUNCATED_SHARE:.0%} of the episodes truncated and a critic that explains nothing",
    title="Episodes are cut off by a time limit and go on in a critic that knows nothing",
    cause="A truncated episode's rest is replaced by the critic's value; here that value is arbitrary.",
    remedy="Mend the critic first (see critic-explains-nothing); where the time limit belongs to the task, end "
    "episodes by terminated instead of truncated and show the time left in the observation.",
    judge=truncation,
)

REWARD_SCALE = Check(
    name="reward-scale",
    severity="warning",
    looks_at="`loss`, `target_mean`, `target_std`; where recorded `reward_mean`, `reward_std`, `reward_largest`",
    threshold=f"not finite in any update; a mean beyond {_OFFSET:g} standard deviations in more than half; or a reward "
    f"beyond {_JACKPOT:g} usual standard deviations in any",
    title="A few enormous rewards drown all others",
    cause="One reward hundreds of times the usual size decides the targets, the critic's unit and the advantages of "
    "its whole batch.",
    remedy="Clip or compress rewards in the environment (to ± 10 usual ones, say, or by sign(r) log(1 + |r|)), if "
    "that keeps what you want of the policy.",
    judge=reward_scale,
)

GAIN = Check(
    name="gain-not-realised",
    severity="warning",
    looks_at="`promised_gain` against `realised_gain` and its interval, over accepted updates",
    threshold=f"the realised sum with {_ERRORS:g} standard errors is below 0, or below {_KEPT:g} of the promised in "
    f"a run whose return did not rise; or it is below {_MOSTLY_KEPT:g} of the promised with more than "
    f"{_HARMFUL_SHARE:.0%} of the intervals below 0",
    title="The gains that the updates promise do not come true",
    cause="The step fits noise of its batch, the policy's change carries it to states that the batch did not hold, or "
    "rewards, actions and advantages are out of line with each other.",
    remedy="Divide --radius by 4, or take more steps an update (--envs, --horizon); --holdout shows the gain on "
    "experience kept from the step, and --guard takes harmful updates back.",
    judge=gain_not_realised,
)

NOT_REPEATABLE = Check(
    name="not-repeatable",
    severity="warning",
    looks_at="`repeatable` of evaluation.json",
    threshold="false",
    title="The environment ignores its seed: no run in it can be repeated",
    cause="The environment draws from a generator that reset(seed=...) does not set, keeps state over resets, or "
    "depends on time.",
    remedy="Draw everything random from self.np_random after super().reset(seed=seed), and set everything back in "
    "reset.",
    judge=not_repeatable,
)
