"""The shard of small real videos that the features tests use."""

from tests.pipeline_lib.features.conftest import shard

__all__ = ["shard"]
