"""What the pages say is run: code blocks, commands, links, and the examples in docstrings.

A page is one program: its ```python blocks run in order in one namespace, in an empty folder. A ```text block right after one is
what it prints. A warning is an error unless the line before the block says `<!-- warns: words of it -->`.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROSE = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "BUGS.md", "CHANGELOG.md"))]
FOLDERS = {
    "spiking": "spiking",
    "datasets": "spiking.datasets",
    "hw_models": "spiking.hw_models",
    "cuda_kernels": "spiking.cuda_kernels",
    "benchmarks": "spiking.benchmarks",
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, code, first line of code, what it must print, and what it may warn of."""

    language: str
    code: str
    line: int
    prints: str | None
    warns: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    for i, match in enumerate(found):
        after = found[i + 1] if i + 1 < len(found) else None
        follows = after is not None and after[1] == "text" and not text[match.end() : after.start()].strip()
        before = text[: match.start()].rstrip().rsplit("\n", 1)[-1]
        warns = re.fullmatch(r"<!-- warns: (.+) -->", before)
        yield Block(
            match[1],
            match[2],
            text[: match.start()].count("\n") + 2,
            after[2] if follows and after is not None else None,
            warns[1] if warns else None,
        )


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty folder to run in, caches of one's own, and the random numbers of everybody else left as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path / "cache"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield tmp_path


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_code_on_a_page_runs_and_prints_what_the_page_says(page, alone):
    space: dict[str, object] = {"__name__": "__main__"}
    python = [block for block in blocks(page) if block.language == "python"]
    assert python, f"{named(page)} has no python block"
    for block in python:
        # Empty lines before it, so that a traceback shows the line of the page.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        printed = io.StringIO()
        allowed = pytest.warns(match=re.escape(block.warns)) if block.warns else contextlib.nullcontext()
        with allowed, contextlib.redirect_stdout(printed):
            exec(code, space)
        if block.prints is not None:
            assert printed.getvalue() == block.prints, f"{named(page)}, line {block.line}"


def test_blocks_are_in_a_language_that_is_checked():
    languages = {block.language for page in PROSE for block in blocks(page)}
    assert languages <= {"python", "text", "bash", "yaml", "cpp"}
    fences = {page: len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)) for page in PROSE}
    odd = [named(page) for page, n in fences.items() if n != 2 * len(list(blocks(page)))]
    assert not odd, f"a fence without a language, or not closed: {odd}"


# Commands


def commands() -> Iterator[tuple[str, list[str]]]:
    """(where, words) of every `spiking …` command on the pages: in bash blocks, and in running text."""
    for page in PROSE:
        for block in blocks(page):
            if block.language == "bash":
                for line in block.code.splitlines():
                    for part in line.split("#")[0].split("&&"):
                        words = shlex.split(part)
                        if words and words[0].rpartition("/")[2] == "spiking":
                            yield f"{named(page)}: {part.strip()}", words[1:]
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for words in re.findall(r"`spiking ((?:[a-z]+|--\w)[^`\n]*)`", text):
            yield f"{named(page)}: spiking {words}", shlex.split(words)


def test_commands_on_the_pages_exist_with_their_options():
    from typer import Context
    from typer.main import get_command

    from spiking.cli.main import app

    found = list(commands())
    assert len(found) > 10
    for where, words in found:
        command = get_command(app)
        rest = list(words)
        while hasattr(command, "get_command") and rest and not rest[0].startswith("-"):
            verb = rest.pop(0)
            inner = command.get_command(Context(command), verb)
            assert inner is not None, f"{where}: there is no {verb}"
            command = inner
        options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{where}: there is no option {word}"


# Links


def anchors(page: Path) -> set[str]:
    """Headings as the link targets that they become."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+://", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{named(page)} links to {target}"
        if anchor:
            assert anchor in anchors(place), f"{named(page)} links to {target}"


def test_every_page_is_reached_from_the_first_and_stands_in_the_menu():
    import yaml

    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {page.name for page in PAGES if page.parent != ROOT} - {"index.md"}
    assert set(re.findall(r"\]\((\w+\.md)\)", index)) >= pages
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert {file for entry in menu for file in entry.values()} == pages | {"index.md"}


def test_the_documented_command_makes_every_picture():
    program = (ROOT / "docs/images/make.py").read_text(encoding="utf-8")
    pictures = {path.stem for path in (ROOT / "docs/images").iterdir() if path.suffix != ".py"}
    made = set(re.findall(r"^def (\w+)\(.*picture: Path", program, re.MULTILINE))
    elsewhere = r"^(\w+)\.png is what examples/\1\.py draws"
    assert pictures == made | set(re.findall(elsewhere, program, re.MULTILINE))
    shown = {name for page in PAGES for name in re.findall(r"images/(\w+)\.png", page.read_text(encoding="utf-8"))}
    assert shown == pictures


# Docstrings


def modules(folder: str) -> list[str]:
    """Import names of the modules in a folder of the repository."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        inside = path.relative_to(ROOT / folder).with_suffix("").parts
        if "__pycache__" not in inside:
            found.append(".".join((FOLDERS[folder], *(inside[:-1] if inside[-1] == "__init__" else inside))))
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_examples_in_docstrings(folder, alone):
    tried = 0
    for name in modules(folder):
        module = importlib.import_module(name)
        for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
            report = io.StringIO()
            runner = doctest.DocTestRunner(verbose=False)
            result = runner.run(test, out=report.write, clear_globs=True)
            tried += result.attempted
            assert result.failed == 0, report.getvalue()
    assert tried, f"no example was found in {folder}"
