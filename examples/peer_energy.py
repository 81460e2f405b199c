"""What would other libraries' networks cost in hardware? Record them as they are, price them, write the report.

    python examples/peer_energy.py [snntorch|spikingjelly] [--out report.html]

`snntorch` is the convolutional network of snnTorch's tutorial 6, whose loop over time lies outside of the network;
`spikingjelly` is the library's own network for N-MNIST, which takes whole sequences. Both are untrained here, so that the script
needs no data: put your own weights and recordings in their place. An untrained network may be silent, which makes a ratio that
says nothing; the warnings that are printed below each line name the silent layers. Needs `pip install spiking[peers]`.
"""

import argparse
import importlib.util

import torch
from torch import nn

import spiking
from spiking import hw_models


def snntorch_tutorial() -> spiking.EventTrace:
    """The network of tutorial 6 on one batch of images, 25 steps each."""
    import snntorch as snn
    from snntorch import surrogate, utils

    beta, spike_grad = 0.5, surrogate.fast_sigmoid(slope=25)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 5),
        nn.MaxPool2d(2),
        snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True),
        nn.Conv2d(12, 64, 5),
        nn.MaxPool2d(2),
        snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 10),
        snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True, output=True),
    )
    images = torch.rand(4, 1, 28, 28)
    utils.reset(net)
    with torch.no_grad(), spiking.record(net, steps=25, step_by_step=True) as trace:
        for _ in range(25):
            net(images)
    return trace


def spikingjelly_nmnist() -> spiking.EventTrace:
    """SpikingJelly's N-MNIST network on one batch of event frames [T, B, 2, 34, 34]."""
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.model.parametric_lif_net import NMNISTNet

    net = NMNISTNet(channels=16, spiking_neuron=neuron.LIFNode, v_threshold=0.25)  # untrained, it is silent at 1
    functional.set_step_mode(net, "m")
    frames = (torch.rand(10, 2, 2, 34, 34) < 0.1).float()
    with torch.no_grad():
        for _ in range(30):  # its norms see data, as in training
            net(frames)
            functional.reset_net(net)
    net.eval()
    with torch.no_grad(), spiking.record(net) as trace:
        net(frames)
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=["snntorch", "spikingjelly"], nargs="?", default="snntorch")
    parser.add_argument("--quick", action="store_true", help="for tests: price the networks, write no page")
    parser.add_argument("--out", default="report.html", help="the page to write; its figures go beside it as JSON")
    arguments = parser.parse_args()
    if importlib.util.find_spec(arguments.library) is None:
        print(f"{arguments.library} is not installed; pip install 'spiking[peers]' brings it")
        return
    torch.manual_seed(0)
    trace = {"snntorch": snntorch_tutorial, "spikingjelly": spikingjelly_nmnist}[arguments.library]()
    estimates = hw_models.compare(trace, ["digital-45nm", "digital-sram"])
    for found in estimates:
        print(f"{found.hardware.name:<14} {hw_models.si(found.energy.nominal, 'J')} per sample; {found.summary()}")
    for warning in estimates[0].warnings:
        if warning.code == "W14":
            print(f"W14            {warning.text}")
    if arguments.quick:
        return
    hw_models.report(estimates, arguments.out, title=f"A network of {arguments.library}, untrained")
    print(f"report: {arguments.out}")


if __name__ == "__main__":
    main()
