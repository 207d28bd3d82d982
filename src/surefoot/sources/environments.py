"""Making Gymnasium environments by name. Imports nothing slow: worker processes make theirs here."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import gymnasium

from surefoot.errors import EnvironmentFault, EnvironmentNotFound, SurefootError, UnsupportedSpace, did_you_mean
from surefoot.sources.guard import Guarded, line, of_the_environment, overdue, quiet
from surefoot.sources.watch import Overdue, Watch

_FUNCTIONAL = "FunctionalEnvironment"
_SPACES = ("observation space", "action space")
_WANTED = "a Gymnasium id, package.module:callable, a callable that returns a gymnasium.Env, or a FunctionalEnvironment"


def environment_name(environment: str | Callable[[], Any]) -> str:
    """The environment as the command line would name it; in <> where it is a FunctionalEnvironment itself, which
    nothing can make from its name (see `refuse_nameless`)."""
    if isinstance(environment, str):
        return environment
    if _is_functional(environment):
        return f"<{getattr(environment, 'name', None) or _FUNCTIONAL}>"
    while isinstance(environment, functools.partial):
        environment = environment.func
    return f"{environment.__module__}:{getattr(environment, '__qualname__', type(environment).__qualname__)}"


def _is_functional(made: Any) -> bool:
    """Whether this is a FunctionalEnvironment, whose class is not imported here, as JAX would be with it."""
    return type(made).__name__ == _FUNCTIONAL


def refuse_nameless(environment: str) -> None:
    """Raise EnvironmentNotFound where a name that was recorded is of an environment that was given itself."""
    if environment.startswith("<"):
        raise EnvironmentNotFound(
            f"environment {environment} was given as an object, which nothing can make from its name; give it again in "
            "Python, as in sf.resume(folder, environment=…), sf.resume_study or sf.evaluate"
        )


def maker(environment: str | Callable[[], Any], **options: Any) -> Callable[[], gymnasium.Env]:
    """A function without arguments that makes one environment, with `options` such as render_mode.

    `environment` is a Gymnasium id, `package.module:callable`, or a callable that returns an environment.
    Raises EnvironmentNotFound at once where there is no such environment.
    """
    if not isinstance(environment, str):
        if not callable(environment):
            raise EnvironmentNotFound(f"environment must be {_WANTED}, but {environment!r} came")
        return functools.partial(_call, environment, environment_name(environment), options)
    module_name, colon, attribute = environment.partition(":")
    near = ""
    if colon:
        module = _import(environment, module_name)
        function = getattr(module, attribute, None)
        if callable(function):
            return functools.partial(_call, function, environment, options)
        near = f"; module {module_name!r} has no callable {attribute!r}{did_you_mean(attribute, dir(module))}"
    try:
        gymnasium.spec(environment)
    except Exception as error:
        known = [name for name in gymnasium.registry if "/" not in name]
        near = near or did_you_mean(environment, known) or "; `CartPole-v1` is one to start with"
        raise EnvironmentNotFound(f"environment {environment!r} is not known to Gymnasium{near}") from error
    make = functools.partial(gymnasium.make, environment, disable_env_checker=True, **options)
    return functools.partial(_make, make, environment)


def attribute_of(environment: str) -> Any:
    """What `package.module:attribute` names; None where the module has none such. Raises EnvironmentNotFound."""
    module_name, _, attribute = environment.partition(":")
    return getattr(_import(environment, module_name), attribute, None)


Spaces = tuple[gymnasium.Space, gymnasium.Space]
"""Of an environment: what it observes, and its actions."""


def spaces_of(env: gymnasium.Env) -> Spaces:
    """What the environment observes, and its actions."""
    return env.observation_space, env.action_space


def guarded(make: Callable[[], gymnasium.Env], index: int, watch: Watch, like: Spaces | None = None) -> Guarded:
    """One environment that names itself when it fails. Raises EnvironmentFault where it cannot be made, or has other
    spaces than `like`; making it is watched too."""
    watch.begin()
    try:
        with watch:
            made = make()
    except EnvironmentFault as fault:
        raise EnvironmentFault(f"{fault} (environment {index})") from fault
    except Overdue:
        raise EnvironmentFault(f"environment {index} {overdue('being made', watch.seconds)}") from None
    finally:
        watch.end()
    env = Guarded(made, index, watch)
    for space, other, what in zip(spaces_of(made), like or (), _SPACES, strict=False):
        if space != other:
            env.close()
            said = " ".join(f"{what} {space}, but that of the first is {other}".split())
            raise EnvironmentFault(f"environment {index} has the {said}; all must have the same")
    return env


def _import(environment: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        raise EnvironmentNotFound(
            f"environment {environment!r}: module {module_name!r} cannot be imported ({line(error)}); "
            "write a Gymnasium id or package.module:callable"
        ) from error


def _make(make: Callable[[], gymnasium.Env], name: str) -> gymnasium.Env:
    try:
        with quiet():
            made = make()
    except gymnasium.error.DeprecatedEnv as error:
        raise EnvironmentNotFound(f"environment {name!r} cannot be made: {line(error)}") from error
    except BaseException as error:
        fault = _unmade(name, error)
        if fault is None:
            raise
        raise fault from error
    return with_spaces(made, name)


def _call(function: Callable[..., Any], name: str, options: dict[str, Any]) -> gymnasium.Env:
    try:
        with quiet():
            made = function(**options)
    except BaseException as error:
        fault = _unmade(name, error)
        if fault is None:
            raise
        raise fault from error
    if not isinstance(made, gymnasium.Env):
        kind = type(made).__name__
        written = f"; annotate it `-> {_FUNCTIONAL}`" if _is_functional(made) else ""
        raise EnvironmentNotFound(f"environment {name!r} returned a {kind}; it must return a gymnasium.Env{written}")
    return with_spaces(made, name)


def _unmade(name: str, error: BaseException) -> EnvironmentFault | None:
    """What an exception while an environment is made comes to; None where it goes on as it is."""
    if isinstance(error, (SurefootError, Overdue)) or not of_the_environment(error):
        return None
    return EnvironmentFault(f"environment {name!r} cannot be made: {line(error)}")


def with_spaces(made: Any, name: str) -> Any:
    """The environment itself. Raises UnsupportedSpace where it has no Gymnasium spaces."""
    for what in ("observation_space", "action_space"):
        space = getattr(made, what, None)
        if not isinstance(space, gymnasium.Space):
            raise UnsupportedSpace(
                f"environment {name!r} has {what} {' '.join(repr(space).split())}; it must be a gymnasium.Space"
            )
    return made
