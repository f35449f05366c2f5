"""qMeter: online characterization of LLM quantization — performance, energy and quality, measured together."""

__version__ = "0.1.0"
