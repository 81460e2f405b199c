"""A liquid state machine: a recurrent spiking layer whose random weights never change, and a linear readout that is fitted.

    u[t] = beta·u[t-1]·(1 - s[t-1]) + W_in·x[t] + W_rec·s[t-1] + bias;   s[t] = 1 if u[t] > threshold else 0

A membrane exactly at the threshold does not fire, and recurrence starts only once something fired. The defaults are those of
the published N-MNIST reservoir. Source: Lin et al. 2025 (doi 10.1038/s43588-024-00751-z).
"""

from __future__ import annotations

import math
from os import PathLike
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from spiking.cuda_kernels.reservoir_ops import ReservoirRun, ReservoirWeights, run_reservoir
from spiking.errors import SpikingError
from spiking.hw_models import ArrayConfig, Cell, Crossbar
from spiking.models.lsm.readout import Fit, LinearReadout, Readout
from spiking.models.lsm.weights import MICRO, Weights, draw

Features = Literal["counts", "traces"]


class ReservoirState(NamedTuple):
    """What a reservoir carries from step to step: membranes before the reset and spikes, both [B, N]."""

    u: Tensor
    s: Tensor


class LiquidStateMachine(nn.Module):
    """A fixed random reservoir of n neurons over spikes x [T, B, I], and a readout that is fitted to its states.

    `device`: where the weights' randomness is from: "gaussian" (pairs as measured on the published chip), or a memory cell with
        statistics of forming, "rram-40nm"; W = const·(G⁺ - G⁻) in µS. `weights` gives them instead.
    `sparsity`: share of recurrent connections that are absent.   `recurrent`: False leaves the recurrent weights out.
    `features`: "counts" (spikes of each of `time_bins` equal parts of the sequence over the steps of a part: published with one) or
        "traces" (spikes filtered with `trace_beta`, sampled at the end of each part).   `window`: the number of steps that a
        sequence is taken to have; None: its own.
    `crossbar`: a memory cell on which both weight matrices lie, so that both products go through `hw_models.Crossbar` as `arrays`
        says, on the devices of `seed`.
    `lsm.features(x)` [B, time_bins·N]; `lsm.fit(features, labels)`; `lsm(x)` scores [B, out]. No gradient passes the reservoir.
    Errors: SpikingError naming the argument that is out of range, for input of another shape, or scores before a fit.

    >>> lsm = LiquidStateMachine(16, 50, out=2, const=0.3)
    >>> x = (torch.rand(20, 40, 16, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.1, 0.4, 40)[:, None]).float()
    >>> features = lsm.features(x)
    >>> fit = lsm.fit(features, torch.arange(40) // 20)
    >>> lsm(x).shape, bool((lsm(x).argmax(1) == torch.arange(40) // 20).float().mean() > 0.8)
    (torch.Size([40, 2]), True)
    """

    w_in: Tensor
    w_rec: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        n: int = 200,
        out: int = 10,
        *,
        beta: float = 0.9,
        threshold: float = 5.0,
        const: float = 0.07,
        device: str = "rram-40nm",
        seed: int = 0,
        sparsity: float | None = None,
        recurrent: bool = True,
        features: Features = "counts",
        time_bins: int = 1,
        trace_beta: float = 0.9,
        window: int | None = None,
        weights: Weights | None = None,
        crossbar: str | PathLike[str] | Cell | None = None,
        arrays: ArrayConfig | None = None,
    ) -> None:
        super().__init__()
        for name, size in {"in_features": in_features, "n": n, "out": out, "time_bins": time_bins}.items():
            if not isinstance(size, int) or size < 1:
                raise SpikingError(f"LiquidStateMachine.{name}: got {size!r}; expected a whole number from 1 on.")
        for name, decay in {"beta": beta, "trace_beta": trace_beta}.items():
            if not 0 <= decay <= 1:
                raise SpikingError(
                    f"LiquidStateMachine.{name}: got {decay}; expected 0 <= {name} <= 1, the decay per step."
                )
        if sparsity is not None and not 0 <= sparsity < 1:
            raise SpikingError(f"LiquidStateMachine.sparsity: got {sparsity}; expected 0 <= sparsity < 1.")
        for name, number in {"threshold": threshold, "const": const}.items():
            if not 0 < number < math.inf:
                raise SpikingError(f"LiquidStateMachine.{name}: got {number}; expected a number above 0.")
        if window is not None and window < 1:
            raise SpikingError(f"LiquidStateMachine.window: got {window}; expected steps from 1 on, or None.")
        if features not in ("counts", "traces"):
            raise SpikingError(f"LiquidStateMachine.features: got {features!r}; expected counts or traces.")
        self.in_features, self.n, self.out = in_features, n, out
        self.beta, self.threshold, self.const, self.device, self.seed = beta, threshold, const, device, seed
        self.kind, self.time_bins, self.trace_beta, self.window = features, time_bins, trace_beta, window
        if weights is None:
            weights = draw(
                in_features, n, const=const, device=device, seed=seed, sparsity=sparsity, recurrent=recurrent
            )
        elif not recurrent:
            weights = weights._replace(w_rec=None)
        self._check_weights(weights)
        self.register_buffer("w_in", weights.w_in.detach().clone())
        self.register_buffer("w_rec", None if weights.w_rec is None else weights.w_rec.detach().clone())
        self.register_buffer("bias", None if weights.bias is None else weights.bias.detach().clone())
        self.in_array = self.rec_array = None
        if crossbar is not None:
            self.in_array = Crossbar(self.w_in, crossbar, arrays, seed=2 * seed)
            if self.w_rec is not None:
                self.rec_array = Crossbar(self.w_rec, crossbar, arrays, seed=2 * seed + 1)
        self.readout = LinearReadout(time_bins * n, out)
        self._packed: tuple[tuple[Any, ...], ReservoirWeights] | None = None

    @classmethod
    def from_conductance(
        cls,
        G_in: tuple[Tensor, Tensor],
        G_rec: tuple[Tensor, Tensor] | None = None,
        out: int = 10,
        *,
        const: float = 0.07,
        beta: float = 0.9,
        threshold: float = 5.0,
        features: Features = "counts",
        time_bins: int = 1,
        trace_beta: float = 0.9,
        window: int | None = None,
    ) -> LiquidStateMachine:
        """A reservoir of measured conductances (G⁺, G⁻) in siemens: W = const·(G⁺ - G⁻) in µS.

        Shapes: each of G_in [N, I], of G_rec [N, N]; G_rec None: no recurrence.
        Errors: SpikingError for shapes that differ, values that are negative or not finite.

        >>> G = torch.full((4, 3), 60e-6), torch.full((4, 3), 40e-6)
        >>> LiquidStateMachine.from_conductance(G, const=0.5).w_in[0].tolist()
        [10.0, 10.0, 10.0]
        """
        found: list[Tensor | None] = []
        for name, pair in {"G_in": G_in, "G_rec": G_rec}.items():
            if pair is None:
                found.append(None)
                continue
            plus, minus = (torch.as_tensor(G).double() for G in pair)
            if plus.shape != minus.shape or plus.dim() != 2:
                raise SpikingError(
                    f"from_conductance.{name}: got shapes {list(plus.shape)} and {list(minus.shape)}; expected two equal ones, "
                    "[neurons, senders]."
                )
            both = torch.stack([plus, minus])
            if not bool(torch.isfinite(both).all()) or bool((both < 0).any()):
                raise SpikingError(
                    f"from_conductance.{name}: got conductances that are negative or not finite; expected siemens from 0 on."
                )
            found.append((const * MICRO * (plus - minus)).float())
        w_in, w_rec = found
        assert w_in is not None
        n, inputs = w_in.shape
        return cls(
            inputs, n, out, beta=beta, threshold=threshold, const=const, features=features, time_bins=time_bins,
            trace_beta=trace_beta, window=window, weights=Weights(w_in, w_rec),
        )  # fmt: skip

    def _check_weights(self, weights: Weights) -> None:
        expected = {"w_in": (self.n, self.in_features), "w_rec": (self.n, self.n), "bias": (self.n,)}
        for name, shape in expected.items():
            value = getattr(weights, name)
            if value is None and name != "w_in":
                continue
            if tuple(value.shape) != shape or value.dtype not in (torch.float32, torch.float64):
                raise SpikingError(
                    f"LiquidStateMachine.weights: got {name} {value.dtype} of shape {list(value.shape)}; expected float32 or "
                    f"float64 of shape {list(shape)}."
                )
            if not bool(torch.isfinite(value).all()):
                raise SpikingError(
                    f"LiquidStateMachine.weights: got values in {name} that are not finite; expected numbers."
                )

    # Running

    def features(self, x: Tensor) -> Tensor:
        """What the readout sees of sequences x [T, B, I]: [B, time_bins·N], part after part."""
        found = self.run(x).features
        return found.transpose(0, 1).reshape(found.shape[1], -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.features(x))

    def fit(self, features: Tensor, labels: Any, readout: Readout = "ridge", seed: int = 0) -> Fit:
        """Fit the readout to features [S, F] of training samples and their labels; see `LinearReadout.fit`."""
        return self.readout.fit(features, labels, readout, seed)

    def spikes(self, x: Tensor, state: ReservoirState | None = None, return_state: bool = False) -> Any:
        """Spikes [T, B, N], and with `return_state` the state to go on from; a sequence may be cut anywhere."""
        found = self.run(x, state, keep_spikes=True)
        return (found.spikes, ReservoirState(found.u, found.s)) if return_state else found.spikes

    def step(self, x_t: Tensor, state: ReservoirState | None = None) -> tuple[Tensor, ReservoirState]:
        """One step: x_t [B, I] -> (spikes [B, N], state)."""
        spikes, state = self.spikes(x_t[None], state, return_state=True)
        return spikes[0], state

    def run(
        self,
        x: Tensor,
        state: ReservoirState | None = None,
        *,
        keep_spikes: bool = False,
        keep_membrane: bool = False,
    ) -> ReservoirRun:
        """Everything about a run over x [T, B, I]: features [time_bins, B, N], the last state, counts of events; on request spikes and
        membranes before the reset, [T, B, N].
        """
        if x.dim() != 3 or x.shape[2] != self.in_features:
            raise SpikingError(
                f"LiquidStateMachine: got input of shape {list(x.shape)}; expected [T, B, {self.in_features}]."
            )
        # A sum costs a tenth of a look at every value, and is not finite where one of them is not.
        if not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
            raise SpikingError("LiquidStateMachine: got input that is not finite; expected spikes or numbers.")
        bins, worth, carry = self._parts(x.shape[0])
        if self._reads_noisy():
            found = self._through_arrays(x, state, bins, worth, keep_spikes, keep_membrane)
        else:
            u, s = state or (None, None)
            found = run_reservoir(
                x, self._weights(), beta=self.beta, threshold=self.threshold, bins=bins, worth=worth, u=u, s=s,
                keep_spikes=keep_spikes, keep_membrane=keep_membrane,
            )  # fmt: skip
        parts = found.features
        if len(parts) < self.time_bins:  # a sequence shorter than the window: its last parts are silent
            parts = torch.cat([parts, parts.new_zeros((self.time_bins - len(parts), *parts.shape[1:]))])
        if self.kind == "traces":
            filtered = [parts[0]]
            for k in range(1, self.time_bins):
                filtered.append(parts[k] + carry[k] * filtered[-1])
            parts = torch.stack(filtered)
        return found._replace(features=parts)

    def _parts(self, T: int) -> tuple[Tensor, Tensor, list[float]]:
        """The part of each step, what a spike counts there, and what is left of a filtered trace one part later."""
        window = T if self.window is None else self.window
        if window < T:
            raise SpikingError(
                f"LiquidStateMachine: got {T} steps; expected at most window={window}. Cut the sequence."
            )
        steps = torch.arange(T)
        bins = steps * self.time_bins // max(window, 1)
        ends = [-(-(k + 1) * window // self.time_bins) for k in range(self.time_bins)]
        if self.kind == "counts":
            return bins, torch.full((T,), self.time_bins / max(window, 1), dtype=torch.float64), []
        last = torch.tensor(ends)[bins] - 1
        lengths = [end - start for start, end in zip([0, *ends], ends)]
        return bins, self.trace_beta ** (last - steps).double(), [self.trace_beta**length for length in lengths]

    def _reads_noisy(self) -> bool:
        arrays = [a for a in (self.in_array, self.rec_array) if a is not None]
        return any(not a.is_linear or (a.config.read != "none" and bool(a.variance.any())) for a in arrays)

    def _weights(self) -> ReservoirWeights:
        """The weights packed for the kernel, anew whenever they changed."""
        w_in = self.w_in if self.in_array is None else self.in_array.matrix
        w_rec = self.w_rec if self.rec_array is None else self.rec_array.matrix
        key = tuple(
            None if w is None else (w.data_ptr(), w._version, w.dtype, w.device) for w in (w_in, w_rec, self.bias)
        )
        if self._packed is None or self._packed[0] != key:
            self._packed = key, ReservoirWeights(w_in, w_rec, self.bias)
        return self._packed[1]

    def _through_arrays(
        self,
        x: Tensor,
        state: ReservoirState | None,
        bins: Tensor,
        worth: Tensor,
        keep_spikes: bool,
        keep_membrane: bool,
    ) -> ReservoirRun:
        """Step by step through arrays whose every read is another: the input product for all steps at once."""
        assert self.in_array is not None
        x = x.detach().to(self.w_in.dtype)
        T, B, _ = x.shape
        u, s = state or (x.new_zeros((B, self.n)), x.new_zeros((B, self.n)))
        features = x.new_zeros((self.time_bins, B, self.n))
        spikes, membrane, sent = [], [], x.new_zeros(B, dtype=torch.int64)
        with torch.no_grad():
            drive = self.in_array(x)
            for t in range(T):
                sent += s.count_nonzero(1)
                u = self.beta * u * (1 - s) + drive[t]
                if self.rec_array is not None:
                    u = u + self.rec_array(s)
                if self.bias is not None:
                    u = u + self.bias
                s = (u > self.threshold).to(u.dtype)
                features[bins[t]] += worth[t].to(u) * s
                spikes.append(s)
                membrane.append(u)
        events = torch.stack([x.count_nonzero(dim=(0, 2)), sent], 1)
        kept = [torch.stack(rows) if wanted and rows else None for wanted, rows in
                ((keep_spikes, spikes), (keep_membrane, membrane))]  # fmt: skip
        return ReservoirRun(features, u, s, events, *kept)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

    def extra_repr(self) -> str:
        kind = "" if self.w_rec is not None else ", recurrent=False"
        return f"{self.in_features}, {self.n}, out={self.out}, beta={self.beta}, threshold={self.threshold}, const={self.const}{kind}"
