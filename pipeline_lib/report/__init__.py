"""The report page of a run: test results with controls, attention maps, training curves, data and parameters."""

from pipeline_lib.report.contents import ModelReport, RunReport, SweepReport
from pipeline_lib.report.page import write_report

__all__ = ["ModelReport", "RunReport", "SweepReport", "write_report"]
