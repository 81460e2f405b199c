"""Bernoulli masks of dropout: shares, independence, seeds, and the same at every instruction set level."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from spiking.cuda_kernels import backend
from spiking.cuda_kernels.mask_ops import dropout_mask

N = 1 << 18


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_a_share_p_is_zero_and_the_mean_stays_one(p):
    torch.manual_seed(0)
    mask = dropout_mask(torch.empty(N), p)
    assert set(mask.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - p)).item()}
    silent = (mask == 0).double().mean().item()
    assert abs(silent - p) <= 5 * (p * (1 - p) / N) ** 0.5


def test_neighbours_rows_and_seeds_are_independent():
    torch.manual_seed(0)
    first, second = (dropout_mask(torch.empty(512, 512), 0.5) - 1 for _ in range(2))
    limit = 5 / 512  # five standard deviations of a mean of 512² products of ±1
    for a, b in ((first, second), (first[:, 1:], first[:, :-1]), (first[1:], first[:-1]), (first[256:], first[:256])):
        assert abs((a * b).mean().item()) < limit * 2**0.5


def test_masks_follow_the_seed_of_torch():
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(dropout_mask(torch.empty(1000), 0.3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_other_dtypes_take_torchs_generator():
    mask = dropout_mask(torch.empty(100, dtype=torch.float64), 0.5)
    assert mask.dtype == torch.float64
    assert set(mask.tolist()) == {0.0, 2.0}


def test_every_level_and_number_of_threads_draws_the_same():
    module = backend.compiled()
    if module is None:
        pytest.skip("the CPU kernels were not built")
    code = (
        "import torch, hashlib; from spiking.cuda_kernels.mask_ops import dropout_mask; torch.manual_seed(3);"
        "print(hashlib.sha256(dropout_mask(torch.empty(70001), 0.2).numpy().tobytes()).hexdigest())"
    )
    found = set()
    for level, threads in [(level, "2") for level in module.levels()] + [(module.levels()[0], "1")]:
        environment = {"SPIKING_LEVEL": level, "OMP_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-P", "-c", code], env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1
