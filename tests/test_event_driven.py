"""Who decides between dense and event-driven, the cost model behind it, and that no choice changes a result."""

import itertools
import json
import threading

import pytest
import torch
from spiking.cuda_kernels import backend, calibrate, cost, dense, driven, event_linear_ops
from torch.nn import functional as tf
from torch.testing import assert_close

import spiking
from spiking import functional as F
from spiking.errors import SpikingError

needs_kernels = pytest.mark.skipif(backend.compiled() is None, reason="the compiled module was not built")
MODES = ("auto", "always", "never")


@pytest.fixture
def taken(monkeypatch):
    """Which side each call took: "event" or "dense"."""
    log = []

    def is_dense(way):
        return lambda *a: log.append("dense") or way(*a)

    def watch(name):
        way = getattr(event_linear_ops, name)

        def watched(*arguments):
            before = len(log)
            y = way(*arguments)
            log.extend(["event"] * (y is not None and len(log) == before))
            return y

        monkeypatch.setattr(event_linear_ops, name, watched)

    watch("_forward"), watch("at_hand")
    for name in ("linear", "learnable"):
        monkeypatch.setattr(dense, name, is_dense(getattr(dense, name)))
    return log


@pytest.fixture
def own_constants(tmp_path, monkeypatch):
    """A cache folder of its own: other tests keep the constants that came with the library."""
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path))
    cost.forget()
    yield tmp_path
    monkeypatch.undo()
    cost.forget()


def spikes(*shape, density=0.05, seed=0, dtype=torch.float32):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < density).to(dtype)


# The mode


def test_the_mode_is_set_by_a_call_and_restored_after_a_block():
    assert driven.mode() == "auto"
    spiking.event_driven("never")
    assert driven.mode() == "never"
    with spiking.event_driven("always"):
        assert driven.mode() == "always"
        with spiking.event_driven("auto"):
            assert driven.mode() == "auto"
        assert driven.mode() == "always"
    assert driven.mode() == "never"
    spiking.event_driven("auto")


def test_a_block_restores_the_mode_after_an_error():
    with pytest.raises(KeyError), spiking.event_driven("never"):
        raise KeyError
    assert driven.mode() == "auto"


def test_threads_do_not_disturb_each_other():
    seen = {}
    inside, leave = threading.Event(), threading.Event()

    def work():
        with spiking.event_driven("never"):
            inside.set()
            leave.wait(10)
            seen["other"] = driven.mode()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    seen["own"] = driven.mode()
    leave.set()
    thread.join()
    assert seen == {"other": "never", "own": "auto"}


def test_another_word_is_refused():
    with pytest.raises(SpikingError, match='event_driven: got \'sometimes\'; expected "auto", "always" or "never"'):
        spiking.event_driven("sometimes")


# The layer


@needs_kernels
def test_each_mode_takes_its_side(taken):
    layer = spiking.Linear(2048, 512)
    sparse, full = spikes(8, 4, 2048), torch.rand(8, 4, 2048).add_(0.1)
    expected = {"auto": ["event", "dense"], "always": ["event", "event"], "never": ["dense", "dense"]}
    for mode, sides in expected.items():
        with torch.no_grad(), spiking.event_driven(mode):
            layer(sparse), layer(full)
        assert taken == sides, mode
        taken.clear()


@needs_kernels
def test_training_takes_the_event_driven_side_where_spikes_are_few(taken):
    layer = spiking.Linear(1024, 1024)
    layer(spikes(64, 8, 1024, density=0.02)).sum().backward()
    layer(torch.rand(64, 8, 1024).add_(0.1)).sum().backward()
    assert taken == ["event", "dense"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_a_training_step_is_the_same_in_every_mode(mode, density):
    def run(mode):
        torch.manual_seed(0)
        net = spiking.Sequential(spiking.Linear(300, 64), spiking.LIF(), spiking.Linear(64, 10)).double()
        x = spikes(6, 5, 300, density=density, dtype=torch.float64).requires_grad_()
        with spiking.event_driven(mode):
            net(x).square().sum().backward()
        return [x.grad, *(p.grad for p in net.parameters())]

    for got, expected in zip(run(mode), run("never")):
        assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_gives_the_same_bits_each_time(mode):
    layer, x = spiking.Linear(700, 300), spikes(3, 2, 700)
    with spiking.event_driven(mode), torch.no_grad():
        first = layer(x)
        for _ in range(12):
            assert torch.equal(layer(x), first)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
def test_layers_take_integer_and_bool_spikes(mode, dtype):
    layer, x = spiking.Linear(300, 64), spikes(3, 2, 300)
    with spiking.event_driven(mode):
        y = layer(x.to(dtype))
        assert torch.equal(y, layer(x))
    assert y.dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_autocast_multiplies_in_bfloat16(mode):
    layer, x = spiking.Linear(600, 256), spikes(3, 2, 600)
    with spiking.event_driven(mode), torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32
    expected = tf.linear(x, layer.weight, layer.bias)
    assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)
    assert_close(layer.weight.grad, x.sum((0, 1)).expand(256, -1), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("mode", MODES)
def test_layers_compile_whole(mode):
    torch.compiler.reset()
    layer, x = spiking.Linear(300, 64).double(), spikes(3, 2, 300, dtype=torch.float64)
    with spiking.event_driven(mode):
        whole = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_close(whole(x), layer(x), rtol=1e-13, atol=1e-13)
        (grad,) = torch.autograd.grad(whole(x).square().sum(), layer.weight)
        (expected,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    assert_close(grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_transforms_and_export_see_torch_operators(mode):
    layer, x = spiking.Linear(300, 64), spikes(3, 2, 300)
    with spiking.event_driven(mode):
        assert_close(torch.func.vmap(layer)(x), tf.linear(x, layer.weight, layer.bias))
        exported = torch.export.export(layer, (x,), strict=False)
        assert_close(exported.module()(x), layer(x))


def test_a_model_trains_alike_with_and_without_events_and_accumulated_gradients():
    def losses(mode):
        torch.manual_seed(1)
        net = spiking.Sequential(spiking.Linear(400, 64), spiking.LIF(), spiking.Linear(64, 10))
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        found = []
        for i in range(10):
            with spiking.event_driven(mode):
                for part in range(2):
                    x = spikes(8, 16, 400, seed=10 * i + part)
                    loss = tf.cross_entropy(net(x).mean(0), torch.arange(16) % 10)
                    (loss / 2).backward()
            optimiser.step()
            optimiser.zero_grad()
            found.append(loss.item())
        return found

    assert_close(torch.tensor(losses("always")), torch.tensor(losses("never")), rtol=1e-4, atol=1e-5)


# What a neuron tells the layer after it


def _compact_net(surrogate, **options):
    torch.manual_seed(0)
    sizes = (200, 96, 80, 10)
    layers = [
        part
        for a, b in itertools.pairwise(sizes)
        for part in (spiking.Linear(a, b), spiking.LIF(surrogate=surrogate, **options))
    ]
    net = spiking.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.mul_(3)
    return net


@pytest.fixture
def restricted(monkeypatch):
    """How many input gradients were asked for with what is known of the neurons."""
    log = []
    op = torch.ops.spiking.event_input_grad
    monkeypatch.setattr(torch.ops.spiking, "event_input_grad", lambda *a: log.append(a[0].shape) or op(*a))
    return log


@needs_kernels
@pytest.mark.parametrize("surrogate", [spiking.surrogate.Triangle(2.0), spiking.surrogate.Rectangle(3.0)], ids=repr)
@pytest.mark.parametrize("save", ["value", "half"])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_gradients_that_a_neuron_multiplies_with_zero_are_left_out(restricted, surrogate, save, reset, detach_reset):
    x = spikes(6, 5, 200, density=0.1, dtype=torch.float64)
    grads = {}
    for mode in ("always", "never"):
        net = _compact_net(surrogate, save=save, reset=reset, detach_reset=detach_reset)
        with spiking.event_driven(mode):
            y, state = net(x, return_state=True)
            (y.square().sum() + state[1].v.sum() + state[3].v.square().sum()).backward()
        grads[mode] = [p.grad for p in net.parameters()]
    assert len(restricted) == 2  # the input of the second and of the third layer, in the first run
    for got, expected in zip(*grads.values()):
        # half keeps 11 bits of each membrane, and its last one hangs on the order of summation
        assert_close(got, expected, rtol=1e-10 if save == "value" else 2e-3, atol=1e-10 if save == "value" else 1e-4)


@needs_kernels
def test_nobody_who_watches_spikes_meets_a_gradient_that_was_left_out(restricted):
    x = spikes(6, 5, 200, density=0.1, dtype=torch.float64)
    seen = []
    net = _compact_net(spiking.surrogate.Triangle(2.0))

    def watch(module, given, s):  # returns nothing: what a hook returns would take the place of the spikes
        s.register_hook(seen.append)

    net[1].register_forward_hook(watch)
    with spiking.event_driven("always"):
        net(x).square().sum().backward()
    assert len(restricted) == 1  # the third layer's input only
    assert bool((seen[0] != 0).all())


@pytest.mark.parametrize(
    "change", [{"normalize": True}, {"reset_delay": True}, {"refractory": 2}, {"learn_threshold": True}]
)
def test_neurons_with_another_backward_tell_nothing(restricted, change):
    net = _compact_net(spiking.surrogate.Triangle(2.0), **change)
    with spiking.event_driven("always"):
        net(spikes(6, 5, 200, density=0.1, dtype=torch.float64)).square().sum().backward()
    assert restricted == []


def test_training_with_compact_surrogates_compiles_whole():
    torch.compiler.reset()
    net, x = _compact_net(spiking.surrogate.Triangle(2.0)), spikes(6, 5, 200, density=0.1, dtype=torch.float64)
    whole = torch.compile(net, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(whole(x).square().sum(), list(net.parameters()))
    for a, b in zip(got, torch.autograd.grad(net(x).square().sum(), list(net.parameters()))):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


# The cost model


def test_fewer_spikes_never_change_the_choice_to_dense():
    for rows, inputs, outputs in ((1, 4096, 4096), (16, 100, 30), (1024, 2312, 512), (7, 13, 3)):
        for item in (2, 4, 8):
            work = cost.Work.linear(rows, inputs, outputs, item, threads=2)
            limit = cost.most_spikes(work)
            sides = [cost.choose(work, n).event for n in range(0, work.inputs + 1, max(1, work.inputs // 50))]
            assert sides == sorted(sides, reverse=True)
            assert limit < 0 or cost.choose(work, limit).event
            assert limit >= work.inputs or not cost.choose(work, limit + 1).event


def test_packing_that_must_be_paid_lowers_the_limit():
    work = cost.Work.linear(1, 4096, 4096, threads=2)
    assert cost.most_spikes(work, cost.packing(work)) <= cost.most_spikes(work)
    assert not cost.choose(work, 1, extra_s=1.0).event
    assert cost.most_spikes(work, 1.0) == -1


def test_predictions_grow_with_work_and_shrink_with_threads():
    small, large = (cost.choose(cost.Work.linear(r, 1000, 1000), 100 * r) for r in (1, 64))
    assert large.event_s > small.event_s
    assert large.dense_s > small.dense_s
    work = cost.Work.linear(64, 1000, 1000, threads=7)
    assert cost.choose(work, 0).dense_s < cost.choose(work._replace(threads=1), 0).dense_s


@needs_kernels
def test_calibration_is_kept_used_and_read_again(own_constants):
    work = cost.Work.linear(8, 512, 256, threads=backend.threads())
    before = cost.choose(work, 100)
    path = calibrate.calibrate(quick=True)
    assert own_constants in path.parents
    assert cost.calibrated(backend.threads()) == path
    measured = cost.choose(work, 100)
    assert measured != before
    assert 0 < measured.event_s < 1
    assert 0 < measured.dense_s < 1
    cost.forget()
    assert cost.choose(work, 100) == measured
    assert str(path) in backend.report()["event_driven_costs"]


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 1, "kinds": {"linear/4": {"dense": "x"}}}'])
def test_a_damaged_file_is_named_and_the_defaults_are_used(own_constants, text):
    work = cost.Work.linear(8, 512, 256, threads=2)
    before = cost.choose(work, 100)
    path = cost.save({}, 2)
    path.write_text(text)
    cost.forget()
    with pytest.warns(UserWarning, match=r"cannot be read .* Run spiking doctor --calibrate"):
        assert cost.choose(work, 100) == before
    path.write_text(json.dumps({"version": 0, "kinds": {}}))  # of another release: measured anew, without a word
    cost.forget()
    assert cost.choose(work, 100) == before


def test_calibration_needs_kernels(monkeypatch):
    monkeypatch.setattr(backend, "compiled", lambda: None)
    with pytest.raises(SpikingError, match="calibrate: there is nothing to choose from"):
        calibrate.calibrate()


def test_functional_and_layer_agree_on_the_event_driven_side():
    layer, x = spiking.Linear(300, 64), spikes(3, 2, 300)
    with spiking.event_driven("always"), torch.no_grad():
        assert torch.equal(layer(x), F.event_linear(x, layer.weight, layer.bias))
