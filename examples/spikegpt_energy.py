"""What a token costs in SpikeGPT, as the paper counts and as its operands are, beside an equal GPT with a key-value cache.

    python examples/spikegpt_energy.py [--quick] [--rate 0.27] [--context 1024]

An addition of a weight costs 0.9 pJ, a multiplication with it 4.6 pJ (45 nm, fp32). The paper's way: additions at one rate for every
product of a block. Counted: additions only where the operand is a spike, one for each spike; else multiplications, all of them where
the operand is real, those with something other than 0 behind a squared ReLU. A product of mixed spikes, W·(mix·x[t] + (1-mix)·x[t-1]),
is two products of spikes. Rates are those of an untrained network on random tokens, which starts firing, unless --rate states one
for all. What is no product has rows of its own; an exponential is priced as the 12 multiply-adds of its polynomial, a division as 4.
Memory traffic, which is equal or decides on most processors, is not in the table: see the guide to energy.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table

from spiking.models import SpikeGPT, SpikeGPTConfig

E_AC, E_MAC = 0.9, 4.6  # pJ
EXPONENTIAL, DIVISION = 12 * E_MAC, 4 * E_MAC
PAPER_RATE = 0.15  # what the paper takes for every layer
VARIANTS = {
    "published": {},
    "spikes before products": {"placement": "pre"},
    "… and in the feed-forward": {"placement": "pre", "activation": "spike"},
}


def measured(lm: SpikeGPT, steps: int) -> dict[str, float]:
    """Shares of non-zero operands, over all blocks: of the attention, of the feed-forward, and of its second product."""
    shares: dict[str, list[float]] = {"attention": [], "feed-forward": [], "inside": []}
    handles = []
    for block in lm.blocks:
        for name, product in (("attention", block.att), ("feed-forward", block.ffn), ("inside", block.ffn.value)):
            handles.append(
                product.register_forward_pre_hook(
                    lambda module, given, name=name: shares[name].append((given[0] != 0).float().mean().item())
                )
            )
    with torch.no_grad():
        lm.eval()(torch.randint(lm.config.vocab_size, (2, steps), generator=torch.Generator().manual_seed(0)))
    for handle in handles:
        handle.remove()
    return {name: sum(found) / len(found) for name, found in shares.items()}


def products(config: SpikeGPTConfig, rates: dict[str, float]) -> float:
    """pJ of all products of the blocks for one token, counted as their operands are."""
    square = config.n_embd**2
    if config.placement == "pre":
        mixed = 2 * E_AC * square * (3 * rates["attention"] + 5 * rates["feed-forward"])
    else:
        mixed = 8 * E_MAC * square
    each = E_AC if config.activation == "spike" else E_MAC
    return config.n_layer * (mixed + E_MAC * square + 4 * each * square * rates["inside"])


def beside_products(config: SpikeGPTConfig) -> dict[str, float]:
    """pJ of everything else for one token."""
    layers, width = config.n_layer, config.n_embd
    inside = 4 * width if config.activation == "spike" else 0
    return {
        "WKV": layers * width * (EXPONENTIAL + DIVISION + 7 * E_MAC),
        "gates and mixing": layers * width * (2 * (EXPONENTIAL + DIVISION + E_MAC) + (0 if config.placement == "pre" else 10 * E_MAC)),
        "norms": (2 * layers + 2) * width * 4 * E_MAC,
        "neurons": layers * (2 * width + inside) * E_MAC,
        "head": config.vocab_size * width * E_MAC,
    }  # fmt: skip


def gpt(config: SpikeGPTConfig, context: float) -> dict[str, float]:
    """pJ of an equal GPT for one token that looks back on `context` others."""
    layers, width = config.n_layer, config.n_embd
    heads = max(1, width // 64)
    return {
        "products": 12 * layers * width**2 * E_MAC,
        "attention": layers * context * (2 * width * E_MAC + heads * (EXPONENTIAL + DIVISION)),
        "activations": layers * 4 * width * (EXPONENTIAL + DIVISION + E_MAC),
        "norms": (2 * layers + 1) * width * 4 * E_MAC,
        "head": config.vocab_size * width * E_MAC,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network")
    parser.add_argument(
        "--rate", type=float, help="the share of operands that are spikes, for all; measured if not given"
    )
    parser.add_argument(
        "--context", type=int, default=1024, help="tokens before the one that is generated, and of the prompt"
    )
    arguments = parser.parse_args()
    size = {"n_layer": 2, "n_embd": 64} if arguments.quick else {"n_layer": 12, "n_embd": 512}
    console = Console(width=118)
    table = Table(title="microjoules for a token")
    for column in (
        "network",
        "rates",
        "products, paper",
        "counted",
        "saving",
        "WKV",
        "gates, mixing",
        "norms",
        "neurons",
        "head",
        "all",
    ):
        table.add_column(column, justify="left" if column in ("network", "rates") else "right")
    for name, changes in VARIANTS.items():
        torch.manual_seed(0)
        config = SpikeGPTConfig(vocab_size=256, dropout=0.0, **size, **changes)
        rates = measured(SpikeGPT(config), 16 if arguments.quick else 64)
        if arguments.rate is not None:
            spikes = (
                ("attention", "feed-forward", "inside")
                if config.activation == "spike"
                else ("attention", "feed-forward")
            )
            rates |= {part: arguments.rate for part in spikes if config.placement == "pre"}
        dense = 13 * config.n_layer * config.n_embd**2 * E_MAC
        counted, others = products(config, rates), beside_products(config)
        table.add_row(
            name, " ".join(f"{rates[part]:.2f}" for part in rates), f"{dense * PAPER_RATE * E_AC / E_MAC / 1e6:.3f}",
            f"{counted / 1e6:.3f}", f"{dense / counted:.1f}×", *(f"{pj / 1e6:.3f}" for pj in others.values()),
            f"{(counted + sum(others.values())) / 1e6:.3f}",
        )  # fmt: skip
    console.print(table)
    peer = Table(title="an equal GPT, microjoules for a token")
    for column in ("", *gpt(config, 0), "all"):
        peer.add_column(column, justify="right" if column else "left")
    for name, context in (
        (f"prefill of {arguments.context} tokens, mean", (arguments.context + 1) / 2),
        (f"generating after {arguments.context} tokens", arguments.context),
        (f"generating after {16 * arguments.context} tokens", 16 * arguments.context),
    ):
        parts = gpt(config, context)
        peer.add_row(name, *(f"{pj / 1e6:.3f}" for pj in parts.values()), f"{sum(parts.values()) / 1e6:.3f}")
    console.print(peer)
    console.print("SpikeGPT's token costs the same in prefill and generation, whatever the context.")


if __name__ == "__main__":
    main()
