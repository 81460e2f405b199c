"""`explain`: a row for every layer that can choose, with the choice that the layer really makes."""

import pytest
import torch
from spiking.cuda_kernels import backend

import spiking
from spiking.errors import SpikingError

needs_kernels = pytest.mark.skipif(backend.compiled() is None, reason="the compiled module was not built")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return spiking.Sequential(spiking.Linear(2048, 512), spiking.LIF(), spiking.Linear(512, 10))


@needs_kernels
def test_rows_say_what_each_layer_chose_and_why(net, capsys):
    x = (torch.rand(8, 4, 2048) < 0.05).float()
    rows = spiking.explain(net, x)
    assert [row.name for row in rows] == ["0", "2"]
    assert rows[0].choice == "event-driven"
    assert rows[0].density == pytest.approx(x.mean().item())
    assert "of the dense time predicted" in rows[0].reason
    assert all(s > 0 for row in rows for s in (row.event_s, row.dense_s, row.event_predicted_s, row.dense_predicted_s))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    assert "density" in printed[0]
    assert "event-driven" in printed[1]
    (row, _) = spiking.explain(net, torch.rand(8, 4, 2048).add_(0.1), show=False)
    assert row.choice == "dense"
    assert capsys.readouterr().out == ""


def test_the_model_is_not_changed(net):
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    spiking.explain(net, torch.zeros(2, 1, 2048), show=False)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


@needs_kernels
def test_reasons_name_what_stands_in_the_way(net):
    x = torch.zeros(2, 1, 2048)
    assert "no event-driven kernel for torch.float16" in spiking.explain(net.half(), x.half(), show=False)[0].reason
    net.float()[0].weight.data[0, 0] = float("inf")
    row = spiking.explain(net, x, show=False)[0]
    assert row.choice == "dense"
    assert "a weight is infinite or NaN" in row.reason


def test_a_model_without_a_choice_is_refused():
    with pytest.raises(SpikingError, match=r"explain: LIF has no spiking\.Linear or spiking\.Conv2d"):
        spiking.explain(spiking.LIF(), torch.zeros(2, 1, 3))


@pytest.mark.parametrize("call", [(3, torch.zeros(1, 1, 8)), (torch.nn.Identity(), [1.0])])
def test_other_things_than_a_model_and_a_tensor_are_refused(call):
    with pytest.raises(SpikingError, match=r"explain: got .* expected a model and the tensor"):
        spiking.explain(*call)


def test_reasons_know_the_dtypes_of_each_kernel():
    layers = spiking.Sequential(spiking.Conv2d(2, 3, 3), spiking.Flatten(), spiking.Linear(108, 4)).half()
    conv, linear = spiking.explain(layers, torch.zeros(1, 1, 2, 8, 8, dtype=torch.float16), show=False)
    assert "no event-driven kernel" not in conv.reason
    assert linear.reason == "there is no event-driven kernel for torch.float16"


@needs_kernels
def test_convolutions_have_rows_too():
    g = torch.Generator().manual_seed(0)
    net = spiking.Sequential(
        spiking.Conv2d(64, 64, 3, padding=1, bias=False),
        spiking.LIF(0.5),
        spiking.Conv2d(64, 4, 3, dilation=2),
        spiking.AvgPool2d(2),
        spiking.LIF(0.5),
    )
    x = (torch.rand(4, 4, 64, 16, 16, generator=g) < 0.02).float()
    first, dilated = spiking.explain(net, x, show=False)
    assert (first.name, first.choice) == ("0", "event-driven")
    assert first.density == pytest.approx(x.mean().item())
    assert 0 < first.event_predicted_s < first.dense_predicted_s
    assert (dilated.name, dilated.choice) == ("2", "dense")
    assert dilated.reason == "the event-driven kernels know no dilation, and padding by numbers of zeros alone"
