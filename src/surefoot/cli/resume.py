"""`surefoot resume`."""

from __future__ import annotations

import argparse
from typing import Any

from surefoot.cli import devices, studies
from surefoot.cli.interruption import asked_to_stop
from surefoot.cli.options import or_none, whole
from surefoot.cli.train import note, tell
from surefoot.errors import SettingError


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "resume",
        help="go on with a run that was stopped, as if it had not been",
        description="Go on from a run's newest sound checkpoint, bit for bit as if it had never stopped; from the "
        "beginning where it has none. A finished run goes on with --steps. Of a study, the runs that are not finished.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's or a study's folder")
    parser.add_argument("--steps", type=whole, metavar="N", help="environment steps in all (default: as begun)")
    parser.add_argument(
        "--allow-env", action="store_true", help="let the run's package.module:callable environment be imported"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write the metrics for TensorBoard too")
    studies.add_lanes(parser, "as the study was begun; a single run has none")
    parser.add_argument("--workers", type=whole, metavar="N", help="of a study, make N runs at once by Ray's workers")
    parser.add_argument(
        "--ray-address",
        type=or_none(str),
        metavar="TEXT",
        help="Ray cluster that the workers are on (default: RAY_ADDRESS, or this machine)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.set_defaults(command=run, exit_code=studies.exit_code)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Go on, and tell the result."""
    from surefoot.study_record import is_study

    if is_study(arguments.run):
        return _study(arguments)
    for name in ("lanes", "workers"):
        if getattr(arguments, name) is not None:
            raise SettingError(
                f"--{name} is for a study, and this is a single run; leave it out, or name a study's folder"
            )
    from surefoot.training import resume

    devices.show(arguments, devices.settings_in(arguments.run))
    with asked_to_stop() as stop:
        done = resume(
            arguments.run,
            steps=arguments.steps,
            allow_env=arguments.allow_env,
            ray_address=arguments.ray_address,
            tensorboard=arguments.tensorboard,
            stop=stop,
            told=note,
        )
    return tell(done, quiet=arguments.json)


def _study(arguments: argparse.Namespace) -> dict[str, Any]:
    studies.refuse_for_studies(arguments, "steps", "tensorboard")
    from surefoot.studies import resume_study
    from surefoot.study_record import read_study

    settings = read_study(arguments.run).told.get("settings")
    studies.spread(arguments, settings if isinstance(settings, dict) else {})
    with asked_to_stop() as stop:
        ways = {"lanes": arguments.lanes, "workers": arguments.workers, "ray_address": arguments.ray_address}
        done = resume_study(arguments.run, allow_env=arguments.allow_env, stop=stop, told=note, **ways)
    return studies.tell(done.path, quiet=arguments.json)
