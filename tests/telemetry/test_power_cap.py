"""GIVEN a card (a stand-in), WHEN power is capped, THEN what was found is put back, whatever happens."""

from __future__ import annotations

import pytest
from nvml_fake import FakeNvml, NVMLError

from qmeter.errors import TelemetryError
from qmeter.telemetry.power_cap import cap_ranges, power_cap, sweep


@pytest.fixture(autouse=True)
def all_gpus_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_nothing_is_set_unless_allowed():
    card = FakeNvml()
    with pytest.raises(TelemetryError, match="not allowed"), power_cap(400, allow=False, nvml=card):
        pass
    assert card.set_calls == []


def test_the_cap_is_in_force_inside_and_gone_after():
    card = FakeNvml(count=2)
    with power_cap(400, allow=True, nvml=card) as found:
        assert card.limits_mw == [400_000, 400_000]
        assert [r.present_w for r in found] == [700.0, 700.0]
    assert card.limits_mw == [700_000, 700_000]


def test_it_is_restored_when_the_work_fails():
    card = FakeNvml()
    with pytest.raises(ZeroDivisionError), power_cap(300, allow=True, nvml=card):
        raise ZeroDivisionError
    assert card.limits_mw == [700_000]


def test_a_cap_outside_the_range_sets_nothing():
    card = FakeNvml()
    with pytest.raises(TelemetryError, match="200 to 700 W"), power_cap(900, allow=True, nvml=card):
        pass
    assert card.set_calls == []


def test_a_driver_that_refuses_the_second_card_gets_the_first_one_back():
    class Refusing(FakeNvml):
        def nvmlDeviceSetPowerManagementLimit(self, handle, milliwatts):
            if handle == 1 and milliwatts == 400_000:
                raise NVMLError("Insufficient Permissions")
            super().nvmlDeviceSetPowerManagementLimit(handle, milliwatts)

    card = Refusing(count=2)
    with pytest.raises(TelemetryError, match="Insufficient Permissions"), power_cap(400, allow=True, nvml=card):
        pass
    assert card.limits_mw == [700_000, 700_000]


def test_a_cap_that_does_not_go_back_says_what_to_set_by_hand():
    card = FakeNvml()
    with pytest.raises(TelemetryError) as caught, power_cap(400, allow=True, nvml=card):
        card.broken.add("nvmlDeviceSetPowerManagementLimit")
    assert "gpu0 700 W" in caught.value.hint


def test_a_sweep_sets_each_and_ends_where_it_began():
    card = FakeNvml()
    seen = [(watts, card.limits_mw[0]) for watts in sweep([300, 500, 700], allow=True, nvml=card)]
    assert seen == [(300, 300_000), (500, 500_000), (700, 700_000)]
    assert card.limits_mw == [700_000]


def test_an_abandoned_sweep_restores():
    card = FakeNvml()
    run = sweep([300, 500], allow=True, nvml=card)
    next(run)
    run.close()
    assert card.limits_mw == [700_000]


def test_ranges_are_in_watts_and_no_card_has_none():
    assert cap_ranges(FakeNvml())[0].highest_w == 700.0
    assert cap_ranges(FakeNvml(broken=("nvmlInit",))) == ()
