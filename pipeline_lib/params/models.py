"""Names of models, and the parameters of their training."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from pipeline_lib.errors import UserError
from pipeline_lib.params.section import Device, NonNegativeFloat, PositiveFloat, PositiveInt, Section, operational

ModelName = Literal[
    "alstm",
    "conv_alstm",
    "attention_pool",
    "lrcn",
    "mean_pool",
    "motion_conv_alstm",
    "motion_alstm",
    "temporal_attention",
    "fusion_early",
    "fusion_late",
    "fusion_slow",
]
MODELS: tuple[ModelName, ...] = get_args(ModelName)

DEFAULT_MODELS: tuple[ModelName, ...] = ("alstm", "conv_alstm", "attention_pool", "lrcn", "mean_pool")
"""The article's two models, followed by baselines without attention or recurrence."""

SECOND_INPUT: dict[ModelName, str] = {
    "motion_conv_alstm": "flow",
    "motion_alstm": "flow",
    "temporal_attention": "clip",
}
"""Models of two streams, with the input of the second one."""

SECOND_IS_OPTIONAL: tuple[ModelName, ...] = ("temporal_attention",)
"""Models of two streams that also read one alone."""

WITHOUT_ATTENTION: tuple[ModelName, ...] = (
    "lrcn",
    "mean_pool",
    "fusion_early",
    "fusion_late",
    "fusion_slow",
)
"""Models that never compute attention over cells."""

Motion = Literal["state", "map", "magnitude", "shuffled"]

MODEL_ON_STREAMS = re.compile(rf"({'|'.join(MODELS)})(?:@([a-z][a-z0-9_]*(?:\+[a-z][a-z0-9_]*)*))?")


def split_model(name: str) -> tuple[ModelName, tuple[str, ...]]:
    """Return the model and the streams of `MODEL@STREAM` or `MODEL@STREAM+STREAM`; no stream if the name has none.

    Raises:
        UserError: there is no model with this name, or it reads another number of streams.
    """
    match = MODEL_ON_STREAMS.fullmatch(name)
    if not match:
        raise UserError(f"{name!r} is not a model; give {', '.join(MODELS)}, or one of them on a stream as MODEL@STREAM")
    model, streams = cast(ModelName, match[1]), tuple(match[2].split("+")) if match[2] else ()
    fewest = 1 if model in SECOND_IS_OPTIONAL else num_streams(model)
    if streams and not fewest <= len(streams) <= num_streams(model):
        accepted = " or ".join(map(str, range(fewest, num_streams(model) + 1)))
        noun = "stream" if accepted == "1" else "streams"
        raise UserError(f"{name!r}: {model} reads {accepted} {noun}, not {len(streams)}")
    return model, streams


def num_streams(model: ModelName) -> int:
    """Return how many streams a model reads at most."""
    return 2 if model in SECOND_INPUT else 1


def _check_model(name: str) -> str:
    split_model(name)
    return name


ModelOnStream = Annotated[str, AfterValidator(_check_model)]
"""A model and what it reads: `MODEL@STREAM`, `MODEL@STREAM+STREAM`, or `MODEL` for the run's default stream."""


def default_stream(streams: Iterable[str]) -> str:
    """Return the stream of models that name none: `rgb`, or the first if there is none of this name."""
    names = list(streams)
    return "rgb" if "rgb" in names else names[0]


UNUSED_HYPERPARAMETERS: dict[ModelName, tuple[str, ...]] = {
    "alstm": ("rescale_glimpse", "head_channels"),
    "conv_alstm": ("scorer", "attention_penalty"),
    "attention_pool": ("layers", "rescale_glimpse", "carry_state", "head_channels", "attention_penalty"),
    "lrcn": ("scorer", "uniform_start", "rescale_glimpse", "head_channels", "attention_penalty"),
    "mean_pool": (
        "units",
        "layers",
        "scorer",
        "uniform_start",
        "rescale_glimpse",
        "carry_state",
        "head_channels",
        "attention_penalty",
    ),
    "motion_conv_alstm": ("scorer", "carry_state", "attention_penalty"),
    "motion_alstm": ("rescale_glimpse", "carry_state", "head_channels"),
    "temporal_attention": (
        "layers",
        "scorer",
        "rescale_glimpse",
        "carry_state",
        "head_channels",
        "attention_penalty",
    ),
    **dict.fromkeys(
        ("fusion_early", "fusion_late", "fusion_slow"),
        ("layers", "scorer", "uniform_start", "rescale_glimpse", "carry_state", "head_channels", "attention_penalty"),
    ),
}
"""Hyper-parameters that a model does not have. Changing them does not train it again."""

LATER_HYPERPARAMETERS: dict[str, tuple[ModelName, ...]] = {
    "motion": ("motion_conv_alstm", "motion_alstm"),
    "decoder_steps": ("temporal_attention",),
    "spatial": ("temporal_attention",),
}
"""Hyper-parameters that came after models had been trained without them, with the only models that have them. They are absent
from the recipes of all others."""


class HyperParams(Section):
    """Hyper-parameters of all models, which `train.overrides` can change for a single model.

    The defaults suit small collections and any backbone. The article's values are in params/hmdb51.yaml.
    """

    epochs: PositiveInt = 60
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    attention_penalty: NonNegativeFloat | None = 0.0
    """Weight of ALSTM's attention penalty, lambda (article: 0.5; ConvALSTM has none)."""
    weight_decay: NonNegativeFloat = 0.0
    patience: PositiveInt = 8
    """Epochs without a lower calibrated validation loss (`pipeline_lib.train.loss`) before training stops."""
    layers: PositiveInt | None = 1
    """Number of stacked recurrent layers."""
    scorer: Literal["pooled", "local"] | None = "local"
    """Input of attention scores: each frame's mean features (the article's ALSTM), or each cell's own features (Sharma's code;
    ConvALSTM always)."""
    uniform_start: bool | None = True
    """Start from uniform attention, or from random attention (article), which small collections may not be able to correct."""
    rescale_glimpse: bool | None = True
    """Scale ConvALSTM's glimpses to the features' size for uniform attention, or leave them smaller by the number of cells
    (article)."""
    carry_state: bool | None = True
    """Carry the recurrent state from frame to frame (article), or start from zeros in each frame (the article's code)."""
    head_channels: PositiveInt | None = 128
    """Channels of a 3x3 convolution, summed over cells with attention as weights, before ConvALSTM's last layer. null: the last
    layer takes all cells of the state (article)."""
    normalise: bool = True
    """Normalise the scale of features (article: no)."""
    motion: Motion | None = "state"
    """What motion-based attention sees of flow: the `state` of an LSTM on it (VideoLSTM). Ablations: the flow's `map` without
    an LSTM; an LSTM on its `magnitude` alone; an LSTM on the flow of another clip (`shuffled`)."""
    decoder_steps: PositiveInt | None = 4
    """Steps of `temporal_attention`'s decoder, each of which attends over time; 1 is attention pooling over time."""
    spatial: Literal["local"] | None = None
    """`local`: `temporal_attention` also attends over the cells of each step; null: it takes their mean."""


class ModelParams(HyperParams):
    """The parameters of one model's training. Those that the model does not have are None."""

    model: ModelName
    units: PositiveInt | None
    """Width of the recurrent layers. The scorer of `alstm` and `attention_pool` has half that width."""
    seed: int
    deterministic: bool
    device: Device = operational("auto")
    motion: Motion | None = None
    decoder_steps: PositiveInt | None = None
    spatial: Literal["local"] | None = None

    @property
    def attends(self) -> bool:
        """Whether the model computes attention over cells; others return uniform attention."""
        return self.spatial is not None if self.model == "temporal_attention" else self.model not in WITHOUT_ATTENTION

    @property
    def attends_over_time(self) -> bool:
        """Whether the model computes importance; others return uniform importance."""
        return self.model == "temporal_attention"

    def recipe(self) -> dict[str, Any]:
        """Return the values that affect the model, without those of `LATER_HYPERPARAMETERS` that are None."""
        values = super().recipe()
        return {name: value for name, value in values.items() if value is not None or name not in LATER_HYPERPARAMETERS}


class TrainParams(HyperParams):
    """Parameters of the train stage: the models to train, and their hyper-parameters."""

    models: Annotated[tuple[ModelOnStream, ...], Field(strict=False, min_length=1)] = DEFAULT_MODELS
    """Models to train, each as `MODEL`, `MODEL@STREAM`, or `MODEL@STREAM+STREAM` if it reads two."""
    alstm_units: PositiveInt = 256
    """Width of ALSTM, and of all other models but ConvALSTM (article: 512)."""
    conv_alstm_units: PositiveInt = 64
    """Width of the convolutional models (article: 256)."""
    overrides: dict[ModelOnStream, dict[str, Any]] = Field(default_factory=dict)
    """Hyper-parameters of single models, including `units`. Those of `MODEL` hold for it on every stream."""
    seed: int = 0
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] | None = None
    """Seeds to train every model with; default: only `seed`."""
    deterministic: bool = True
    device: Device = operational("auto")
    workers: PositiveInt | None = operational(None)
    """Maximum number of models to train in parallel; default: as many as the machine can hold."""

    @model_validator(mode="after")
    def _names_once(self) -> TrainParams:
        for name, values in (("models", self.models), ("seeds", self.all_seeds)):
            if len(set(values)) != len(values):
                raise UserError(f"train.{name} has an entry twice; remove one")
        return self

    @model_validator(mode="after")
    def _overrides_fit(self) -> TrainParams:
        accepted = [*HyperParams.model_fields, "units"]
        for model, values in self.overrides.items():
            for name in values:
                if name not in accepted:
                    raise UserError(f"unknown key train.overrides.{model}.{name}; accepted here: {', '.join(accepted)}")
            try:
                self.of(model)
            except ValidationError as error:
                first = error.errors()[0]
                name = ".".join(map(str, first["loc"]))
                raise UserError(f"train.overrides.{model}.{name} = {first['input']!r}: {first['msg'].lower()}") from None
        return self

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds to train every model with."""
        return self.seeds or (self.seed,)

    def of(self, name: str, seed: int | None = None) -> ModelParams:
        """Return the parameters of one model's training, `MODEL[@STREAM]`, with one seed (default: the first)."""
        model, _ = split_model(name)
        shared = {name: getattr(self, name) for name in (*HyperParams.model_fields, "deterministic", "device")}
        overrides = {**self.overrides.get(model, {}), **self.overrides.get(name, {})}
        own = {"units": self.conv_alstm_units if "conv_alstm" in model else self.alstm_units, **overrides}
        unused = dict.fromkeys(UNUSED_HYPERPARAMETERS[model])
        unused |= dict.fromkeys(name for name, owners in LATER_HYPERPARAMETERS.items() if model not in owners)
        seed = self.all_seeds[0] if seed is None else seed
        return ModelParams(model=model, seed=seed, **(shared | own | unused))
