"""The features stage: write the features of every clip's steps to HDF5 files, one a stream."""

from pipeline_lib.features.extraction import SHARDS_ON_GPU, extract_features
from pipeline_lib.streams.feature_files import FeatureReader, FeatureWriter

__all__ = ["SHARDS_ON_GPU", "FeatureReader", "FeatureWriter", "extract_features"]
