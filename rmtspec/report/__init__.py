"""Reports: the results of an analysis, for one matrix and for many."""

from rmtspec.report.many import analyze_many
from rmtspec.report.matrix_report import MatrixReport, analyze
from rmtspec.report.report import Report

__all__ = ["MatrixReport", "Report", "analyze", "analyze_many"]
