"""Reports of estimates: one self-contained HTML page, and the same content as JSON.

The page needs no network: charts and figures are drawn into it, its only script is named by its hash in the page's own
content policy, and everything that comes from a trace or a caller (layer names, titles, notes) is escaped. What it says is
made by `document`, what plays by `player`, where the marks of its charts lie by `charts`; `page/` holds template, style and
script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiking.hw_models import charts
from spiking.hw_models.document import document
from spiking.hw_models.energy import SOURCES, Estimate, reprice
from spiking.hw_models.player import playable, still
from spiking.hw_models.units import figure, si

from spiking.errors import SpikingError
from spiking.trace import EventTrace, Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = Path(__file__).parent / "page"
_DESCRIPTIONS = {
    "published": "what papers print: spikes × addition, nothing else",
    "operations": "every operation: weights, biases, pooling, neuron updates, resets",
    "with-memory": "operations and the words they move",
}


def report(
    estimates: Estimate | Sequence[Estimate],
    path: str | PathLike[str] = "report.html",
    *,
    title: str = "",
    recording: Recording | None = None,
    accuracy: float | None = None,
    labels: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
    figures: Mapping[str, Figure | bytes | str | PathLike[str]] | None = None,
) -> dict[str, Any]:
    """Write an HTML page and, beside it under the same stem, the same content as JSON; return that content.

    The first estimate gives the page's opening: its ratio against the fair twin. `recording` is the sample that plays
    (default: the first that the trace kept); `accuracy` (0…1) is the accuracy at the first estimate's precision; `labels`,
    one per estimate, say whose it is where traces of several models are compared; `facts` are further lines for the head;
    `figures` maps captions to matplotlib figures, PNG bytes or image files, which are copied into the page.
    Errors: SpikingError if there is nothing to report, or a file cannot be read or written.

    >>> import os, tempfile, torch, spiking
    >>> from spiking import hw_models
    >>> model = torch.nn.Linear(6, 4, bias=False)
    >>> with spiking.record(model) as trace:
    ...     _ = model(torch.eye(6).reshape(1, 6, 6))
    >>> folder = tempfile.mkdtemp()
    >>> content = hw_models.report(hw_models.estimate(trace), os.path.join(folder, "report.html"))
    >>> sorted(os.listdir(folder)), round(content["estimates"][0]["ratio"]["nominal"], 4)
    (['report.html', 'report.json'], 0.0326)
    """
    found = [estimates] if isinstance(estimates, Estimate | EventTrace) else list(estimates)
    odd = next((type(e).__name__ for e in found if not isinstance(e, Estimate)), None)
    if odd is not None:
        raise SpikingError(f"report: got {odd}; expected estimates. Call hw_models.estimate(trace, chip) first.")
    if not found:
        raise SpikingError("report: got no estimates; expected at least one. Call hw_models.estimate first.")
    if accuracy is not None:
        found = [reprice(e, e.accounting, accuracy) if e.precision == found[0].precision else e for e in found]
    page = Path(path)
    if page.suffix.lower() not in (".html", ".htm"):
        raise SpikingError(f"{page}: got the ending {page.suffix!r}; expected .html.")
    content = document(found, title=title, facts=facts, labels=labels)
    if recording is None and found[0].trace.recordings:
        recording = found[0].trace.recordings[0]
    images = [(str(caption), _data_url(image, str(caption))) for caption, image in (figures or {}).items()]
    text = _render(content, found, recording, images)
    _write(page, text)
    _write(page.with_suffix(".json"), json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return content


def _counted(estimates: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The estimates whose accountings stand side by side: one of each labelled network, at the hardware that it comes with first."""
    by_label: dict[str, dict[str, Any]] = {}
    for e in estimates:
        by_label.setdefault(e["label"], e)
    return list(by_label.values())


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as err:
        part.unlink(missing_ok=True)
        raise SpikingError(f"{path}: the report cannot be written: {err.strerror}.") from err


def _render(
    content: dict[str, Any],
    estimates: Sequence[Estimate],
    recording: Recording | None,
    images: Sequence[tuple[str, str]],
) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["si"] = lambda value, unit="": "–" if value is None else si(value, unit)
    environment.filters["span"] = _span
    environment.filters["figure"] = lambda value: "–" if value is None else figure(value)
    environment.filters["number"] = lambda value: f"{value:.4g}"
    environment.filters["percent"] = lambda value: f"{100 * value:.3g} %"
    environment.globals["charts"] = charts
    script = "".join((_PAGE / name).read_text(encoding="utf-8") for name in ("page.js", "player.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    first = content["estimates"][0]
    fair = next((twin for twin in first["twins"] if twin["name"] == first["fair"]), None)
    return environment.get_template("report.html.j2").render(
        doc=content,
        first=first,
        counted=_counted(content["estimates"]),
        fair=fair,
        accuracy=None if any(k.lower() == "accuracy" for k in content["facts"]) else first["accuracy"],
        sources=SOURCES,
        descriptions=_DESCRIPTIONS,
        recording=None if recording is None else playable(recording, estimates[0].trace),
        still=None if recording is None else _data_url(still(recording), "still"),
        images=images,
        style=(_PAGE / "style.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=digest,
    )


def _span(interval: Mapping[str, float | None] | None, unit: str) -> str:
    """low – high, or "not known" for an interval without width."""
    low, high = (interval["low"], interval["high"]) if interval else (None, None)
    if low is None or high is None or low == high:
        return "not known"
    return f"{si(low, unit)} – {si(high, unit)}" if unit else f"{figure(low)} – {figure(high)}"


_IMAGES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}


def _data_url(image: Figure | bytes | str | PathLike[str], caption: str) -> str:
    if isinstance(image, str | PathLike):
        try:
            data = Path(image).read_bytes()
        except OSError as err:
            raise SpikingError(f"{os.fspath(image)}: the figure cannot be read: {err.strerror}.") from err
    elif isinstance(image, bytes):
        data = image
    elif hasattr(image, "savefig"):
        buffer = io.BytesIO()
        image.savefig(buffer, format="png", dpi=110)
        data = buffer.getvalue()
    else:
        raise SpikingError(
            f"report: figure {caption!r}: got {type(image).__name__}; expected a matplotlib figure, PNG "
            "bytes or a file."
        )
    for magic, kind in _IMAGES.items():
        if data.startswith(magic):
            return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    raise SpikingError(f"report: figure {caption!r}: got data that is no PNG, JPEG or GIF; expected one of these.")
