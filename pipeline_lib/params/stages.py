"""One section of parameters per stage.

`Section.recipe` says which values decide an artifact's content; the others, declared `operational`, say where or how fast it
is made and never enter a cache key.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline_lib.errors import UserError
from pipeline_lib.params.section import (
    Device,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    operational,
)
from pipeline_lib.params.training import ModelName, TrainParams

logger = logging.getLogger(__name__)

Addresses = str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None
"""A path, an http(s) address, or a list of either, tried in order."""

Range = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], Field(strict=False)]
"""Lowest and highest value."""

Fold = Literal[1, 2, 3]
FOLDS: tuple[Fold, ...] = get_args(Fold)


class FetchParams(Section):
    """Where the videos and their split files come from."""

    kind: Literal["hmdb51", "archive", "folder"]
    videos: Addresses = None
    splits: Addresses = None
    videos_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    splits_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    groups: str | None = None
    """CSV file `class/video,group`: videos of one group, cut from the same footage, never cross splits. Without it, the file
    name tells."""
    boxes: str | None = None
    """CSV file `video,time_seconds,x0,y0,x1,y1` (fractions of the frame): where the actor is, to check attention."""
    hint: str | None = operational(None)
    """What to do about a local file that is missing, for the error's line."""
    retries: Annotated[int, Field(ge=0)] = operational(5)
    timeout_seconds: PositiveFloat = operational(60.0)
    """Longest silence of a server before the transfer is retried."""
    unpack_seconds: PositiveFloat = operational(3600.0)
    max_members: PositiveInt = operational(200_000)
    max_unpacked_bytes: PositiveInt = operational(200 * 1024**3)

    @model_validator(mode="before")
    @classmethod
    def _renders_no_more(cls, values: Any) -> Any:
        if isinstance(values, dict) and (values.get("kind") == "synthetic" or "synthetic" in values):
            raise UserError(
                "fetch.kind: synthetic is gone: render the collection with `python -m demo FOLDER`, and name its files in "
                "fetch as params/demo.yaml does"
            )
        return values

    @model_validator(mode="after")
    def _needs_videos(self) -> FetchParams:
        if self.kind in ("archive", "folder") and self.videos is None:
            raise UserError(f"fetch.videos is needed when fetch.kind is {self.kind}: give a path or an address")
        if self.kind == "folder" and not isinstance(self.videos, str):
            raise UserError("fetch.videos must be one folder when fetch.kind is folder")
        return self


class SubsampleParams(Section):
    """How videos are brought to one frame rate."""

    fps: PositiveFloat = 15.0
    crf: Annotated[int, Field(ge=0, le=30)] = 16
    """x264 quality; 16 is visually lossless, 0 loses nothing."""
    shard_videos: PositiveInt = 64
    """Most videos of a class that share one shard."""
    timeout_seconds: PositiveFloat = operational(300.0)
    """Longest time ffmpeg may take over one video."""
    max_quarantined: Fraction = operational(0.01)
    """Share of videos that may turn out undecodable before the stage fails."""

    @model_validator(mode="before")
    @classmethod
    def _forget_workers(cls, values: Any) -> Any:
        """Ignore a key that older parameter files may have, and that never did anything."""
        if not isinstance(values, dict) or "workers" not in values:
            return values
        logger.warning("subsample.workers is ignored: shards are subsampled one a core; remove it from the parameters")
        return {name: value for name, value in values.items() if name != "workers"}


class ChunkParams(Section):
    """How videos become clips, and clips become train, val and test splits."""

    frames: PositiveInt = 30
    short: Literal["pad", "drop"] = "pad"
    """What becomes of videos shorter than a clip: last frame repeated and masked, or left out."""
    tail: Literal["pad", "drop"] = "pad"
    """What becomes of the frames after a video's last whole clip."""
    fold: Fold | tuple[Fold, ...] = 1
    """Which of the collection's folds; several, as a list, are run side by side on the same features."""
    protocol: Literal["official", "tutorial", "tutorial_code"] = "official"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the training videos, by group, held out for validation (official protocol)."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of each class's videos tested, by group, when there are no split files."""
    seed: int = 0

    @field_validator("fold", mode="before")
    @classmethod
    def _one_fold_or_several(cls, value: Any) -> Any:
        several = isinstance(value, list | tuple)
        folds = tuple(value) if several else (value,)
        known = all(type(fold) is int and fold in FOLDS for fold in folds)
        if not known or not folds or len(set(folds)) < len(folds):
            raise UserError(f"chunk.fold = {value!r}: must be 1, 2 or 3, or a list of some of them")
        return folds if several else value

    @property
    def folds(self) -> tuple[Fold, ...]:
        """All folds asked for."""
        return self.fold if isinstance(self.fold, tuple) else (self.fold,)

    def of_fold(self, fold: Fold) -> ChunkParams:
        """Return the parameters of one of the folds."""
        return self.model_copy(update={"fold": fold})

    def cut_recipe(self) -> dict[str, Any]:
        """Return what decides where clips begin and end; features depend on this and not on the splits."""
        return {"frames": self.frames, "short": self.short, "tail": self.tail}


class FinetuneParams(Section):
    """How the backbone is tuned on frames of the training split before features are taken from it."""

    enabled: bool = False
    blocks: PositiveInt | Literal["all"] = "all"
    """How many of the backbone's last blocks are tuned; a block is what works at one resolution (VGG16 has 5)."""
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 1e-4
    frames_per_video: PositiveInt = 8
    """Frames drawn from each training video in an epoch."""
    flip: bool = True
    """Whether every other frame is mirrored."""
    crop: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """How far frames are zoomed and shifted at random, as a fraction of their side; 0 leaves them as they are."""
    colour: Annotated[float, Field(ge=0)] = 0.5
    """How far each colour's contrast and brightness change at random; 0 leaves them as they are."""
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
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """`auto`: fp16 on a GPU, bf16 on a CPU that computes in it, else fp32. Finetuning takes bf16 for fp16."""
    seed: int = 0
    """Seed of `weights: random`."""
    device: Device = operational("auto")
    batch_frames: PositiveInt | None = operational(None)
    """Frames in a batch; default: 256 on a GPU, where a batch that does not fit is halved; fewer on a CPU."""


class SweepParams(Section):
    """Which hyper-parameters are searched for, and where. Only the train and val splits take part."""

    enabled: bool = False
    models: Annotated[tuple[ModelName, ...], Field(strict=False, min_length=1)] = ("alstm", "conv_alstm")
    trials: PositiveInt = 30
    """Trials of each model."""
    seed: int = 0
    learning_rate: Range = (1e-4, 1e-2)
    dropout: Range = (0.0, 0.7)
    scorer: Annotated[tuple[Literal["local", "pooled"], ...], Field(strict=False, min_length=1)] = ("local", "pooled")
    attention_penalty: Range = (1e-3, 10.0)
    """Range of the penalty where there is one; a trial may also have none."""
    weight_decay: Range = (1e-6, 1e-1)
    """Likewise."""
    units: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)] | None = None
    """Default: half as many as the model has, as many, and twice as many."""
    layers: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)] = (1, 2)
    head_channels: Annotated[tuple[PositiveInt | None, ...], Field(strict=False, min_length=1)] = (None, 64, 128)
    workers: PositiveInt | None = operational(None)
    """Trials under way at once; default: as many as the cores, or the GPU's memory, hold."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> SweepParams:
        for name in ("learning_rate", "dropout", "attention_penalty", "weight_decay"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"sweep.{name} = [{low:g}, {high:g}]: the first must be the smaller")
        if self.learning_rate[0] == 0 or self.dropout[1] >= 1:
            raise UserError("sweep: learning_rate must begin above 0, and dropout end below 1")
        return self


class EvaluateParams(Section):
    """How the test split is scored."""

    resamples: PositiveInt = 10_000
    """Random sign flips behind each paired test, where there are too many to try them all."""
    permutations: PositiveInt = 20
    """Times that the labels are permuted for the control."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    batch_size: PositiveInt = operational(64)
    device: Device = operational("auto")


class HeatmapsParams(Section):
    """How attention is drawn over the frames. The defaults are the article's."""

    side: Annotated[int, Field(gt=0, multiple_of=2)] = 800
    """Pixels of the longer side."""
    aspect: Literal["square", "original"] = "square"
    """Whether frames are squared (article) or keep their video's shape."""
    scale: Literal["article", "share"] = "article"
    """What colours mean. `article`: from each frame's least attention to its most, above the percentile, which gives noise
    colours as strong as focus; `share`: multiples of an even share, above 1 and full at 4 (`pipeline_lib.heatmaps.maps`)."""
    percentile: Annotated[float, Field(ge=0, lt=100)] = 80
    sigma: PositiveFloat = 0.06
    """Standard deviation of the Gaussian filter, as a fraction of `side` (the tutorial's code: 30 of 500 pixels)."""
    opacity: Fraction = 0.5
    colormap: str = "turbo"
    """Any of matplotlib's; `cividis` and `viridis` survive colour blindness and printing in grey."""
    successes: Annotated[int, Field(ge=0)] = 4
    failures: Annotated[int, Field(ge=0)] = 4
    gif_side: Annotated[int, Field(gt=1)] = 200


class ReportParams(Section):
    """The page that shows the run."""

    title: str = "Where the model looked"


class TrackingParams(Section):
    """Where MLflow keeps the run."""

    uri: str | None = None
    """Tracking server; default: MLFLOW_TRACKING_URI, else a SQLite file in the workspace."""
    experiment: str = "har"
    system_metrics: bool = True


class RunParams(Section):
    """Where the run's work is done."""

    engine: str | None = operational(None)
    """Ray cluster to run on, HOST:PORT of its head or `auto`; default: RAY_ADDRESS, else this machine."""


class Params(Section):
    """All parameters of a run."""

    workspace: str = "workspace"
    fetch: FetchParams
    subsample: SubsampleParams = SubsampleParams()
    chunk: ChunkParams = ChunkParams()
    finetune: FinetuneParams = FinetuneParams()
    features: FeaturesParams = FeaturesParams()
    sweep: SweepParams = SweepParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    heatmaps: HeatmapsParams = HeatmapsParams()
    report: ReportParams = ReportParams()
    tracking: TrackingParams = TrackingParams()
    run: RunParams = RunParams()

    @model_validator(mode="after")
    def _sweeps_what_is_trained(self) -> Params:
        others = [model for model in self.sweep.models if model not in self.train.models]
        if self.sweep.enabled and others:
            raise UserError(f"sweep.models names {others[0]}, which train.models does not; add it there, or leave it out here")
        return self
