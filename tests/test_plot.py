"""Figures: what is drawn is the data that was given."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from spiking import plot
from spiking.errors import SpikingError

SPIKES = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]])


def test_a_raster_has_one_dot_per_spike():
    ax = plot.raster(SPIKES)
    assert ax.collections[0].get_offsets().data.tolist() == [[0, 1], [1, 0], [2, 2], [3, 1]]
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 3.5), (-0.5, 2.5))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time step", "neuron")


def test_a_raster_in_time_is_in_milliseconds():
    ax = plot.raster(SPIKES, dt=2e-3)
    assert ax.collections[0].get_offsets().data[:, 0].tolist() == [0, 2, 4, 6]
    assert ax.get_xlabel() == "time (ms)"


def test_a_raster_flattens_maps_and_takes_tensors():
    s = torch.zeros(2, 2, 3)
    s[1, 1, 2] = 1
    assert plot.raster(s.requires_grad_()).collections[0].get_offsets().data.tolist() == [[1, 5]]


def test_a_silent_raster_is_empty():
    assert len(plot.raster(np.zeros((3, 2))).collections[0].get_offsets()) == 0


def test_membranes_are_lines_with_threshold_and_spikes():
    v = np.array([[0.1, 0.4], [0.9, 0.5], [0.2, 0.6]])
    s = np.array([[0, 0], [1, 0], [0, 1]])
    ax = plot.membrane(v, threshold=0.8, spikes=s)
    assert [line.get_ydata().tolist() for line in ax.lines[:2]] == v.T.tolist()
    assert ax.lines[2].get_ydata() == [0.8, 0.8]
    assert [line.get_xdata().tolist() for line in ax.lines[3:]] == [[1], [2]]
    same = plot.membrane(torch.from_numpy(v), threshold=0.8, spikes=torch.from_numpy(s))
    assert [line.get_xdata().tolist() for line in same.lines[3:]] == [[1], [2]]


def test_frames_show_every_step_in_its_place():
    x = np.zeros((3, 2, 4, 5))
    x[1, 1, 2, 3] = 2
    x[2, 0, 0, 0] = 1
    figure = plot.frames(x, columns=2)
    pictures = [ax.images[0].get_array() for ax in figure.axes]
    assert [p.shape for p in pictures] == [(4, 5, 3)] * 3
    assert (pictures[0] == 255).all()
    assert pictures[1][2, 3].tolist() == [217, 98, 43]  # ON at full strength
    assert pictures[2][0, 0].tolist() == [149, 182, 216]  # OFF at half strength
    assert (pictures[1] != 255).any(-1).sum() == 1


def test_signed_pictures_show_both_signs():
    x = np.zeros((1, 1, 1, 3))
    x[0, 0, 0] = [-1, 0, 1]
    picture = plot.frame_pictures(x)[0, 0]
    assert picture.tolist() == [[43, 108, 176], [255, 255, 255], [217, 98, 43]]


def test_animations_have_a_frame_per_step_and_uncover_the_spikes(tmp_path):
    x = np.zeros((4, 1, 3, 4))
    x[np.arange(4), 0, 0, np.arange(4)] = 1
    plot.animation(x, tmp_path / "a.gif", spikes={"lif": SPIKES}, scale=10, milliseconds=80)
    dark = []
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size, image.info["duration"], image.info["loop"]) == (4, (40, 30 + 6 + 3), 80, 0)
        for t in range(4):
            image.seek(t)
            shot = np.asarray(image.convert("L"))
            dark.append([int((shot[36 + n] < 128).any()) for n in range(3)])
            assert shot[0, 10 * t + 5] < 200
    assert dark == [[0, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_confusion_matrices_show_counts():
    ax = plot.confusion_matrix(torch.tensor([[8, 2], [0, 5]]), classes=("a", "b"), title="run")
    assert [t.get_text() for t in ax.texts] == ["8", "2", "", "5"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.8, 0.2], [0, 1]])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("predicted", "true", "run")


def test_rates_are_bars_with_the_spread_of_the_neurons():
    ax = plot.firing_rates({"one": 0.5, "two": np.linspace(0, 1, 101)})
    assert [float(bar.get_width()) for bar in ax.patches] == pytest.approx([0.5, 0.5])
    assert ax.lines[0].get_xdata() == pytest.approx([0.05, 0.95])


def test_functions_draw_where_they_are_told():
    ax = Figure().add_subplot()
    assert plot.raster(SPIKES, ax) is ax
    assert plot.membrane([0.0, 1.0], ax) is ax
    assert plot.confusion_matrix(np.eye(2), ax) is ax
    assert plot.firing_rates({"a": 0.1}, ax) is ax
    figure = Figure()
    assert plot.frames(np.ones((2, 3, 3)), figure) is figure


def test_figures_can_be_saved(tmp_path):
    plot.raster(SPIKES).figure.savefig(tmp_path / "raster.png", dpi=50)
    with Image.open(tmp_path / "raster.png") as image:
        assert np.asarray(image.convert("L")).min() < 100


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.raster(np.zeros(3)), r"raster: got shape \[3\]; expected \[T, N\]"),
        (lambda: plot.membrane(0.0), r"membrane: got shape \[\]; expected \[T\] or \[T, N\]"),
        (lambda: plot.membrane([0.0, 1.0], spikes=[1.0]), r"membrane: got spikes of shape \[1\]; expected \[2\]"),
        (lambda: plot.frames(np.zeros((2, 3, 4, 4))), r"frames: got shape \[2, 3, 4, 4\]; expected \[T, C, H, W\]"),
        (lambda: plot.frames("pictures"), "frames: got str; expected numbers"),
        (lambda: plot.confusion_matrix(np.zeros((2, 3))), r"confusion_matrix: got shape \[2, 3\]; expected \[K, K\]"),
        (lambda: plot.confusion_matrix(np.eye(2), classes=["a"]), "confusion_matrix: got 1 class names; expected 2"),
        (
            lambda: plot.animation(np.ones((2, 3, 3)), "a.gif", spikes={"lif": np.ones((3, 1))}),
            "animation: layer lif: got 3 time steps; expected 2",
        ),
        (lambda: plot.animation(np.ones((2, 3, 3)), "absent/a.gif"), r"absent/a\.gif: the animation cannot be written"),
    ],
)
def test_wrong_shapes_are_named(draw, message):
    with pytest.raises(SpikingError, match=message):
        draw()


def test_drawing_leaves_pyplot_alone():
    code = (
        "import sys, numpy as np\nfrom spiking import plot\n"
        "assert 'matplotlib' not in sys.modules\nplot.raster(np.eye(3)); plot.frames(np.ones((2, 3, 3)))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_embedding_has_a_colour_a_class_and_a_marker_a_set():
    g = np.random.default_rng(0)
    sets = {"sight": (g.normal(size=(6, 5)), [3, 3, 4, 4, 7, 7]), "sound": (g.normal(size=(4, 5)), [3, 4, 7, 7])}
    ax = plot.embedding(sets, title="who meets whom")
    assert [len(points.get_offsets()) for points in ax.collections] == [2, 2, 2, 1, 1, 2]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["3", "4", "7", "sight", "sound"]
    with pytest.raises(SpikingError, match=r"embedding: sound: got shapes \[4, 4\] and \[4\]; expected \[R, 5\]"):
        plot.embedding({**sets, "sound": (np.ones((4, 4)), [1, 2, 3, 4])})
