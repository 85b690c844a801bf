"""MLflow's model registry: each run registers its best model as a version of `har`; `champion` is promoted by hand.

A child run keeps only its checkpoint, `predictor.json` and the weights of optical flow that the user gave, which are small.
Backbones are large and shared, so the parent run keeps each once.
`tasks.mlflow.loading` assembles models from them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.errors import UserError
from pipeline_lib.predict.bundle import INPUT_SPEC_FILE, ModelBundle
from tasks.mlflow import tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models.model import ModelInfo

    from pipeline_lib.predict.fusion import Bundle

MODEL = "har"
CHAMPION = "champion"
PREDICTOR = "predictor"
"""Folder of the bundle inside the MLflow model."""

SERVED_MODEL = Path(__file__).with_name("served_model.py")
"""MLflow runs this file to build the model ("models from code"); the bundle and `pipeline_lib` are logged with it."""
REQUIREMENTS = (
    "mlflow", "torch", "torchvision", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "safetensors", "h5py", "av",
    "ffmpeg-python", "imageio-ffmpeg", "opencv-contrib-python-headless",
)  # fmt: skip
"""Imports of `pipeline_lib.predict`; given explicitly because MLflow's inference of requirements needs a network."""

SHOWN = ("model", "fold", "seed", "val_accuracy")
DIGEST, VERSION = "digest", "registered_version"
"""Tags: a version's model digest; and, on a run, the version of its model or of its best model."""


@dataclass(frozen=True)
class Candidate:
    """A trained model or a fusion of a run."""

    run_id: str
    bundle: Bundle
    tags: Mapping[str, str]
    """Tags of its version, named in `SHOWN`."""


def log_bundles(parent_run_id: str, bundles: Mapping[str, ModelBundle], known: Container[str] = ()) -> set[str]:
    """Log each child's input specification and weights of optical flow to the child, and each backbone once to the parent.

    Args:
        parent_run_id: run that backbones are logged to.
        bundles: the models of child runs by their ids.
        known: digests of the backbones that the parent has already.

    Returns:
        The digests of the backbones logged.
    """
    from pipeline_lib.training.checkpoints import read_metadata

    backbones: dict[str, Path] = {}
    for run_id, bundle in bundles.items():
        tracking.log_json(run_id, bundle.input_spec.model_dump(), INPUT_SPEC_FILE)
        for number, flow in enumerate(bundle.flows):
            if flow:
                tracking.log_files(run_id, [flow], flow_folder(number))
        digests = [stream["weights_sha256"] for stream in read_metadata(bundle.checkpoint).streams]
        backbones |= dict(zip(digests, bundle.backbones, strict=True))
    new = {sha256: backbone for sha256, backbone in backbones.items() if sha256 not in known}
    for sha256, backbone in new.items():
        tracking.log_files(parent_run_id, [backbone], backbone_folder(sha256))
    return set(new)


def backbone_folder(weights_sha256: str) -> str:
    """Return the artifact folder of a backbone's weights in a parent run."""
    return f"backbones/{weights_sha256}"


def flow_folder(number: int) -> str:
    """Return the artifact folder of the weights of a stream's optical flow in a child run; `number` is 0 or 1."""
    return f"flow_{number}"


def register(candidate: Candidate) -> ModelVersion:
    """Return this model's version of `har`, registering it if needed."""
    digest = candidate.bundle.digest
    same = [found for found in versions() if found.tags.get(DIGEST) == digest]
    found = same[-1] if same else _create_version(candidate, {DIGEST: digest, **candidate.tags})
    tracking.set_tags(candidate.run_id, {VERSION: str(found.version)})
    return found


def _create_version(candidate: Candidate, tags: dict[str, str]) -> ModelVersion:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, model = MlflowClient(), _log_model(candidate)
    with suppress(MlflowException):  # it exists
        client.create_registered_model(MODEL)
    # `mlflow.register_model` does the same, but prints.
    return client.create_model_version(MODEL, model.model_uri, candidate.run_id, tags, model_id=model.model_id)


def _log_model(candidate: Candidate) -> ModelInfo:
    """Log the model with everything it needs to predict raw video."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    import pipeline_lib

    with tempfile.TemporaryDirectory(prefix="har-") as scratch, mlflow.start_run(run_id=candidate.run_id):
        folder = Path(scratch) / PREDICTOR
        folder.mkdir()
        candidate.bundle.save(folder)
        return mlflow.pyfunc.log_model(
            name=candidate.bundle.name.replace(" ", "-"),
            python_model=str(SERVED_MODEL),
            artifacts={PREDICTOR: str(folder)},
            code_paths=[str(Path(pipeline_lib.__file__).parent)],
            signature=ModelSignature(inputs=Schema([ColSpec("binary", "video")])),
            pip_requirements=[f"{name}=={installed}" for name in REQUIREMENTS if (installed := _version(name))],
        )


def _version(name: str) -> str | None:
    """Return the version of an installed package; OpenCV may be installed under another of its names."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions() -> list[ModelVersion]:
    """Return all versions of `har`, oldest first."""
    from mlflow import MlflowClient

    return sorted(MlflowClient().search_model_versions(f"name = '{MODEL}'"), key=lambda found: int(found.version))


def newest() -> ModelVersion:
    """Return the newest version of `har`.

    Raises:
        UserError: there is none.
    """
    found = versions()
    if not found:
        raise UserError("no model is registered yet; `har run` registers its best one (try `har run demo`)")
    return found[-1]


def find_version(number: str) -> ModelVersion:
    """Return a version of `har` by its number.

    Raises:
        UserError: there is no such version.
    """
    newest()
    found = {str(version.version): version for version in versions()}
    if number not in found:
        raise UserError(f"{MODEL} has no version {number}; it has {', '.join(found)}")
    return found[number]


def champion() -> ModelVersion | None:
    """Return the champion, or None if no version was promoted."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient().get_model_version_by_alias(MODEL, CHAMPION)
    except MlflowException:
        return None


def make_champion(found: ModelVersion) -> None:
    """Set the champion alias to a version."""
    from mlflow import MlflowClient

    MlflowClient().set_registered_model_alias(MODEL, CHAMPION, str(found.version))


def standing(found: ModelVersion) -> str:
    """Return whether `har predict` uses a version by default, or how to make it the default."""
    now = champion()
    if (now or newest()).version == found.version:
        return "the champion" if now else "the default of har predict"
    return f"har promote {found.version} makes it the default of har predict"


def describe(found: ModelVersion | None) -> str:
    """Describe a version: `version 2 (alstm, fold 1, seed 0, validation 97.2 %)`."""
    if found is None:
        return "none"
    tags = found.tags
    words = [tags.get("model", ""), *(f"{name} {tags[name]}" for name in ("fold", "seed") if name in tags)]
    if "val_accuracy" in tags:
        words.append(f"validation {float(tags['val_accuracy']):.1%}")
    return f"version {found.version} ({', '.join(filter(None, words))})"
