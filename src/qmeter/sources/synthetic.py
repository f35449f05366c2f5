"""``synth:<catalog model>``: random weights of the right shape and format."""

from __future__ import annotations

from qmeter.engines.base import Artifact
from qmeter.sources.base import Request
from qmeter.sources.synth.prepare import SCHEME, prepare_synth


class SynthSource:
    """Synthetic checkpoints, made for the method."""

    def fetch(self, request: Request) -> Artifact:
        """Make it, or find it in the cache."""
        return prepare_synth(SCHEME + request.reference, request.method, request.engine, request.cache)
