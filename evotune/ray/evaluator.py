"""A fleet as one evaluator: what is not handed out in jobs is asked of one station."""

from __future__ import annotations

from collections.abc import Sequence

from evotune.errors import Rejected
from evotune.evaluator import Device
from evotune.ray.fleet import Fleet
from evotune.space import Config
from evotune.supervisor import PROVENANCE
from evotune.trial import Fidelity, Measurement, Provenance, Static


class RayEvaluator:
    """What the tuner asks beside jobs: above all the finals, all of whose rounds are on one device.

    Args:
        fleet: Started; closed with this.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        about = fleet.stations[0].about  # they are alike
        self.fidelities: Sequence[Fidelity] = about.fidelities
        self.device: Device = about.device
        self.provenance: Provenance = PROVENANCE

    def compile(self, config: Config) -> Static:
        found = self.fleet.ask_one(lambda actor: actor.compile.remote(config), jobs=1)
        if isinstance(found, Measurement):
            raise Rejected(found.failed_stage or "", found.reason or "")
        return found.static

    def measure(self, config: Config, fidelity: Fidelity) -> Measurement:
        return self.fleet.ask_one(lambda actor: actor.measure.remote(config, fidelity), jobs=1)

    def interleave(self, configs: Sequence[Config], fidelity: Fidelity) -> list[Measurement]:
        """All on one device; on another from the beginning if it is lost meanwhile."""
        # Each is run alone too if they fail together.
        return self.fleet.ask_one(lambda actor: actor.interleave.remote(configs, fidelity), jobs=2 * len(configs))

    def close(self) -> None:
        self.fleet.close()
