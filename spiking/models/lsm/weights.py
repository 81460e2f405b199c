"""Random weights from the randomness of memory cells: W = const·(G⁺ - G⁻), conductances in µS.

    gaussian      G⁺ - G⁻ ~ N(0.00156, 6.61329²) for inputs, N(0.00606, 6.67268²) between neurons, as measured on the published chip
    a cell        two devices that broke down independently of each other: G ~ N(formed, formed_std²), unformed ones next to nothing

Source: Lin et al. 2025 (doi 10.1038/s43588-024-00751-z; statistics from the author's later code).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spiking.errors import SpikingError
from spiking.hw_models import draws, load_cell

INPUT = (0.00156, 6.61329)  # µS: mean and standard deviation of the difference of a pair
RECURRENT = (0.00606, 6.67268)
MICRO = 1e6  # µS in a siemens
ALL = 10.0  # standard deviations above the mean voltage at which every cell breaks down


class Weights(NamedTuple):
    """Weights of a reservoir: w_in [N, I], w_rec [N, N] (None: no recurrence), bias [N] or None."""

    w_in: Tensor
    w_rec: Tensor | None
    bias: Tensor | None = None


def draw(
    in_features: int, n: int, *, const: float, device: str, seed: int, sparsity: float | None, recurrent: bool
) -> Weights:
    """Weights of a reservoir of n neurons from a device preset; `sparsity` is the share of recurrent pairs that are absent.

    Errors: SpikingError for a cell that has no forming statistics.

    >>> w = draw(64, 200, const=0.08, device="gaussian", seed=0, sparsity=None, recurrent=True)
    >>> w.w_in.shape, bool(abs(w.w_rec.std() - 0.08 * 6.67268) < 0.01)
    (torch.Size([200, 64]), True)
    """
    w_in = const * _pairs((n, in_features), "in", device, seed, None, INPUT)
    w_rec = const * _pairs((n, n), "rec", device, seed, sparsity, RECURRENT) if recurrent else None
    return Weights(w_in.float(), None if w_rec is None else w_rec.float())


def _pairs(
    shape: tuple[int, int], stream: str, device: str, seed: int, sparsity: float | None, moments: tuple[float, float]
) -> Tensor:
    """Differences of conductances in µS, float64."""
    index = torch.arange(shape[0] * shape[1]).reshape(shape)
    if device == "gaussian":
        difference = moments[0] + moments[1] * draws.normal(seed, f"lsm/{stream}", index)
        if sparsity:
            difference = torch.where(draws.uniform(seed, f"lsm/{stream}/absent", index) < sparsity, 0.0, difference)
        return difference
    cell = load_cell(device)
    if cell.forming is None:
        raise SpikingError(
            f"LiquidStateMachine.device: got {cell.name}, a cell without statistics of forming; expected gaussian or a cell such "
            "as rram-40nm. For measured conductances use from_conductance."
        )
    forming = cell.forming
    # A pair is absent where both of its cells are unformed.
    voltage = forming.voltage(sparsity**0.5) if sparsity else forming.mean + ALL * forming.std
    own = draws.seed_of(seed, f"lsm/{stream}")
    plus, minus = (forming.conductance(voltage, own, 2 * index + side) for side in (0, 1))
    return (plus - minus) * MICRO


def receptive_fields(channels: int, height: int, width: int, n: int, size: int, seed: int) -> Tensor:
    """Which inputs each of n neurons sees, 0 or 1, [n, channels·height·width]: a square of `size` pixels anywhere, in all channels.

    Errors: SpikingError for squares larger than the image.

    >>> receptive_fields(2, 8, 8, 5, 3, 0).sum(1).tolist()
    [18.0, 18.0, 18.0, 18.0, 18.0]
    """
    if not 1 <= size <= min(height, width):
        raise SpikingError(
            f"receptive_fields: got a size of {size} in {height} by {width} pixels; expected 1 to fit in."
        )
    index = torch.arange(n)
    top, left = (
        (draws.uniform(seed, f"lsm/field/{axis}", index) * (side - size + 1)).long()[:, None]
        for axis, side in (("y", height), ("x", width))
    )
    rows, columns = ((torch.arange(side) - start) for side, start in ((height, top), (width, left)))
    inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None, :]
    return inside[:, None].expand(n, channels, height, width).reshape(n, -1).float()
