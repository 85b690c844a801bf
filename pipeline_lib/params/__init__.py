"""Parameters of a run: one frozen, strict section per stage, loaded from a YAML file and `section.key=value` settings."""

from pipeline_lib.params.loading import load_params
from pipeline_lib.params.models import (
    DEFAULT_MODELS,
    MODELS,
    ModelName,
    ModelOnStream,
    ModelParams,
    TrainParams,
    num_streams,
    split_model,
)
from pipeline_lib.params.section import Device
from pipeline_lib.params.stages import (
    Addresses,
    ChunkParams,
    Compression,
    EvaluateParams,
    FeaturesParams,
    FetchParams,
    FinetuneParams,
    FusionParams,
    HeatmapsParams,
    Params,
    ReportParams,
    StreamParams,
    SubsampleParams,
    SweepParams,
    TrackingParams,
)
from pipeline_lib.stages import STAGES

__all__ = [
    "DEFAULT_MODELS",
    "MODELS",
    "STAGES",
    "Addresses",
    "ChunkParams",
    "Compression",
    "Device",
    "EvaluateParams",
    "FeaturesParams",
    "FetchParams",
    "FinetuneParams",
    "FusionParams",
    "HeatmapsParams",
    "ModelName",
    "ModelOnStream",
    "ModelParams",
    "Params",
    "ReportParams",
    "StreamParams",
    "SubsampleParams",
    "SweepParams",
    "TrackingParams",
    "TrainParams",
    "load_params",
    "num_streams",
    "split_model",
]
