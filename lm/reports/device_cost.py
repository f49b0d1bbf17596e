"""Cost of runs: tokens and FLOPs without those of a trunk run, device-hours, price and energy.

    rates = device_cost.DeviceRates(price_per_device_hour=2.5, watts_per_device=700)
    rates.costs(device_hours=100)       # {"price": 250.0, "energy_kwh": 70.0}

The price has the currency of the given price. The power is that of a device with its share of the
host, the network and the cooling, if the energy must include them.
"""

import dataclasses
from collections.abc import Mapping

from lm.runs import phase_timer, records


@dataclasses.dataclass(frozen=True)
class DeviceRates:
    """Price and power of one device; 0 is unknown."""

    price_per_device_hour: float = 0.0
    watts_per_device: float = 0.0

    def costs(self, device_hours: float | None) -> dict[str, float | None]:
        """Return the known ones of price and energy_kwh. A value is None for None device-hours."""
        rates = {"price": self.price_per_device_hour, "energy_kwh": self.watts_per_device / 1000}
        return {
            name: None if device_hours is None else rate * device_hours
            for name, rate in rates.items()
            if rate
        }

    def describe(self, device_hours: float) -> dict[str, str]:
        """Return the known ones of price and energy as text by their titles."""
        titles = {"price": "price", "energy_kwh": "energy, kWh"}
        costs = self.costs(device_hours)
        return {titles[name]: f"{value or 0:,.2f}" for name, value in costs.items()}


def used_device_hours(row: Mapping) -> float:
    """Return the device-hours of a run, with compilation, evaluation and repeated steps.

    row: see records.load_runs. A run without phases has the time of its steps.
    """
    names = [f"clock.{phase}" for phase in (*phase_timer.PHASES, "lost")]
    seconds = sum(row[name] for name in names if records.is_finite(row.get(name)))
    if not seconds and records.is_finite(row.get("seconds")):
        seconds = row["seconds"]
    n_devices = row.get("devices")
    return seconds * (n_devices if records.is_finite(n_devices) else 1) / 3600


def incremental_cost(row: Mapping, column: str) -> float:
    """Return the tokens or FLOPs of a run without those of the trunk run that it branched from.

    column: records.TOKENS or records.FLOPS.
    """
    shared = row.get(f"parent.{column}", 0) if row.get("start.restore") == "full_state" else 0
    return max((row.get(column) or 0) - (shared or 0), 0)
