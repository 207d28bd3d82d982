"""What a study is to run: every setting of a sweep under every seed. Imports nothing slow."""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from surefoot import config
from surefoot.errors import SettingError, did_you_mean, shown
from surefoot.settings import Following, check, field_of, types_of
from surefoot.study_record import written

MOST_RUNS = 4096
"""Of one study."""

LONGEST_NAME = 160
"""Of a setting, so that a run's folder is one that every file system takes."""
_LARGEST_SEED = field_of(config.Run, "seed").metadata["limits"]["at_most"]


class Setting(NamedTuple):
    """One point of a sweep.

    Attributes:
        values: of the settings that are swept, by name; none in a study over seeds alone.
        name: of it in the names of files, such as "radius0.003_damping0.1"; empty without values.
    """

    values: dict[str, Any]
    name: str

    def folder(self, seed: int) -> str:
        """The folder of its run with this seed, inside the study's."""
        return f"runs/{self.name}-s{seed}" if self.name else f"runs/s{seed}"


@dataclass(frozen=True)
class Sweep:
    """Everything that a study runs but for its environment, checked.

    Attributes:
        rule_class: the settings of the rule, whose `name` it has.
        rule_settings: of the rule, but for what is swept.
        settings: of the run, but for what is swept; its seed is the first.
        swept: the values of each setting that is swept, by name, in the order given.
        seeds: how many there are, one after the other.
    """

    rule_class: type[config.RuleSettings]
    rule_settings: dict[str, Any]
    settings: dict[str, Any]
    swept: dict[str, tuple[Any, ...]]
    seeds: int

    @property
    def every_seed(self) -> range:
        """The seeds, from the first to the last."""
        return range(self.settings["seed"], self.settings["seed"] + self.seeds)

    @property
    def points(self) -> list[Setting]:
        """Every setting: the product of what is swept, the last changing first."""
        combined = itertools.product(*self.swept.values())
        named = [dict(zip(self.swept, values, strict=True)) for values in combined]
        names = [_name_of(values) for values in named]
        if max(map(len, names)) > LONGEST_NAME:
            names = [f"setting{number}" for number in range(1, len(names) + 1)]
        return [Setting(values, name) for values, name in zip(named, names, strict=True)]

    def rule(self, setting: Setting) -> config.RuleSettings:
        """The rule's settings at a point. Raises SettingError."""
        return self.rule_class(**self.rule_settings | self._part(setting, of_rule=True))

    def run(self, setting: Setting, seed: int) -> config.Run:
        """The run's settings at a point. Raises SettingError."""
        return config.make_run(**self.settings | self._part(setting, of_rule=False) | {"seed": seed})

    def told(self) -> dict[str, Any]:
        """What study.json says of it, but for the settings of the run and the seeds."""
        return {"rule": self.rule_class.name, "rule_settings": self.rule_settings, "sweep": self.swept}

    def _part(self, setting: Setting, *, of_rule: bool) -> dict[str, Any]:
        own = {item.name for item in dataclasses.fields(self.rule_class)}
        return {name: value for name, value in setting.values.items() if (name in own) == of_rule}


def make_sweep(
    rule: config.RuleSettings,
    settings: Mapping[str, Any],
    seeds: int = 1,
    swept: Mapping[str, Sequence[Any]] | None = None,
) -> Sweep:
    """A study's settings, every one of them checked.

    Args:
        rule: its settings where they are not swept.
        settings: of the run, by name; their seed is the first.
        seeds: how many.
        swept: values by the name of a numeric setting of rule or run, as in Python or on the command line:
            "radius", "damping" or "rule.damping", "critic_step_size" or "critic-step-size".

    Raises SettingError for an unknown name, with the nearest right one, for a value outside its legal range, and
    where one setting is given twice.
    """
    rule_class = type(rule)
    refuse_tabular(rule_class)
    checked = _checked(rule_class, dict(swept or {}))
    if given := next((name for name in checked if name in settings), None):
        raise SettingError(f"sweep: {given} is swept and given a value as well; leave one of them out")
    own = {name: value for name, value in settled(rule).items() if name not in checked}
    first = config.make_run(**settings).seed
    check_seeds(first, seeds, math.prod(map(len, checked.values())), "sweep")
    made = Sweep(rule_class, own, {**settings, "seed": first}, checked, seeds)
    for point in made.points:
        made.rule(point)
        made.run(point, first)
    return made


def refuse_tabular(rule_class: type[config.RuleSettings]) -> None:
    """Raise SettingError for a rule that nothing can be trained with."""
    if rule_class.tabular_only:
        raise SettingError(f"the rule {rule_class.name} is for finite MDPs; `surefoot exact` has it")


def check_seeds(first: int, seeds: int, settings: int, called: str) -> None:
    """Raise SettingError where there are no seeds from `first` on, or too many with so many settings, `called` so."""
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise SettingError(f"seeds must be a whole number, at least 1, but {shown(seeds)} came")
    if seeds * settings > MOST_RUNS:
        runs = seeds * settings
        raise SettingError(f"seeds and {called} make {runs} runs, but a study has at most {MOST_RUNS}; take fewer")
    if first + seeds - 1 > _LARGEST_SEED:
        raise SettingError(f"seeds: {seeds} from {first} on go beyond {_LARGEST_SEED}, the largest seed; begin lower")


def setting_name(told: str) -> str:
    """The name of a setting from how Python or the command line calls it: "rule.step_size" is "step_size"."""
    return told.removeprefix("--").removeprefix("rule.").replace("-", "_")


def without_following(rule_class: type[config.RuleSettings], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a rule but for those whose values they would have by themselves, and follow others.

    A run's config.json has the value of every setting and does not say which were given.
    """
    whole = rule_class(**settings)

    def follows(name: str) -> bool:
        alone = getattr(rule_class(**{key: value for key, value in settings.items() if key != name}), name)
        return isinstance(alone, Following) and alone == getattr(whole, name)

    return {name: value for name, value in settings.items() if not follows(name)}


def plain_settings(run: config.Run) -> dict[str, Any]:
    """Every setting of a run by its public name, as `config.make_run` takes them."""
    return {
        name: getattr(getattr(run, group) if group else run, item)
        for name, (group, item) in config.run_options().items()
    }


def settled(rule: config.RuleSettings) -> dict[str, Any]:
    """A rule's settings but for those that follow from the others by themselves.

    So the subsample follows the damping that is swept, as it does where only the damping is given; one that was given
    stays, whatever its value.
    """
    every = {item.name: getattr(rule, item.name) for item in dataclasses.fields(rule)}
    return {name: value for name, value in every.items() if not isinstance(value, Following)}


_OF_MACHINES = ("workers", "worker_seconds", "enough", "devices")


def _checked(rule_class: type[config.RuleSettings], swept: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    known = _numeric_settings(rule_class)
    found: dict[str, tuple[Any, ...]] = {}
    for told, values in swept.items():
        name = setting_name(str(told))
        if name == "seed":
            raise SettingError("sweep: seed is not swept; seeds (--seeds N) runs N of them")
        if name in _OF_MACHINES:
            raise SettingError(f"sweep: {name} is not swept, as it says where runs are made and not what they are")
        if name not in known:
            raise SettingError(_unknown(rule_class, name, str(told), known))
        if name in found:
            raise SettingError(f"sweep: {name} is swept twice; name all its values at once")
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values:
            raise SettingError(f"sweep: {name} needs a sequence of values, but {shown(values)} came")
        if len(values) > MOST_RUNS:
            raise SettingError(f"sweep: {name} has {len(values)} values, but a study has at most {MOST_RUNS} runs")
        owner, item = known[name]
        taken = tuple(check(owner, item, value, called=name) for value in values)
        for place, value in enumerate(taken):
            if value in taken[:place]:
                raise SettingError(f"sweep: {name} has the value {written(value)} twice; name each once")
        found[name] = taken
    return found


def _unknown(rule_class: type[config.RuleSettings], name: str, told: str, known: Mapping[str, Any]) -> str:
    if name in config.run_options() or name in {item.name for item in dataclasses.fields(rule_class)}:
        return f"sweep: {name} is no numeric setting, and only those are swept"
    having = [rule.name for rule in config.RULES.values() if name in _numeric_settings(rule) and not rule.tabular_only]
    if having:
        return f"sweep: {name} is no setting of the rule {rule_class.name}, but of {', '.join(having)}"
    return f"sweep: unknown setting {shown(told)}{did_you_mean(name, known)}"


def _numeric_settings(rule_class: type[config.RuleSettings]) -> dict[str, tuple[type, str]]:
    """The numeric settings of a rule and of a run: the class and field of each, by public name."""
    own = [(item.name, (rule_class, item.name)) for item in dataclasses.fields(rule_class)]
    run = [(name, (owner, item.name)) for name in config.run_options() for owner, item in [config.option_field(name)]]
    return {name: (owner, item) for name, (owner, item) in (*own, *run) if name != "seed" and _is_number(owner, item)}


def _is_number(owner: type, item: str) -> bool:
    kind = types_of(owner)[item]
    kinds = set(typing.get_args(kind) or [kind]) - {type(None)}
    return kinds <= {int, float}


def _name_of(values: Mapping[str, Any]) -> str:
    return "_".join(f"{name}{written(value)}" for name, value in values.items())
