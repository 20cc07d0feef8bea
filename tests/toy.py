"""A space and an evaluator that need nothing: latencies are computed, and called measured in tests only."""

import math
import time
from collections import Counter

from evotune.errors import DeviceError, Rejected
from evotune.evaluator import Device
from evotune.space import ConfigSpace
from evotune.trial import Fidelity, Measurement, Static

LADDER = (Fidelity(1, "low", 5), Fidelity(3, "high", 50))
ULTRA = Fidelity(4, "ultra", 500)
SPACE = ConfigSpace.from_dict(
    {"tile": [16, 32, 64, 128], "unroll": [1, 2, 4, 8], "layout": ["nn", "nt"], "stages": [1, 2, 3]},
    ["tile * unroll <= 512"],
)


def latency_ms(config) -> float:
    """Lowest, 1.0, at tile 64, unroll 4, layout nt, stages 2."""
    distance = abs(math.log2(config["tile"] / 64)) + abs(math.log2(config["unroll"] / 4))
    return 1.0 + 0.5 * distance + (config["layout"] == "nn") + 0.3 * abs(config["stages"] - 2)


class ToyEvaluator:
    provenance = "measured"
    fidelities = LADDER
    device = Device("toy", "toy device", {"toy": "1"})

    def __init__(self, *, fails=lambda config: False, breaks_after: int | None = None, delay_s: float = 0.0):
        self.calls: Counter = Counter()
        self.fails = fails
        self.breaks_after = breaks_after
        self.delay_s = delay_s
        self.raised_on: int | None = None

    def compile(self, config):
        self.calls["compile"] += 1
        if self.fails(config):
            raise Rejected("compile", "too many registers")
        return Static(0.01, {"code_bytes": 100.0})

    def measure(self, config, fidelity):
        self.calls["measure"] += 1
        time.sleep(self.delay_s)
        if self.breaks_after is not None and self.calls["compile"] > self.breaks_after:
            raise DeviceError("the device fell off the bus")
        if self.raised_on == self.calls["compile"]:
            raise KeyboardInterrupt
        return Measurement(fidelity, "measured", (latency_ms(config),) * 5)

    def interleave(self, configs, fidelity):
        self.calls["interleave"] += 1
        return [Measurement(fidelity, "measured", (latency_ms(c) * 1.01,) * 20) for c in configs]

    def close(self):
        pass
