"""Tiny runs, and what of a run must not depend on how often it was stopped."""

from surefoot import history

TIMES = {"seconds", "collect_seconds", "update_seconds", "certify_seconds", "critic_seconds"}
TINY = {"envs": 8, "horizon": 16, "hidden": (8,), "critic_hidden": (8,), "critic_epochs": 1, "evaluation_episodes": 2}


def rows(run):
    """Its metrics but for times."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in history.read(run).rows]


def evaluations(run):
    """Its evaluations while it learned, but for times."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history.read(run).evaluations]


def policy(run):
    """The bytes of its policy."""
    return (run / "policy" / "policy.safetensors").read_bytes()


def after(updates):
    """A `stop` that says so after this many updates."""
    asked = iter(range(1, 10_000))
    return lambda: next(asked) >= updates
