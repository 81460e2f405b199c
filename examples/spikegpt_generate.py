"""Text from the language model that ships with the package: token by token, with a memory that does not grow.

python examples/spikegpt_generate.py [--prompt TEXT] [--tokens N] [--temperature X] [--seed N] [--quick]
"""

import argparse
import time

from spiking.models import SpikeGPT

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--prompt", default="ROMEO:\n")
parser.add_argument("--tokens", type=int, default=400)
parser.add_argument("--temperature", type=float, default=0.8)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="a short text, for a look")
arguments = parser.parse_args()

lm = SpikeGPT.pretrained()
writer = lm.generate(
    lm.tokenizer.encode(arguments.prompt),
    60 if arguments.quick else arguments.tokens,
    temperature=arguments.temperature,
    seed=arguments.seed,
)
print(arguments.prompt, end="")
began, memory, written = time.perf_counter(), set(), 0
for token in writer:
    print(lm.tokenizer.decode([token]), end="", flush=True)
    memory.add(writer.state.numel() * writer.state.element_size())
    written += 1
seconds = time.perf_counter() - began
print(f"\n\n{written} tokens, {1000 * seconds / written:.1f} ms each")
print(f"memory of the text so far, at its first token and at its last: {min(memory):,} and {max(memory):,} bytes")
