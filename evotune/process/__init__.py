"""Child processes that cannot hang their parent, see its secrets, or outlive it.

:class:`Worker` is one long-lived Python child that answers requests; :func:`run_killable` runs a
command such as a compiler; :class:`Scratch` is a folder for what they write. Each child has a session
of its own, so that one ``killpg`` ends it with all that it started, and obeys a deadline that only the
parent keeps: a timer inside the child does not fire while the child holds the interpreter lock or is
stopped.

This is a boundary for reliability, not for security: the child runs as the user.
"""

from evotune.process.command import Finished, child_environment, run_killable
from evotune.process.cores import usable_cores
from evotune.process.scratch import Scratch
from evotune.process.worker import Reply, Worker

__all__ = ["Finished", "Reply", "Scratch", "Worker", "child_environment", "run_killable", "usable_cores"]
