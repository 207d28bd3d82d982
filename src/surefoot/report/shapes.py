"""Lines, bands and pieces of a legend as SVG."""

from __future__ import annotations

import numpy as np


def swatch(colour: str, dash: str, thin: bool = False) -> str:
    """A piece of a line, for a legend."""
    return (
        f'<svg class="swatch" viewBox="0 0 28 10" width="28" height="10" aria-hidden="true">'
        f'<path class="line{" thin" if thin else ""}" d="M0 5H28" stroke="var(--{colour})"{dashed(dash)}/></svg>'
    )


def dashed(dash: str) -> str:
    """A stroke's pattern as an attribute."""
    return f' stroke-dasharray="{dash}"' if dash else ""


def path(x: np.ndarray, y: np.ndarray, joined: bool = False) -> str:
    """Points as an SVG path; a point that is not finite is a gap, a point between gaps is a dot."""
    known = np.isfinite(y)
    pieces = [np.flatnonzero(known)] if joined else _stretches(known)
    return "".join(_polyline(x[piece], y[piece]) for piece in pieces if len(piece))


def _stretches(known: np.ndarray) -> list[np.ndarray]:
    """The places that are known, in runs without a gap."""
    places = np.flatnonzero(known)
    return [piece for piece in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(piece)]


def _polyline(x: np.ndarray, y: np.ndarray) -> str:
    points = " ".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
    return f"M{points}h.01" if len(x) == 1 else f"M{points}"


def _outline(x: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> str:
    if not len(x):
        return ""
    along, back = np.concatenate([x, x[::-1]]), np.concatenate([top, bottom[::-1]])
    return _polyline(along, back) + "Z"


def band(x: np.ndarray, top: np.ndarray, bottom: np.ndarray, joined: bool = False) -> str:
    """What lies between two lines as an SVG path; gaps as in `path`."""
    known = np.isfinite(bottom) & np.isfinite(top)
    pieces = [np.flatnonzero(known)] if joined else _stretches(known)
    return "".join(_outline(x[piece], top[piece], bottom[piece]) for piece in pieces)


def dots(x: np.ndarray, y: np.ndarray) -> str:
    """Points as an SVG path of dots; as wide as its stroke."""
    known = np.isfinite(y)
    return "".join(f"M{a:.1f} {b:.1f}h.01" for a, b in zip(x[known], y[known], strict=True))
