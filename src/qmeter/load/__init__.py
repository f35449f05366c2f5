"""The load client: sends a schedule over HTTP streaming, stamps what comes back, and proves its own accuracy."""

from qmeter.load.limits import Limits, load_limits, warn_if_beyond
from qmeter.load.run import Progress, drive
from qmeter.load.target import LoadResult, Target

__all__ = ["Limits", "LoadResult", "Progress", "Target", "drive", "load_limits", "warn_if_beyond"]
