"""config.json, read: what a run was begun with, or is to begin with."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from surefoot import config
from surefoot.errors import SettingError, did_you_mean, printable, shown
from surefoot.reading import read_json

_OTHERS = ("id", "environment", "rule", "rule_settings", "trust_region", "versions")


@dataclass(frozen=True)
class Recipe:
    """What a file says of a run; where it says nothing, defaults hold.

    Attributes:
        environment: its name; None where none is named.
        rule: the rule's name; None where none is named.
        rule_settings: of the rule, by name.
        settings: of the run, by name.
        identity: the run's own, by which its checkpoints are known; empty where there is none.
        versions: of surefoot and what it is built on, by package, as they were when the file was written.
    """

    environment: str | None = None
    rule: str | None = None
    rule_settings: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    identity: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def read_recipe(path: str | os.PathLike) -> Recipe:
    """The recipe in a file like a run's config.json, or in a run's folder.

    Raises SettingError for what cannot be read, an unknown key (with the nearest right one), and a value outside
    its legal range.
    """
    file = Path(path) / "config.json" if os.path.isdir(path) else Path(path)
    try:
        told = read_json(file)
    except (OSError, ValueError) as error:
        raise SettingError(f"config: {file} cannot be read: {printable(error)}") from None
    try:
        return recipe_of(told)
    except SettingError as error:
        raise SettingError(f"config: {file}: {error}") from None


def recipe_of(told: Any) -> Recipe:
    """The recipe in what a JSON file held. Raises SettingError as `read_recipe` does."""
    if not isinstance(told, dict):
        raise SettingError(f"a JSON object is wanted, but a {type(told).__name__} came")
    settings = {key: value for key, value in told.items() if key not in _OTHERS}
    known = [*config.run_options(), *_OTHERS]
    for key in settings:
        if key not in known:
            raise SettingError(f"unknown setting {shown(key)}{did_you_mean(key, known)}")
    for key, kind, wanted in (
        ("environment", str, "a name"),
        ("rule", str, f"one of {', '.join(config.RULES)}"),
        ("id", str, "a text"),
        ("rule_settings", dict, "a JSON object"),
        ("versions", dict, "a JSON object"),
    ):
        if key in told and not isinstance(told[key], kind):
            raise SettingError(f"{key} must be {wanted}, but {shown(told[key])} came")
    if settings.get("ray_address") is not None:
        raise SettingError(
            f"ray_address must be null in a file, but {shown(settings['ray_address'])} came: a cluster runs code of "
            "whoever speaks for it, so name one with --ray-address, or in RAY_ADDRESS"
        )
    config.make_run(**settings)
    rule, rule_settings = told.get("rule"), told.get("rule_settings", {})
    if rule is not None and rule not in config.RULES:
        near = did_you_mean(rule, config.RULES)
        raise SettingError(f"rule must be one of {', '.join(config.RULES)}, but {shown(rule)} came{near}")
    if rule_settings:
        if rule is None:
            raise SettingError("rule_settings are told, but no rule that they are of")
        names = [item.name for item in dataclasses.fields(config.RULES[rule])]
        for key in rule_settings:
            if key not in names:
                raise SettingError(f"unknown setting {shown(key)} of the rule {rule}{did_you_mean(key, names)}")
        config.RULES[rule](**rule_settings)
    return Recipe(told.get("environment"), rule, rule_settings, settings, told.get("id", ""), told.get("versions", {}))
