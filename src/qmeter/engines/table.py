"""The table of engines: a new one is one file and one row here, or an entry point in ``qmeter.engines``."""

from __future__ import annotations

from qmeter.engines.base import Engine
from qmeter.registry import Registry

ENGINES: Registry[Engine] = Registry(
    "engine",
    {
        "openvino": "qmeter.engines.openvino:OpenVinoEngine",
        "llamacpp": "qmeter.engines.llamacpp:LlamaCppEngine",
        "vllm": "qmeter.engines.vllm:VllmEngine",
        "endpoint": "qmeter.engines.endpoint:EndpointEngine",
    },
    group="qmeter.engines",
)
