"""Checks on the updates themselves: was the step computed, taken and kept as its rule has it?"""

from __future__ import annotations

import numpy as np

from surefoot.doctor.finding import Check, Seen
from surefoot.doctor.record import FEWEST_UPDATES, Record, Unjudged, plain, share

_FIRST_RATIO = 1e-3  # healthy float32 runs stay below 1e-4
_WARM_UP = FEWEST_UPDATES  # updates in which a normaliser is still learning its scale
_DRIFT = 0.5  # of an ordinary update's KL; healthy runs have a median of at most 0.08
_DRIFT_SHARE = 0.25
# 1 is what no solution at all leaves. Ten damped iterations on HalfCheetah leave 0.8 in the median and learn well,
# because conjugate gradients shorten the error in the Fisher norm first and the residual last.
_RESIDUAL = 1.0
_RESIDUAL_SHARE = 0.5
# Nobody means to solve in so few; what they leave then is a matter of how many, not of the matrix.
_FEW_ITERATIONS = 5
_FEW_RESIDUAL = 0.1
_MODEL = 2.0
_MODEL_SHARE = 0.2
_REFUSED_SHARE = 0.2
_MOSTLY_REFUSED = 0.5
_BEYOND_RADIUS = 1.5  # the rules that solve for the radius are within 1.3 of it in nine of ten updates
_BEYOND_RADIUS_SHARE = 0.1
# Penalties only steer towards the radius: their healthy runs are beyond 2.4 radii in a tenth of the updates.
_BEYOND_PENALTY = 3.0
_BEYOND_PENALTY_SHARE = 0.2


def first_ratio(record: Record) -> Seen | None:
    """Whether the policy that was updated is the one that collected."""
    error = record["first_ratio_error"]
    broken = np.array([isinstance(row.get("first_ratio_error"), str) for row in record.history.rows])
    wrong = broken | (error > _FIRST_RATIO)
    if not wrong.any():
        return None
    largest = float("nan") if broken.any() else float(np.nanmax(error))
    return Seen(f"the first ratios differ from 1 by up to {plain(largest)}, beyond rounding in {record.named(wrong)}")


def normaliser_drift(record: Record) -> Seen | None:
    """Whether new observation statistics move the policy as far as the updates do."""
    late = np.arange(record.updates) >= _WARM_UP
    drift = record["normaliser_kl"]
    record.enough(late & ~np.isnan(drift), f"updates after the first {_WARM_UP}, in which it still learns")
    moved = record["kl"][record.accepted]
    moved = moved[np.isfinite(moved) & (moved > 0)]
    if len(moved) == 0:
        raise Unjudged("no update moved the policy")
    usual = float(np.median(moved))
    far = late & (drift > _DRIFT * usual)
    if far.sum() <= _DRIFT_SHARE * late.sum():
        return None
    return Seen(
        f"the normaliser alone moved the policy by {plain(float(np.nanmedian(drift[far])))} nats in "
        f"{record.named(far)}; an ordinary update moves it by {plain(usual)}"
    )


def solver_not_converged(record: Record) -> Seen | None:
    """Whether the linear solve behind the natural step leaves more than no solution would."""
    residual = record["solver_residual"]
    if record.setting("rule") in ("pg", "ppo", "kl-penalty", "dual", "pi"):
        raise Unjudged(f"the rule {record.setting('rule')} solves nothing")
    record.enough()
    written = np.array(["solver_residual" in row and row["solver_residual"] is not None for row in record.history.rows])
    broken = written & ~np.isfinite(residual)
    if broken.any():
        return Seen(
            f"the residual is not finite in {record.named(broken)}",
            title="The linear solve behind the step breaks down",
            severity="severe",
        )
    taken = record["solver_iterations"]
    most = np.where(taken < _FEW_ITERATIONS, _FEW_RESIDUAL, _RESIDUAL)
    wrong = residual > most
    if wrong.sum() <= _RESIDUAL_SHARE * record.updates:
        return None
    return Seen(
        f"the relative residual is above {plain(float(np.median(most[wrong])))} in {record.named(wrong)}; median "
        f"{plain(float(np.nanmedian(residual)))} after {plain(float(np.nanmedian(taken)))} iterations"
    )


def kl_model(record: Record) -> Seen | None:
    """Whether the quadratic model of the KL is off by more than two."""
    ratio = record["kl_ratio"]
    judged = record.accepted & ~np.isnan(ratio)
    record.enough(judged, "updates with a ratio of real to predicted KL")
    wrong = judged & ~((ratio >= 1 / _MODEL) & (ratio <= _MODEL))
    if wrong.sum() <= _MODEL_SHARE * judged.sum():
        return None
    return Seen(
        f"the real KL is {plain(float(np.median(ratio[wrong])))} times the predicted one (median) in "
        f"{record.named(wrong)}"
    )


def refusals(record: Record) -> Seen | None:
    """Whether many updates changed nothing."""
    record.enough()
    refused = record["accepted"] == 0
    if "discarded" in record:  # a batch that the guard left unused
        refused &= ~(record["discarded"] > 0)
    if refused.sum() <= _REFUSED_SHARE * record.updates:
        return None
    mostly = refused.sum() > _MOSTLY_REFUSED * record.updates
    return Seen(
        f"refused were {record.named(refused)}, {share(refused.sum(), record.updates)}",
        severity="severe" if mostly else None,
    )


def left_trust_region(record: Record) -> Seen | None:
    """Whether accepted updates moved further than the radius allows."""
    if record.setting("trust_region") != "kl":
        raise Unjudged("the rule has no radius in KL")
    if record.setting("eta") is not None:
        raise Unjudged("the step's length was set by eta, not by the radius")
    reverse = record.setting("divergence") == "reverse-kl"
    moved = record["reverse_kl" if reverse else "max_kl" if record.setting("constraint") == "max" else "kl"]
    penalised = record.setting("rule") in ("kl-penalty", "dual")
    factor = _BEYOND_PENALTY if penalised else _BEYOND_RADIUS
    most = _BEYOND_PENALTY_SHARE if penalised else _BEYOND_RADIUS_SHARE
    ratio = np.divide(moved, record["radius"], out=np.full(record.updates, np.nan), where=record["radius"] > 0)
    judged = record.accepted & ~np.isnan(ratio)
    record.enough(judged, "accepted updates with a KL and a radius")
    beyond = judged & (ratio > factor)
    if beyond.sum() <= most * judged.sum():
        return None
    return Seen(
        f"the KL is above {plain(factor)} radii in {record.named(beyond)}; the largest is "
        f"{plain(float(np.max(ratio[judged])))} radii"
    )


FIRST_RATIO = Check(
    name="first-ratio",
    severity="severe",
    looks_at="`first_ratio_error`",
    threshold=f"above {_FIRST_RATIO:g} in any update",
    title="The policy that is updated is not the policy that collected the batch",
    cause="Something changed the policy between collecting and updating: a normaliser that takes in the new "
    "observations too early, actions stored after clipping, noise in the network, or stale parameters.",
    remedy="Update the normaliser only after the policy's step, store actions as they were sampled, and leave out "
    "dropout and batch normalisation. Does it vanish with --no-normalise, then it was the normaliser.",
    judge=first_ratio,
)

NORMALISER_DRIFT = Check(
    name="normaliser-drift",
    severity="warning",
    looks_at="`normaliser_kl` against the median `kl` of the accepted updates, from update 11",
    threshold=f"above {_DRIFT:g} of it in more than {_DRIFT_SHARE:.0%} of the updates",
    title="The observation normaliser moves the policy as far as the updates do",
    cause="New statistics of the observations move every action outside the trust region: the first layer makes up for "
    "them, but not beyond ten standard deviations, where the normaliser clips, nor for a feature that "
    "begins to vary, nor for images without bounds.",
    remedy="Bound or rescale the observations in the environment, or train with --no-normalise; more steps an update "
    "(--envs, --horizon) make its statistics steadier.",
    judge=normaliser_drift,
)

SOLVER = Check(
    name="solver-not-converged",
    severity="warning",
    looks_at="`solver_residual`, `solver_iterations`",
    threshold=f"not finite in any update; or above {_RESIDUAL:g} ({_FEW_RESIDUAL:g} after fewer than {_FEW_ITERATIONS} "
    f"iterations) in more than {_RESIDUAL_SHARE:.0%}",
    title="The natural step is far from the solution of its linear system",
    cause="Too few conjugate-gradient iterations for the damping: the Fisher matrix is badly conditioned, so the "
    "direction is nearer to the plain gradient than to the natural one. Around 0.8 after ten iterations is ordinary.",
    remedy="Raise --rule.iterations (to 25, say) or --rule.damping (to 1 or more); with a small policy, "
    "--rule.solver dense solves it exactly.",
    judge=solver_not_converged,
)

KL_MODEL = Check(
    name="kl-model",
    severity="warning",
    looks_at="`kl_ratio` of accepted updates",
    threshold=f"outside [1/{_MODEL:g}, {_MODEL:g}] in more than {_MODEL_SHARE:.0%}",
    title="The policy moves by another KL than the quadratic model predicts",
    cause="The steps are so long that the KL is no longer quadratic along them, or the Fisher matrix comes from "
    "other rows or another distribution than the KL.",
    remedy="Divide --radius by 4; with npg, use --rule trpo, which checks the real KL and backtracks.",
    judge=kl_model,
)

REFUSALS = Check(
    name="refusals",
    severity="warning",
    looks_at="`accepted`",
    threshold=f"more than {_REFUSED_SHARE:.0%} of the updates refused (severe above {_MOSTLY_REFUSED:.0%})",
    title="Many updates are refused, and their experience is wasted",
    cause="No shortened step kept the KL within the radius and enough of the promised gain; the direction is mostly "
    "noise, the radius too large for the linear model, or the step was not finite.",
    remedy="Halve --radius, allow more --rule.backtracks or ask a smaller --rule.accept; a larger batch (--envs, "
    "--horizon) makes the direction better.",
    judge=refusals,
)

LEFT_TRUST_REGION = Check(
    name="left-trust-region",
    severity="warning",
    looks_at="`kl` (or whichever divergence is constrained) against `radius`",
    threshold=f"above {_BEYOND_RADIUS:g} radii in more than {_BEYOND_RADIUS_SHARE:.0%} of the accepted updates; "
    f"for `kl-penalty` and `dual`, {_BEYOND_PENALTY:g} radii in more than {_BEYOND_PENALTY_SHARE:.0%}",
    title="Updates leave the trust region",
    cause="The rule does not check the real KL (npg), or its multiplier lags behind (kl-penalty, dual).",
    remedy="Use --rule trpo, which holds the radius; or a smaller --radius, and for the penalised rules a larger "
    "--rule.multiplier or a smaller --rule.step_size.",
    judge=left_trust_region,
)
