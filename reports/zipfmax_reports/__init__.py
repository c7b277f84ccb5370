"""What it shows: figures and pages, read from run directories only."""

from zipfmax_reports.report import write_report

__all__ = ["write_report"]
