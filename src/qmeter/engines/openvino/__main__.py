"""``python -m qmeter.engines.openvino``: the embedded server."""

import sys

from qmeter.engines.openvino.server import main

sys.exit(main())
