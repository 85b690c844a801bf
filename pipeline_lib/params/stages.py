"""One section of parameters per stage.

`Section.recipe` returns the values that affect an artifact's content. All others are declared `operational`: they affect where
or how fast it is made, and are not part of cache keys.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline_lib.errors import UserError
from pipeline_lib.params.models import (
    MODELS,
    SECOND_INPUT,
    SECOND_IS_OPTIONAL,
    ModelOnStream,
    TrainParams,
    default_stream,
    split_model,
)
from pipeline_lib.params.section import (
    Device,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    operational,
)

logger = logging.getLogger(__name__)

Addresses = str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None
"""A path, an http(s) address, or a list of either, tried in order."""

Range = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], Field(strict=False)]
"""Lowest and highest value."""

Fold = Literal[1, 2, 3]
FOLDS: tuple[Fold, ...] = get_args(Fold)


DataSetName = Literal["hmdb51", "ucf101"]
"""The registry of data sets: each name is that of a module in `pipeline_lib/datasets/`."""


class FetchParams(Section):
    """Parameters of the fetch stage: the collection's videos, split files and tables."""

    kind: Literal[DataSetName, "archive", "folder"]
    """A known data set, or a collection of one's own as an archive or a folder."""
    videos: Addresses = None
    splits: Addresses = None
    videos_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    splits_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    groups: str | None = None
    """CSV file `class/video,group`. Videos of a group are cut from the same footage and never cross splits. Default: derived
    from file names."""
    boxes: str | None = None
    """Boxes of the actors, to compare attention with: a CSV file `video,time_seconds,x0,y0,x1,y1` (fractions of the frame, one
    row per box), UCF101-24's `pyannot.pkl` or `finalAnnots.mat`, or J-HMDB's folder `puppet_mask`."""
    hint: str | None = operational(None)
    """Advice to add to the error if a local file is missing."""
    retries: Annotated[int, Field(ge=0)] = operational(5)
    timeout_seconds: PositiveFloat = operational(60.0)
    """Maximum time to wait for data from a server before a retry."""
    unpack_seconds: PositiveFloat = operational(3600.0)
    max_members: PositiveInt = operational(200_000)
    max_unpacked_bytes: PositiveInt = operational(200 * 1024**3)

    @model_validator(mode="before")
    @classmethod
    def _refuse_synthetic(cls, values: Any) -> Any:
        if isinstance(values, dict) and (values.get("kind") == "synthetic" or "synthetic" in values):
            raise UserError(
                "fetch.kind: synthetic no longer exists: render the collection with `python -m demo FOLDER`, and give its "
                "files as in params/demo.yaml"
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
    """Parameters of the subsample stage, which converts videos to one frame rate."""

    fps: PositiveFloat = 15.0
    crf: Annotated[int, Field(ge=0, le=30)] = 16
    """x264 quality; 16 is visually lossless, 0 is lossless."""
    shard_videos: PositiveInt = 64
    """Maximum number of videos per shard; a shard has videos of one class."""
    timeout_seconds: PositiveFloat = operational(300.0)
    """Maximum time for ffmpeg to convert one video."""
    max_quarantined: Fraction = operational(0.01)
    """Maximum fraction of videos that cannot be decoded; with more the stage fails."""

    @model_validator(mode="before")
    @classmethod
    def _ignore_workers(cls, values: Any) -> Any:
        """Ignore a key of older parameter files that never had an effect."""
        if not isinstance(values, dict) or "workers" not in values:
            return values
        logger.warning("subsample.workers is ignored: one shard runs on each core; remove it from the parameters")
        return {name: value for name, value in values.items() if name != "workers"}


class ChunkParams(Section):
    """Parameters of the chunk stage, which cuts videos into clips and assigns them to splits."""

    frames: PositiveInt = 30
    short: Literal["pad", "drop"] = "pad"
    """Policy for videos shorter than a clip: repeat the last frame, which is masked, or drop the video."""
    tail: Literal["pad", "drop"] = "pad"
    """The same policy for the frames after a video's last full clip."""
    fold: Fold | tuple[Fold, ...] = 1
    """Fold of the collection, or a list of folds to run on the same features."""
    protocol: Literal["official", "tutorial", "tutorial_code"] = "official"
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Fraction of the training videos to hold out for validation, by group (official protocol)."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Fraction of each class's videos to test, by group, if there are no split files."""
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
        """All requested folds."""
        return self.fold if isinstance(self.fold, tuple) else (self.fold,)

    def of_fold(self, fold: Fold) -> ChunkParams:
        """Return the parameters with a single fold."""
        return self.model_copy(update={"fold": fold})

    def cut_recipe(self) -> dict[str, Any]:
        """Return the values that affect how videos are cut, on which features depend; they do not depend on splits."""
        return {"frames": self.frames, "short": self.short, "tail": self.tail}


class FinetuneParams(Section):
    """Parameters of the finetune stage, which tunes the backbones of streams on the training split."""

    enabled: bool = False
    streams: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = operational(None)
    """Streams whose backbones are tuned; default: the stream that models read by default."""
    blocks: PositiveInt | Literal["all"] = "all"
    """Number of the backbone's last blocks to tune; a block has one resolution (VGG16 has 5)."""
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 1e-4
    frames_per_video: PositiveInt = 8
    """Number of random frames of each training video per epoch; of other streams, stacks of flows or clips."""
    flip: bool = True
    """Random horizontal flip (p = 0.5), of optical flow with the sign of x."""
    crop: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Maximum random zoom and shift, as a fraction of the frame's side; 0 disables it."""
    colour: Annotated[float, Field(ge=0)] = 0.5
    """Maximum random change of contrast and brightness of each colour channel; 0 disables it. Optical flow has no
    colours."""
    patience: PositiveInt | None = None
    """Epochs without a lower validation loss before tuning stops; null: all epochs run, as the learning rate falls until the
    last one. The weights of the best epoch are kept either way."""
    seed: int = 0


Compression = Literal["none", "lz4"]
FlowMethodName = Literal["dis", "farneback", "tvl1", "raft"]
"""The registry of optical flow methods: each name is that of a module in `pipeline_lib/streams/flow/methods/`."""


class StreamParams(Section):
    """Parameters of one stream of features: for each clip `steps x K x K x D`."""

    input: Literal["frame", "flow", "clip"] = "frame"
    """What a step is made from: one frame, optical flow, or all frames of the clip (3-D networks)."""
    backbone: str = "vgg16"
    """A torchvision image or video network, `vgg_small`, `timm:NAME`, or `hf:NAME`."""
    weights: str = "imagenet"
    """`imagenet`, `kinetics` (clips), `hub` (`hf:NAME`), all downloaded; `random` (seeded), or a local state dict's path (with
    a slash or a suffix)."""
    image_size: PositiveInt = 224
    grid: PositiveInt | Literal["native"] = 7
    """Cells per side; `native`: as many as the network has."""
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """`auto`: fp16 on a GPU, bf16 on a CPU with bf16 instructions, else fp32. The finetune stage treats fp16 as `auto`."""
    seed: int = 0
    """Seed of `weights: random`."""
    method: FlowMethodName = "dis"
    """Optical flow: OpenCV's DIS, Farneback or TV-L1, or torchvision's RAFT."""
    method_weights: str | None = None
    """Path of RAFT's state dict; default: downloaded."""
    stack: PositiveInt = 1
    """Consecutive flows in a step."""
    encoding: Literal["image", "stack"] | None = None
    """`image`: x, y and magnitude of one flow as the channels of an image; `stack`: x and y of `stack` flows as 2 x `stack`
    channels. Default: `stack` if there are several flows."""
    bound: PositiveFloat = 20.0
    """Flow in pixels (at `image_size`) that is clipped to the ends of the range from 0 to 255."""
    device: Device = operational("auto")
    batch_frames: PositiveInt | None = operational(None)
    """Frames per batch; default: 256 on a GPU, fewer on a CPU. A batch that does not fit the GPU's memory is halved."""
    compression: Compression = operational("none")
    """`lz4`: smaller files of features after a ReLU, slower to read; existing files stay as they are."""

    @model_validator(mode="after")
    def _fits_input(self) -> StreamParams:
        others = sorted(self._changed() & set(FLOW_KEYS)) if self.input != "flow" else []
        if others:
            raise UserError(f"{others[0]} is for streams with `input: flow`, not `input: {self.input}`; remove it")
        if self.method_weights is not None and self.method != "raft":
            raise UserError(f"method_weights is for `method: raft`, not `method: {self.method}`; remove it")
        if self.encoding == "image" and self.stack > 1:
            raise UserError(f"encoding: image takes one flow, but stack = {self.stack}; remove one of the two")
        return self

    def _changed(self) -> set[str]:
        """Return the keys with other values than the defaults, which a file of all parameters also gives."""
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}

    @property
    def flow_encoding(self) -> Literal["image", "stack"]:
        """The encoding of flows, with its default."""
        return self.encoding or ("stack" if self.stack > 1 else "image")

    @property
    def weights_path(self) -> Path | None:
        """The user's file with the weights, unless `weights` is a word."""
        return path_of_weights(self.weights)

    @property
    def input_channels(self) -> int:
        """Channels of a step's image: 3, or two for each flow of a stack."""
        return 2 * self.stack if self.input == "flow" and self.flow_encoding == "stack" else 3

    def recipe(self) -> dict[str, Any]:
        """Return the values that affect the features: those of flow only for flow, and the input only if it is not a frame."""
        unused = (
            {"streams"} | (set() if self.input == "flow" else set(FLOW_KEYS)) | ({"input"} if self.input == "frame" else set())
        )
        values = {name: value for name, value in super().recipe().items() if name not in unused}
        if self.input == "flow":
            values |= {"encoding": self.flow_encoding} | FLOW_VERSIONS.get(self.method, {})
        return values


WEIGHTS_WORD = re.compile("[a-z][a-z0-9_]*")


def path_of_weights(weights: str) -> Path | None:
    """Return the path that `weights` is, unless it is a word such as `random`, whose meaning the family of backbones says."""
    return None if WEIGHTS_WORD.fullmatch(weights) else Path(weights).expanduser()


FLOW_VERSIONS = {"dis": {"method_version": 2}}
"""What a recipe and the features' provenance say of methods that gave other flow in an earlier version of this package."""

FLOW_KEYS = ("method", "method_weights", "stack", "encoding", "bound")
"""Keys of `StreamParams` that only streams of optical flow have."""

SHARED_KEYS = ("device", "batch_frames", "compression")
"""Keys of `StreamParams` that are given once for all streams."""

StreamName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]


class FeaturesParams(StreamParams):
    """Parameters of the features stage: one stream called `rgb`, or several named ones in `streams`."""

    streams: Annotated[dict[StreamName, StreamParams], Field(min_length=1)] | None = None
    """Streams by name. Models read `rgb` by default, else the first one, or `MODEL@STREAM`."""

    @model_validator(mode="after")
    def _one_or_several(self) -> FeaturesParams:
        flat = sorted(self._changed() - {"streams", *SHARED_KEYS})
        if self.streams and flat:
            raise UserError(f"features.{flat[0]} and features.streams exclude each other; give {flat[0]} in each stream")
        for name, stream in (self.streams or {}).items():
            if shared := sorted(stream._changed() & set(SHARED_KEYS)):
                raise UserError(f"features.streams.{name}.{shared[0]}: give it once for all streams, as features.{shared[0]}")
        return self

    @property
    def all_streams(self) -> dict[str, StreamParams]:
        """All streams by name, with what the section says for all."""
        shared = {name: getattr(self, name) for name in SHARED_KEYS}
        if self.streams is None:
            return {"rgb": StreamParams(**{name: getattr(self, name) for name in self.model_fields_set - {"streams"}})}
        return {name: stream.model_copy(update=shared) for name, stream in self.streams.items()}

    @property
    def default_stream(self) -> str:
        """The stream of models that name none."""
        return default_stream(self.all_streams)


class SweepParams(Section):
    """Parameters of the sweep stage, which searches for hyper-parameters on the train and val splits."""

    enabled: bool = False
    models: Annotated[tuple[ModelOnStream, ...], Field(strict=False, min_length=1)] = ("alstm", "conv_alstm")
    trials: PositiveInt = 30
    """Number of trials per model."""
    seed: int = 0
    learning_rate: Range = (1e-4, 1e-2)
    dropout: Range = (0.0, 0.7)
    scorer: Annotated[tuple[Literal["local", "pooled"], ...], Field(strict=False, min_length=1)] = ("local", "pooled")
    attention_penalty: Range = (1e-3, 10.0)
    """Range of nonzero penalties; a trial may also have none."""
    weight_decay: Range = (1e-6, 1e-1)
    """Range of nonzero weight decay; a trial may also have none."""
    units: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)] | None = None
    """Default: half, equal and twice the number in the train section."""
    layers: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)] = (1, 2)
    head_channels: Annotated[tuple[PositiveInt | None, ...], Field(strict=False, min_length=1)] = (None, 64, 128)
    workers: PositiveInt | None = operational(None)
    """Maximum number of trials in parallel; default: as the cores or the GPU's memory allow."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> SweepParams:
        for name in ("learning_rate", "dropout", "attention_penalty", "weight_decay"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"sweep.{name} = [{low:g}, {high:g}]: the first must be the smaller")
        if self.learning_rate[0] == 0 or self.dropout[1] >= 1:
            raise UserError("sweep: learning_rate must start above 0, and dropout must end below 1")
        return self


class FusionParams(Section):
    """Parameters of one score fusion: the models whose class probabilities are combined, and how."""

    members: Annotated[tuple[ModelOnStream, ...], Field(strict=False, min_length=2)]
    """Models of `train.models`."""
    method: Literal["mean", "weights", "svm"] = "mean"
    """`mean` of probabilities; weighted mean (`weights`); linear SVM on the members' probabilities of a video (`svm`)."""
    weights: Annotated[tuple[NonNegativeFloat, ...], Field(strict=False)] | None = None
    """Weights of the members, of any sum; default: fitted on the validation split. Only for `method: weights`."""

    @model_validator(mode="after")
    def _weights_fit(self) -> FusionParams:
        if len(set(self.members)) != len(self.members):
            raise UserError("members has an entry twice; remove one")
        if self.weights is None:
            return self
        if self.method != "weights":
            raise UserError(f"weights are for `method: weights`, not `method: {self.method}`; remove them")
        if len(self.weights) != len(self.members) or not 0 < sum(self.weights) < math.inf:
            raise UserError(f"weights = {list(self.weights)}: give {len(self.members)} finite ones, one a member, not all 0")
        return self


FUSION_NAME = re.compile("[a-z][a-z0-9_]*")
RESERVED_NAMES = (*MODELS, *(f"{model}_tuned" for model in MODELS), "logistic_regression", "linear_svm")
"""Names of other rows in the results."""


class EvaluateParams(Section):
    """Parameters of the evaluate stage, which scores models and their fusions on the test split."""

    fusions: dict[str, FusionParams] = Field(default_factory=dict)
    """Score fusions of trained models, by name. They stand beside the models in the results."""

    vote_last: PositiveInt | None = None
    """Only this many of a clip's last valid frames vote (Sharma et al. 2016: 16 of 30); null: all. Fusions count all frames."""
    linear_svm: bool = False
    """Fit a linear SVM beside the logistic regression (C3D's protocol); on HMDB-51 it takes minutes."""
    resamples: PositiveInt = 10_000
    """Number of random sign flips per paired test, if there are too many to enumerate."""
    permutations: PositiveInt = 20
    """Number of label permutations of the control."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    batch_size: PositiveInt = operational(64)
    device: Device = operational("auto")

    @model_validator(mode="after")
    def _fusions_have_names(self) -> EvaluateParams:
        for name in self.fusions:
            if not FUSION_NAME.fullmatch(name):
                raise UserError(
                    f"evaluate.fusions has {name!r}; a fusion's name has lower-case letters, digits and _, a letter first"
                )
            if name in RESERVED_NAMES:
                raise UserError(f"evaluate.fusions has {name!r}, which is the name of a model; give it another name")
        return self

    def recipe(self) -> dict[str, Any]:
        """Return the values that affect models, controls and comparisons; a fusion is an artifact of its own."""
        unset = {name for name in ("vote_last", "linear_svm") if not getattr(self, name)}
        return {name: value for name, value in super().recipe().items() if name not in {"fusions"} | unset}


class HeatmapsParams(Section):
    """Parameters of the heatmaps stage, which draws attention over frames. The defaults are the article's."""

    side: Annotated[int, Field(gt=0, multiple_of=2)] = 800
    """Longer side in pixels."""
    aspect: Literal["square", "original"] = "square"
    """Resize frames to squares (article) or keep their aspect ratio."""
    scale: Literal["article", "share"] = "article"
    """Scale of colours. `article`: from each frame's minimum to its maximum, above the percentile; noise gets colours as strong
    as focused attention. `share`: from 1 to 4 times uniform attention (see `pipeline_lib.heatmaps.maps`)."""
    percentile: Annotated[float, Field(ge=0, lt=100)] = 80
    sigma: PositiveFloat = 0.06
    """Standard deviation of the Gaussian filter, as a fraction of `side` (the tutorial's code: 30 of 500 pixels)."""
    opacity: Fraction = 0.5
    colormap: str = "turbo"
    """Name of a matplotlib colour map; `cividis` and `viridis` suit colour-blind viewers and greyscale print."""
    successes: Annotated[int, Field(ge=0)] = 4
    failures: Annotated[int, Field(ge=0)] = 4
    gif_side: Annotated[int, Field(gt=1)] = 200


class ReportParams(Section):
    """Parameters of the report stage, which writes the run's HTML page."""

    title: str = "Where the model looked"


class TrackingParams(Section):
    """Parameters of tracking with MLflow."""

    uri: str | None = None
    """Tracking server; default: MLFLOW_TRACKING_URI, else a SQLite file in the workspace."""
    experiment: str = "har"
    system_metrics: bool = True


class RunParams(Section):
    """Parameters of the engine that executes the work."""

    engine: str | None = operational(None)
    """Ray cluster to run on, HOST:PORT of its head or `auto`; default: RAY_ADDRESS, else this machine."""


class Params(Section):
    """All parameters of a run."""

    workspace: str = "workspace"
    """Folder of the run's artifacts and records, or an address in an object store, such as s3://bucket/prefix."""
    cache: str | None = None
    """Folder of this machine's copies, with a workspace in an object store; default: one in HAR_CACHE or ~/.cache/har."""
    cache_gb: Annotated[float, Field(gt=0)] | None = None
    """Size of the cache, checked when a run begins and ends: the least recently used copies are deleted; default: no limit."""
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
            raise UserError(f"sweep.models has {others[0]}, but train.models does not; add it there, or remove it here")
        return self

    @model_validator(mode="after")
    def _tunes_present_streams(self) -> Params:
        others = [name for name in self.finetune.streams or () if name not in self.features.all_streams]
        if others:
            present = ", ".join(self.features.all_streams)
            raise UserError(f"finetune.streams has {others[0]}, but features.streams has only {present}; add it there")
        return self

    @model_validator(mode="after")
    def _models_read_present_streams(self) -> Params:
        present = self.features.all_streams
        for key, names in (("models", self.train.models), ("overrides", self.train.overrides)):
            for model, stream in ((name, stream) for name in names for stream in split_model(name)[1]):
                if stream not in present:
                    raise UserError(
                        f"train.{key} has {model}, but features.streams has only {', '.join(present)}; add {stream} there"
                    )
        for model in self.train.models:
            if (same := self._as_trained(model)) != model:
                raise UserError(f"train.models has {same} and {model}, which are the same; remove one")
            grids = {name: present[name].grid for name in self.streams_of(model)}
            if len(set(grids.values()) - {"native"}) > 1:
                given = " and ".join(f"features.streams.{name}.grid = {grid}" for name, grid in grids.items())
                raise UserError(f"train.models has {model}, which reads both streams, but {given}; give them the same grid")
        for name in self.train.overrides:
            if split_model(name)[1] and (trained := self._as_trained(name)) not in (None, name):
                raise UserError(f"train.overrides has {name}, which train.models calls {trained}; write {trained} here too")
        return self

    @model_validator(mode="after")
    def _fuses_what_is_trained(self) -> Params:
        for name, fusion in self.evaluate.fusions.items():
            if others := [model for model in fusion.members if model not in self.train.models]:
                trained = self._as_trained(others[0])
                advice = f"write {trained}, as train.models calls it" if trained else "add it there, or remove it here"
                raise UserError(f"evaluate.fusions.{name}.members has {others[0]}, but train.models does not; {advice}")
        return self

    def _as_trained(self, name: str) -> str | None:
        """Return what `train.models` calls this model on these streams, or None if it does not have it."""
        wanted = split_model(name)[0], self.streams_of(name)
        return next((model for model in self.train.models if (split_model(model)[0], self.streams_of(model)) == wanted), None)

    @property
    def tuned_streams(self) -> dict[str, StreamParams]:
        """The streams whose backbones the finetune stage tunes, if it is enabled."""
        names = self.finetune.streams or (self.features.default_stream,)
        return {name: self.features.all_streams[name] for name in names}

    def streams_of(self, name: str) -> tuple[str, ...]:
        """Return the streams that a model reads: those in its name, or the default one, and one with its second input."""
        model, streams = split_model(name)
        if streams:
            return streams
        first, wanted = self.features.default_stream, SECOND_INPUT.get(model)
        others = {stream: params for stream, params in self.features.all_streams.items() if stream != first}
        second = [stream for stream, params in others.items() if params.input == wanted]
        if not second and (wanted is None or model in SECOND_IS_OPTIONAL):
            return (first,)
        if not second:
            raise UserError(
                f"train.models has {name}, which reads a stream with `input: {wanted}`; add one to features.streams"
            )
        return first, second[0]
