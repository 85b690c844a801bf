"""Load a model for prediction from the registry, an MLflow run, a checkpoint or a folder."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.artifacts import layout
from pipeline_lib.artifacts.workspace import Workspace
from pipeline_lib.errors import UserError
from pipeline_lib.params import HeatmapsParams
from pipeline_lib.predict.bundle import FLOWS, INPUT_SPEC_FILE, ModelBundle, read_input_spec
from tasks.mlflow import registry, tracking
from tasks.mlflow.registry import CHAMPION, MODEL, PREDICTOR

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipeline_lib.predict.fusion import Bundle, FusionBundle
    from pipeline_lib.predict.predictor import Predictor

DEFAULT = f"models:/{MODEL}@{CHAMPION}"
RUN_ID = re.compile(r"[0-9a-f]{32}")
ACCEPTED = "a registered model (models:/...), an MLflow run id, or the path of a checkpoint"


@dataclass(frozen=True)
class Opened:
    """A loaded model, ready to predict."""

    predictor: Predictor
    model: str
    """Name of the requested model among the predictor's."""
    title: str
    """Description of the model."""
    note: str | None
    """Note for the user, if any."""
    checkpoint_sha256: str
    """Digest of the checkpoint, which identifies its train artifact."""
    drawing: HeatmapsParams = field(default_factory=HeatmapsParams)
    """Heatmap parameters of its run."""


def open_predictor(source: str, workspace: Workspace, *, siblings: bool = False) -> Opened:
    """Load a model, without leaving downloaded files behind.

    Args:
        source: see `ACCEPTED`; `DEFAULT` is the newest version if there is no champion.
        workspace: workspace of checkpoints and the MLflow store; MLFLOW_TRACKING_URI overrides the store.
        siblings: whether to load the other models and fusions of its run with the same fold and seed.

    Raises:
        UserError: the source does not exist or is not accepted.
    """
    from pipeline_lib.artifacts import file_sha256
    from pipeline_lib.predict.predictor import Predictor

    with tempfile.TemporaryDirectory(prefix="har-") as scratch:
        found = _Finder(workspace, Path(scratch)).find(source)
        bundles = [found.bundle, *(_siblings(found, Path(scratch)) if siblings else ())]
        name, sha256 = found.bundle.name, file_sha256(found.bundle.members[0].checkpoint)
        return Opened(Predictor(bundles), name, found.title, found.note, sha256, _drawing(workspace, sha256))


def _drawing(workspace: Workspace, checkpoint_sha256: str) -> HeatmapsParams:
    from pipeline_lib.predict.examples import find_drawing

    if not workspace.exists:
        return HeatmapsParams()
    store = workspace.open()
    try:
        return find_drawing(store, checkpoint_sha256)
    finally:
        store.close()


@dataclass(frozen=True)
class _Found:
    bundle: Bundle
    title: str
    run_id: str | None = None
    """MLflow run that trained it."""
    note: str | None = None


@dataclass(frozen=True)
class _Finder:
    workspace: Workspace
    scratch: Path

    def find(self, source: str) -> _Found:
        path = Path(source).expanduser()
        if bundle := _open(path):
            return _Found(bundle, source)
        if path.is_file():
            return _Found(self._of_checkpoint(path), source)
        if source.startswith("models:/"):
            tracking.open_tracking(self.workspace.folder)
            return self._of_registry(source)
        if RUN_ID.fullmatch(source):
            tracking.open_tracking(self.workspace.folder)
            return self._of_run(source)
        raise UserError(f"{source}: no such model; give {ACCEPTED}")

    def _of_checkpoint(self, path: Path) -> ModelBundle:
        from pipeline_lib.predict.provenance import bundle_of_training, find_training

        if not self.workspace.exists:
            raise UserError(
                f"{self.workspace.name}: no such workspace; name the one that {path} was trained in with --workspace"
            )
        store = self.workspace.open()
        try:
            return bundle_of_training(store, find_training(store, path))
        finally:
            store.close()

    def _of_registry(self, source: str) -> _Found:
        if source != DEFAULT:
            return _Found(download_model(source, self.scratch), source, _run_of_model(source))
        found, note = registry.champion(), None
        if found is None:
            found = registry.newest()
            note = f"no champion yet, this is the newest version; `har promote {found.version}` makes it the champion"
        bundle = download_model(f"models:/{MODEL}/{found.version}", self.scratch)
        return _Found(bundle, f"{MODEL} {registry.describe(found)}", found.run_id, note)

    def _of_run(self, run_id: str) -> _Found:
        run = get_run(run_id)
        if "mlflow.parentRunId" in run.data.tags:
            return _Found(download_bundle(run, self.scratch), f"run {run.info.run_name}", run_id)
        found = registry.find_version(version_of_run(run))
        bundle = download_model(f"models:/{MODEL}/{found.version}", self.scratch)
        return _Found(bundle, f"{MODEL} {registry.describe(found)}", _child_with(run, found.version) or found.run_id)


def _child_with(run: Run, number: str) -> str | None:
    """Return the id of the child run that trained a version of `har`, which an earlier run may have registered."""
    from mlflow import MlflowClient

    query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and tags.`{registry.VERSION}` = '{number}'"
    found = MlflowClient().search_runs([run.info.experiment_id], query, max_results=1)
    return found[0].info.run_id if found else None


def get_run(run_id: str) -> Run:
    """Return an MLflow run.

    Raises:
        UserError: there is no such run.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient().get_run(run_id)
    except MlflowException:
        raise UserError(f"{run_id}: no such MLflow run in {tracking.current_uri()}; give {ACCEPTED}") from None


def version_of_run(run: Run) -> str:
    """Return the version of `har` of a parent run's best model.

    Raises:
        UserError: the run registered no model.
    """
    number = run.data.tags.get(registry.VERSION)
    if number is None:
        raise UserError(f"run {run.info.run_id} ({run.info.run_name}) registered no model: it ended before training")
    return number


def candidate_of_run(run: Run, scratch: Path) -> registry.Candidate:
    """Return a child run's model or fusion, assembled in `scratch`, ready for registration.

    Raises:
        UserError: the run has none.
    """
    tags = {name: run.data.tags[name] for name in registry.SHOWN if name in run.data.tags}
    return registry.Candidate(run.info.run_id, download_bundle(run, scratch), tags)


def download_bundle(run: Run, scratch: Path) -> Bundle:
    """Assemble a child run's model from its checkpoint and its parent's backbones, or its fusion from its members.

    Raises:
        UserError: the run has neither, or its files were deleted.
    """
    return _download_fusion(run, scratch) if run.data.tags.get("stage") == "evaluate" else _download_model(run, scratch)


def _download_fusion(run: Run, scratch: Path) -> FusionBundle:
    from pipeline_lib.predict.fusion import FusionBundle
    from pipeline_lib.training.fusion import FittedFusion

    folder = Path(tempfile.mkdtemp(dir=scratch))
    fusion = json.loads(_download(run.info.run_id, f"evaluation/{layout.FUSION}", folder).read_text(encoding="utf-8"))
    trained = {other.data.tags["model"]: other for other in _beside(run, "train")}
    if absent := [name for name in fusion["members"] if name not in trained]:
        raise UserError(f"run {run.info.run_id}: the run of its member {absent[0]} was deleted")
    members = [_download_model(trained[name], scratch) for name in fusion["members"]]
    return FusionBundle.of_members(str(run.info.run_name), FittedFusion.model_validate(fusion["fitted"]), members)


def _beside(run: Run, stage: str) -> Iterable[Run]:
    """Return the runs of its parent with a run's fold and seed, oldest first: of models (`train`) or fusions (`evaluate`)."""
    from mlflow import MlflowClient

    place = {name: run.data.tags[name] for name in ("mlflow.parentRunId", "fold", "seed")} | {"stage": stage}
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in place.items())
    return MlflowClient().search_runs([run.info.experiment_id], query, order_by=["attributes.start_time"])


def _download_model(run: Run, scratch: Path) -> ModelBundle:
    from pipeline_lib.training.checkpoints import read_metadata

    run_id, folder = run.info.run_id, Path(tempfile.mkdtemp(dir=scratch))
    input_spec = read_input_spec(_download(run_id, INPUT_SPEC_FILE, folder))
    checkpoint = _download(run_id, f"checkpoint/{layout.CHECKPOINT}", folder)
    parent = run.data.tags["mlflow.parentRunId"]
    streams = read_metadata(checkpoint).streams
    folders = [registry.backbone_folder(stream["weights_sha256"]) for stream in streams]
    backbones = [_download(parent, f"{name}/{layout.BACKBONE}", folder) for name in folders]
    flow, flow_2 = (*(_download_flow(run_id, *numbered, folder) for numbered in enumerate(streams)), None)[:2]
    return ModelBundle(input_spec, checkpoint, tuple(backbones), (flow, flow_2))


def _download_flow(run_id: str, number: int, stream: Mapping[str, Any], folder: Path) -> Path | None:
    """Return the weights of a stream's optical flow, or None if it has none by path."""
    if stream["preprocessing"].get("method_weights") is None:
        return None
    with suppress(UserError):  # earlier versions of this project did not keep them: their file has to be at its path
        return _download(run_id, f"{registry.flow_folder(number)}/{FLOWS[0]}", folder)
    return None


def _download(run_id: str, name: str, folder: Path) -> Path:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return Path(MlflowClient().download_artifacts(run_id, name, str(folder)))
    except (MlflowException, OSError):
        raise UserError(f"run {run_id}: it trained no model that predicts (no {name} among its artifacts)") from None


def download_model(uri: str, scratch: Path) -> Bundle:
    """Download a registered or logged model.

    Raises:
        UserError: it does not exist, or another project logged it.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        model = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{uri}: cannot be loaded from {tracking.current_uri()}: {reason}") from None
    folder = model / "artifacts" / PREDICTOR
    bundle = _open(folder)
    if bundle is None:
        raise UserError(f"{uri}: not a model that this project registered")
    return bundle


def _open(folder: Path) -> Bundle | None:
    """Return the bundle in a folder, or None if it has none."""
    from pipeline_lib.predict.fusion import open_bundle

    has_one = any((folder / name).is_file() for name in (INPUT_SPEC_FILE, layout.FUSION))
    return open_bundle(folder) if has_one else None


def _run_of_model(uri: str) -> str | None:
    from mlflow.exceptions import MlflowException
    from mlflow.models import get_model_info

    with suppress(MlflowException, OSError):
        return get_model_info(uri).run_id
    return None


def _siblings(found: _Found, scratch: Path) -> Iterator[Bundle]:
    """Yield the other models and fusions of the parent run with the same fold and seed."""
    if found.run_id is None:
        return
    run = get_run(found.run_id)
    for other in (*_beside(run, "train"), *_beside(run, "evaluate")):
        with suppress(UserError):  # skip incomplete models
            if other.info.run_id != found.run_id:
                yield download_bundle(other, scratch)
