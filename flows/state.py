"""State of a run that its records and its summary read: planned training runs, finished tasks, sweep results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flows.execution import Execution
from flows.plan import FusionRun, Overrides, TestedRun, TrainingRun, first_of_each_name
from pipeline_lib.artifacts import layout

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class RunState(Execution):
    """The state of a run in progress."""

    training_runs: list[TrainingRun] = field(default_factory=list)
    """What is trained and tested, in the order in which `train` and `evaluate` submit it."""
    fusion_runs: list[FusionRun] = field(default_factory=list)
    """The fusions of training runs, in the order in which `evaluate` submits them."""
    found: Overrides = field(default_factory=dict)
    """The best hyper-parameters of the sweep, by model."""
    summary: dict[str, Any] = field(default_factory=dict)
    shard_names: list[str] = field(default_factory=list)

    def training_run(self, key: Any) -> TrainingRun:
        """Return the training run with this key."""
        return next(training for training in self.training_runs if training.key == key)

    @property
    def tested_runs(self) -> list[TestedRun]:
        """All training runs, then all fusions."""
        return [*self.training_runs, *self.fusion_runs]

    @property
    def evaluated_runs(self) -> list[TestedRun]:
        """The training runs and fusions whose evaluation succeeded."""
        return [tested for tested in self.tested_runs if tested.key in self.refs["evaluate"]]

    @property
    def drawn(self) -> list[TestedRun]:
        """The runs whose attention is drawn: the first of each name, if it has attention."""
        return [tested for tested in first_of_each_name(self.tested_runs) if tested.attends]

    def quarantined_videos(self) -> pd.DataFrame:
        """Return the videos that could not be decoded, with columns video, reason and stderr."""
        import pandas as pd

        from pipeline_lib.artifacts.tables import read_videos

        columns = ["video", "reason", "stderr"]
        folders = [
            ref.checkout(self.context, layout.VIDEOS) for ref in self.refs["subsample"].values() if ref.counts["quarantined"]
        ]
        if not folders:
            return pd.DataFrame(columns=columns)
        videos = read_videos(folders)
        return videos.loc[videos["reason"].notna(), columns].fillna("")
