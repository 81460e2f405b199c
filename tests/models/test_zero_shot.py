"""Zero-shot retrieval: published-structure losses by number, and a harness whose controls come out as they must."""

import itertools
import json

import numpy as np
import pytest
import torch

from spiking.errors import SpikingError
from spiking.models.lsm.zero_shot import (
    Alignment,
    Outcome,
    Sense,
    _losses,
    contrastive_loss,
    interval,
    retrieval_accuracy,
    zero_shot,
)


@pytest.fixture(scope="module")
def known(golden):
    data = json.loads((golden / "lsm" / "retrieval.json").read_text())
    a, b = (torch.tensor(data[k], dtype=torch.float64) for k in ("emb_a", "emb_b"))
    return data, a, b, torch.tensor(data["labels"])


@pytest.mark.parametrize("kind", ["hard", "soft", "supervised"])
@pytest.mark.parametrize(
    ("name", "tau", "cosine"), [("tau1_raw", 1.0, False), ("tau1_cos", 1.0, True), ("tau007_cos", 0.07, True)]
)
def test_losses_by_number(known, kind, name, tau, cosine):
    data, a, b, labels = known
    found = contrastive_loss(a, b, labels, kind=kind, tau=tau, cosine=cosine)
    assert float(found) == pytest.approx(data[f"loss_{name}"][kind], rel=1e-9)


@pytest.mark.parametrize("cosine", [False, True])
def test_retrieval_by_number(known, cosine):
    data, a, b, labels = known
    name = "cos" if cosine else "dot"
    assert retrieval_accuracy(a, b, labels, labels, cosine) == data[f"top1_a_to_b_{name}"]
    assert retrieval_accuracy(b, a, labels, labels, cosine) == data[f"top1_b_to_a_{name}"]


def latents(shared, first_seed=0):
    """Nine Gaussian classes through random features of two senses; pairs show the same latents if shared, else classes have others."""

    def senses(seed):
        g = torch.Generator().manual_seed(first_seed + seed)
        labels = torch.arange(9).repeat_interleave(60) + 1

        def draw(centres):
            return centres[labels - 1] + 0.7 * torch.randn(540, 12, generator=g)

        first, second = (torch.randn(9, 12, generator=g) for _ in range(2))
        second = first if shared else second
        pairs = draw(first)
        found = []
        for bend, own, seen in (
            (torch.tanh, first, pairs),
            (torch.relu, second, pairs if shared else draw(second)),
        ):
            features = torch.randn(12, 200, generator=g) / 12**0.5
            found.append(Sense(bend(seen @ features), labels, bend(draw(own) @ features), labels))
        return tuple(found)

    return senses


@pytest.fixture
def config():
    return Alignment(epochs=12)


def over_pairs(shared, config):
    """Each pair of classes with latents of its own, so that the units of the interval are independent."""
    parts = [
        zero_shot(latents(shared, first_seed=100 * i), pairs=[pair], seeds=2, config=config)
        for i, pair in enumerate(itertools.combinations(range(1, 10), 2))
    ]
    return {name: Outcome(*(np.concatenate(rows) for rows in zip(*(p[name] for p in parts)))) for name in parts[0]}


def test_nothing_shared_is_chance_and_what_is_shared_is_found(config):
    negative, positive = over_pairs(False, config), over_pairs(True, config)
    for name in ("a to b", "b to a"):
        assert negative[name].unseen.shape == (36, 2)
        chance, skill = interval(negative[name].unseen), interval(positive[name].unseen)
        assert chance.low < 0.5 < chance.high, chance
        assert skill.low > 0.75, skill
        assert positive[name].seen.mean() > 0.6
        assert (positive[name].generalised <= positive[name].unseen + 1e-9).all()


def test_untrained_and_shuffled_projections_find_nothing(config):
    for control in ({"untrained": True}, {"shuffled": True}):
        found = zero_shot(latents(shared=True), seeds=1, config=config, classes=range(1, 7), **control)
        assert found["a to b"].unseen.shape == (15, 1)
        assert interval(found["a to b"].unseen).low < 0.55
        # Seen classes: untrained ones are found by chance, shuffled ones less often than that, since each learnt another's place.
        assert found["a to b"].seen.mean() < 0.45


def test_pairs_trained_side_by_side_are_as_if_alone(config):
    together = zero_shot(latents(shared=True), seeds=1, config=config, classes=(1, 2, 3, 4))
    first = zero_shot(latents(shared=True), seeds=1, config=config, classes=(1, 2, 3, 4), pairs=[(1, 2)])
    for way in together:
        assert np.allclose(first[way].unseen[0], together[way].unseen[0], atol=0.02)
        assert np.allclose(first[way].seen[0], together[way].seen[0], atol=0.02)


def test_swapped_labels_of_the_gallery_turn_an_accuracy_round():
    g = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(40, 5, generator=g), torch.randn(30, 5, generator=g)
    asked, there = torch.arange(40) % 2, torch.arange(30) % 2
    assert retrieval_accuracy(queries, gallery, asked, 1 - there) == pytest.approx(
        1 - retrieval_accuracy(queries, gallery, asked, there)
    )


def test_confusions_hold_every_query_once_a_seed(config):
    found = zero_shot(latents(shared=True), seeds=2, config=config, classes=(1, 2, 3, 4))["a to b"]
    assert found.confusion.shape == (6, 4, 4)
    assert (found.confusion.sum(2) == 2 * 60).all()
    pair = found.confusion[0, :2]  # unseen classes 1 and 2 among all
    assert pair[[0, 1], [0, 1]].sum() / pair.sum() == pytest.approx(found.generalised[0].mean())


@pytest.mark.parametrize("kind", ["hard", "soft", "supervised"])
def test_items_that_are_not_there_do_not_count(kind):
    g = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(2, 6, 4, generator=g, dtype=torch.float64).requires_grad_(),
        torch.randn(2, 6, 4, generator=g).double(),
    )
    labels, there = torch.arange(6).repeat(2, 1) % 3, torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    found = _losses(a, b, labels, there, kind, 0.5, False)
    (grad,) = torch.autograd.grad(found.sum(), a)
    for k, n in ((0, 6), (1, 4)):
        alone = a[k, :n].detach().requires_grad_()
        expected = contrastive_loss(alone, b[k, :n], labels[k, :n], kind=kind, tau=0.5)
        assert float(found[k].detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
        assert torch.allclose(grad[k, :n], torch.autograd.grad(expected, alone)[0], rtol=1e-10, atol=1e-14)
    assert not grad[1, 4:].any()


def test_a_run_repeats_and_needs_no_order_of_arrival(config):
    one, two = (zero_shot(latents(shared=True), seeds=1, config=config, classes=(1, 2, 3, 4)) for _ in range(2))
    assert np.array_equal(one["a to b"].unseen, two["a to b"].unseen)


def test_bad_input_is_named(config):
    a = torch.zeros(3, 2)
    with pytest.raises(SpikingError, match=r"contrastive_loss\.kind: got 'triplet'"):
        contrastive_loss(a, a, kind="triplet")
    with pytest.raises(SpikingError, match=r"contrastive_loss: got shapes \[3, 2\] and \[2, 2\]"):
        contrastive_loss(a, a[:2])
    with pytest.raises(SpikingError, match=r"contrastive_loss\.labels: got none that fit; expected 3"):
        contrastive_loss(a, a, kind="supervised")
    with pytest.raises(SpikingError, match=r"zero_shot\.classes: got \[1, 2, 3\]"):
        zero_shot(latents(shared=True), classes=(1, 2, 3))
    with pytest.raises(SpikingError, match="got no training recording of class 10 in the first sense"):
        zero_shot(latents(shared=True), classes=(1, 2, 3, 10), config=config)
