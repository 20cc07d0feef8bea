"""Many kernels, shapes and targets in one job, one after another on this machine.

``evotune batch JOBS.yaml`` reads a list of jobs, plans all of them before it begins the first, and runs each as
``evotune run`` would. The same command again goes on: what has ended is not run again.

- :mod:`~evotune.batch.jobs`: the file, every problem of it in one message.
- :mod:`~evotune.batch.plan`: which jobs are to be run, gone on with, or done already.
- :mod:`~evotune.batch.run`: one job after another, within what all may cost together.
- :mod:`~evotune.batch.pages`: a page for each run, and one that leads to them.
- :mod:`~evotune.batch.terminal`: what a person sees of it.
"""

from evotune.batch.jobs import Batch, Job, read_batch
from evotune.batch.pages import check_folder, write_pages
from evotune.batch.plan import BatchPlan, plan_batch
from evotune.batch.run import Outcome, run_batch

__all__ = [
    "Batch",
    "BatchPlan",
    "Job",
    "Outcome",
    "check_folder",
    "plan_batch",
    "read_batch",
    "run_batch",
    "write_pages",
]
