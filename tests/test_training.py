"""Trainer: learns, repeats to the bit, resumes to the bit, selects on validation, and stops at the first wrong number."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spiking import LIF
from spiking import checkpoint as ckpt
from spiking.errors import SpikingError
from spiking.layer import BatchNorm1d, Dropout, Linear, Sequential
from spiking.progress import Display, PlainDisplay, RichDisplay
from spiking.training import (
    Interrupted,
    TensorBatches,
    TrainConfig,
    Trainer,
    learning_rate,
    rate_objective,
    seed_for,
)

QUIET = Display()


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny layers: a second thread would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(n: int = 60, seed: int = 0) -> TensorBatches:
    """Two classes told apart by which half of eight inputs is larger."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    x = torch.rand(n, 5, 8, generator=rng)
    x[labels == 0, :, :4] += 1
    x[labels == 1, :, 4:] += 1
    return TensorBatches(x, labels)


def network(seed: int = 0) -> Sequential:
    torch.manual_seed(seed)
    return Sequential(Linear(8, 16), BatchNorm1d(16), LIF(), Dropout(0.2), Linear(16, 2), LIF())


def trainer(run_dir: Path | None = None, **settings) -> Trainer:
    defaults = {"epochs": 3, "batch_size": 8, "lr": 0.02, "warmup_epochs": 0.5, "ema_decay": 0.9, "device": "cpu"}
    return Trainer(network(), config=TrainConfig(**{**defaults, **settings}), run_dir=run_dir, display=QUIET)


def without_time(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_it_learns():
    t = trainer(epochs=6)
    history = t.fit(problem())
    assert history[-1]["accuracy"] > 0.95
    assert history[-1]["loss"] < history[0]["loss"]
    assert t.evaluate(problem(seed=1)).accuracy > 0.95
    assert set(history[0]["rates"]) == {"2", "5"}


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    a, b, c = trainer(), trainer(), trainer(seed=1)
    records = [without_time(t.fit(problem(), problem(seed=1))) for t in (a, b, c)]
    assert records[0] == records[1] != records[2]
    assert same_weights(a.model, b.model)
    assert not same_weights(a.model, c.model)


def test_other_users_of_the_random_generator_do_not_matter():
    a, b = trainer(), trainer()
    a.fit(problem())
    torch.manual_seed(12345)
    np.random.seed(9)
    torch.rand(7)
    b.fit(problem())
    assert same_weights(a.model, b.model)


class StopAfter(Display):
    """Sends this process a signal after so many steps."""

    def __init__(self, steps: int, signum: int = signal.SIGINT) -> None:
        self.left, self.signum = steps, signum

    def step(self, step, running):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.signum)


@pytest.mark.parametrize("steps", [1, 8, 9, 15, 24])
def test_stopped_and_resumed_is_undisturbed_to_the_bit(tmp_path, steps):
    whole = trainer(tmp_path / "whole")
    expected = whole.fit(problem(), problem(seed=1))
    first = trainer(tmp_path / "cut")
    first.display = StopAfter(steps)
    with pytest.raises(Interrupted) as stopped:
        first.fit(problem(), problem(seed=1))
    assert stopped.value.signum == signal.SIGINT
    assert stopped.value.checkpoint == tmp_path / "cut" / "checkpoint.safetensors"
    torch.manual_seed(999)
    second = trainer(tmp_path / "cut")
    got = second.fit(problem(), problem(seed=1), resume=True)
    assert without_time(got) == without_time(expected)
    assert same_weights(second.model, whole.model)
    a, b = (ckpt.load(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(v, b.model[k]) for k, v in a.model.items())
    assert all(torch.equal(v, b.average[k]) for k, v in a.average.items())
    for index, entries in a.optimizer["state"].items():
        assert all(torch.equal(v, b.optimizer["state"][index][k]) for k, v in entries.items())
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert without_time(lines) == without_time(expected)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_training import network, problem, without_time
from spiking.training import TrainConfig, Trainer, Interrupted
from spiking.progress import PlainDisplay
import torch, time
torch.set_num_threads(1)

class Slow(type(problem())):
    def batch(self, indices, epoch):
        if epoch is not None and {slow}:
            time.sleep(0.05)
        return super().batch(indices, epoch)

data = problem()
config = TrainConfig(epochs=3, batch_size=8, lr=0.02, warmup_epochs=0.5, ema_decay=0.9, device="cpu")
trainer = Trainer(network(), config=config, run_dir=Path({run!r}), display=PlainDisplay(sys.stdout))
try:
    trainer.fit(Slow(data.x, data.labels), problem(seed=1), resume={resume})
except Interrupted as err:
    print("saved", err.checkpoint, flush=True)
    sys.exit(128 + err.signum)
"""


def run_script(run: Path, resume: bool, slow: bool) -> subprocess.Popen:
    code = SCRIPT.format(folder=str(Path(__file__).parent), run=str(run), resume=resume, slow=slow)
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=run.parent
    )


def test_a_killed_process_goes_on_bit_for_bit(tmp_path):
    whole = trainer(tmp_path / "whole")
    expected = whole.fit(problem(), problem(seed=1))
    cut = run_script(tmp_path / "cut", resume=False, slow=True)
    assert cut.stdout.readline().startswith("epoch 1/3")
    time.sleep(0.12)  # into the second epoch
    cut.send_signal(signal.SIGINT)
    out, err = cut.communicate(timeout=60)
    assert cut.returncode == 130, err
    assert "saved" in out
    position = ckpt.load(tmp_path / "cut" / "checkpoint.safetensors").state["position"]
    assert (1, 0) < (position["epoch"], position["step"]) < (3, 0)
    again = run_script(tmp_path / "cut", resume=True, slow=False)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    a, b = (ckpt.load(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "cut"))
    assert without_time(b.state["position"]["history"]) == without_time(expected)
    for x, y in ((a.model, b.model), (a.average, b.average)):
        assert all(torch.equal(v, y[k]) for k, v in x.items())


def test_sigterm_saves_as_well(tmp_path):
    t = trainer(tmp_path)
    t.display = StopAfter(3, signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM") as stopped:
        t.fit(problem())
    assert stopped.value.signum == signal.SIGTERM
    assert ckpt.load(tmp_path / "checkpoint.safetensors").state["position"]["step"] == 3


RANKS = """
import json, sys
sys.path.insert(0, {folder!r})
import torch
from test_training import problem, QUIET
from spiking import LIF, Linear, Sequential
from spiking.training import TrainConfig, Trainer
torch.set_num_threads(1)
torch.manual_seed(0)
model = Sequential(Linear(8, 16), LIF(), Linear(16, 2), LIF())
config = TrainConfig(epochs=2, batch_size=8, lr=0.02, warmup_epochs=0.5, device="cpu")
trainer = Trainer(model, config=config, run_dir={run!r}, display=QUIET)
trainer.fit(problem(n=60), problem(n=31, seed=1))
found = trainer.evaluate(problem(n=31, seed=1))
if trainer.accelerator.is_main_process:
    print(json.dumps({{"ranks": trainer.accelerator.num_processes, "loss": found.loss, "n": len(found.labels),
                       "labels": found.labels.tolist(), "rates": found.rates}}))
"""


@pytest.mark.slow
def test_two_ranks_share_the_work_and_find_the_same(tmp_path):
    """Each batch is split between the ranks, so the run is that of one process up to the order of additions."""
    found = {}
    for ranks in (1, 2):
        script = tmp_path / f"ranks{ranks}.py"
        script.write_text(RANKS.format(folder=str(Path(__file__).parent), run=str(tmp_path / str(ranks))))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        done = subprocess.run(
            [sys.executable, "-P", *launcher, str(script)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=200,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        found[ranks] = json.loads(done.stdout.splitlines()[-1])
        assert found[ranks]["ranks"] == ranks
        assert found[ranks]["labels"] == (np.arange(31) % 2).tolist()
    # A gradient in another order of additions may flip a spike here and there.
    assert found[1]["loss"] == pytest.approx(found[2]["loss"], abs=1e-3)
    assert found[1]["rates"] == pytest.approx(found[2]["rates"], abs=1e-3)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = trainer(tmp_path)
    first.fit(problem(), problem(seed=1))
    again = trainer(tmp_path)
    assert len(again.fit(problem(), problem(seed=1), resume=True)) == 3
    assert same_weights(first.model, again.model)


def test_a_run_that_is_resumed_with_more_epochs_goes_on_along_the_longer_schedule(tmp_path):
    listener = Listener()
    trainer(tmp_path).fit(problem())
    longer = trainer(tmp_path, epochs=5)
    longer.display = listener
    assert [r["epoch"] for r in longer.fit(problem(), resume=True)] == [0, 1, 2, 3, 4]
    old, new = (learning_rate(TrainConfig(epochs=e, lr=0.02, warmup_epochs=0.5), 24, 8) for e in (3, 5))
    assert listener.said[0].startswith(
        "epochs raised from 3 to 5: from epoch 4 on the learning rate follows the longer half cosine "
        f"({old:.2g} becomes {new:.2g})"
    )
    again = trainer(tmp_path, epochs=5)
    assert len(again.fit(problem(), resume=True)) == 5
    assert same_weights(longer.model, again.model)
    with pytest.raises(SpikingError, match=r"the run was started with epochs=5; got 4\. .* more epochs excepted"):
        trainer(tmp_path, epochs=4).fit(problem(), resume=True)


def test_the_epoch_is_chosen_on_validation(tmp_path):
    """With validation labels swapped, the least trained epoch is the best."""
    swapped = problem(seed=1)
    swapped.labels = 1 - swapped.labels
    t = trainer(tmp_path, epochs=4, ema_decay=0.0)
    history = t.fit(problem(), swapped)
    best = max(range(4), key=lambda e: (history[e]["validation_accuracy"], -history[e]["validation_loss"]))
    assert t.evaluate(swapped).accuracy == history[best]["validation_accuracy"]
    assert [p.name for p in tmp_path.glob("best-*")] == [f"best-{best:04d}.safetensors"]


def test_without_validation_the_averaged_last_weights_are_taken():
    plain, averaged = trainer(ema_decay=0.0), trainer(ema_decay=0.9)
    plain.fit(problem())
    averaged.fit(problem())
    assert not same_weights(plain.model, averaged.model)
    assert same_weights(trained_by_hand(ema=0.9), averaged.model)
    assert same_weights(trained_by_hand(ema=0.0), plain.model)


def trained_by_hand(ema: float) -> nn.Module:
    """The loop that Trainer documents, written out."""
    model, data = network(), problem()
    config = TrainConfig(epochs=3, batch_size=8, lr=0.02, warmup_epochs=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=1e-2)
    average = {k: v.clone() for k, v in model.state_dict().items()}
    step = 0
    for epoch in range(3):
        order = np.random.default_rng(seed_for(0, 0, epoch)).permutation(60)
        for first in range(0, 60, 8):
            torch.manual_seed(seed_for(0, 1, step, 0))
            optimizer.param_groups[0]["lr"] = learning_rate(config, step, 8)
            x, labels = data.batch(order[first : first + 8], epoch)
            optimizer.zero_grad()
            rate_objective(model, x, labels).loss.backward()
            optimizer.step()
            d = min(ema, (1 + step) / (10 + step))
            for k, v in model.state_dict().items():
                average[k] = torch.lerp(average[k], v, 1 - d) if v.is_floating_point() else v.clone()
            step += 1
    if ema:
        model.load_state_dict(average)
    return model


def test_the_schedule_warms_up_and_ends_near_zero():
    config = TrainConfig(epochs=10, lr=1.0, warmup_epochs=2)
    rates = [learning_rate(config, step, 100) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 200, rel=1e-3)
    assert max(rates) == pytest.approx(1, abs=0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[200:]))
    assert rates[-1] < 1e-4


def test_ranks_share_every_batch_evenly():
    """A rank is an offset: two ranks' shares of each batch are the batch of one."""
    order = np.random.default_rng(seed_for(0, 0, 0)).permutation(60)
    for first in range(0, 60, 8):
        batch = order[first : first + 8]
        assert sorted([*batch[0::2], *batch[1::2]]) == sorted(batch)
    assert trainer()._steps_per_epoch(problem()) == 8


def test_a_nan_in_the_input_stops_by_sample():
    data = problem()
    data.x[17, 2, 3] = math.nan
    with pytest.raises(
        SpikingError, match=r"Trainer: epoch 0, step \d: the input of sample 17 holds values that are not finite"
    ):
        trainer().fit(data)


def test_a_weight_that_becomes_nan_stops_by_name_before_anything_is_saved(tmp_path):
    torch.manual_seed(0)
    net = Sequential(Linear(8, 2), LIF(beta=0.5))
    with torch.no_grad():
        net[0].weight[0, 0] = math.inf  # the neuron fires at any current, so that loss and gradients stay finite
    with pytest.raises(SpikingError, match=r'"0\.weight" holds values that are not finite'):
        Trainer(net, config=TrainConfig(epochs=1, batch_size=4, device="cpu"), run_dir=tmp_path, display=QUIET).fit(
            problem()
        )
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_nan_weight_stops_by_name():
    t = trainer()
    with torch.no_grad():
        t.model[4].weight[0, 0] = math.nan
    with pytest.raises(
        SpikingError, match=r'Trainer: epoch 0, step 0: weight "4\.weight" holds values that are not finite'
    ):
        t.fit(problem())


class Bad(nn.Module):
    """Makes NaN of everything, without a weight of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 0 * 0


def test_a_membrane_that_is_not_a_number_stops_by_layer():
    torch.manual_seed(0)
    model = Sequential(Linear(8, 4), LIF(), Linear(4, 4), Bad(), LIF(), Linear(4, 2), LIF())
    t = Trainer(model, config=TrainConfig(epochs=1, device="cpu"), display=QUIET)
    with pytest.raises(
        SpikingError, match=r'Trainer: epoch 0, step 0: layer "4" is the first whose membrane is not a number'
    ):
        t.fit(problem())


def test_a_gradient_that_is_not_a_number_stops_by_name_before_the_weights_are_touched():
    def judge(model, x, labels):
        found = rate_objective(model, x, labels)
        return found._replace(loss=found.loss + torch.sqrt(model[0].bias.sum() * 0))  # gradient of sqrt at 0: 0·inf

    t = Trainer(network(), judge, TrainConfig(epochs=1, device="cpu"), display=QUIET)
    before = {k: v.clone() for k, v in t.model.named_parameters()}
    with pytest.raises(SpikingError, match=r'the gradient of "0\.bias" holds values that are not finite'):
        t.fit(problem())
    assert all(torch.equal(v, before[k]) for k, v in t.model.named_parameters())


class Listener(Display):
    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(("threshold", "kind"), [(1e9, "silent"), (1e-9, "saturated")])
def test_a_silent_or_saturated_layer_is_told_early_and_once(threshold, kind):
    torch.manual_seed(0)
    first = Linear(8, 4)
    with torch.no_grad():
        first.weight.abs_()
        first.bias.abs_()
    listener = Listener()
    model = Sequential(first, LIF(threshold=threshold, reset="none"), Linear(4, 2), LIF(threshold=0.1))
    t = Trainer(model, config=TrainConfig(epochs=2, batch_size=4, device="cpu", lr=1e-5), display=listener)
    t.fit(problem())
    told = [text for text in listener.said if f'layer "1" is {kind}' in text]
    assert len(told) == 1
    assert [f"warning: {text}" for text in t.warnings] == listener.said


def test_gradients_are_clipped():
    seen = []

    class Watch(Display):
        def step(self, step, running):
            seen.append(math.sqrt(sum(float(p.grad.square().sum()) for p in t.model.parameters())))

    t = Trainer(network(), config=TrainConfig(epochs=1, device="cpu", clip_norm=0.01), display=Watch())
    t.fit(problem())
    assert max(seen) <= 0.01 * (1 + 1e-4)


def test_bf16_trains():
    t = trainer(mixed_precision="bf16", epochs=4)
    t.fit(problem())
    assert t.evaluate(problem(seed=1)).accuracy > 0.9
    assert next(t.model.parameters()).dtype == torch.float32


def test_tensorboard_gets_every_epoch(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer(tmp_path, log_with="tensorboard").fit(problem())
    accumulator = event_accumulator.EventAccumulator(str(next(tmp_path.glob("spiking/*tfevents*"))))
    accumulator.Reload()
    assert [e.step for e in accumulator.Scalars("loss")] == [0, 1, 2]
    assert "rate/2" in accumulator.Tags()["scalars"]


def test_a_log_gets_one_line_an_epoch(capsys):
    t = trainer(epochs=2)
    t.display = PlainDisplay()
    t.fit(problem(), problem(seed=1))
    lines = capsys.readouterr().err.splitlines()
    assert [line[:9] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "accuracy" in lines[0]
    assert "validation" in lines[0]
    assert "rates 2 0." in lines[0]


def test_a_terminal_gets_bars():
    import io

    from rich.console import Console

    out = io.StringIO()
    t = trainer(epochs=2)
    t.display = RichDisplay(Console(file=out, force_terminal=True, width=160))
    t.fit(problem())
    assert "epochs" in out.getvalue()
    assert "loss" in out.getvalue()


def full(run_dir: Path) -> None:
    trainer(run_dir).fit(problem())


def test_a_full_disk_ends_with_one_line_and_the_previous_checkpoint(tmp_path):
    first = trainer(tmp_path)
    first.display = StopAfter(3)
    with pytest.raises(Interrupted):
        first.fit(problem())
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    (tmp_path / ".checkpoint.safetensors.part").symlink_to("/dev/full")
    with pytest.raises(SpikingError, match=r"checkpoint\.safetensors: cannot write .*No space left.*untouched"):
        trainer(tmp_path).fit(problem(), resume=True)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: trainer(d, lr=0.5).fit(problem(), resume=True), r"the run was started with lr=0\.02; got 0\.5"),
        (lambda d: trainer(d).fit(problem(n=50), resume=True), r"the run trains on 60 samples; got 50"),
        (
            lambda d: trainer(d / "none").fit(problem(), resume=True),
            r"none/checkpoint\.safetensors: there is no checkpoint here",
        ),
        (lambda d: trainer().fit(problem(), resume=True), r"got resume=True without run_dir"),
        (lambda d: trainer().fit(problem(n=0)), r"got no training samples"),
        (lambda d: trainer().evaluate(problem(n=0)), r"evaluate: got no samples"),
        (lambda d: trainer().fit([1, 2]), r"Trainer\.fit: got list; expected samples with batch\(indices, epoch\)"),
        (lambda d: trainer().fit(problem(), [1, 2]), r"Trainer\.fit: got list"),
        (lambda d: trainer().evaluate([1, 2]), r"Trainer\.evaluate: got list"),
        (lambda d: TensorBatches(torch.zeros(3, 1), torch.zeros(2)), r"TensorBatches: got 3 samples and 2 labels"),
        (lambda d: TrainConfig(epochs=0), r"TrainConfig\.epochs: got 0; expected at least 1"),
        (lambda d: TrainConfig(lr=-1.0), r"TrainConfig\.lr: got -1\.0; expected a number above 0"),
        (lambda d: TrainConfig(ema_decay=1.0), r"TrainConfig\.ema_decay: got 1\.0"),
        (
            lambda d: TrainConfig(mixed_precision="int8"),
            r'TrainConfig\.mixed_precision: got "int8"; expected no or bf16 or fp16',
        ),
        (lambda d: trainer(mixed_precision="fp16"), r'mixed_precision: got "fp16"; it needs a GPU'),
    ],
)
def test_refusals_name_the_culprit(tmp_path, call, message):
    full(tmp_path)
    with pytest.raises(SpikingError, match=message):
        call(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_a_missing_gpu_is_said():
    with pytest.raises(SpikingError, match=r'TrainConfig\.device: got "cuda"; torch sees no CUDA device'):
        trainer(device="cuda")


def test_a_tracker_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpikingError, match=r'TrainConfig\.log_with: got "wandb", which is not installed'):
        trainer(log_with="wandb")


@pytest.mark.parametrize("name", ["4.weight", "1.running_var"])
def test_evaluate_alone_names_what_is_not_finite(name):
    t = trainer()
    with torch.no_grad():
        t.model.state_dict()[name].flatten()[0] = math.nan
    with pytest.raises(
        SpikingError, match=rf'Trainer\.evaluate: "{name}" holds values that are not finite\. Load other'
    ):
        t.evaluate(problem())


def test_evaluate_alone_names_sample_and_layer():
    data = problem()
    data.x[17, 2, 3] = math.inf
    with pytest.raises(
        SpikingError, match=r"Trainer\.evaluate: the input of sample 17 holds values that are not finite"
    ):
        trainer().evaluate(data)
    t = Trainer(Sequential(Linear(8, 2), Bad(), LIF()), config=TrainConfig(device="cpu"), display=QUIET)
    with pytest.raises(SpikingError, match=r'Trainer\.evaluate: layer "2" is the first whose membrane is not a number'):
        t.evaluate(problem())


def test_nothing_is_left_of_the_signal_handlers():
    before = signal.getsignal(signal.SIGINT)
    trainer(epochs=1).fit(problem())
    assert signal.getsignal(signal.SIGINT) is before
