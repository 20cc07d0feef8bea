"""Runs of several machines, as ``evotune run --engine ray``; the only package that imports Ray.

The search, the models and the journal stay with whoever runs the command (the driver). On each device of
a Ray cluster stands a :class:`~evotune.ray.station.Station`, which measures as one machine does. The
:class:`~evotune.ray.fleet.Fleet` knows which stations there are, and :class:`~evotune.ray.engine.RayEngine`
hands them jobs.
"""

from evotune.ray.engine import RayEngine
from evotune.ray.fleet import Fleet
from evotune.ray.subject import find_gpus, find_subject

__all__ = ["Fleet", "RayEngine", "find_gpus", "find_subject"]
