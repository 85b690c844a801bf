"""MLflow's registry: each run's best model is a version of `har`, ready for raw video; `champion` is promoted by hand.

A child run keeps only its checkpoint and `predictor.json`; the backbone, which is large and the same for many, is in the parent
run, once. `tasks.mlflow.loading` puts a model together from them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.errors import UserError
from pipeline_lib.predict.bundle import INPUT_SPEC_FILE, ModelBundle
from tasks.mlflow import tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models.model import ModelInfo

MODEL = "har"
CHAMPION = "champion"
PREDICTOR = "predictor"
"""The folder of the MLflow model that holds the splits."""

SERVED_MODEL = Path(__file__).with_name("served_model.py")
"""MLflow runs this file to build the model ("models from code"); with it go the splits and `pipeline_lib`."""
REQUIREMENTS = (
    "mlflow", "torch", "torchvision", "numpy", "pandas", "pyarrow", "pydantic", "pyyaml", "safetensors", "h5py", "av",
    "ffmpeg-python", "imageio-ffmpeg",
)  # fmt: skip
"""What `pipeline_lib.predict` imports; named here, or MLflow would ask pip, which needs a network."""

SHOWN = ("model", "fold", "seed", "val_accuracy")
DIGEST, VERSION = "digest", "registered_version"
"""Tags: what tells that two versions are the same model; and, of a run, the version that is or has its best model."""


@dataclass(frozen=True)
class Candidate:
    """A trained model of a run."""

    run_id: str
    bundle: ModelBundle
    tags: Mapping[str, str]
    """What is `SHOWN` of its version."""


def log_bundles(parent_run_id: str, candidates: Iterable[Candidate], known: Container[str] = ()) -> set[str]:
    """Log to each child what its model needs beside the checkpoint, and to the parent each backbone once.

    Args:
        parent_run_id: where backbones are logged.
        candidates: children.
        known: digests of the backbones that the parent has.

    Returns:
        The digests of the backbones logged.
    """
    from pipeline_lib.training.checkpoints import read_metadata

    backbones = {}
    for candidate in candidates:
        tracking.log_json(candidate.run_id, candidate.bundle.input_spec.model_dump(), INPUT_SPEC_FILE)
        backbones[read_metadata(candidate.bundle.checkpoint).features["weights_sha256"]] = candidate.bundle.backbone
    new = {sha256: backbone for sha256, backbone in backbones.items() if sha256 not in known}
    for sha256, backbone in new.items():
        tracking.log_files(parent_run_id, [backbone], backbone_folder(sha256))
    return set(new)


def backbone_folder(weights_sha256: str) -> str:
    """Return where a parent run keeps a backbone's weights."""
    return f"backbones/{weights_sha256}"


def register(candidate: Candidate) -> ModelVersion:
    """Return the version of `har` that is this model, registered now unless it was before."""
    digest = candidate.bundle.digest
    same = [found for found in versions() if found.tags.get(DIGEST) == digest]
    found = same[-1] if same else _create_version(candidate, {DIGEST: digest, **candidate.tags})
    tracking.set_tags(candidate.run_id, {VERSION: str(found.version)})
    return found


def _create_version(candidate: Candidate, tags: dict[str, str]) -> ModelVersion:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, model = MlflowClient(), _log_model(candidate)
    with suppress(MlflowException):  # it is there already
        client.create_registered_model(MODEL)
    # `mlflow.register_model` does the same, and talks about it.
    return client.create_model_version(MODEL, model.model_uri, candidate.run_id, tags, model_id=model.model_id)


def _log_model(candidate: Candidate) -> ModelInfo:
    """Log everything that the model needs to predict raw video."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    import pipeline_lib

    with tempfile.TemporaryDirectory(prefix="har-") as scratch, mlflow.start_run(run_id=candidate.run_id):
        folder = Path(scratch) / PREDICTOR
        folder.mkdir()
        candidate.bundle.save(folder)
        return mlflow.pyfunc.log_model(
            name=candidate.bundle.input_spec.name.replace(" ", "-"),
            python_model=str(SERVED_MODEL),
            artifacts={PREDICTOR: str(folder)},
            code_paths=[str(Path(pipeline_lib.__file__).parent)],
            signature=ModelSignature(inputs=Schema([ColSpec("binary", "video")])),
            pip_requirements=[f"{requirement}=={version(requirement)}" for requirement in REQUIREMENTS],
        )


def versions() -> list[ModelVersion]:
    """Return the versions of `har`, the oldest first; none if nothing was ever registered."""
    from mlflow import MlflowClient

    return sorted(MlflowClient().search_model_versions(f"name = '{MODEL}'"), key=lambda found: int(found.version))


def newest() -> ModelVersion:
    """Return the newest version of `har`.

    Raises:
        UserError: there is none.
    """
    found = versions()
    if not found:
        raise UserError("no model is registered yet; `har run` registers its best one (try `har run params/demo.yaml`)")
    return found[-1]


def find_version(number: str) -> ModelVersion:
    """Return a version of `har` by its number.

    Raises:
        UserError: there is none; the line says which there are.
    """
    newest()
    found = {str(version.version): version for version in versions()}
    if number not in found:
        raise UserError(f"{MODEL} has no version {number}; it has {', '.join(found)}")
    return found[number]


def champion() -> ModelVersion | None:
    """Return the version that is the champion, if one was promoted."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient().get_model_version_by_alias(MODEL, CHAMPION)
    except MlflowException:
        return None


def make_champion(found: ModelVersion) -> None:
    """Set the alias."""
    from mlflow import MlflowClient

    MlflowClient().set_registered_model_alias(MODEL, CHAMPION, str(found.version))


def standing(found: ModelVersion) -> str:
    """Return in words whether a version is what `har predict` uses, and else how it becomes so."""
    now = champion()
    if (now or newest()).version == found.version:
        return "the champion" if now else "har predict VIDEO uses it"
    return f"har promote {found.version} makes it what har predict uses"


def describe(found: ModelVersion | None) -> str:
    """Return a version in words: `version 2 (alstm, fold 1, seed 0, validation 97.2 %)`."""
    if found is None:
        return "none"
    tags = found.tags
    words = [tags.get("model", ""), *(f"{name} {tags[name]}" for name in ("fold", "seed") if name in tags)]
    if "val_accuracy" in tags:
        words.append(f"validation {float(tags['val_accuracy']):.1%}")
    return f"version {found.version} ({', '.join(filter(None, words))})"
