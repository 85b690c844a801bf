"""What a run has planned, submitted and found so far: what its records and its summary read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flows.execution import Execution
from flows.plan import Overrides, TrainingRun, first_of_each_name

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class RunState(Execution):
    """A run so far."""

    training_runs: list[TrainingRun] = field(default_factory=list)
    """What is trained and tested; `train` and the beginning of `evaluate` are in their order."""
    found: Overrides = field(default_factory=dict)
    """What the sweep found."""
    summary: dict[str, Any] = field(default_factory=dict)
    shard_names: list[str] = field(default_factory=list)

    def training_run(self, key: Any) -> TrainingRun:
        """Return the training_run of this key."""
        return next(training_run for training_run in self.training_runs if training_run.key == key)

    @property
    def evaluated_runs(self) -> list[TrainingRun]:
        """The training_runs that are evaluated."""
        return [training_run for training_run in self.training_runs if training_run.key in self.refs["evaluate"]]

    @property
    def drawn(self) -> list[TrainingRun]:
        """The training_runs that are drawn: the first one of each name that has attention."""
        return [training_run for training_run in first_of_each_name(self.training_runs) if training_run.params.attends]

    def quarantined_videos(self) -> pd.DataFrame:
        """Return the videos that could not be decoded (video, reason, stderr), from the shards that have any."""
        import pandas as pd

        from pipeline_lib.artifacts.tables import read_videos

        columns = ["video", "reason", "stderr"]
        folders = [ref.directory(self.context) for ref in self.refs["subsample"].values() if ref.counts["quarantined"]]
        if not folders:
            return pd.DataFrame(columns=columns)
        videos = read_videos(folders)
        return videos.loc[videos["reason"].notna(), columns].fillna("")
