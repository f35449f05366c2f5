"""The simulated engine: nothing is started; :mod:`qmeter.study.simulated` predicts its cells from a calibration."""

from __future__ import annotations

from pathlib import Path

from qmeter.engines.base import Artifact, Launch, MetricsMap
from qmeter.errors import EngineUnavailable
from qmeter.record import EffectiveConfig
from qmeter.spec.study import Deployment

WHY = "a simulated deployment has no server"


class SimulatedEngine:
    """An engine that cannot be started: it stands in the table so that studies can name it."""

    def launch_command(self, deployment: Deployment, artifact: Artifact, port: int, workdir: Path) -> Launch:
        """Refuses.

        Raises:
            EngineUnavailable: always.
        """
        source = deployment.engine.options.get("calibration", "a calibration")
        raise EngineUnavailable(f"nothing is started: its cells are predicted from {source}",
                                hint="run the study; to measure, name a real engine: qmeter engines")  # fmt: skip

    def effective(self, launch: Launch) -> EffectiveConfig | None:
        """Nothing: there is no server."""
        return None

    def metrics_map(self) -> MetricsMap:
        """No page: the simulator writes the engine's series itself."""
        return MetricsMap(None, (), gap=WHY)
