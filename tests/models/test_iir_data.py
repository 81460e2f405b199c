"""Images for the trainer: normalised, shifted and mirrored by (seed, epoch, index) alone."""

import numpy as np
import pytest
import torch

from spiking import SpikingError
from spiking.models.iir.data import ImageBatches, statistics

IMAGES = np.random.default_rng(0).integers(1, 256, (30, 2, 9, 8), dtype=np.uint8)
LABELS = np.arange(30) % 3


def batches(**options):
    return ImageBatches(IMAGES, LABELS, 3, **options)


def test_values_are_normalised():
    x, labels = batches(mean=(0.5, 0.25), std=(0.5, 2.0)).batch(np.array([4, 7]), None)
    expected = (IMAGES[[4, 7]] / 255 - np.array([0.5, 0.25]).reshape(2, 1, 1)) / np.array([0.5, 2.0]).reshape(2, 1, 1)
    torch.testing.assert_close(x[0], torch.from_numpy(expected).float(), rtol=1e-6, atol=1e-6)
    assert labels.tolist() == [1, 1]


def test_what_happens_to_an_image_depends_on_its_index_and_the_epoch():
    data = batches(crop=2, flip=True, seed=3)
    whole, _ = data.batch(np.arange(30), 5)
    part, _ = data.subset([9, 4]).batch(np.array([1, 0]), 5)
    assert torch.equal(part[0], whole[0, [4, 9]])
    again, _ = batches(crop=2, flip=True, seed=3).batch(np.arange(30), 5)
    assert torch.equal(again, whole)
    other, _ = data.batch(np.arange(30), 6)
    assert not torch.equal(other, whole)
    plain, _ = data.batch(np.arange(30), None)
    assert torch.equal(plain[0], torch.from_numpy(IMAGES).float() / 255)


def test_every_image_is_a_shifted_or_mirrored_one():
    x, _ = batches(crop=2, flip=True).batch(np.arange(30), 0)
    kinds = set()
    for image, original in zip(x[0], torch.from_numpy(IMAGES).float() / 255):
        padded = torch.nn.functional.pad(original, (2,) * 4)
        fits = [
            (i, j, mirrored)
            for i in range(5) for j in range(5) for mirrored in (False, True)
            if torch.equal(image.flip(2) if mirrored else image, padded[:, i : i + 9, j : j + 8])
        ]  # fmt: skip
        assert len(fits) == 1
        kinds.add(fits[0])
    assert len({kind[:2] for kind in kinds}) > 8
    assert {kind[2] for kind in kinds} == {False, True}


def test_statistics_are_the_published_or_measured_ones():
    assert statistics("cifar10", IMAGES)[0] == (0.4914, 0.4822, 0.4465)
    mean, std = statistics("pictures", IMAGES)
    assert mean == pytest.approx((IMAGES / 255).mean((0, 2, 3)))
    assert std == pytest.approx((IMAGES / 255).std((0, 2, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES.astype(float), LABELS, 3), r"ImageBatches: got images \[30, 2, 9, 8\] of float64"),
        ((IMAGES, LABELS[:4], 3), r"labels \[4\]"),
        ((IMAGES, LABELS, 2), r"ImageBatches\.labels: got 0 to 2; expected 0 to 1"),
        ((IMAGES, LABELS, 3, (0.1, 0.1, 0.1)), r"ImageBatches\.mean: got \(0\.1, 0\.1, 0\.1\)"),
        ((IMAGES, LABELS, 3, (0.1,), (0.0,)), r"ImageBatches\.std: got \(0\.0,\)"),
        ((IMAGES, LABELS, 3, (0.0,), (1.0,), -1), r"ImageBatches\.crop: got -1"),
    ],
)
def test_what_does_not_fit(arguments, message):
    with pytest.raises(SpikingError, match=message):
        ImageBatches(*arguments)
