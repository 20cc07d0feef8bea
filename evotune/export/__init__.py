"""What a run found, in the words of whoever is to use it.

- :mod:`~evotune.export.found`: the winners of one run or several, and where they come from.
- :mod:`~evotune.export.triton`, :mod:`~evotune.export.helion`: Python to paste.
- :mod:`~evotune.export.dispatch`: one Python function for several shapes.
- :mod:`~evotune.export.plain`: JSON, with all that makes the result believable.
- :mod:`~evotune.export.t4`: all trials, as auto-tuners exchange them.
- :mod:`~evotune.export.lookup`: JSON of many kernels and devices, for :func:`evotune.lookup`.
- :mod:`~evotune.export.vllm`: JSON as vLLM looks it up for its mixture-of-experts kernel.

A configuration is exported only where its parameters mean something: tile sizes of the CPU's C code are
no ``triton.Config``.
"""

from evotune.export.formats import FORMATS, Format, check, export, fitting
from evotune.export.found import Export, Found, Winner, find

__all__ = ["FORMATS", "Export", "Format", "Found", "Winner", "check", "export", "find", "fitting"]
