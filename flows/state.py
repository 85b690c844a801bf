"""State of a run that its records and its summary read: planned training runs, finished tasks, sweep results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flows.execution import Execution
from flows.plan import Overrides, TrainingRun, first_of_each_name

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class RunState(Execution):
    """The state of a run in progress."""

    training_runs: list[TrainingRun] = field(default_factory=list)
    """What is trained and tested, in the order in which `train` and `evaluate` submit it."""
    found: Overrides = field(default_factory=dict)
    """The best hyper-parameters of the sweep, by model."""
    summary: dict[str, Any] = field(default_factory=dict)
    shard_names: list[str] = field(default_factory=list)

    def training_run(self, key: Any) -> TrainingRun:
        """Return the training run with this key."""
        return next(training for training in self.training_runs if training.key == key)

    @property
    def evaluated_runs(self) -> list[TrainingRun]:
        """The training runs whose evaluation succeeded."""
        return [training for training in self.training_runs if training.key in self.refs["evaluate"]]

    @property
    def drawn(self) -> list[TrainingRun]:
        """The training runs whose attention is drawn: the first of each name, if its model has attention."""
        return [training for training in first_of_each_name(self.training_runs) if training.params.attends]

    def quarantined_videos(self) -> pd.DataFrame:
        """Return the videos that could not be decoded, with columns video, reason and stderr."""
        import pandas as pd

        from pipeline_lib.artifacts.tables import read_videos

        columns = ["video", "reason", "stderr"]
        folders = [ref.directory(self.context) for ref in self.refs["subsample"].values() if ref.counts["quarantined"]]
        if not folders:
            return pd.DataFrame(columns=columns)
        videos = read_videos(folders)
        return videos.loc[videos["reason"].notna(), columns].fillna("")
