"""What a comparison is to run, checked: several rules under every seed. Imports nothing slow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surefoot import config
from surefoot.errors import RunError, SettingError, shown
from surefoot.recipe import recipe_of
from surefoot.settings import digest
from surefoot.study_record import LABEL, RULE, written
from surefoot.sweep import LONGEST_NAME, Setting, check_seeds, plain_settings, refuse_tabular, settled

COMPARED = ("pg", "npg", "trpo", "kl-penalty", "dual", "ppo")
"""The rules that are compared where none are named."""


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison runs but for its environment, checked.

    Attributes:
        rules: the settings of each rule by its label.
        settings: of the runs; the seed is the first.
        every_seed: the seeds, from the first to the last.
    """

    rules: dict[str, config.RuleSettings]
    settings: dict[str, Any]
    every_seed: range

    @property
    def swept(self) -> dict[str, tuple[Any, ...]]:
        """No setting of the runs: they share all of them."""
        return {}

    @property
    def points(self) -> list[Setting]:
        """One for each rule, in their order."""
        return [Setting({RULE: label}, label) for label in self.rules]

    def rule(self, setting: Setting) -> config.RuleSettings:
        """The rule's settings at a point."""
        return self.rules[setting.values[RULE]]

    def run(self, setting: Setting, seed: int) -> config.Run:
        """The run's settings at a point: those of every rule."""
        return config.make_run(**self.settings | {"seed": seed})

    def told(self) -> dict[str, Any]:
        """What study.json says of it, but for the settings of the run and the seeds."""
        return {
            "rules": {
                label: {"rule": rule.name, "settings": dataclasses.asdict(rule)} for label, rule in self.rules.items()
            }
        }


def make_comparison(rules: Sequence[config.RuleSettings], settings: Mapping[str, Any], seeds: int) -> Comparison:
    """A comparison's settings, every one of them checked.

    Args:
        rules: with their settings. A rule's label is its name, with what was chosen of its settings:
            "trpo_radius0.02".
        settings: of the run, by name; their seed is the first.
        seeds: how many.

    Raises SettingError where there is no rule or one twice, and for what no run can have.
    """
    if not rules:
        raise SettingError(f"rules must name at least one rule, of {', '.join(COMPARED)}, but none came")
    labelled: dict[str, config.RuleSettings] = {}
    for rule in rules:
        refuse_tabular(type(rule))
        if (label := label_of(rule)) in labelled:
            raise SettingError(f"rules: {label} is named twice; name each once")
        labelled[label] = rule
    first = config.make_run(**settings).seed
    check_seeds(first, seeds, len(labelled), "rules")
    return Comparison(labelled, {**settings, "seed": first}, range(first, first + seeds))


def label_of(rule: config.RuleSettings) -> str:
    """The name of a rule with those of its settings that it would not have by itself, as a folder's name takes it."""
    own = settled(rule)

    def usual(name: str) -> Any:
        return getattr(type(rule)(**{other: value for other, value in own.items() if other != name}), name)

    chosen = {name: value for name, value in own.items() if value != usual(name)}
    label = "_".join([rule.name, *(f"{name}{written(value)}" for name, value in chosen.items())])
    return label if len(label) <= LONGEST_NAME else f"{rule.name}_{digest(dataclasses.asdict(rule))[:12]}"


def comparison_of(told: Mapping[str, Any], settings: Mapping[str, Any], seeds: Sequence[int]) -> Comparison:
    """The comparison that study.json tells of. Raises SettingError for what is none.

    The labels are those of the file: a rule's defaults may have changed since.
    """
    rules = told.get("rules")
    if not isinstance(rules, dict) or not rules:
        raise SettingError(f"rules must be a JSON object with at least one rule, but {shown(rules)} came")
    labelled = {}
    for label, rule in rules.items():
        if not LABEL.fullmatch(label) or len(label) > LONGEST_NAME or not isinstance(rule, dict):
            raise SettingError(f"rules must hold labels and JSON objects, but {shown({label: rule})} came")
        recipe = recipe_of({"rule": rule.get("rule"), "rule_settings": rule.get("settings")})
        labelled[label] = config.RULES[str(recipe.rule)](**recipe.rule_settings)
        refuse_tabular(type(labelled[label]))
    config.make_run(**settings)
    check_seeds(seeds[0], len(seeds), len(labelled), "rules")
    return Comparison(labelled, {**settings, "seed": seeds[0]}, range(seeds[0], seeds[0] + len(seeds)))


def joined(there: Comparison, wanted: Comparison, where: object) -> Comparison:
    """What is there with the rules and seeds that are wanted as well, every rule under every seed.

    Raises RunError, which names `where`, where the settings of the runs or of a rule differ, or a seed would be left
    out between the two.
    """
    before, after = (plain_settings(one.run(one.points[0], one.every_seed[0])) for one in (there, wanted))
    for name, value in after.items():
        if name != "seed":
            _same(where, name, before[name], value)
    for label, rule in wanted.rules.items():
        if label in there.rules:
            _same(where, f"the rule {label}", there.rules[label].name, rule.name)
            for name, value in dataclasses.asdict(rule).items():
                _same(where, f"{label}: {name}", getattr(there.rules[label], name), value)
    one, other = there.every_seed, wanted.every_seed
    if one.stop < other.start or other.stop < one.start:
        raise RunError(
            f"{where} has the seeds {one[0]} to {one[-1]}, and {other[0]} to {other[-1]} leave some out between; "
            "take seeds that follow, or another folder"
        )
    seeds = range(min(one.start, other.start), max(one.stop, other.stop))
    rules = there.rules | wanted.rules
    check_seeds(seeds.start, len(seeds), len(rules), "rules")
    return Comparison(rules, {**there.settings, "seed": seeds.start}, seeds)


def _same(where: object, name: str, before: Any, after: Any) -> None:
    if before != after:
        raise RunError(
            f"{where} was begun with {name} {shown(before)}, but {shown(after)} came; take the same, or another folder"
        )
