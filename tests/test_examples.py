"""The examples run, and the training script gives the command's result."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


def run(monkeypatch, capsys, name: str, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_own_network_learns_and_streams(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "own_network.py")
    accuracy = float(next(line for line in out.splitlines() if line.startswith("accuracy")).split()[4])
    assert accuracy > 95
    assert "t=7  output spikes" in out


def test_train_nmnist_runs_quickly_and_says_that_it_is_simulated(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "train_nmnist.py", "--quick")
    assert "SIMULATED accuracy" in out
    assert "SNN/ANN energy" in out


def test_stream_events_recognises_simulated_recordings(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "stream_events.py", "--quick")
    hits = int(next(line for line in out.splitlines() if "recordings recognised" in line).split()[0])
    assert hits >= 8
    assert "plain" not in out
    assert out.count("events  guess") == 6
    assert "one more frame: output spikes [" in out


def test_energy_pareto_prints_a_table_and_draws_the_front(monkeypatch, capsys, tmp_path):
    out = run(monkeypatch, capsys, "energy_pareto.py", "--quick")
    assert out.startswith("SIMULATED N-MNIST, 50 test recordings, digital-sram")
    rows = {float(line.split()[0]): line for line in out.splitlines()[2:4]}
    assert set(rows) == {0.0, 10.0}
    assert rows[0.0].endswith("1.00")
    assert (tmp_path / "energy_pareto.png").read_bytes().startswith(b"\x89PNG")


def test_precision_shows_accuracy_and_energy_side_by_side(monkeypatch, capsys):
    lines = run(monkeypatch, capsys, "precision.py", "--quick").splitlines()
    assert lines[0].startswith("SIMULATED N-MNIST")
    assert [line.split(",")[0] for line in lines[3:]] == ["8 bits", "8 bits", "4 bits", "4 bits"]
    assert all("of 50)" in line and line.count("J ") == 2 for line in lines[3:])


def test_energy_claims_tells_the_accountings_apart_in_one_table(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "energy_claims.py", "--quick", "--out", "claims.html")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    found = {row[0]: row for row in rows if row[0] and len(row) == 9}
    assert set(found) == {"SpikeGPT-like", "IIR-like", "N-MNIST, SIMULATED"}
    for name, row in found.items():
        papers, operations, memory, fair = (float(cell) for cell in row[3:7])
        assert papers < operations <= memory < fair, name
    assert float(found["SpikeGPT-like"][4]) == pytest.approx(1, abs=0.01)  # all its products read real numbers
    assert "W01" in found["SpikeGPT-like"][8]
    assert "W04" in found["IIR-like"][8]
    crossover = [[float(cell.rstrip(" %")) for cell in row[2:] if cell] for row in rows if len(row) == 4]
    assert [published for published, _ in crossover[:6]] == [5.7, 10.8, 3.41, 10.4, 12.3, 8.2]
    assert all(abs(rate / published - 1) < 0.01 for published, rate in crossover[:6])
    assert [rate for (rate,) in crossover[6:]] == pytest.approx([20, 5.7], abs=0.5)  # without a network on chip
    table = Path("claims.html").read_text().split('<table id="accountings">')[1].split("</table>")[0]
    assert all(table.count(f"<td>{name}</td>") == 3 for name in found)


@pytest.mark.slow
def test_train_nmnist_has_the_commands_result(monkeypatch, capsys, tmp_path):
    out = run(monkeypatch, capsys, "train_nmnist.py", "--epochs", "2")
    command = Path(sys.executable).with_name("spiking")
    environment = {"OMP_NUM_THREADS": "1", "HOME": str(Path.home())}
    found = subprocess.run(
        [command, "train", "nmnist", "--epochs", "2", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    accuracy = json.loads(found.stdout)["accuracy"]
    assert f"{accuracy['hits']} of {accuracy['n']}" in out


def test_iir_mnist_shows_three_ways_to_one_step(monkeypatch, capsys, tmp_path):
    out = run(monkeypatch, capsys, "iir_mnist.py", "--quick")
    assert out.startswith("DIGITS 8×8 (not MNIST): 1293 images to train, 360 to test; 1 seeds")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [row[:2] for row in rows if row[0] in ("short", "published", "direct")] == [
        ["short", "1"],
        *(["published", str(steps)] for steps in (5, 4, 3, 2, 1)),
        ["direct", "1"],
    ]
    assert float(rows[0][2]) > 85
    assert (tmp_path / "runs/iir_mnist/seed0/accuracy_energy.png").is_file()


def test_iir_cifar10_smokes(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "iir_cifar10.py", "--smoke")
    assert out.startswith("MADE-UP images")
    assert "published, T=1: " in out
    assert "report: " in out


def test_device_noise_has_both_columns_for_every_effect(monkeypatch, capsys, tmp_path):
    out = run(monkeypatch, capsys, "device_noise.py", "--quick")
    assert "SIMULATED recordings" in out
    for line in ("at 0 s: ", "trained longer: ", "noise-aware: "):
        assert f"rram-40nm  {line}" in out
    found = json.loads((tmp_path / "device_noise/device_noise.json").read_text(encoding="utf-8"))
    shown = {(row["effect"], row["column"]) for row in found["rows"] if "column" in row}
    effects = ("time", "read noise", "stuck devices", "converter bits", "ohms a wire", "trained longer", "noise-aware")
    assert shown == {(effect, column) for effect in effects for column in ("trained clean", "calibrated")}
    clean = next(row["clean"] for row in found["rows"] if row["effect"] == "time")
    assert clean > 0.5
    assert (tmp_path / "device_noise/device_noise.png").read_bytes().startswith(b"\x89PNG")


def test_lsm_nmnist_shows_controls_chips_and_energy(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "lsm_nmnist.py", "--quick")
    assert "SIMULATED reservoir without recurrence" in out
    assert "SIMULATED readout fitted through the chip" in out
    assert out.count("event-driven") == 4


def test_zero_shot_does_not_claim_skill_on_two_epochs(monkeypatch, capsys, tmp_path):
    out = run(monkeypatch, capsys, "zero_shot.py", "--quick")
    assert "reservoirs, image to sound: unseen " in out
    assert "the interval over pairs of unseen classes" in out
    assert (tmp_path / "zero_shot/embedding.png").read_bytes().startswith(b"\x89PNG")


def test_spikegpt_shakespeare_draws_both_curves(monkeypatch, capsys, tmp_path):
    out = run(monkeypatch, capsys, "spikegpt_shakespeare.py", "--quick")
    assert out.startswith("Python's documentation: ")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["post", "twin", "prespike", "quiet"]
    assert rows[1][2] == "+0.000"
    assert (tmp_path / "runs/spikegpt_shakespeare/curves.png").read_bytes().startswith(b"\x89PNG")


def test_spikegpt_generate_writes_in_constant_memory(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "spikegpt_generate.py", "--quick")
    assert out.startswith("ROMEO:\n")
    assert out.splitlines()[-1].endswith(": 22,528 and 22,528 bytes")


def test_spikegpt_sentiment_stands_beside_a_bag_of_words(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "spikegpt_sentiment.py", "--quick").splitlines()
    assert out[0] == "MADE-UP sentences: 300 sentences to train, 60 to test"
    assert out[1].startswith("SpikeGPT      ")
    assert out[2].startswith("bag of words  ")


def test_diffusion_digits_trains_samples_and_compares(monkeypatch, capsys, tmp_path):
    out = run(monkeypatch, capsys, "diffusion_digits.py", "--quick")
    assert "parameters, test loss" in out
    assert [line.split(":")[0] for line in out.splitlines() if "Fréchet" in line] == [
        "real",
        "gaussian",
        "analytic, 5 steps",
        "ddim, 5 steps",
    ]
    assert (tmp_path / "runs/diffusion_digits/denoising.gif").read_bytes().startswith(b"GIF")


def few_voices(monkeypatch, tmp_path):
    from spiking.datasets import voices

    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path))
    monkeypatch.setattr(voices, "SPEAKERS", {"train": 3, "test": 1})


def test_train_ntidigits_runs_quickly_and_says_that_it_is_simulated(monkeypatch, capsys, tmp_path):
    few_voices(monkeypatch, tmp_path)
    out = run(monkeypatch, capsys, "train_ntidigits.py", "--quick")
    assert "SIMULATED accuracy" in out
    assert "delays: " in out
    assert "SNN/ANN energy" in out


def test_lsm_ntidigits_puts_counts_beside_the_reservoir(monkeypatch, capsys, tmp_path):
    few_voices(monkeypatch, tmp_path)
    out = run(monkeypatch, capsys, "lsm_ntidigits.py", "--quick")
    assert "SIMULATED reservoir, ridge regression: accuracy" in out
    assert "SIMULATED counts of events, ridge regression: accuracy" in out


@pytest.mark.parametrize("changes", [{}, {"placement": "pre"}, {"placement": "pre", "activation": "spike"}])
def test_spikegpt_energy_prices_every_product_of_the_blocks_once(changes):
    from spiking.models import SpikeGPT, SpikeGPTConfig

    example = runpy.run_path(str(EXAMPLES / "spikegpt_energy.py"))
    torch.manual_seed(0)
    lm = SpikeGPT(SpikeGPTConfig(vocab_size=32, n_layer=2, n_embd=32, dropout=0.0, **changes))
    expected = example["products"](lm.config, example["measured"](lm, 40))
    energy = 0.0

    def price(x, outputs):
        nonlocal energy
        binary = bool(((x == 0) | (x == 1)).all())
        energy += x.count_nonzero().item() * outputs * (example["E_AC"] if binary else example["E_MAC"])

    for block in lm.blocks:
        for layer in (*block.att.children(), *block.ffn.children()):
            if isinstance(layer, torch.nn.Linear):
                layer.register_forward_pre_hook(lambda module, given: price(given[0], module.out_features))
    tokens = torch.randint(32, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        lm.eval()(tokens)
    # The step before the first is empty: one of 40 operands of each second product of mixed spikes.
    assert energy / tokens.numel() == pytest.approx(expected, rel=1 / 40)


def test_spikegpt_energy_saves_what_binary_operands_promise(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "spikegpt_energy.py", "--quick", "--rate", "0.27")
    savings = [line.split("│")[5].strip() for line in out.splitlines() if "×" in line]
    assert savings[2] == "6.3×"
    assert "equal GPT" in out
