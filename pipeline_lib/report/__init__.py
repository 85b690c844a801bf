"""The page that shows a run: results beside chance, where the models looked, and how it came about."""

from pipeline_lib.report.model import ModelReport, RunReport, SweepReport
from pipeline_lib.report.page import write_report

__all__ = ["ModelReport", "RunReport", "SweepReport", "write_report"]
