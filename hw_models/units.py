"""Figures as people read them: three significant digits, SI prefixes."""

from __future__ import annotations

import math


def figure(value: float) -> str:
    """A figure with three significant digits, trailing zeros included.

    >>> figure(2.0), figure(0.2412), figure(128.3)
    ('2.00', '0.241', '128')
    """
    return f"{value:#.3g}".rstrip(".")


def si(value: float, unit: str) -> str:
    """A figure with three significant digits and an SI prefix.

    >>> si(3.0219e-9, "J"), si(0, "J"), si(1234.0, "")
    ('3.02 nJ', '0 J', '1.23 k')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}".rstrip()
    exponent = min(max(math.floor(math.log10(abs(value)) / 3), -6), 4)
    scaled = value / 1000**exponent
    if abs(float(f"{scaled:.3g}")) >= 1000 and exponent < 4:
        exponent += 1
        scaled = value / 1000**exponent
    prefix = "afpnµm kMGT"[exponent + 6].strip()
    digits = max(0, 2 - math.floor(math.log10(abs(scaled)))) if abs(scaled) < 1000 else 0
    return f"{scaled:.{digits}f} {prefix}{unit}".rstrip()
