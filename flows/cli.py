"""The `har` command. Commands import heavy modules themselves, so that `har --help` is fast."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from flows.servers import HOST, MLFLOW_PORT, PREFECT_PORT
from pipeline_lib.addresses import redact_text
from pipeline_lib.errors import UserError
from pipeline_lib.stages import STAGES

if TYPE_CHECKING:
    from pipeline_lib.artifacts.workspace import Workspace

DEFAULT_WORKSPACE = "workspace"
DEFAULT_MODEL = "models:/har@champion"
STOP_SECONDS = 10.0
STOPPED = 130
"""Exit code after Ctrl-C, as in shells."""
USER_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
"""OS errors that a user can fix: no space, no permission. All others are bugs and show a traceback."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; exit with 0 only if everything requested was made."""
    options = _parser().parse_args(arguments)
    try:
        code = options.command(options)
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in USER_ERRNOS:
            raise
        for line in redact_text(str(error)).splitlines():
            print(f"har: {line}", file=sys.stderr)  # noqa: T201
        code = 1
    except KeyboardInterrupt:
        print("har: stopped; run the same command again to resume", file=sys.stderr)  # noqa: T201
        code = STOPPED
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Exit without waiting for threads that a failed or stopped run left busy."""
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        # The temporary Prefect server ends with this process.
        os._exit(code)
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="har", description="Action recognition with visual attention: from a video archive to an explained model."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the pipeline; finished stages are reused")
    run.add_argument("params", nargs="?", default="hmdb51", metavar="PARAMS",
                     help="path of a parameter file, or the name of one that comes with har; default: %(default)s")  # fmt: skip
    run.add_argument("--set", action="append", default=[], metavar="section.key=value", dest="settings",
                     help="override one parameter; may be repeated")  # fmt: skip
    run.add_argument("--until", choices=STAGES, metavar="STAGE", help=f"last stage to run: {', '.join(STAGES)}")
    run.add_argument("--refresh", action="append", default=[], choices=STAGES, metavar="STAGE",
                     help="recompute a stage even if nothing changed; may be repeated")  # fmt: skip
    run.add_argument("--engine", metavar="ADDRESS", help="Ray cluster to run on: HOST:PORT of the head node, or auto")
    run.add_argument("--summary", type=Path, metavar="FILE.json", help="write counts, cache hits, accuracies and ids here")
    run.set_defaults(command=_run)
    predict = commands.add_parser("predict", help="predict the action in your own videos, with attention heatmaps")
    predict.add_argument("videos", nargs="+", metavar="VIDEO", help="file, folder of videos, or URL (http, https, file)")
    predict.add_argument("--model", default=DEFAULT_MODEL, metavar="MODEL",
                         help="registered model, checkpoint or run id; default: %(default)s, else the newest")  # fmt: skip
    predict.add_argument("--overlap", type=float, default=0.0, metavar="FRACTION",
                         help="overlap of consecutive clips, from 0 to 1; default: %(default)s, as in evaluation")  # fmt: skip
    predict.add_argument("--output", type=Path, metavar="FOLDER", help="new folder for the results; default: in the workspace")
    predict.add_argument("--no-heatmaps", action="store_false", dest="heatmaps", help="write no heatmap videos")
    predict.add_argument("--boxes", action="store_true",
                         help="write boxes around the strongest attention to boxes.csv, and draw them")  # fmt: skip
    predict.set_defaults(command=_predict)
    _add_features(commands)
    app = commands.add_parser("app", help="serve a local web page that predicts uploaded videos")
    app.add_argument("--model", default=DEFAULT_MODEL, metavar="MODEL",
                     help="registered model, checkpoint or run id; default: %(default)s, else the newest")  # fmt: skip
    app.add_argument("--port", type=int, default=7860, metavar="PORT", help="default: %(default)s")
    app.add_argument("--host", default=HOST, metavar="ADDRESS",
                     help="default: %(default)s, this machine only; others ask for the token in HAR_APP_TOKEN")  # fmt: skip
    app.add_argument("--public-url", metavar="URL", help="address of the page at the reverse proxy in front of it")
    app.add_argument("--max-size", type=_size, default="200MB", metavar="SIZE", help="largest video; default: %(default)s")
    app.add_argument("--max-minutes", type=_minutes, default="10", metavar="N", help="longest video; default: %(default)s")
    app.set_defaults(command=_app)
    promote = commands.add_parser("promote", help="make a registered model the champion, the default of `har predict`")
    promote.add_argument("which", nargs="?", metavar="VERSION|RUN_ID", help="default: the newest version")
    promote.set_defaults(command=_promote)
    up = commands.add_parser("up", help="start the Prefect server, the MLflow server and the deployments")
    up.add_argument("--prefect-port", type=int, default=PREFECT_PORT, metavar="PORT", help="default: %(default)s")
    up.add_argument("--mlflow-port", type=int, default=MLFLOW_PORT, metavar="PORT", help="default: %(default)s")
    up.add_argument(
        "--host", default=HOST, metavar="ADDRESS", help="address to listen on; default: %(default)s, this machine only"
    )
    up.add_argument("--database", metavar="URL",
                    help="keep the records in PostgreSQL, postgresql://USER:PASSWORD@HOST:PORT/NAME (databases NAME_mlflow, "
                         "NAME_prefect, NAME_sweeps); default: HAR_DATABASE, else SQLite files in the workspace")  # fmt: skip
    up.add_argument("--artifacts", metavar="s3://BUCKET/PREFIX",
                    help="keep MLflow's artifacts in this object store; default: in the workspace")  # fmt: skip
    up.set_defaults(command=_up)
    commands.add_parser("down", help="stop what `har up` started").set_defaults(command=_down)
    doctor = commands.add_parser("doctor", help="check the installation, servers and leftovers of killed runs")
    doctor.add_argument("--fix", action="store_true", help="clean up after killed runs")
    doctor.set_defaults(command=_doctor)
    verify = commands.add_parser("verify", help="check every artifact's files against their digests")
    verify.set_defaults(command=_verify)
    _add_gc(commands)
    for name in ("predict", "app", "promote", "up", "down", "doctor", "verify", "gc"):
        commands.choices[name].add_argument("--workspace", type=_workspace, default=DEFAULT_WORKSPACE, metavar="WORKSPACE",
                                            help="folder or address (s3://bucket/prefix); default: %(default)s")  # fmt: skip
    return parser


def _workspace(address: str) -> Workspace:
    from pipeline_lib.artifacts.workspace import locate_workspace

    try:
        return locate_workspace(address)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_features(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    features = commands.add_parser("features", help="write the features of your own videos to HDF5 or NPZ files")
    features.add_argument("videos", nargs="+", metavar="VIDEO", help="file, folder of videos, or URL (http, https, file)")
    features.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER",
                          help="new folder for the files, one for each stream and video")  # fmt: skip
    features.add_argument("--params", default="hmdb51", metavar="PARAMS",
                          help="parameter file with streams, as for `har run`; default: %(default)s")  # fmt: skip
    features.add_argument("--set", action="append", default=[], metavar="section.key=value", dest="settings",
                          help="override one parameter, such as features.backbone=resnet50; may be repeated")  # fmt: skip
    features.add_argument("--stream", action="append", default=[], metavar="NAME", dest="streams",
                          help="stream to write; may be repeated; default: all")  # fmt: skip
    features.add_argument("--weights", action="append", default=[], metavar="STREAM=PATH",
                          help="state dict of a stream's network; may be repeated; default: the parameters', or for a stream "
                               "that they tune, the tuned ones in the workspace")  # fmt: skip
    features.add_argument("--format", choices=("h5", "npz"), default="h5", help="default: %(default)s")
    features.add_argument("--pool", action="store_true", help="write the mean of each map instead of the map")
    features.set_defaults(command=_features)


def _add_gc(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    gc = commands.add_parser("gc", help="remove artifacts that no recent run uses; a dry run without --delete")
    gc.add_argument("--older-than", type=_age, metavar="AGE",
                    help="remove artifacts unused for this long, such as 12h or 8w; default: 30d")  # fmt: skip
    gc.add_argument("--keep-size", type=_size, metavar="SIZE",
                    help="remove the least recently used artifacts until the rest fits, such as 50GB")  # fmt: skip
    gc.add_argument("--keep-runs", type=int, default=1, metavar="N",
                    help="keep all artifacts of the N newest runs; default: %(default)s")  # fmt: skip
    gc.add_argument("--delete", action="store_true", help="delete the artifacts")
    gc.set_defaults(command=_gc)


def _age(text: str) -> float:
    """Return an age in seconds."""
    return _quantity(text, {"h": 3600, "d": 86400, "w": 7 * 86400}, "an age such as 12h, 30d or 8w")


def _size(text: str) -> float:
    """Return a size in bytes."""
    return _quantity(text, {"MB": 1e6, "GB": 1e9, "TB": 1e12}, "a size such as 500MB or 50GB")


def _minutes(text: str) -> float:
    """Return minutes in seconds."""
    return _quantity(f"{text}m", {"m": 60}, "a number of minutes such as 10")


def _quantity(text: str, units: dict[str, float], expected: str) -> float:
    number = text.rstrip("".join(units))
    unit = text[len(number) :]
    if unit not in units or not number.replace(".", "", 1).isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not {expected}")
    return float(number) * units[unit]


def _run(options: argparse.Namespace) -> int:
    from pipeline_lib.artifacts.workspace import locate_workspace
    from pipeline_lib.params import load_params

    settings = _settings(options)
    params = load_params(options.params, settings)
    workspace = locate_workspace(params.workspace, params.cache).folder
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    _use_prefect(workspace)
    from flows.har import har
    from flows.services import wait_for_prefect
    from flows.settings import conceal
    from flows.terminal import quiet_prefect, say_summary, show_progress
    from tasks.mlflow.tracking import init_tracking

    quiet_prefect()
    init_tracking(params.tracking, workspace)  # takes seconds in a new workspace, while Prefect's server starts
    wait_for_prefect(os.environ["PREFECT_API_URL"])
    with show_progress():
        summary = har(options.params, conceal(settings), options.until, options.refresh)
    say_summary(summary, workspace)
    if options.summary:
        options.summary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return 0


def _settings(options: argparse.Namespace) -> list[str]:
    """Return the parameters that the options override."""
    return [*options.settings, *([f"run.engine={options.engine}"] if options.engine else [])]


def _stop(number: int, frame: FrameType | None) -> None:
    """Interrupt the run, which closes its records; running work is left to the next run."""
    timer = threading.Timer(STOP_SECONDS, os._exit, [STOPPED])
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _use_prefect(workspace: Path) -> None:
    """Use the Prefect server of the environment or of `har up`, else start a temporary one."""
    from flows.service_state import prefect_address
    from flows.services import service_environment, start_temporary_prefect
    from pipeline_lib.artifacts.workspace_lock import workspace_id

    workspace_id(workspace)
    address = os.environ.get("PREFECT_API_URL") or prefect_address(workspace) or start_temporary_prefect(workspace)
    home = {"PREFECT_HOME": os.environ["PREFECT_HOME"]} if "PREFECT_HOME" in os.environ else {}
    os.environ.update(service_environment(workspace, address) | home)


def _predict(options: argparse.Namespace) -> int:
    from flows.predict import predict

    return predict(
        options.videos,
        source=options.model,
        workspace=options.workspace,
        output=options.output,
        overlap=options.overlap,
        heatmaps=options.heatmaps,
        boxes=options.boxes,
    )


def _features(options: argparse.Namespace) -> int:
    from flows.features import features

    return features(
        options.videos,
        params=options.params,
        settings=options.settings,
        streams=options.streams,
        weights=options.weights,
        output=options.output,
        suffix=options.format,
        pool=options.pool,
    )


def _app(options: argparse.Namespace) -> int:
    from flows.app.server import Limits
    from flows.app.serving import serve

    limits = Limits(max_bytes=int(options.max_size), max_seconds=options.max_minutes)
    return serve(options.model, options.workspace, options.host, options.port, options.public_url, limits)


def _promote(options: argparse.Namespace) -> int:
    from flows.promote import promote

    return promote(options.which, options.workspace.folder)


def _up(options: argparse.Namespace) -> int:
    from flows.services import Wanted, start_services
    from flows.terminal import say
    from pipeline_lib.postgresql import VARIABLE

    database = options.database or os.environ.get(VARIABLE)
    wanted = Wanted(options.prefect_port, options.mlflow_port, options.host, database, options.artifacts)
    start_services(options.workspace.folder, wanted, say)
    if options.host != HOST:
        say("neither server asks for a password: use this in a trusted network, or behind a proxy that asks for one")
    say("start a run with: prefect deployment run har/demo")
    if (url := wanted.url(options.prefect_port)) != Wanted().url(PREFECT_PORT):
        say(f"first: export PREFECT_API_URL={url}/api")
    return 0


def _down(options: argparse.Namespace) -> int:
    from flows.services import stop_services
    from flows.terminal import say

    stopped = stop_services(options.workspace.folder)
    say(f"stopped {', '.join(stopped)}" if stopped else "no servers of this workspace are running")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from flows.doctor import examine

    return examine(options.workspace, fix=options.fix)


def _verify(options: argparse.Namespace) -> int:
    from flows.verify import verify

    return verify(options.workspace)


def _gc(options: argparse.Namespace) -> int:
    from flows.gc import collect

    older_than = _age("30d") if options.older_than is None and options.keep_size is None else options.older_than
    return collect(options.workspace, older_than, options.keep_size, options.keep_runs, delete=options.delete)


if __name__ == "__main__":
    main()
