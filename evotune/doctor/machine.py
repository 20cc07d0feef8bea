"""Whether times that are taken on this machine mean anything."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from evotune.doctor.row import Row, fail, ok, warn
from evotune.process import usable_cores

SANE_YEARS = range(2025, 2100)
SLEEP_S = 0.02
MAX_DRIFT = 0.25  # of two clocks over SLEEP_S: scheduling shifts them by a millisecond at worst
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
SLOW_SOURCES = ("hpet", "acpi_pm", "jiffies")  # a reading takes a microsecond, or is coarse
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
# The spread that repetitions of one piece of work have on an idle machine is below one per cent.
MAX_SPREAD = 0.05
WORK, REPETITIONS = 40_000, 41


def clocks() -> list[Row]:
    """The clocks agree, go forward, and are quick to read."""
    year = time.gmtime().tm_year
    if year not in SANE_YEARS:
        return [fail("clock", f"the date says {year}: certificates and the journal will be wrong", "set the date")]
    wall_s, monotonic_s = time.time(), time.monotonic()
    time.sleep(SLEEP_S)
    drift = abs((time.time() - wall_s) - (time.monotonic() - monotonic_s)) / SLEEP_S
    if drift > MAX_DRIFT:
        return [
            warn("clock", "the date jumps against the monotonic clock", "look at the time service: timedatectl")
        ]
    try:
        source = CLOCK_SOURCE.read_text(encoding="utf-8").strip()
    except OSError:
        source = "unknown"
    resolution_ns = time.get_clock_info("thread_time").resolution * 1e9
    found = f"source {source}; CPU time is told to {resolution_ns:.0f} ns"
    if source in SLOW_SOURCES:
        return [warn("clock", f"{found}; this source is slow or coarse", "boot with clocksource=tsc")]
    return [ok("clock", found)]


def load() -> list[Row]:
    """How busy the machine is, and how steady its CPU time is all the same."""
    cores = usable_cores()
    busy = os.getloadavg()[0]
    try:
        governor = f", governor {GOVERNOR.read_text(encoding='utf-8').strip()}"
    except OSError:  # virtual machines have none
        governor = ""
    found = f"{busy:.1f} on {cores} cores{governor}"
    if busy > cores:
        wait = "wait, or stop what else runs; CPU kernels are timed in CPU time, which this moves less"
        return [warn("load", found, wait), _steadiness()]
    return [ok("load", found), _steadiness()]


def _steadiness() -> Row:
    """The spread of the CPU time of one piece of work, as kernels on the CPU are timed."""
    samples_ns: list[int] = []
    for _ in range(REPETITIONS):
        start_ns = time.thread_time_ns()
        sum(range(WORK))
        samples_ns.append(time.thread_time_ns() - start_ns)
    low, _, high = statistics.quantiles(samples_ns, n=4)
    middle = statistics.median(samples_ns)
    if middle <= 0:
        return fail("CPU time", "the CPU time of a thread does not advance: kernels on the CPU cannot be timed")
    spread = (high - low) / middle
    found = f"half of {REPETITIONS} repetitions of {middle / 1e6:.2f} ms of work are within {spread:.1%}"
    if spread > MAX_SPREAD:
        return warn("CPU time", f"{found}: small differences will drown", "run when the machine is idle")
    return ok("CPU time", found)
