"""The questions of a report, one module each: from runs to charts, tables and notes."""

from slipstream.report.sections.ending import Landscapes
from slipstream.report.sections.questions import QUESTIONS, Extras, build_section

__all__ = ["QUESTIONS", "Extras", "Landscapes", "build_section"]
