"""Making a CPU's devices visible to JAX, as a run over several of them needs it of the command's own process."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from surefoot.errors import SurefootError


def show(arguments: argparse.Namespace, settings: Mapping[str, Any], *, least: int = 1) -> None:
    """Let JAX see as many devices of a CPU as `settings` name, and at least so many; what is no number of devices is
    left to be refused."""
    from surefoot.compilation import see_cpu_devices

    named = settings.get("devices")
    count = max(named if type(named) is int else 1, least)
    if arguments.own_process and count > 1:
        see_cpu_devices(count)


def settings_in(folder: str) -> Mapping[str, Any]:
    """The settings of the run in a folder; none where they cannot be read, which is told by whoever needs them."""
    from surefoot.recipe import read_recipe

    try:
        return read_recipe(folder).settings
    except SurefootError:
        return {}
