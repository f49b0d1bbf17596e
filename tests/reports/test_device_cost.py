"""Price and energy of runs."""

import pytest
from fixtures import made_up_sweep

from lm.reports import device_cost, report, summary


def test_costs_are_those_of_the_known_rates():
    rates = device_cost.DeviceRates(2.5, 700.0)
    assert rates.costs(100.0) == {"price": 250.0, "energy_kwh": pytest.approx(70.0)}
    assert rates.describe(1000.0) == {"price": "2,500.00", "energy, kWh": "700.00"}
    assert device_cost.DeviceRates(watts_per_device=700.0).costs(1.0) == {"energy_kwh": 0.7}
    assert rates.costs(None) == {"price": None, "energy_kwh": None}
    assert device_cost.DeviceRates().costs(100.0) == {}


def test_device_hours_count_all_phases_of_all_devices():
    row = {"devices": 8, "seconds": 900.0, "clock.steps": 900.0, "clock.compile": 450.0}
    assert device_cost.used_device_hours(row | {"clock.lost": 450.0}) == 4.0
    assert device_cost.used_device_hours({"devices": 2, "seconds": 1800.0}) == 1.0
    assert device_cost.used_device_hours({}) == 0.0


def test_report_states_price_and_energy(tmp_path):
    sweep = summary.load_summary(made_up_sweep.sweep(tmp_path))
    tiles = dict(report._cost_tiles(sweep, device_cost.DeviceRates(2.0, 1000.0)))
    hours = sum(map(device_cost.used_device_hours, sweep.rows))
    assert hours > 0
    assert tiles == {
        "device-hours": f"{hours:,.2f}",
        "price": f"{2 * hours:,.2f}",
        "energy, kWh": f"{hours:,.2f}",
    }
    assert report._cost_tiles(sweep, device_cost.DeviceRates()) == []


def test_cost_of_a_branch_does_not_contain_that_of_its_trunk_run():
    branch = {"tokens": 10, "parent.tokens": 8, "start.restore": "full_state"}
    assert device_cost.incremental_cost(branch, "tokens") == 2
    assert device_cost.incremental_cost(branch | {"start.restore": "weights"}, "tokens") == 10
    assert device_cost.incremental_cost({}, "flops") == 0
