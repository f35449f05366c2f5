import pytest
from plan_texts import BATCH, CHAT

from qmeter.simulate.calibration import save
from qmeter.testing.deployments import made_calibration


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Two deployments, the second faster, in a calibration file."""
    path = tmp_path_factory.mktemp("made") / "made.json"
    save([made_calibration(), made_calibration("fp8", speed=1.6, seed=1)], path)
    return path


@pytest.fixture
def plan_text(source):
    def text(classes=CHAT + BATCH, more="", fleet="price_usd_h: 4.0"):
        return (f"qmeter: 1\nname: made\n{more}\nclasses:\n{classes}\n"
                f"fleet:\n  - {{source: '{source}', {fleet}}}\n")  # fmt: skip

    return text
