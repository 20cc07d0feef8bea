"""Examines what a run depends on, and says how to mend it; nothing is changed."""

from evotune.doctor.examination import examine
from evotune.doctor.row import Row, faults

__all__ = ["Row", "examine", "faults"]
