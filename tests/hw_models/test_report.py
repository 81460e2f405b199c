"""Reports: the JSON document, the page as text, the page in a real browser, the table, the command."""

import html.parser
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_nets import FOLDER, build, recorded
from spiking.hw_models.report import document, playable, ratio_chart
from spiking.hw_models.units import figure
from typer.testing import CliRunner

import spiking
from spiking import hw_models, record
from spiking.cli.energy import app
from spiking.errors import SpikingError
from spiking.trace import EventTrace, Recording

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>{{ 7*7 }}'
CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path; apt-get install chromium")


@pytest.fixture(scope="module")
def trace() -> EventTrace:
    """The golden convolutional network with one sample kept."""
    model, x = build("conv")
    with record(model, keep_spikes=1, data_id="golden", seed=3) as found, torch.no_grad():
        model(x)
    return found


@pytest.fixture
def estimates(trace):
    return [hw_models.estimate(trace, accounting=a) for a in ("operations", "with-memory")]


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._quiet = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._quiet = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._quiet = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._quiet else data


def written(tmp_path: Path, estimates: Any, **options: Any) -> tuple[Page, dict[str, Any], str]:
    path = tmp_path / "report.html"
    hw_models.report(estimates, path, **options)
    text = path.read_text(encoding="utf-8")
    return Page(text), json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), text


# the document


def test_the_json_holds_what_the_estimates_hold(tmp_path, estimates):
    _, content, _ = written(tmp_path, estimates)
    assert (content["schema"], content["version"]) == ("spiking-report", "1.1")
    assert content["trace"]["n_samples"] == 2
    for entry, found in zip(content["estimates"], estimates, strict=True):
        assert entry["energy_J"] == dict(zip(("low", "nominal", "high"), found.energy))
        assert entry["ratio"]["nominal"] == found.ratio.nominal
        assert [w["code"] for w in entry["warnings"]] == [w.code for w in found.warnings]
        assert [r["name"] for r in entry["layers"]] == [r.name for r in found.per_layer]
        assert sum(r["energy_J"]["nominal"] for r in entry["layers"]) == pytest.approx(found.energy.nominal)


def test_the_three_accountings_stand_beside_each_other(estimates):
    golden = json.loads((FOLDER / "energy.json").read_text())
    totals = next(n for n in golden if n["name"] == "conv")["estimates"][0]["total_pJ"]
    rows = {a["accounting"]: a for a in document(estimates)["estimates"][0]["accountings"]}
    for name in ("published", "operations", "with-memory"):
        assert rows[name]["energy_J"]["nominal"] * 2e12 == pytest.approx(totals[name.replace("-", "_")], rel=1e-6)


def test_the_document_follows_its_schema(estimates):
    schema = json.loads((Path(hw_models.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))
    content = document(estimates, facts={"baseline": "93 %"})
    check(content, schema, schema["$defs"], "report")
    del content["estimates"][0]["ratio"]
    with pytest.raises(AssertionError, match=r"report\.estimates\[0\]: ratio is missing"):
        check(content, schema, schema["$defs"], "report")


def check(value: Any, schema: dict[str, Any], definitions: dict[str, Any], where: str) -> None:
    """The part of JSON Schema that the report's schema uses."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert any(isinstance(value, kinds[n]) for n in names), f"{where}: {value!r} is no {names}"
    if "const" in schema:
        assert value == schema["const"], where
    if isinstance(value, dict):
        for name in schema.get("required", []):
            assert name in value, f"{where}: {name} is missing"
        extra = schema.get("additionalProperties", True)
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, extra)
            assert inner is not False, f"{where}: {name} is unknown"
            if isinstance(inner, dict):
                check(item, inner, definitions, f"{where}.{name}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            check(item, schema["items"], definitions, f"{where}[{i}]")


def test_ratios_that_do_not_exist_are_null(tmp_path):
    model = torch.nn.Sequential(spiking.LIF())
    with record(model) as only_neurons, torch.no_grad():
        model(torch.ones(2, 1, 3))
    _, content, _ = written(tmp_path, hw_models.estimate(only_neurons))
    assert content["estimates"][0]["ratio"] == {"low": None, "nominal": None, "high": None}


def test_sources_are_cited(estimates):
    content = document(estimates)
    assert "10.1109/ISSCC.2014.6757323" in content["bibtex"]["horowitz2014"]
    assert all(c["source"] in content["bibtex"] for c in content["constants"])
    assert {c["name"] for c in content["constants"]} >= {"fp32_add", "fp32_mul", "sram_8KiB"}


# the page


def test_the_page_answers_in_its_order(tmp_path, estimates):
    page, content, _ = written(tmp_path, estimates, title="My net", accuracy=0.972, facts={"linear baseline": "93.0 %"})
    ratio = figure(content["estimates"][0]["ratio"]["nominal"])
    order = [
        "My net",
        "97.2 %",
        "93.0 %",
        "Energy against the equal ANN",
        ratio,
        "warnings",
        "W02",
        "Energy per sample",
        "Three ways of counting",
        "Where the energy goes",
        "Activity",
        "Assumptions",
        "Constants and sources",
        "@inproceedings{horowitz2014",
    ]
    places = [page.text.index(part) for part in order]
    assert places == sorted(places)
    assert "W15" not in page.text
    player = next(i for i, (tag, a) in enumerate(page.tags) if a.get("id") == "player")
    assert player < next(i for i, (tag, a) in enumerate(page.tags) if a.get("id") == "ratio")


def test_every_warning_and_layer_is_on_the_page(tmp_path, estimates):
    page, _, _ = written(tmp_path, estimates)
    for warning in estimates[0].warnings:
        assert warning.text in page.text
    for row in estimates[0].per_layer:
        assert row.name in page.text


def test_the_page_refers_to_nothing_outside(tmp_path, estimates):
    page, _, text = written(tmp_path, estimates)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "poster", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert not re.search(r"@import|url\((?!data:)", text)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_names_and_notes_are_escaped(tmp_path, trace):
    bad = EventTrace.merge([trace])
    for row in bad.layers:
        row.name = row.name + HOSTILE
    bad.recordings = [
        Recording(trace.recordings[0].input, {HOSTILE: np.eye(4)}, np.eye(4), HOSTILE, (HOSTILE,) * 4, HOSTILE)
    ]
    bad.data_id = bad.model_name = HOSTILE
    page, content, text = written(
        tmp_path, hw_models.estimate(bad), title=HOSTILE, facts={HOSTILE: HOSTILE}, figures={HOSTILE: png()}
    )
    assert content["title"] == HOSTILE
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert not any(a.get("src") == "x" for _, a in page.tags)
    assert "<script>document" not in text


def test_a_page_without_a_recording_has_no_player(tmp_path):
    page, _, _ = written(tmp_path, hw_models.estimate(recorded("mlp")))
    assert not any(a.get("id") == "player" for _, a in page.tags)


def png() -> bytes:
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    Figure(figsize=(1, 1)).savefig(buffer, format="png")
    return buffer.getvalue()


def test_figures_are_copied_into_the_page(tmp_path, estimates):
    from matplotlib.figure import Figure

    (tmp_path / "a.png").write_bytes(png())
    page, _, _ = written(
        tmp_path, estimates, figures={"one": Figure(figsize=(1, 1)), "two": png(), "three": tmp_path / "a.png"}
    )
    shown = [a["alt"] for tag, a in page.tags if tag == "img" and (a["src"] or "").startswith("data:image/png")]
    assert {"one", "two", "three"} <= set(shown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"figures": {"f": b"<svg onload=alert(1)>"}}, "figure 'f': got data that is no PNG, JPEG or GIF"),
        ({"figures": {"f": "none.png"}}, r"none\.png: the figure cannot be read"),
        ({"figures": {"f": 3}}, "figure 'f': got int; expected a matplotlib figure"),
    ],
)
def test_other_figures_are_refused(tmp_path, estimates, options, message):
    with pytest.raises(SpikingError, match=message):
        written(tmp_path, estimates, **options)
    assert not list(tmp_path.iterdir())


def test_reports_that_cannot_be_written_are_refused(tmp_path, estimates):
    with pytest.raises(SpikingError, match="got no estimates"):
        hw_models.report([], tmp_path / "r.html")
    with pytest.raises(SpikingError, match=r"r\.pdf: got the ending '\.pdf'; expected \.html"):
        hw_models.report(estimates, tmp_path / "r.pdf")
    with pytest.raises(SpikingError, match=r"absent/r\.html: the report cannot be written: No such file"):
        hw_models.report(estimates, tmp_path / "absent" / "r.html")


def test_the_player_gets_frames_spikes_and_growing_scores(trace):
    kept = trace.recordings[0]
    data = playable(kept, trace)
    assert data["frames"]["shape"] == [4, 2, 8, 8]
    assert [(layer["name"], layer["neurons"], layer["shown"]) for layer in data["layers"]] == [
        ("lif0", 256, 96),
        ("lif1", 24, 24),
        ("lif2", 5, 5),
    ]
    np.testing.assert_allclose(data["scores"], kept.output.cumsum(0))
    assert data["prediction"] == kept.prediction


def test_large_inputs_are_shrunk_for_the_page(trace):
    data = playable(Recording(np.ones((20, 2, 512, 512), np.float32), {}), trace)
    assert np.prod(data["frames"]["shape"]) <= 4 * 400_000


def test_inputs_that_are_no_pictures_play_as_a_raster(trace):
    data = playable(Recording(np.eye(5, 7), {"lif": np.eye(5, 3)}), trace)
    assert data["frames"] is None
    assert [layer["name"] for layer in data["layers"]] == ["input", "lif"]


def test_the_chart_places_one_between_the_ratios():
    rows = [
        {
            "accounting": str(r),
            "ratio": dict.fromkeys(("low", "nominal", "high"), r),
            "ratio_sampling": dict.fromkeys(("low", "nominal", "high"), r),
        }
        for r in (0.1, 10.0)
    ]
    chart = ratio_chart(rows)
    assert chart["rows"][0]["x"] < chart["one"] < chart["rows"][1]["x"]
    assert chart["one"] == pytest.approx(50)
    assert "1" in [tick["label"] for tick in chart["ticks"]]


# the page in a browser

PROBE = """<!doctype html><title>probe</title>
<iframe id="f" style="width:%(width)dpx;height:900px" src="report.html"></iframe>
<script>
const log = [];
addEventListener("message", () => 0);
document.getElementById("f").onload = (e) => {
  const w = e.target.contentWindow, d = w.document;
  w.addEventListener("error", (x) => log.push("error " + x.message));
  d.addEventListener("securitypolicyviolation", (x) => log.push("violation " + x.blockedURI));
  setTimeout(() => {
    const cells = () => [...d.querySelectorAll("#layers tbody tr td:nth-child(8)")].map((c) => Number(c.dataset.value));
    const before = cells();
    d.querySelectorAll("#layers thead button")[7].click();
    const frame = d.getElementById("frame"), raster = d.getElementById("raster");
    const lit = (c) => c ? new Set(c.getContext("2d").getImageData(0, 0, c.width, c.height).data).size : 0;
    const result = {
      log, before, after: cells(), ratio: d.getElementById("ratio").innerText.trim(), title: d.title,
      frame: lit(frame), raster: lit(raster), playing: d.getElementById("play").textContent,
      step: d.getElementById("clock").textContent, bars: d.querySelectorAll("#scores div").length,
      overflow: d.documentElement.scrollWidth - d.documentElement.clientWidth,
      resources: w.performance.getEntriesByType("resource").map((r) => r.name),
    };
    document.title = JSON.stringify(result);
    document.body.innerHTML = "<pre id='out'></pre>";
    document.getElementById("out").textContent = JSON.stringify(result);
  }, 700);
};
</script>"""


def open_in_browser(folder: Path, width: int = 1000) -> dict[str, Any]:
    """Load report.html inside a probe page in a real browser and bring back what it did."""
    (folder / "probe.html").write_text(PROBE % {"width": width}, encoding="utf-8")
    command = [
        str(CHROMIUM),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--mute-audio",
        "--disable-extensions",
        "--allow-file-access-from-files",
        "--virtual-time-budget=4000",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        (folder / "probe.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"<pre id=\"out\">(.*?)</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    result["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return result


@browser
def test_the_page_runs_in_a_browser_without_network_or_errors(tmp_path, estimates):
    _, content, _ = written(tmp_path, estimates)
    seen = open_in_browser(tmp_path)
    assert seen["log"] == []
    assert seen["console"] == []
    assert [r for r in seen["resources"] if not r.startswith("data:")] == []
    assert seen["ratio"].startswith(figure(content["estimates"][0]["ratio"]["nominal"]))
    assert seen["frame"] > 1
    assert seen["raster"] > 1
    assert (seen["playing"], seen["bars"]) == ("Pause", 5)
    assert seen["before"] != seen["after"] == sorted(seen["before"], reverse=True)


@browser
def test_the_page_fits_a_phone(tmp_path, estimates):
    written(tmp_path, estimates)
    assert open_in_browser(tmp_path, width=360)["overflow"] <= 0


@browser
def test_hostile_names_do_nothing_in_a_browser(tmp_path, trace):
    bad = EventTrace.merge([trace])
    for row in bad.layers:
        row.name = row.name + HOSTILE
    bad.recordings = [
        Recording(trace.recordings[0].input, {HOSTILE: np.eye(4)}, np.eye(4), HOSTILE, (HOSTILE,) * 4, HOSTILE)
    ]
    written(tmp_path, hw_models.estimate(bad), title="plain")
    seen = open_in_browser(tmp_path)
    assert seen["title"] == "plain"
    assert seen["log"] == []
    assert seen["console"] == []


# the terminal


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120", "TERM": "dumb"})
    if done.exception:
        raise done.exception
    return done.stdout


@pytest.fixture
def file(tmp_path, trace):
    path = tmp_path / "run.h5"
    trace.save(path)
    return str(path)


def test_the_command_prints_table_warnings_and_ratio(file, estimates):
    text = run(file)
    assert "conv1" in text
    assert "graded" in text
    assert estimates[0].summary() in text
    for warning in estimates[0].warnings:
        assert f"{warning.code}  {warning.text}" in text


def test_the_command_prints_json_alone(file, estimates):
    content = json.loads(run(file, "--json", "--precision", "int8", "--accounting", "with-memory"))
    assert (content["estimates"][0]["precision"], content["estimates"][0]["accounting"]) == ("int8", "with-memory")
    expected = hw_models.estimate(estimates[0].trace, precision="int8", accounting="with-memory")
    assert content["estimates"][0]["energy_J"]["nominal"] == pytest.approx(expected.energy.nominal)


def test_the_command_writes_the_report(file, tmp_path):
    out = tmp_path / "out.html"
    assert f"report: {out}" in run(file, "--html", str(out))
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads((tmp_path / "out.json").read_text())["schema"] == "spiking-report"


def test_the_command_compares_two_files(file, tmp_path):
    other = str(tmp_path / "other.h5")
    recorded("mlp").save(other)
    mine, theirs = (hw_models.estimate(EventTrace.load(f)).energy.nominal for f in (file, other))
    assert f"{file} / {other} on digital-45nm: {figure(mine / theirs)}" in run(file, other)
    content = json.loads(run(file, other, "--json"))
    assert content["comparison"][0]["ratio"]["nominal"] == pytest.approx(mine / theirs)
    assert [e["file"] for e in content["estimates"]] == [file, other]


def test_the_command_takes_a_run_s_folder_for_its_trace(file, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(
        SpikingError, match=r"run: got a folder without trace\.h5; expected a trace, or the folder of a run"
    ):
        run(str(tmp_path / "run"))
    (tmp_path / "run" / "trace.h5").write_bytes(Path(file).read_bytes())
    content = json.loads(run(str(tmp_path / "run"), "--json"))
    assert content["estimates"][0]["file"] == str(tmp_path / "run" / "trace.h5")


def test_the_command_lists_chips():
    names = hw_models.available()
    assert [line.split()[0] for line in run("--list").splitlines()] == names
    assert [row["name"] for row in json.loads(run("--list", "--json"))] == names


def test_the_command_prices_one_file_on_every_chip(file):
    text = run(file, "--hardware", "all")
    assert "Energy per sample" in text
    for name in hw_models.available():
        assert name in text
    assert text.count("W15  the accuracy at this precision is not stated") == 1
    content = json.loads(run(file, "--hardware", "loihi", "--hardware", "rram-crossbar", "--json"))
    assert [e["hardware"] for e in content["estimates"]] == ["loihi", "rram-crossbar"]
    assert content["estimates"][0]["twins"][0]["name"] == "q3"
    assert content["estimates"][0]["latency_bounds_s"]["low"] < content["estimates"][0]["latency_s"]
    assert "boyle2025sanafe" in content["bibtex"]


def test_the_command_shows_the_three_accountings(file):
    text = run(file)
    for name in ("published", "operations", "with-memory"):
        assert name in text
    assert "break-even" in text


def test_a_chip_that_cannot_hold_the_network_is_left_out_with_its_reason(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4000, 3000), spiking.LIF(threshold=0.2))
    with record(model) as large, torch.no_grad():
        model(torch.ones(1, 1, 4000))
    path = str(tmp_path / "large.h5")
    large.save(path)
    text = run(path, "--hardware", "loihi", "--hardware", "seneca")
    assert "loihi is left out: place: the network needs" in text
    assert list(json.loads(run(path, "--hardware", "loihi", "--hardware", "seneca", "--json"))["refused"]) == ["loihi"]
    with pytest.raises(SpikingError, match="place: the network needs"):
        run(path, "--hardware", "loihi")
    assert "loihi" in run(path, "--hardware", "loihi", "--chips", "2")


def test_the_command_recomputes_the_validation_table(monkeypatch):
    text = run("--verify")
    assert " 0 outside of their tolerance" in text
    assert "spikingformer-8-768: mJ" in text
    rows = json.loads(run("--verify", "--json"))
    assert all(row["passed"] for row in rows)
    from spiking.hw_models import validation

    monkeypatch.setattr(hw_models, "verify", lambda: [validation.Check("broken", 1.0, 2.0, 0.1, "")])
    with pytest.raises(SpikingError, match="--verify: 1 figures lie outside of their tolerance: broken"):
        run("--verify")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got 0 trace files; expected one, or two"),
        (["a", "b", "c"], "got 3 trace files"),
        (["none.h5"], r"none\.h5: there is no such file"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, message):
    with pytest.raises(SpikingError, match=message):
        run(*arguments)


def test_the_installed_command_ends_with_code_two_and_one_line(file, tmp_path):
    command = Path(sys.executable).with_name("spiking")
    cut = tmp_path / "cut.h5"
    cut.write_bytes(Path(file).read_bytes()[:-100])
    done = subprocess.run([command, "energy", str(cut)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"spiking: \S+cut\.h5: this is not a readable trace \(.*\)\. Record it again\.\n", done.stderr)


def test_control_characters_do_not_reach_the_terminal(tmp_path, trace):
    bad = EventTrace.merge([trace])
    bad.layers[0].name = "conv\x1b[2J\n0"
    bad.save(tmp_path / "bad.h5")
    assert "\x1b" not in run(str(tmp_path / "bad.h5"))


# the example


def test_the_example_runs(tmp_path):
    script = Path(__file__).parents[2] / "examples" / "energy_report.py"
    out = tmp_path / "report.html"
    done = subprocess.run(
        [sys.executable, "-P", str(script), "--quick", "--out", str(out)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    assert "operations" in done.stdout
    assert "SNN/ANN energy" in done.stdout
    assert out.stat().st_size > 50_000
