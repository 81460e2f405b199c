"""Random numbers that belong to a device: a pure function of (seed, stream, device index), whatever the batch or order.

    z = mix(mix(index·φ + key) ^ key');   u = (⌊z/2¹¹⌋ + ½)/2⁵³;   ξ = Φ⁻¹(u)

`key` and `key'` are a digest of seed and stream, φ = 0x9E3779B97F4A7C15, and mix is the finaliser of SplitMix64. A generator
that is drawn from in sequence would give a device other numbers in an array of another shape; this gives it the same.
Source: Steele, Lea, Flood 2014 (doi 10.1145/2660193.2660195); constants of Stafford's variant 13.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """A 64-bit pattern as torch's int64 holds it."""
    return value - (1 << 64) if value >= 1 << 63 else value


_PHI = _signed(0x9E3779B97F4A7C15)
_STEPS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def _shifted(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: int64's own copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    for bits, factor in _STEPS:
        z = (z ^ _shifted(z, bits)) * factor
    return z ^ _shifted(z, 31)


def seed_of(seed: int, stream: str) -> int:
    """A 63-bit seed for one purpose of one seed.

    >>> seed_of(0, "read") != seed_of(0, "write") != seed_of(1, "write")
    True
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest(), "little") >> 1


def uniform(seed: int, stream: str, index: Tensor) -> Tensor:
    """One number in (0, 1) for each device, float64.

    Shapes: index (int64, any shape) -> the same.

    >>> a = uniform(0, "fault", torch.arange(10))
    >>> torch.equal(a[3:5], uniform(0, "fault", torch.tensor([3, 4])))
    True
    """
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=16).digest()
    key, other = (int.from_bytes(part, "little", signed=True) for part in (digest[:8], digest[8:]))
    z = _mix(_mix(index * _PHI + key) ^ other)
    return (_shifted(z, 11).double() + 0.5) / (1 << 53)


def normal(seed: int, stream: str, index: Tensor) -> Tensor:
    """One standard normal number for each device, float64.

    Shapes: index (int64, any shape) -> the same.

    >>> x = normal(0, "programming", torch.arange(100_000))
    >>> bool(abs(x.mean()) < 0.0127), bool(abs(x.std() - 1) < 0.009)
    (True, True)
    """
    return torch.special.ndtri(uniform(seed, stream, index))


__all__ = ["normal", "seed_of", "uniform"]
