# SPDX-License-Identifier: Apache-2.0
"""When devices are away: drawn from a seed for every device by itself, so that no load moves another one's outages."""

import math

import numpy as np


class Outages:
    """Up and down by turns, each time exponential; all are up at the start. Times in milliseconds."""

    def __init__(
        self, num_devices: int, *, mean_up_ms: float | None, mean_down_ms: float | None, until_ms: float, seed: int
    ) -> None:
        """Draw everything that happens until `until_ms`; without means no device is ever away."""
        rows: list[list[tuple[float, float]]] = []
        for device in range(num_devices):
            row, now = list[tuple[float, float]](), 0.0
            if mean_up_ms is not None and mean_down_ms is not None:
                draw = np.random.default_rng((seed, device, 1)).exponential
                while now < until_ms:
                    begin = now + draw(mean_up_ms)
                    now = begin + draw(mean_down_ms)
                    row.append((begin, now))
            rows.append([*row, (math.inf, math.inf)])
        longest = max(map(len, rows))
        never = (math.inf, math.inf)
        table = np.array([[*row, *[never] * (longest - len(row))] for row in rows])  # (D, K, 2)
        self._begins, self._ends = table[:, :, 0], table[:, :, 1]
        self._place = np.zeros(num_devices, int)
        self._devices = np.arange(num_devices)

    def at(self, now: float) -> tuple[np.ndarray, np.ndarray]:
        """(D,) begin and (D,) end of each device's outage that is not over yet; infinite where none comes any more.

        Time must not go back from one call to the next.
        """
        while (is_over := self._ends[self._devices, self._place] <= now).any():
            self._place += is_over
        return self._begins[self._devices, self._place], self._ends[self._devices, self._place]

    def is_up(self, device: int, now: float) -> bool:
        """Whether a device answers at that time."""
        begin, end = self._begins[device], self._ends[device]
        return not bool(((begin <= now) & (now < end)).any())

    def of(self, device: int) -> list[tuple[float, float]]:
        """All outages of one device: begin and end."""
        pairs = zip(self._begins[device].tolist(), self._ends[device].tolist(), strict=True)
        return [pair for pair in pairs if pair[0] < math.inf]
