"""Features stage: frames of clips become features_BTKKD in HDF5 files."""

from pipeline_lib.features.extraction import extract_features
from pipeline_lib.streams.feature_files import FeatureReader, FeatureWriter

__all__ = ["FeatureReader", "FeatureWriter", "extract_features"]
