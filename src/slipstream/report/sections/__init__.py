"""The questions of a report, one module each: from runs to charts, tables and notes."""

from slipstream.report.sections.ending import Landscapes
from slipstream.report.sections.questions import QUESTIONS, build_section, charts_of

__all__ = ["QUESTIONS", "Landscapes", "build_section", "charts_of"]
