"""What the resistance of the wires does to an array of devices: the exact nodal solution, and one matrix that stands for it.

m word lines, driven at the left, cross n bit lines, grounded at the bottom; device G_ij lies between w_ij and b_ij, and every piece
of wire between neighbours has r_wl or r_bl ohms (the first and the last also between driver, sense amplifier and array):

    word line:  G_ij(w_ij - b_ij) + g_w(w_ij - w_i,j-1) + g_w(w_ij - w_i,j+1) = 0,   w_i,-1 = V_i, nothing to the right of j = n - 1
    bit line:   G_ij(b_ij - w_ij) + g_b(b_ij - b_i-1,j) + g_b(b_ij - b_i+1,j) = 0,   nothing above i = 0, b_m,j = 0
    output:     I_j = g_b·b_m-1,j

The equations contain sneak paths: current that reaches an output through devices of other rows. The circuit is linear, so
I = G_effᵀ·V holds with one matrix per array: computed once, it makes an exact product as cheap as an ideal one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spiking.errors import SpikingError

_CHUNK = 1 << 22  # elements of the blocks that are inverted at a time


class Wires(NamedTuple):
    """Ohms of one piece of a word line and of a bit line, of a driver's output and of a sense amplifier's input."""

    word: float = 0.0
    bit: float = 0.0
    driver: float = 0.0
    sense: float = 0.0

    def check(self) -> None:
        for name, ohms in self._asdict().items():
            if not 0 <= ohms < math.inf:
                raise SpikingError(f"Wires.{name}: got {ohms} ohms; expected 0 or more.")
        for wire, end in (("word", "driver"), ("bit", "sense")):
            if getattr(self, end) and not getattr(self, wire):
                raise SpikingError(
                    f"Wires.{end}: got {getattr(self, end)} ohms at the end of a wire of 0 ohms; expected {wire} above 0. "
                    "A milliohm will do."
                )

    def mirrored(self) -> Wires:
        """Word and bit lines exchanged."""
        return Wires(self.bit, self.word, self.sense, self.driver)


NO_RESISTANCE = Wires()


class NodeSolution(NamedTuple):
    """Voltages of all nodes, currents of all devices and the output currents: [m, n, p] and [p, n] for p input vectors."""

    V_wl: np.ndarray
    V_bl: np.ndarray
    I_device: np.ndarray
    I_out: np.ndarray


def solve_nodes(G: Tensor, V: Tensor, wires: Wires, floating: Tensor | None = None) -> NodeSolution:
    """All node voltages by one sparse factorisation of the 2mn equations: the oracle of `effective_matrix`.

    Shapes: G [m, n] siemens, V [m, p] volts; `floating` bool [m] marks word lines without a driver.
    Errors: SpikingError for conductances that are not finite or negative, or shapes that do not fit.

    >>> found = solve_nodes(torch.full((2, 2), 1e-3), torch.ones(2, 1), Wires(1.0, 1.0))
    >>> bool((found.I_out < 2e-3).all())
    True
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import splu

    _check(G, wires)
    if V.dim() != 2 or V.shape[0] != G.shape[0]:
        raise SpikingError(
            f"solve_nodes: got voltages of shape {list(V.shape)}; expected [{G.shape[0]}, p], one a row."
        )
    g, v = G.detach().double().cpu().numpy(), V.detach().double().cpu().numpy()
    (m, n), p = g.shape, v.shape[1]
    drive = np.ones(m, bool) if floating is None else ~floating.cpu().numpy()
    # Node numbers; -1: a known voltage. Without wire resistance a whole word line is at V_i, a whole bit line at 0.
    word = np.arange(m * n).reshape(m, n) if wires.word else np.full((m, n), -1)
    bit = (np.arange(m * n) + (m * n if wires.word else 0)).reshape(m, n) if wires.bit else np.full((m, n), -1)
    if not wires.word and not drive.all():
        raise SpikingError("solve_nodes: got floating rows with word lines of 0 ohms; expected wires.word above 0.")
    size = (int(word.max()) if wires.word else -1) + 1
    size = (int(bit.max()) + 1) if wires.bit else size
    rows: list[np.ndarray] = []
    cols: list[np.ndarray] = []
    values: list[np.ndarray] = []
    right = np.zeros((size, p))

    def connect(a: np.ndarray, b: np.ndarray, conductance: np.ndarray, known: np.ndarray | None = None) -> None:
        """Stamp conductances between nodes a and b; where b is -1, its voltage is `known` [len, p], or 0."""
        for x, y, other in ((a, b, known), (b, a, None)):
            inside = x >= 0
            rows.append(x[inside])
            cols.append(x[inside])
            values.append(conductance[inside])
            both = inside & (y >= 0)
            rows.append(x[both])
            cols.append(y[both])
            values.append(-conductance[both])
            if other is not None:
                np.add.at(right, x[inside & (y < 0)], (conductance[:, None] * other)[inside & (y < 0)])

    at_row = np.repeat(v, n, axis=0)
    connect(bit.ravel(), word.ravel(), g.ravel(), at_row if not wires.word else None)
    none = np.full(m, -1)
    if wires.word:
        connect(word[:, 0], none, drive / (wires.word + wires.driver), v)
        connect(word[:, 1:].ravel(), word[:, :-1].ravel(), np.full(m * (n - 1), 1 / wires.word))
    if wires.bit:
        connect(bit[-1], none[:1].repeat(n), np.full(n, 1 / (wires.bit + wires.sense)))
        connect(bit[1:].ravel(), bit[:-1].ravel(), np.full((m - 1) * n, 1 / wires.bit))
    if size:
        matrix = coo_matrix(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), (size, size)
        ).tocsc()
        solution = splu(
            matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        ).solve(right)
    else:
        solution = right
    V_wl = solution[word] if wires.word else np.repeat(v[:, None], n, axis=1)
    V_bl = solution[bit] if wires.bit else np.zeros((m, n, p))
    I_device = g[:, :, None] * (V_wl - V_bl)
    return NodeSolution(V_wl, V_bl, I_device, I_device.sum(0).T)


def effective_matrix(G: Tensor, wires: Wires, floating: Tensor | None = None) -> Tensor:
    """The matrix that gives an array's exact output currents: I = G_effᵀ·V, wires and sneak paths included.

    Block elimination over the word lines, D_i = diag(G_i), T the Laplacian of one word line:

        K_i = T + D_i;   f_i = g_w·K_i⁻¹e_1;   S_i = D_i - D_i·K_i⁻¹·D_i + (g_b, then 2g_b)·I
        P_0 = S_0;   P_i = S_i - g_b²·P_i-1⁻¹;   H <- [g_b·P_i-1⁻¹·H, D_i·f_i];   G_effᵀ = g_b·P_m-1⁻¹·H

    along the longer side, so that the blocks have the shorter one. float64 inside.
    Shapes: G [..., m, n] siemens -> the same; `floating` bool [m].
    Errors: SpikingError for conductances that are not finite or negative.

    >>> G = torch.rand(6, 4, dtype=torch.float64) * 1e-4
    >>> V = torch.rand(6, 1, dtype=torch.float64)
    >>> exact = torch.from_numpy(solve_nodes(G, V, Wires(2.0, 5.0)).I_out)
    >>> torch.allclose(V.T @ effective_matrix(G, Wires(2.0, 5.0)), exact, rtol=1e-12)
    True
    """
    _check(G, wires)
    g = G.detach().double()
    if not wires.word and not wires.bit:
        return g.clone()
    if not wires.word:
        if floating is not None and bool(floating.any()):
            raise SpikingError(
                "effective_matrix: got floating rows with word lines of 0 ohms; expected wires.word above 0."
            )
        return g * _along(g.transpose(-1, -2).flip(-1), wires.bit, wires.sense).flip(-1).transpose(-1, -2)
    if not wires.bit:
        driven = _along(g, wires.word, wires.driver)
        return g * (driven if floating is None else torch.where(floating[:, None], 0.0, driven))
    if g.shape[-2] < g.shape[-1] and floating is None:
        mirrored = effective_matrix(g.transpose(-1, -2).flip(-1, -2), wires.mirrored())
        return mirrored.flip(-1, -2).transpose(-1, -2)
    return _eliminate(g, wires, floating)


def _along(g: Tensor, ohms: float, end: float) -> Tensor:
    """Voltages along lines of devices to ground, one volt at the left behind `end` + `ohms`: [..., lines, devices]."""
    n, wire, first = g.shape[-1], 1 / ohms, 1 / (ohms + end)
    pivots = [g[..., n - 1] + (wire if n > 1 else first)]
    for j in range(n - 2, -1, -1):
        pivots.append(g[..., j] + wire + (wire if j else first) - wire**2 / pivots[-1])
    v = [first / pivots[-1]]
    for pivot in reversed(pivots[:-1]):
        v.append(v[-1] * wire / pivot)
    return torch.stack(v, -1)


def _inverse(spd: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(spd))


def _eliminate(g: Tensor, wires: Wires, floating: Tensor | None) -> Tensor:
    (m, n), lead = g.shape[-2:], g.shape[:-2]
    g_w, g_b = 1 / wires.word, 1 / wires.bit
    first, last = 1 / (wires.word + wires.driver), 1 / (wires.bit + wires.sense)
    line = torch.full((n,), 2 * g_w, dtype=g.dtype, device=g.device)
    line[-1] = g_w
    T = torch.diag(line)
    if n > 1:
        off = torch.full((n - 1,), -g_w, dtype=g.dtype, device=g.device)
        T = T + torch.diag(off, 1) + torch.diag(off, -1)
    T[0, 0] += first - g_w
    eye = torch.eye(n, dtype=g.dtype, device=g.device)
    H = g.new_zeros(*lead, n, m)
    inverse = eye.expand(*lead, n, n)
    step = max(1, _CHUNK // (n * n * max(1, math.prod(lead))))
    for start in range(0, m, step):
        rows = g[..., start : start + step, :]
        K = T + torch.diag_embed(rows)
        drive = torch.full((rows.shape[-2],), first, dtype=g.dtype, device=g.device)
        if floating is not None:
            loose = floating[start : start + step]
            drive = torch.where(loose, 0.0, drive)
            K[..., 0, 0] -= torch.where(loose, first, 0.0)
            # A floating word line without a device hangs on nothing; hold it, since no current can leave it anyway.
            K[..., 0, 0] += torch.where(loose & (rows.sum(-1) == 0), g_w, 0.0)
        inner = _inverse(K)
        sources = drive.unsqueeze(-1) * inner[..., :, 0] * rows  # f_i, one row each
        S = torch.diag_embed(rows) - rows.unsqueeze(-1) * inner * rows.unsqueeze(-2)
        for k in range(rows.shape[-2]):
            i = start + k
            block = S[..., k, :, :] + ((g_b if i else 0.0) + (g_b if i < m - 1 else last)) * eye
            if i:
                H[..., :i] = g_b * (inverse @ H[..., :i])
                block = block - g_b**2 * inverse
            H[..., i] = sources[..., k, :]
            inverse = _inverse(block)
    return (last * (inverse @ H)).transpose(-1, -2)


def _check(G: Tensor, wires: Wires) -> None:
    wires.check()
    if G.dim() < 2 or not G.numel():
        raise SpikingError(f"effective_matrix: got conductances of shape {list(G.shape)}; expected [..., m, n].")
    bad = ~torch.isfinite(G) | (G < 0)
    if bool(bad.any()):
        raise SpikingError(
            f"effective_matrix: got {int(bad.sum())} conductances that are negative or not finite; expected siemens, 0 or more."
        )


__all__ = ["NO_RESISTANCE", "NodeSolution", "Wires", "effective_matrix", "solve_nodes"]
