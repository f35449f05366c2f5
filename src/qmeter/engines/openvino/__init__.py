"""The embedded engine: OpenVINO GenAI's continuous batching behind an OpenAI-compatible server of our own."""

from qmeter.engines.openvino.adapter import OpenVinoEngine

__all__ = ["OpenVinoEngine"]
