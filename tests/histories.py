"""Run folders that were never run: rows as a healthy run writes them, with whatever is to be changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "environment": "CartPole-v1",
    "rule": "trpo",
    "trust_region": "kl",
    "rule_settings": {"radius": 0.01, "damping": 0.1, "iterations": 10},
    "envs": 64,
    "horizon": 32,
    "confidence": 0.95,
    "critic_epochs": 4,
    "critic_minibatch": 128,
    "critic_step_size": 1e-3,
}
EVALUATION: dict[str, Any] = {
    "return": {"mean": 200.0, "std": 9.0, "episodes": 20},
    "length": {"mean": 200.0},
    "repeatable": True,
}


def healthy_row(update: int, updates: int) -> dict[str, Any]:
    """Update number `update` of a run of `updates` in which the return rises from 20 to 200 and nothing is wrong."""
    done = (update - 1) / max(updates - 1, 1)
    reached = 20 + 180 * done
    return {
        "update": update,
        "steps": 2048 * update,
        "experience": 2048,
        "episodes": 20,
        "return_mean": reached,
        "return_std": 10.0,
        "return_min": reached - 20,
        "return_max": reached + 20,
        "length_mean": reached,
        "terminations": 20,
        "truncations": 0,
        "radius": 0.01,
        "accepted": True,
        "scale": 1.0,
        "kl": 0.009,
        "reverse_kl": 0.009,
        "max_kl": 0.05,
        "entropy": 0.69 - 0.4 * done,
        "solver_iterations": 10,
        "solver_residual": 0.01,
        "kl_ratio": 0.95,
        "promised_gain": 4.0,
        "realised_gain": 3.5,
        "realised_gain_lower": 1.0,
        "realised_gain_upper": 6.0,
        "undone": False,
        "discarded": False,
        "explained_variance": min(0.8, 0.1 * update),
        "loss": 0.3,
        "value_mean": 10.0,
        "target_mean": 12.0,
        "target_std": 6.0,
        "reward_mean": 1.0,
        "reward_std": 0.5,
        "reward_largest": 2.0,
        "first_ratio_error": 1e-6,
        "action_saturation": 0.0,
        "smallest_std": None,
        "normaliser_kl": 1e-4,
    }


def healthy_rows(updates: int = 40) -> list[dict[str, Any]]:
    """All rows of such a run."""
    return [healthy_row(update, updates) for update in range(1, updates + 1)]


EVALUATIONS = [{"update": update, "steps": 2048 * update, "mean": 10.0 * update, "std": 1.0} for update in (10, 20, 30)]


def write_run(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    *,
    config: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = EVALUATION,
    evaluations: list[Any] | None = None,
    tail: str = "",
) -> Path:
    """A run folder with these rows (healthy ones by default) and settings; `tail` ends metrics.jsonl as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    written = healthy_rows() if rows is None else rows
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written) + tail)
    if evaluations is not None:
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder
