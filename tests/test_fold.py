"""Folded batch norms: the same function, the same names, and what is left alone."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import spiking
from spiking.errors import SpikingError
from spiking.fold import fold_batch_norm


def randomised(norm: nn.Module) -> nn.Module:
    """A norm as training leaves it."""
    with torch.no_grad():
        for name, value in norm.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.5, 2.0) if name in ("running_var", "weight") else value.normal_()
    return norm


CASES = [
    pytest.param(lambda: (nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4)), (5, 6), id="linear"),
    pytest.param(lambda: (spiking.Linear(6, 4), spiking.BatchNorm1d(4)), (3, 5, 6), id="ours-linear"),
    pytest.param(lambda: (nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), (5, 2, 8), id="conv1d"),
    pytest.param(lambda: (nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)), (5, 2, 8, 8), id="conv2d-groups"),
    pytest.param(lambda: (spiking.Conv2d(2, 4, 3), spiking.BatchNorm2d(4)), (3, 5, 2, 8, 8), id="ours-conv2d"),
    pytest.param(
        lambda: (nn.Conv3d(2, 4, 3, bias=False), nn.BatchNorm3d(4, affine=False)), (2, 2, 5, 5, 5), id="plain"
    ),
    pytest.param(
        lambda: (spiking.Conv2d(2, 4, 3), spiking.TDBatchNorm2d(4, threshold=0.5, alpha=0.7)), (3, 5, 2, 8, 8), id="td"
    ),
]


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_the_folded_model_gives_the_same_results(make, shape):
    torch.manual_seed(0)
    layer, norm = make()
    model = nn.Sequential(layer, randomised(norm)).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    folded = fold_batch_norm(model)
    assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert type(folded[0]) is type(layer)
    assert isinstance(folded[1], nn.Identity)
    assert isinstance(model[1], type(norm)), "the model itself stays as it is"


def test_norms_that_do_not_follow_weights_stay():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.BatchNorm1d(4), shared, nn.BatchNorm1d(4), shared, nn.ReLU(), nn.BatchNorm1d(4)).eval()
    folded = fold_batch_norm(model)
    assert [type(layer) for layer in folded] == [type(layer) for layer in model]


def test_a_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(SpikingError, match=r'layer "1" keeps no running statistics'):
        fold_batch_norm(model)


def test_a_norm_of_another_width_is_refused():
    with pytest.raises(SpikingError, match=r'layer "body.1" normalises 3 channels; the layer before it has 4'):
        fold_batch_norm(nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(3))}))
