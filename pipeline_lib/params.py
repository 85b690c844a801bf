"""The parameters of a run: one frozen, strict section per stage, loaded from a YAML file and `section.key=value` settings.

Every section says which of its values decide an artifact's content (`Section.recipe`); the others, marked `Operational`,
say where or how fast it is made and never enter a cache key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

STAGES = ("fetch", "subsample", "chunk", "finetune", "features", "train", "evaluate", "heatmaps", "report")
"""Stage names in the order of the pipeline; also the names of artifact folders, deployments and parameter sections."""

OPERATIONAL = "operational"

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Device = Literal["auto", "cpu", "cuda"]
Addresses = str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None
"""A path, an http(s) address, or a list of either, tried in order."""


def operational(default: Any, **constraints: Any) -> Any:
    """Declare a field that changes where or how fast a stage runs, not what it makes."""
    return Field(default, json_schema_extra={OPERATIONAL: True}, **constraints)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `1e-3` is a number, as in YAML 1.2 and as everybody means it."""


_SCIENTIFIC = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789"))


class Section(BaseModel):
    """A part of the parameters: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    def recipe(self) -> dict[str, Any]:
        """Return the values that decide the stage's content, as JSON types."""
        extras = {name: field.json_schema_extra for name, field in type(self).model_fields.items()}
        operational_names = {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get(OPERATIONAL)}
        return self.model_dump(mode="json", exclude=operational_names)


class SyntheticParams(Section):
    """The collection that `fetch.kind: synthetic` renders."""

    videos_per_class: PositiveInt = 20
    sources_per_class: Annotated[int, Field(ge=3)] = 6
    """Scenes, actors and cameras that a class's videos are drawn from; a source never crosses parts."""
    seconds: PositiveFloat = 2.4
    """Typical length of a video; a few are much shorter."""
    seed: int = 0


class FetchParams(Section):
    """Where the videos and their split files come from."""

    kind: Literal["hmdb51", "archive", "folder", "synthetic"]
    videos: Addresses = None
    splits: Addresses = None
    videos_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    splits_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    sources: str | None = None
    """CSV file `class/video,source`: videos of one source never cross parts. Without it, the file name tells."""
    boxes: str | None = None
    """CSV file `video,time_seconds,x0,y0,x1,y1` (fractions of the frame): where the actor is, to check attention."""
    synthetic: SyntheticParams = SyntheticParams()
    retries: Annotated[int, Field(ge=0)] = operational(5)
    timeout_seconds: PositiveFloat = operational(60.0)
    """Longest silence of a server before the transfer is retried."""
    unpack_seconds: PositiveFloat = operational(3600.0)
    max_members: PositiveInt = operational(200_000)
    max_unpacked_bytes: PositiveInt = operational(200 * 1024**3)

    @model_validator(mode="after")
    def _needs_videos(self) -> FetchParams:
        if self.kind in ("archive", "folder") and self.videos is None:
            raise ValueError(f"fetch.videos is needed when fetch.kind is {self.kind}: give a path or an address")
        if self.kind == "folder" and not isinstance(self.videos, str):
            raise ValueError("fetch.videos must be one folder when fetch.kind is folder")
        return self


class SubsampleParams(Section):
    """How videos are brought to one frame rate."""

    fps: PositiveFloat = 15.0
    crf: Annotated[int, Field(ge=0, le=30)] = 16
    """x264 quality; 16 is visually lossless."""
    shard_videos: PositiveInt = 128
    """Most videos of a class that share one shard."""
    timeout_seconds: PositiveFloat = operational(300.0)
    """Longest time ffmpeg may take over one video."""
    max_quarantined: Fraction = operational(0.01)
    """Share of videos that may turn out undecodable before the stage fails."""
    workers: PositiveInt | None = operational(None)
    """Shards subsampled at once; default: one per core."""


class ChunkParams(Section):
    """How videos become clips, and clips become train, val and test parts."""

    frames: PositiveInt = 30
    short: Literal["pad", "drop"] = "pad"
    """What becomes of videos shorter than a clip: last frame repeated and masked, or left out."""
    tail: Literal["pad", "drop"] = "pad"
    """What becomes of the frames after a video's last whole clip."""
    split: Literal[1, 2, 3] = 1
    protocol: Literal["official", "tutorial"] = "official"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the training videos, by source group, held out for validation (official protocol)."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of each class's videos tested, by source group, when there are no split files."""
    seed: int = 0

    def cut_recipe(self) -> dict[str, Any]:
        """Return what decides where clips begin and end; features depend on this and not on the parts."""
        return {"frames": self.frames, "short": self.short, "tail": self.tail}


class FinetuneParams(Section):
    """How the backbone is tuned on frames of the training part before features are taken from it."""

    enabled: bool = False
    epochs: PositiveInt = 5
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    frames_per_clip: PositiveInt = 4
    """Frames drawn from each training clip in an epoch."""
    patience: PositiveInt = 3
    seed: int = 0


class FeaturesParams(Section):
    """Which network turns frames into features_BTKKD, and how."""

    backbone: str = "vgg16"
    """A torchvision classification network by name, or `vgg_small`."""
    weights: str = "imagenet"
    """`imagenet` (torchvision's default weights), `random` (seeded), or the path of a local state dict."""
    image_size: PositiveInt = 224
    grid: PositiveInt = 7
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`: bf16 where the device computes in it, else fp32."""
    seed: int = 0
    """Seed of `weights: random`."""
    device: Device = operational("auto")
    batch_frames: PositiveInt = operational(64)


class TrainParams(Section):
    """Which models are trained, and how. The defaults are the article's."""

    models: Annotated[tuple[Literal["alstm", "conv_alstm"], ...], Field(strict=False, min_length=1)] = (
        "alstm",
        "conv_alstm",
    )
    epochs: PositiveInt = 30
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    attention_penalty: Annotated[float, Field(ge=0)] = 0.5
    """Weight of ALSTM's attention penalty; ConvALSTM has none, as in the article."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    patience: PositiveInt = 5
    """Epochs without a better validation loss before training stops."""
    alstm_units: PositiveInt = 512
    conv_alstm_units: PositiveInt = 256
    seed: int = 0
    deterministic: bool = True
    device: Device = operational("auto")

    @model_validator(mode="after")
    def _models_once(self) -> TrainParams:
        if len(set(self.models)) != len(self.models):
            raise ValueError("train.models names a model twice")
        return self

    def units(self, model: str) -> int:
        """Return the width of the model's recurrent layer."""
        return {"alstm": self.alstm_units, "conv_alstm": self.conv_alstm_units}[model]

    def model_recipe(self, model: str) -> dict[str, Any]:
        """Return what decides one model's training, under names that are the same for every model."""
        shared = self.recipe()
        for name in ("models", "alstm_units", "conv_alstm_units"):
            shared.pop(name)
        penalty = self.attention_penalty if model == "alstm" else 0.0
        return shared | {"model": model, "units": self.units(model), "attention_penalty": penalty}


class EvaluateParams(Section):
    """How the test part is scored."""

    batch_size: PositiveInt = operational(64)
    device: Device = operational("auto")


class HeatmapsParams(Section):
    """How attention is drawn over the frames. The defaults are the article's."""

    side: Annotated[int, Field(gt=0, multiple_of=2)] = 800
    percentile: Annotated[float, Field(ge=0, lt=100)] = 80
    sigma: PositiveFloat = 0.06
    """Standard deviation of the Gaussian filter, as a fraction of `side` (the tutorial's code: 30 of 500 pixels)."""
    opacity: Fraction = 0.5
    colormap: str = "turbo"
    successes: Annotated[int, Field(ge=0)] = 4
    failures: Annotated[int, Field(ge=0)] = 4
    gif_side: PositiveInt = 200


class ReportParams(Section):
    """The page that shows the run."""

    title: str = "Where the model looked"


class TrackingParams(Section):
    """Where MLflow keeps the run."""

    uri: str | None = None
    """Tracking server; default: MLFLOW_TRACKING_URI, else a SQLite file in the workspace."""
    experiment: str = "har"
    system_metrics: bool = True


class Params(Section):
    """All parameters of a run."""

    workspace: str = "workspace"
    fetch: FetchParams
    subsample: SubsampleParams = SubsampleParams()
    chunk: ChunkParams = ChunkParams()
    finetune: FinetuneParams = FinetuneParams()
    features: FeaturesParams = FeaturesParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    heatmaps: HeatmapsParams = HeatmapsParams()
    report: ReportParams = ReportParams()
    tracking: TrackingParams = TrackingParams()


def load_params(path: str | Path, settings: Iterable[str] = ()) -> Params:
    """Load a parameter file and apply `section.key=value` settings over it.

    Raises:
        ValueError: one line per mistake: where it is, the value found, what is accepted.
    """
    path = Path(path)
    values = _read_yaml(path)
    for setting in settings:
        _apply_setting(values, setting)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ValueError("\n".join(_describe(path, mistake) for mistake in error.errors())) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such parameter file; the ones that come with the project are in params/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a parameter file ({error})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold sections such as `fetch:`, found {type(values).__name__}")
    return values


def _apply_setting(values: dict[str, Any], setting: str) -> None:
    """Set one `section.key=value` in the nested dictionary; the value is read as YAML."""
    name, equals, text = setting.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not key or not all(sections):
        raise ValueError(f"--set {setting}: must look like section.key=value")
    for section in sections:
        below = values.setdefault(section, {})
        if below is None:
            below = values[section] = {}
        if not isinstance(below, dict):
            raise ValueError(f"--set {setting}: {section} is not a section")
        values = below
    try:
        values[key] = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ValueError(f"--set {setting}: the value is not valid YAML; quote it") from None


def _describe(path: Path, mistake: Any) -> str:
    """Turn one pydantic error into a line for users."""
    location = [part for part in mistake["loc"] if isinstance(part, int) or part.isidentifier()]
    name = ".".join(str(part) for part in location)
    if mistake["type"] == "extra_forbidden":
        return f"{path}: unknown key {name}; accepted here: {', '.join(_accepted_keys(location[:-1]))}"
    if mistake["type"] == "missing":
        return f"{path}: {name} is missing"
    if mistake["type"] == "value_error":
        return f"{path}: {mistake['ctx']['error']}"
    return f"{path}: {name} = {mistake['input']!r}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def _accepted_keys(location: list[Any]) -> list[str]:
    section: Any = Params
    for part in location:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
