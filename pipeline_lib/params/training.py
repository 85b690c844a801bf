"""What models there are, and what decides the training of one."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from pipeline_lib.errors import UserError
from pipeline_lib.params.section import Device, NonNegativeFloat, PositiveFloat, PositiveInt, Section, operational

ModelName = Literal["alstm", "conv_alstm", "attention_pool", "lrcn", "mean_pool"]
MODELS: tuple[ModelName, ...] = get_args(ModelName)
"""The article's two models, then the baselines that show whether attention and recurrence earn their keep."""

HAS_NOT: dict[ModelName, tuple[str, ...]] = {
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
}
"""Hyper-parameters that a model does not have; another value of one does not train it again."""


class HyperParams(Section):
    """What may be set for all models together, and for one of them in `train.overrides`.

    The defaults are for small collections and any backbone; the article's own values are in params/hmdb51.yaml.
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
    """Recurrent layers, one on the other."""
    scorer: Literal["pooled", "local"] | None = "local"
    """What attention scores come from: each frame's mean features (the article's ALSTM), or each cell's own (Sharma's
    code; ConvALSTM always)."""
    uniform_start: bool | None = True
    """Whether attention begins with all cells alike, or at random (article). At random it pools the features of a collection
    too small to correct it by chance."""
    rescale_glimpse: bool | None = True
    """Whether ConvALSTM's glimpses are as large as the features while attention is uniform, or smaller by the number of cells
    (article)."""
    carry_state: bool | None = True
    """Whether the recurrent state is carried from frame to frame (the article), or begins at zero in each (its code)."""
    head_channels: PositiveInt | None = 128
    """Channels of a 3x3 convolution, averaged over the cells under the attention, before ConvALSTM's last layer; null: that
    layer sees every cell of the state (the article)."""
    normalise: bool = True
    """Whether features are brought to one scale, whatever the backbone (article: no)."""


class ModelParams(HyperParams):
    """What decides the training of one model. What the model does not have is None."""

    model: ModelName
    units: PositiveInt | None
    """Width of the recurrent layers; of the scorer's, half of it for `alstm` and `attention_pool`."""
    seed: int
    deterministic: bool
    device: Device = operational("auto")

    @property
    def attends(self) -> bool:
        """Whether the model's attention means anything; without, every cell counts alike."""
        return self.model not in ("lrcn", "mean_pool")


class TrainParams(HyperParams):
    """Which models are trained, and how."""

    models: Annotated[tuple[ModelName, ...], Field(strict=False, min_length=1)] = MODELS
    alstm_units: PositiveInt = 256
    """Width of ALSTM, and of the baselines that share its layers (article: 512)."""
    conv_alstm_units: PositiveInt = 64
    """Width of ConvALSTM (article: 256)."""
    overrides: dict[ModelName, dict[str, Any]] = Field(default_factory=dict)
    """Hyper-parameters of one model that differ from those of all, `units` among them."""
    seed: int = 0
    seeds: Annotated[tuple[int, ...], Field(strict=False, min_length=1)] | None = None
    """Several seeds in one run, for the spread between them; default: `seed` alone."""
    deterministic: bool = True
    device: Device = operational("auto")
    workers: PositiveInt | None = operational(None)
    """Models in training at once; default: as many as the machine holds."""

    @model_validator(mode="after")
    def _names_once(self) -> TrainParams:
        for name, values in (("models", self.models), ("seeds", self.all_seeds)):
            if len(set(values)) != len(values):
                raise UserError(f"train.{name} names one twice")
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
        """The seeds that every model is trained with."""
        return self.seeds or (self.seed,)

    def of(self, model: ModelName, seed: int | None = None) -> ModelParams:
        """Return what decides one model's training with one seed; default: the first."""
        shared = {name: getattr(self, name) for name in (*HyperParams.model_fields, "deterministic", "device")}
        own = {"units": self.conv_alstm_units if model == "conv_alstm" else self.alstm_units, **self.overrides.get(model, {})}
        lacks = dict.fromkeys(HAS_NOT[model])
        seed = self.all_seeds[0] if seed is None else seed
        return ModelParams(model=model, seed=seed, **(shared | own | lacks))
