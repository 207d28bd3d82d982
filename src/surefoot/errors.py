"""What surefoot raises when what it was given cannot be used.

Every error of this module carries a message of one line that names what was wrong, what came and what
would be right; the command prints that line and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SurefootError(Exception):
    """Anything that surefoot refuses or cannot go on with. Abstract: one of the classes below is raised."""


class SettingError(SurefootError, ValueError):
    """A setting outside its legal range, of the wrong type, or unknown."""


class EnvironmentNotFound(SurefootError, LookupError):
    """No environment has the given name."""


class UnsupportedSpace(SurefootError, TypeError):
    """An observation or action space that surefoot has no encoder or head for."""


class EnvironmentFault(SurefootError, RuntimeError):
    """An environment that raised, or returned what its own spaces do not allow."""


class ModelError(SurefootError, ValueError):
    """A finite MDP, or a policy for one, that is none: shapes, probabilities or numbers that do not fit."""


class RunError(SurefootError, OSError):
    """A run folder that is missing, incomplete, or already in use."""


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop, and did so after an update, with a checkpoint."""


def printable(text: object) -> str:
    """As text of one line that a terminal shows and does not obey: white space as blanks, control characters, marks
    of writing direction and whatever else is not to be seen as their codes."""
    line = " ".join(str(text).split())
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


def shown(value: object) -> str:
    """The value as Python writes it, but in one line of at most 200 characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number of too many digits, or an object whose own repr fails
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 200 else f"{text[:200]}…"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names that look most like `name`, best first; empty when none does."""
    known = list(known)
    by_folded = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower(), by_folded, n=count, cutoff=0.5)
    return [by_folded[match] for match in found]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'a' or 'b'?)`, or nothing where no known name is near."""
    matches = nearest(name, known)
    return f" (did you mean {' or '.join(repr(match) for match in matches)}?)" if matches else ""
