"""``@evotune.triton.autotune`` in the place of ``@triton.autotune``.

::

    import triton
    from evotune.triton import Tolerance, autotune

    @autotune(
        {"BLOCK": [64, 128, 256, 512], "num_warps": [1, 2, 4, 8]},  # or a list of triton.Config
        key=["n"],
        check={"out": Tolerance(rtol=1e-3, atol=1e-3)},
    )
    @triton.jit
    def add(x, y, out, n, BLOCK: tl.constexpr): ...

The first launch with a new key searches, unless the disk knows the answer. ``EVOTUNE``, read at each
launch, says what else may happen: ``search`` (if it is not set), ``cached`` (what is known, else the
default configuration), or ``off`` (the default configuration).
"""

from evotune.kernel import Tolerance
from evotune.triton.autotuner import Autotuner, autotune

__all__ = ["Autotuner", "Tolerance", "autotune"]
