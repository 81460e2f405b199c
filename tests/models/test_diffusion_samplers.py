"""Schedules and samplers against the authors' tables and trajectories, and against what follows from exact denoisers."""

import itertools

import numpy as np
import pytest
import torch

from spiking import SpikingError
from spiking.models.diffusion import (
    DiffusionConfig,
    NoiseSchedule,
    SpikingDiffusion,
    UNetConfig,
    from_published,
    published_steps,
    spaced_steps,
)
from spiking.models.diffusion.schedule import follow

SMALL = UNetConfig(image_channels=1, channels=8, multipliers=(1, 2), blocks=1)


@pytest.fixture
def load(golden):
    return lambda name: np.load(golden / "sdm" / f"{name}.npz")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SpikingDiffusion(DiffusionConfig(SMALL))


def eps_of(x, t):
    return torch.tanh(0.5 * x + 0.3 * np.sin(t / 50))


def test_tables(load):
    data, schedule = load("schedule"), NoiseSchedule(1000)
    abar = schedule.alphas_bar
    before = np.append(1.0, abar[:-1])
    variance = schedule.betas * (1 - before) / (1 - abar)
    expected = {
        "betas": schedule.betas,
        "sqrt_alphas_bar": np.sqrt(abar),
        "sqrt_recip_alphas_bar": np.sqrt(1 / abar),
        "sqrt_recipm1_alphas_bar": np.sqrt(1 / abar - 1),
        "posterior_var": variance,
    }
    for name, ours in expected.items():
        np.testing.assert_allclose(ours, data[name], rtol=1e-5, err_msg=name)
    updates = [schedule.update("ddpm-small", t, t - 1) for t in range(1000)]
    np.testing.assert_allclose([u.of_x0 for u in updates], data["posterior_mean_coef1"], rtol=1e-5)
    np.testing.assert_allclose([u.of_x for u in updates], data["posterior_mean_coef2"], rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose([u.std**2 for u in updates], data["posterior_var"], rtol=1e-5, atol=1e-12)
    large = [2 * np.log(schedule.update("ddpm", t, t - 1).std) for t in range(1, 1000)]
    np.testing.assert_allclose(large, data["fixedlarge_log_var"][1:], rtol=1e-5)


@pytest.mark.parametrize("steps", [10, 20, 50, 100, 200, 500, 1000])
def test_published_lists_of_steps(load, steps):
    assert published_steps(1000, steps) == load("schedule")[f"tlist_N{steps}"].tolist()
    ours = spaced_steps(1000, steps)
    assert len(ours) == len(set(ours)) == steps
    assert (ours[0], ours[-1]) == (999, 0)


RUNS = {
    "ddpm_fixedlarge": ("ddpm", 0.0),
    "ddpm_fixedsmall": ("ddpm-small", 0.0),
    "ddim_eta0": ("ddim", 0.0),
    "ddim_eta0.5": ("ddim", 0.5),
    "ddim_eta1": ("ddim", 1.0),
    "analytic_a": ("analytic", 0.0),
    "analytic_b": ("analytic", 0.0),
}


@pytest.mark.parametrize("run", RUNS)
def test_three_steps_with_fixed_noise(load, run):
    data, schedule, (sampler, eta) = load("samplers"), NoiseSchedule(1000), RUNS[run]
    path = [int(t) for t in data[f"{run}/tlist"]]
    noise = iter(torch.from_numpy(data["noise"]).double())
    seen = []

    def predict(x, t):
        steps = torch.full((len(x),), t)
        return schedule.split(eps_of(x, t), x, steps, "eps")

    def update(t, s):
        return schedule.update(sampler, t, s, eta, float(data["ms_pred"][t + 1]))

    calls = len(data[f"{run}/x_before_each_step"])
    path = [*path, -1][: calls + 1]
    x = follow(
        predict, torch.from_numpy(data["xT"]).double(), path, update, lambda: next(noise), 1.0, lambda t, x, x0: seen.append(x)
    )  # fmt: skip
    for ours, expected in zip(seen, data[f"{run}/x_before_each_step"]):
        torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=3e-6, atol=3e-6)
    if f"{run}/model_var" in data.files:
        ours = [
            schedule.update("analytic", t, max(s, 1), 0.0, float(data["ms_pred"][t + 1])).std ** 2
            for t, s in itertools.pairwise(path[:-1])
        ]
        np.testing.assert_allclose(ours, data[f"{run}/model_var"][: len(ours)], rtol=1e-5)
    final = torch.from_numpy(data[f"{run}/final"])
    if not torch.allclose(x, final, rtol=3e-6, atol=3e-6):  # DDPM's last image is that of one more call
        x0, _ = predict(x, path[-1])
        torch.testing.assert_close(x0.clamp(-1, 1), final, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize(("run", "prediction"), [("ddpm_mid_fixedlarge", "eps"), ("ddpm_xstart", "x0")])
def test_single_updates(load, run, prediction):
    data, schedule = load("samplers"), NoiseSchedule(1000)
    x = torch.from_numpy(data["xT"]).double()
    for i, (t, expected) in enumerate(zip(data[f"{run}/tlist"].tolist(), data[f"{run}/traj"])):
        x0, _ = schedule.split(eps_of(x, t), x, torch.full((len(x),), t), prediction)
        c = schedule.update("ddpm", t, t - 1)
        x = c.of_x0 * x0.clamp(-1, 1) + c.of_x * x + c.std * torch.from_numpy(data["noise"][i]).double()
        torch.testing.assert_close(x, torch.from_numpy(expected), rtol=3e-6, atol=3e-6)


def test_loss_per_pixel(load):
    data, schedule = load("loss"), NoiseSchedule(1000)
    x0, noise, t = (torch.from_numpy(data[name]) for name in ("x0", "noise", "t"))
    x = schedule.noisy(x0.double(), noise.double(), t)
    found = torch.stack([eps_of(image, step) for image, step in zip(x, t.tolist())])
    torch.testing.assert_close((found - noise) ** 2, torch.from_numpy(data["loss"]).double(), rtol=1e-5, atol=1e-6)


def test_the_network_as_a_sampler(load):
    weights = load("unet_tiny")
    model = SpikingDiffusion(DiffusionConfig(SMALL)).double().eval()
    model.unet.load_state_dict(
        from_published({k[3:]: torch.from_numpy(weights[k]) for k in weights.files if k[:3] == "sd/"})
    )
    data, schedule = load("unet_ddim3"), model.schedule
    with torch.no_grad():
        x = follow(
            lambda x, t: model.predict(x, t), torch.from_numpy(data["xT"]).double(), data["tlist"].tolist(),
            lambda t, s: schedule.update("ddim", t, s), lambda: torch.zeros(()),
        )  # fmt: skip
    expected = torch.from_numpy(data["final"])
    assert float((x - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_targets_and_their_parts_agree(prediction, kind):
    schedule, g = NoiseSchedule(100, kind), torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 100, 1, 2, 2, generator=g, dtype=torch.float64).unbind(0)
    t = torch.arange(100)
    x = schedule.noisy(x0, noise, t)
    found = schedule.split(schedule.target(x0, noise, t, prediction), x, t, prediction)
    torch.testing.assert_close(found[0], x0, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("sampler", "steps", "expected"), [
    ("analytic", 5, 1.0), ("analytic", 10, 1.0), ("analytic", 50, 1.0), ("ddpm", 10, 1.99), ("ddpm-small", 10, 0.33), ("ddim", 10, 0.41),
])  # fmt: skip
def test_variances_of_samples_from_an_exact_denoiser(sampler, steps, expected):
    c, schedule, g = 0.09, NoiseSchedule(1000), torch.Generator().manual_seed(1)

    def exact(x, t):
        abar = schedule.abar(t)
        eps = np.sqrt(1 - abar) * x / (abar * c + 1 - abar)
        return (x - np.sqrt(1 - abar) * eps) / np.sqrt(abar), eps

    def update(t, s):
        abar = schedule.abar(t)
        return schedule.update(sampler, t, s, 0.0, (1 - abar) / (abar * c + 1 - abar), np.inf)

    x = torch.randn(20_000, generator=g, dtype=torch.float64)
    path = [*published_steps(1000, steps), -1]
    out = follow(exact, x, path, update, lambda: torch.randn(20_000, generator=g, dtype=torch.float64), clip=None)
    assert float(out.var()) / c == pytest.approx(expected, rel=0.03)


def test_ddim_with_all_the_noise_is_ddpm():
    schedule = NoiseSchedule(1000)
    for t in (1, 40, 500, 999):
        ddim, ddpm = schedule.update("ddim", t, t - 1, eta=1.0), schedule.update("ddpm-small", t, t - 1)
        a, s = np.sqrt(schedule.abar(t)), np.sqrt(1 - schedule.abar(t))
        assert ddim.std == pytest.approx(ddpm.std, rel=1e-9)
        assert ddim.of_eps == pytest.approx(ddpm.of_x * s, rel=1e-9)  # x_t = a·x_0 + s·eps
        assert ddim.of_x0 == pytest.approx(ddpm.of_x0 + ddpm.of_x * a, rel=1e-9)


def test_image_i_depends_on_its_own_seed_alone(model):
    whole = model.sample(5, 8, steps=3, sampler="ddpm", seed=7)
    parts = model.sample(5, 8, steps=3, sampler="ddpm", seed=7, batch_size=2)
    torch.testing.assert_close(parts.images, whole.images, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        model.sample(2, 8, steps=3, sampler="ddpm", seed=10).images, whole.images[3:], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(model.sample(5, 8, steps=3, sampler="ddpm", seed=7).images, whole.images)
    assert not torch.equal(model.sample(5, 8, steps=3, sampler="ddpm", seed=8).images, whole.images)
    assert whole.made["calls"] == 3


def test_trajectories_and_thresholds(model):
    asked = []

    def by_step(t):
        asked.append(t)
        return 1.01

    run = model.sample(3, (8, 12), steps=4, keep=(0, 3), threshold=by_step, batch_size=2)
    assert asked == [999, 666, 333, 0] * 2
    assert [(t, x.shape, x0.shape) for t, x, x0 in run.trajectory] == [
        (999, (3, 1, 8, 12), (3, 1, 8, 12)),
        (0, (3, 1, 8, 12), (3, 1, 8, 12)),
    ]
    assert torch.equal(run.images, run.trajectory[-1][2])
    assert torch.equal(run.images, model.sample(3, (8, 12), steps=4, threshold=1.01).images)
    assert model.unet.neuron.threshold == 1.0


def test_gamma_is_measured_and_interpolated(model):
    images = torch.rand(20, 1, 8, 8) * 2 - 1
    with pytest.raises(SpikingError, match=r'sample.sampler: got "analytic"; call estimate_gamma'):
        model.sample(1, 8, sampler="analytic", steps=3)
    model.estimate_gamma(images, at=(0, 500, 999), pairs=30)
    again = model.gamma.clone()
    model.estimate_gamma(images, at=(0, 500, 999), pairs=30)
    assert torch.equal(model.gamma, again)
    assert float(model.gamma[250]) == pytest.approx(float(model.gamma[0] + model.gamma[500]) / 2, rel=1e-3)
    assert model.sample(2, 8, sampler="analytic", steps=3).images.isfinite().all()


def test_guidance_moves_from_the_plain_prediction_to_the_class():
    torch.manual_seed(0)
    model = SpikingDiffusion(DiffusionConfig(UNetConfig(1, 8, (1, 2), 1, classes=3))).eval()
    torch.nn.init.normal_(model.unet.tail_conv.weight)
    x, labels, t = torch.randn(2, 1, 8, 8), torch.tensor([0, 2]), torch.full((2,), 400)
    with torch.no_grad():
        of_class, plain = model(x, t, labels), model(x, t)
        _, guided = model.predict(x, 400, labels, guidance=2.0)
        torch.testing.assert_close(guided, 3 * of_class - 2 * plain)
        _, unguided = model.predict(x, 400, labels)
        assert torch.equal(unguided, of_class)
    assert model.sample(2, 8, steps=2, labels=labels, guidance=1.0).made["guidance"] == 1.0
    assert float(model.loss(x, labels).detach()) > 0


def test_temporal_copy_saves_and_loads(model, tmp_path):
    wise = model.with_temporal_weights()
    assert torch.equal(wise.sample(2, 8, steps=2).images, model.sample(2, 8, steps=2).images)
    wise.save_pretrained(tmp_path)
    again = SpikingDiffusion.from_pretrained(tmp_path)
    assert again.config == wise.config
    assert torch.equal(wise.sample(2, 8, steps=2).images, again.sample(2, 8, steps=2).images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_diffusers_schedulers(model):
    diffusers = pytest.importorskip("diffusers")
    options = {"beta_start": 1e-4, "beta_end": 0.02}
    scheduler = diffusers.DDIMScheduler(**options, clip_sample=True, set_alpha_to_one=True, timestep_spacing="linspace")
    generator = torch.Generator().manual_seed(3)
    theirs = model.sample_with(scheduler, 2, 8, steps=5, seed=3)
    x = torch.randn((2, 1, 8, 8), generator=generator)
    path = [*scheduler.timesteps.tolist(), -1]
    with torch.no_grad():
        model.eval()
        # diffusers goes a fixed number of steps down, wherever its list has the next one
        ours = follow(
            lambda x, t: model.predict(x, t), x, path, lambda t, s: model.schedule.update("ddim", t, t - 200), lambda: torch.zeros(())
        )  # fmt: skip
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    for kind in ("DDPMScheduler", "DPMSolverMultistepScheduler"):
        assert model.sample_with(getattr(diffusers, kind)(**options), 2, 8, steps=3).shape == (2, 1, 8, 8)
    with pytest.raises(
        SpikingError,
        match='sample_with: got a scheduler with prediction_type="v_prediction"; this model predicts "epsilon"',
    ):
        model.sample_with(diffusers.DDIMScheduler(**options, prediction_type="v_prediction"), 1, 8)
    with pytest.raises(SpikingError, match="sample_with: got a scheduler of 1000 noise steps with other variances"):
        model.sample_with(diffusers.DDIMScheduler(beta_end=0.03), 1, 8)


def test_errors(model):
    for message, options in {
        r"sample.n: got 0; expected at least 1": {"n": 0},
        r"steps: got 1001; expected 1 to 1000": {"steps": 1001},
        r'sampler: got "euler"; expected ddpm, ddpm-small, ddim, analytic': {"sampler": "euler"},
        r"sample.labels: got \[3\]; expected \[2\]": {"labels": torch.zeros(3)},
    }.items():
        with pytest.raises(SpikingError, match=message):
            model.sample(**{"n": 2, "side": 8, **options})
    with pytest.raises(SpikingError, match='NoiseSchedule: got "square"; expected linear or cosine'):
        NoiseSchedule(10, "square")
    with pytest.raises(SpikingError, match=r'DiffusionConfig.prediction: got "x"; expected eps or x0 or v'):
        DiffusionConfig(prediction="x")
