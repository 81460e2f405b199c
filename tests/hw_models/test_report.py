"""Reports: the JSON document, the page as text, the page in a real browser, the table, the command."""

import html.parser
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from golden_nets import FOLDER, build, recorded
from spiking.hw_models import charts
from spiking.hw_models.document import document
from spiking.hw_models.player import playable
from spiking.hw_models.units import figure
from typer.testing import CliRunner

import spiking
from spiking import hw_models, record
from spiking.cli.energy import app
from spiking.errors import SpikingError
from spiking.trace import EventTrace, Recording

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>{{ 7*7 }}'


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


def test_labelled_networks_are_counted_in_one_table(tmp_path, estimates):
    hw_models.report(estimates, path := tmp_path / "report.html", labels=["first", "<second>"])
    table = path.read_text().split('<table id="accountings">')[1].split("</table>")[0]
    rows = [row.split("</td>")[0] for row in table.split("<tr")[2:]]
    names = [row.split("<td>")[1] for row in rows]
    assert names == ["first"] * 3 + ["&lt;second&gt;"] * 3
    hw_models.report(estimates, path)
    assert path.read_text().split('<table id="accountings">')[1].split("</table>")[0].count("<tr") == 1 + 3


def test_the_document_follows_its_schema(estimates):
    schema = json.loads((Path(hw_models.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))
    placed = hw_models.estimate(estimates[0].trace, "loihi")
    content = document([*estimates, placed], facts={"baseline": "93 %"}, labels=["a", "b", "c"])
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
    ratio = figure(content["estimates"][0]["twins"][0]["ratio"]["nominal"])
    order = [
        "My net",
        "97.2 %",
        "93.0 %",
        "Energy against the fair twin",
        ratio,
        "warnings",
        "W02",
        "Energy per sample",
        "Three ways of counting",
        "Where the energy goes",
        "Sensitivity",
        "Break-even",
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


def interval(nominal: float) -> dict[str, float]:
    return {"low": nominal / 2, "nominal": nominal, "high": nominal * 2}


def test_the_axis_places_one_between_the_ratios():
    rows = [
        {"label": str(r), "text": "", "chosen": False, "value": interval(r), "bounds": interval(r), "drawn": None}
        for r in (0.1, 10.0)
    ]
    chart = charts.log_axis(rows, 1.0)
    assert chart["rows"][0]["x"] < chart["reference"] < chart["rows"][1]["x"]
    assert chart["reference"] == pytest.approx(50)
    assert "1" in [tick["label"] for tick in chart["ticks"]]
    start, width = chart["rows"][0]["bounds"]
    assert start < chart["rows"][0]["x"] < start + width


def test_an_axis_of_nothing_has_no_marks():
    nothing = dict.fromkeys(("low", "nominal", "high"))
    rows = [{"label": "", "text": "", "chosen": True, "value": nothing, "bounds": nothing}]
    assert charts.log_axis(rows, 1.0)["rows"][0]["x"] is None


def test_the_lines_meet_at_break_even():
    entry = document([hw_models.estimate(recorded("mlp"), "reckon")])["estimates"][0]
    curve, fair = entry["rate_curve"], entry["twins"][0]
    at = curve["fixed_J"]["nominal"] + fair["break_even_rate"]["nominal"] * curve["per_rate_J"]["nominal"]
    assert at == pytest.approx(fair["energy_J"]["nominal"])
    now = curve["fixed_J"]["nominal"] + curve["rate"] * curve["per_rate_J"]["nominal"]
    assert now == pytest.approx(entry["energy_J"]["nominal"])
    plot = charts.rate_plot(entry)
    assert plot["meet"] / plot["now"] == pytest.approx(fair["break_even_rate"]["nominal"] / curve["rate"])


def test_the_longest_bar_of_the_tornado_is_the_first(trace):
    entry = document([hw_models.estimate(trace, "loihi")])["estimates"][0]
    chart = charts.tornado(entry)
    widths = [row["width"] for row in chart["rows"]]
    assert widths == sorted(widths, reverse=True)
    assert all(row["x"] <= chart["nominal"] <= row["x"] + row["width"] + 1e-9 for row in chart["rows"])


def test_every_core_is_drawn_in_its_tile(trace):
    entry = document([hw_models.estimate(trace, "loihi")])["estimates"][0]
    chart = charts.mesh(entry["placement"])
    cores = [core for p in entry["placement"]["populations"] for core in p["cores"]]
    for core, square in zip(cores, chart["squares"], strict=True):
        x, y = core["tile"]
        assert x < square["x"] < square["x"] + chart["size"] < x + 1
        assert y < square["y"] < square["y"] + chart["size"] < y + 1
    assert len({(s["x"], s["y"]) for s in chart["squares"]}) == len(cores)


# the page in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium on the path; apt-get install chromium")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory, trace):
    """A report of three pieces of hardware, one of them a mesh."""
    folder = tmp_path_factory.mktemp("page")
    estimates = [hw_models.estimate(trace, chip) for chip in ("digital-sram", "loihi", "rram-crossbar")]
    return folder / "report.html", hw_models.report(estimates, folder / "report.html", title="plain")


COLUMN = "[...document.querySelectorAll('#layers tbody tr td:nth-child(8)')].map(c => Number(c.dataset.value))"


def test_the_page_runs_in_a_browser_without_network_or_errors(browser, page):
    path, content = page
    tab = browser.open(path)
    first = content["estimates"][0]
    fair = next(t for t in first["twins"] if t["name"] == first["fair"])
    assert tab.js("document.getElementById('ratio').innerText").startswith(figure(fair["ratio"]["nominal"]))
    assert figure(fair["ratio"]["low"]) in tab.js("document.getElementById('interval').innerText")
    colours = "new Set(document.getElementById('%s').getContext('2d').getImageData(0, 0, 200, 100).data).size"
    assert tab.js(colours % "frame") > 1
    assert tab.js(colours % "raster") > 1
    assert tab.js("document.getElementById('play').textContent") == "Pause"
    before = tab.js("document.getElementById('clock').textContent")
    assert tab.js(
        "new Promise(done => setInterval(() => { const t = document.getElementById('clock').textContent;"
        f"t === {json.dumps(before)} || done(t) }}, 20))"
    )
    assert tab.js("document.querySelectorAll('#scores div').length") == 5
    assert (tab.problems, tab.requests) == ([], [])


def test_every_figure_is_on_the_page(browser, page):
    tab = browser.open(page[0])
    sizes = "[...document.querySelectorAll('%s')].map(e => e.getBoundingClientRect()).map(r => r.width * r.height)"
    for selector, least in ((".axis", 2), (".bars", 1), (".tornado", 1), (".plot svg", 2), (".spark", 2)):
        areas = tab.js(sizes % f"section > {selector}, section .ratio > {selector}, section td {selector}, .plot > svg")
        assert sum(area > 100 for area in areas) >= least, selector
    cores = sum(len(p["cores"]) for p in page[1]["estimates"][1]["placement"]["populations"])
    assert tab.js("document.querySelectorAll('.mesh rect').length") == cores
    assert tab.js("document.querySelectorAll('details.chip').length") == 2


def test_a_click_sorts_the_table_and_another_turns_it_round(browser, page):
    tab = browser.open(page[0])
    before = tab.js(COLUMN)
    tab.js("document.querySelectorAll('#layers thead button')[7].click()")
    assert before != tab.js(COLUMN) == sorted(before, reverse=True)
    tab.js("document.querySelectorAll('#layers thead button')[7].click()")
    assert tab.js(COLUMN) == sorted(before)


@pytest.mark.parametrize("key", ["Enter", " "])
def test_keys_sort_the_table(browser, page, key):
    tab = browser.open(page[0])
    before = tab.js(COLUMN)
    tab.js("document.querySelectorAll('#layers thead button')[6].focus()")
    tab.press("Tab")
    tab.press(key)
    assert tab.js("document.activeElement.closest('th').getAttribute('aria-sort')") == "descending"
    assert tab.js(COLUMN) == sorted(before, reverse=True)


def test_keys_play_and_wind_the_recording(browser, page):
    tab = browser.open(page[0])
    tab.js("document.getElementById('play').focus()")
    tab.press(" ")
    assert tab.js("document.getElementById('play').textContent") == "Play"
    tab.js("document.getElementById('step').value = 0")
    tab.js("document.getElementById('step').focus()")
    tab.press("ArrowRight")
    assert tab.js("document.getElementById('clock').textContent") == "step 2 of 4"


def test_the_player_takes_the_keys_that_it_names(browser, page):
    tab = browser.open(page[0])
    shown = "[document.getElementById('play').textContent, document.getElementById('clock').textContent]"
    assert tab.js("document.querySelector('.keys').innerText") == "Space plays and stops, ← → wind"
    tab.js("document.getElementById('player').focus()")
    playing = tab.js(shown)[0]
    tab.press(" ")
    assert tab.js(shown)[0] != playing
    for _ in range(5):
        tab.press("ArrowRight")
    assert tab.js(shown) == ["Play", "step 4 of 4"]  # the last step stays
    for _ in range(2):
        tab.press("ArrowLeft")
    assert tab.js(shown) == ["Play", "step 2 of 4"]


def test_bars_say_what_they_are_under_mouse_and_keyboard(browser, page):
    path, content = page
    tab = browser.open(path)
    tab.move("#layers-title ~ .bars i")
    shown = tab.js("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent")
    first = next(r for r in content["estimates"][0]["layers"] if r["energy_J"]["nominal"])
    assert shown.startswith(first["name"])
    tab.press("Escape")
    assert tab.js("document.getElementById('tip').hidden")
    tab.js("document.querySelector('.bars [tabindex]').focus()")
    assert tab.js("document.getElementById('tip').textContent").startswith(f"{first['name']}: ")


@pytest.mark.parametrize("width", [320, 390])
def test_the_page_fits_a_phone(browser, page, width):
    tab = browser.open(page[0], width=width, height=800)
    tab.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.js("document.documentElement.scrollWidth") <= width
    small = "[...document.querySelectorAll('body *')].filter(e => e.textContent.trim() && e.offsetHeight)"
    assert tab.js(f"Math.min(...{small}.map(e => parseFloat(getComputedStyle(e).fontSize)))") >= 11


@pytest.mark.parametrize("dark", [False, True])
def test_both_schemes_are_legible(browser, page, dark):
    tab = browser.open(page[0], dark=dark)

    def luminance(colour: tuple[int, ...]) -> float:
        parts = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    paper = luminance(tab.colour("body", "backgroundColor"))
    assert (paper < 0.05) == dark
    for selector in ("h1", "td", ".muted", ".facts", "thead th", ".warnings span", ".tick"):
        ink = luminance(tab.colour(selector, "color"))
        contrast = (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05)
        assert contrast >= 4.5, selector


def test_the_page_prints(browser, page):
    tab = browser.open(page[0], dark=True)
    data = tab.pdf()
    assert data.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", data)) >= 3
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert tab.colour("body", "backgroundColor") == (252, 252, 250)
    assert tab.js("document.querySelector('.paper-only').offsetHeight") > 100
    assert tab.js("document.getElementById('player').offsetHeight") == 0


def test_hostile_names_do_nothing_in_a_browser(browser, tmp_path, trace):
    bad = EventTrace.merge([trace])
    for row in bad.layers:
        row.name = row.name + HOSTILE
    bad.recordings = [
        Recording(trace.recordings[0].input, {HOSTILE: np.eye(4)}, np.eye(4), HOSTILE, (HOSTILE,) * 4, HOSTILE)
    ]
    bad.data_id = HOSTILE
    estimates = [hw_models.estimate(bad, chip) for chip in ("digital-45nm", "loihi")]
    written(tmp_path, estimates, title="plain", labels=[HOSTILE, HOSTILE], facts={HOSTILE: HOSTILE})
    tab = browser.open(tmp_path / "report.html")
    tab.js("document.querySelector('.bars [tabindex]').focus()")
    assert tab.js("document.title") == "plain"
    assert "<img src=x" in tab.js("document.getElementById('tip').textContent")
    assert tab.js("document.querySelectorAll('script').length") == 2
    assert tab.js("document.querySelectorAll('img[src=x]').length") == 0
    assert (tab.problems, tab.requests) == ([], [])


# figures for papers


def test_figures_are_drawn_and_saved_twice(tmp_path, trace):
    bad = EventTrace.merge([trace])
    bad.layers[0].name = "$\\frac$ <b>"
    estimates = hw_models.compare(bad, ["loihi", "digital-sram"])
    names = {"hardware", "ratios", "layers", "tornado", "break_even", "rates", "placement"}
    assert set(hw_models.figures(estimates)) == names
    paths = hw_models.save_figures(estimates, tmp_path / "figures")
    assert {p.name for p in paths} == {f"{n}.{suffix}" for n in names for suffix in ("png", "svg")}
    for path in paths:
        head = path.read_bytes()[:5]
        assert head == (b"<?xml" if path.suffix == ".svg" else b"\x89PNG\r"), path


def test_figures_that_cannot_be_written_are_refused(tmp_path, estimates):
    (tmp_path / "taken").write_text("")
    with pytest.raises(SpikingError, match="taken: the figures cannot be written: File exists"):
        hw_models.save_figures(estimates, tmp_path / "taken")
    with pytest.raises(SpikingError, match="figures: got no estimates"):
        hw_models.figures([])


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


@pytest.mark.parametrize("stated", [{"value": 0.75, "low": 0.7, "high": 0.8}, 0.75])
def test_the_accuracy_that_a_run_states_is_used(stated, file, tmp_path):
    trace = tmp_path / "trace.h5"
    trace.write_bytes(Path(file).read_bytes())
    assert "W15" in run(str(trace))
    (tmp_path / "metrics.json").write_text(json.dumps({"accuracy": stated}))
    for named in (trace, tmp_path):
        assert "W15" not in run(str(named))
        assert json.loads(run(str(named), "--json"))["estimates"][0]["accuracy"] == 0.75
    assert json.loads(run(str(trace), "--accuracy", "0.5", "--json"))["estimates"][0]["accuracy"] == 0.5
    other = json.loads(run(str(trace), "--precision", "int8", "--json"))  # that accuracy was not measured in it
    assert other["estimates"][0]["accuracy"] is None
    (tmp_path / "metrics.json").write_text("[")
    assert "W15" in run(str(trace))


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
