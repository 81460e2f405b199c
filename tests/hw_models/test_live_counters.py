"""The counters of other libraries, run on the golden layers: equal to ours where they are right, else off by a known formula.

Each library skips where it is not installed (`pip install spiking[peers]`; `pip install neurobench==2.3.0`). What they said when
the golden figures were made is in `peers.json`; these tests ask the installed ones.
"""

from typing import Any

import pytest
import torch
from golden_nets import MICRO, MICRO_ARRAYS, Frames, micro_layer
from torch import Tensor, nn

from spiking import hw_models, record
from spiking.trace import LayerTrace

BY_NAME = {case["name"]: case for case in MICRO}
CASES = pytest.mark.parametrize("name", BY_NAME)
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own


def counted(name: str) -> tuple[nn.Module, Tensor, LayerTrace]:
    """The layer, its operand [T, B, *], and our row."""
    layer, x = micro_layer(BY_NAME[name]), torch.tensor(MICRO_ARRAYS[f"{name}.x"])
    with record(model := Frames(layer)) as trace, torch.no_grad():
        model(x)
    return layer, x, trace.layers[0]


def total(row: LayerTrace, what: str) -> int:
    return int(row.counts[what].sum())


@CASES
def test_spikingjelly_counts_spikes_as_we_do_and_all_else_as_padded_macs(name):
    """Ternary, scaled and graded operands are dense MACs to it, and MACs with the zero padding are counted, too."""
    counters: Any = pytest.importorskip(
        "spikingjelly.activation_based.op_counter", reason="spikingjelly is not installed"
    )
    layer, x, row = counted(name)
    synops, macs = counters.SynOpCounter(), counters.MACCounter()
    with counters.DispatchCounterMode([synops, macs]), torch.no_grad():
        layer(x.flatten(0, 1))
    if row.operand_class == "binary":
        assert (synops.get_total(), macs.get_total()) == (total(row, "syn"), 0)
        assert int(row.ac.sum()) == synops.get_total()
    else:
        assert (synops.get_total(), macs.get_total()) == (0, row.dense_padded * int(row.calls.sum()))


@CASES
def test_spikingjelly_judges_each_call_alone(name):
    """Called step by step, it takes the binary steps of an operand that is analogue later for accumulates; we look at the whole run."""
    counters: Any = pytest.importorskip(
        "spikingjelly.activation_based.op_counter", reason="spikingjelly is not installed"
    )
    layer, x, row = counted(name)
    synops = counters.SynOpCounter()
    with counters.DispatchCounterMode([synops]), torch.no_grad():
        for step in x:
            layer(step)
    judged = [t for t, kind in enumerate(row.class_step) if kind == "binary"]
    assert synops.get_total() == int(row.counts["syn"][judged].sum())


@pytest.mark.parametrize(
    "name", [name for name, case in BY_NAME.items() if case["kind"] in ("linear", "conv2d")]
)  # all it counts
def test_sinabs_sums_values_where_we_count_events(name):
    """Its figure is the sum of x times the fan-out: synaptic operations for spikes, weighted by amplitude and sign for all else."""
    sinabs: Any = pytest.importorskip("sinabs", reason="sinabs is not installed")
    layer, x, row = counted(name)
    network = nn.Sequential(layer)
    analyzer = sinabs.SNNAnalyzer(network)
    frames = x.flatten(0, 1)
    with torch.no_grad():
        network(frames)
    theirs = float(analyzer.get_model_statistics()["synops"]) * len(frames)
    fan_out = torch.tensor(row.fan_out).reshape(x.shape[2:])
    assert theirs == pytest.approx(float((frames.double() * fan_out).sum()), rel=1e-5, abs=1e-3)
    if row.operand_class == "binary":
        assert theirs == pytest.approx(total(row, "syn"), rel=1e-6)


@CASES
def test_neurobench_leaves_zero_weights_out(name):
    """Its effective operations are our `syn_eff`, its dense ones our `dense`; it takes only -1, 0 and 1 for spikes."""
    macs: Any = pytest.importorskip(
        "neurobench.metrics.utils.layers.macs", reason="neurobench is not installed: pip install neurobench==2.3.0"
    )
    if BY_NAME[name]["kind"].startswith("convT"):
        pytest.skip("neurobench does not count transposed layers")
    layer, x, row = counted(name)
    frames = x.flatten(0, 1)
    with torch.no_grad():
        effective, spiking = macs.single_layer_MACs(frames, layer)
        dense, _ = macs.single_layer_MACs(frames, layer, total=True)
    assert (effective, dense) == (total(row, "syn_eff"), row.dense * int(row.calls.sum()))
    assert spiking == (row.operand_class in ("binary", "ternary"))


def test_neurobench_s_own_run_gives_the_same_metrics_under_the_same_names():
    """All but Footprint, which counts buffers as well as parameters there."""
    benchmarks: Any = pytest.importorskip("neurobench.benchmarks", reason="neurobench is not installed")
    snn: Any = pytest.importorskip("snntorch", reason="snntorch is not installed")
    from neurobench.metrics import static, workload
    from neurobench.models import SNNTorchModel
    from snntorch import utils

    torch.manual_seed(0)
    neuron = {"beta": 0.9, "threshold": 0.3, "init_hidden": True}
    net = nn.Sequential(nn.Linear(6, 8), snn.Leaky(**neuron), nn.Linear(8, 4), snn.Leaky(**neuron, output=True))
    with torch.no_grad():
        net[0].weight[0] = 0
    x = (torch.rand(5, 7, 6) < 0.5).float()  # batch first, as there
    utils.reset(net)
    with torch.no_grad(), record(net, steps=7, step_by_step=True) as trace:
        for t in range(7):
            net(x[:, t])
    ours = hw_models.neurobench(trace)
    names = {kind: [getattr(kind, n) for n in ours if hasattr(kind, n)] for kind in (static, workload)}
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(5)), batch_size=5)
    run = benchmarks.Benchmark(SNNTorchModel(net), loader, [], [lambda s: s.sum(1).argmax(1)], [*names.values()])
    theirs = run.run(quiet=True)
    assert set(theirs) == set(ours)
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    assert theirs.pop("Footprint") - buffers == ours.pop("Footprint")
    assert theirs.pop("SynapticOperations") == pytest.approx(ours.pop("SynapticOperations"))
    assert theirs == pytest.approx(ours)
