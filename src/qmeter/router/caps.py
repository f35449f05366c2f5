"""Power caps of a schedule: set GPU by GPU, all put back at the end."""

from __future__ import annotations

from typing import Any

from qmeter.errors import TelemetryError
from qmeter.telemetry.power_cap import CapRange, cap_ranges, set_cap


class Caps:
    """Sets caps where it may; without ``allow`` a cap is refused before anything starts (see :func:`check`)."""

    def __init__(self, *, allow: bool, nvml: Any = None):
        self._allow, self._nvml = allow, nvml
        self._found: dict[str, CapRange] = {}
        self._present: dict[str, float] = {}

    def check(self, wanted: bool) -> None:
        """Raises:
        TelemetryError: caps are wanted but not allowed.
        """
        if wanted and not self._allow:
            raise TelemetryError(
                "the schedule sets power caps, which was not allowed",
                hint="it changes the cards for everyone: pass --allow-power-cap, or take power_caps out",
            )

    def put(self, gpus: tuple[int, ...], watts: float | None) -> None:
        """Cap these GPUs at ``watts``, or give them back what they had.

        Raises:
            TelemetryError: out of a card's range, or refused by the driver.
        """
        if not self._allow or not gpus or (watts is None and not self._found):
            return
        self._found = self._found or {r.gpu: r for r in cap_ranges(self._nvml)}
        for gpu in (f"gpu{n}" for n in gpus):
            if gpu not in self._found:
                raise TelemetryError(f"there is no {gpu} here", hint=f"visible: {', '.join(self._found) or 'none'}")
            value = self._found[gpu].present_w if watts is None else watts
            if self._present.get(gpu, self._found[gpu].present_w) != value:
                set_cap(gpu, value, self._nvml)
                self._present[gpu] = value

    def restore(self) -> None:
        """Give every card back what it had; each is tried, even if one fails.

        Raises:
            TelemetryError: which did not go back.
        """
        failed = []
        for gpu in self._present:
            try:
                set_cap(gpu, self._found[gpu].present_w, self._nvml)
            except TelemetryError as error:
                failed.append(error.message)
        self._present.clear()
        if failed:
            raise TelemetryError(f"power caps were not restored: {'; '.join(failed)}", hint="set them by hand")
