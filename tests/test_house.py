"""How the house is kept: who imports whom, what an import costs, and facts that stand in two places and must agree.

All of it is read from the source tree (with ast, not by importing), except where a test is about the installed package.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {  # folder in the repository: import name
    "spiking": "spiking",
    "datasets": "spiking.datasets",
    "hw_models": "spiking.hw_models",
    "cuda_kernels": "spiking.cuda_kernels",
    "benchmarks": "spiking.benchmarks",
}
SKIPPED = {".venv", "build", "dist", ".git", "__pycache__", "runs", "golden"}


# The map: a room may import what stands in a row below its own, and its own.

ROWS = (
    {"cli"},
    {"benchmarks"},
    {"models"},
    {"classify"},
    {"training", "convert", "hw_models", "datasets", "hub", "explain"},
    {"engine", "delays"},
    {"layer", "neuron", "trace", "loss", "encode", "plot", "checkpoint", "progress", "interrupt", "fold", "split"},
    {"functional"},
    {"cuda_kernels"},
)
LEAVES = {"errors", "surrogate"}  # anybody may import them; they import nothing of ours but each other
PARTS = {
    "_recorder": "trace",
    "_again": "trace",
    "_forward_pass": "trace",
    "_operations": "trace",
    "_rows": "trace",
    "_watched": "trace",
    "_counters": "trace",
    "_multilevel": "neuron",
    "_peers": "trace",
    "_tracefile": "trace",
    "_stages": "engine",
    "_compiled": "engine",
}  # private modules, by the room that they belong to
ONLY = {  # rooms that may import less than the rows below them
    "datasets": {"spiking.cuda_kernels._cpu", "spiking.errors"},
    "hub": {"spiking.checkpoint", "spiking.errors"},
    "plot": {"spiking.errors"},
    "checkpoint": {"spiking.errors"},
    "progress": {"spiking.errors"},
    "interrupt": {"spiking.errors"},
    "split": {"spiking.errors"},
}


class Import(NamedTuple):
    """One import of ours: who, where, and the module that is meant."""

    module: str
    file: str
    line: int
    target: str
    name: str = ""  # what was taken from the target; empty for the module itself


def sources(*folders: str) -> dict[str, Path]:
    """Module name -> file of every module in the folders."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if SKIPPED.isdisjoint(path.relative_to(ROOT).parts):
                inside = path.relative_to(ROOT / folder).with_suffix("").parts
                inside = inside[:-1] if inside[-1] == "__init__" else inside
                found[".".join((FOLDERS.get(folder, folder), *inside))] = path
    return found


MODULES = sources(*FOLDERS)


def imports_of(module: str, path: Path) -> Iterator[Import]:
    """Every import of a module of ours, also inside functions and those by name through importlib."""
    file = str(path.relative_to(ROOT))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "spiking":
                    yield Import(module, file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            if base.split(".")[0] == "spiking":
                for alias in node.names:
                    yield resolved(Import(module, file, node.lineno, base, alias.name))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            first = node.args[0]
            if isinstance(first, ast.Constant) and str(first.value).split(".")[0] == "spiking":
                yield Import(module, file, node.lineno, str(first.value))


def resolved(found: Import) -> Import:
    """`from spiking import LIF` means spiking.neuron, `from spiking import plot` means spiking.plot."""
    whole = f"{found.target}.{found.name}"
    if whole in MODULES or whole == "spiking.cuda_kernels._cpu":
        return found._replace(target=whole, name="")
    if found.target == "spiking":
        return found._replace(target=reexported().get(found.name, "spiking"))
    return found


def reexported() -> dict[str, str]:
    """Public name -> the module that spiking/__init__.py takes it from."""
    tree = ast.parse((ROOT / "spiking/__init__.py").read_text(encoding="utf-8"))
    return {
        alias.name: f"spiking.{node.module}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for alias in node.names
    }


def room_of(module: str) -> str:
    """The second part of a module's name, or the room that a private module belongs to."""
    name = ([*module.split("."), ""])[1]
    return PARTS.get(name, name)


def row_of(room: str) -> int:
    return next(i for i, rooms in enumerate(ROWS) if room in rooms)


def fault_of(found: Import) -> str | None:
    """Why an import points the wrong way; None if it does not."""
    who, whom = room_of(found.module), room_of(found.target)
    if not who or whom == who or not whom:  # spiking/__init__.py itself, the same room, or a name such as __version__
        return None
    if who in LEAVES:
        return None if whom in LEAVES else f"the leaf {who} imports {whom}"
    if whom in LEAVES:
        return None
    if who in ONLY:
        allowed = ONLY[who]
        return None if found.target in allowed else f"{who} may import only {', '.join(sorted(allowed))}"
    if row_of(whom) <= row_of(who):
        return f"{who} stands no higher than {whom}"
    return None


def test_every_module_has_its_place_on_the_map():
    known = set().union(*ROWS) | LEAVES
    homeless = {room for module in MODULES if (room := room_of(module)) and room not in known}
    assert not homeless, f"no row of ROWS names {sorted(homeless)}"


def test_imports_point_down_only():
    faults = [
        f"{found.file}:{found.line}: {found.module} imports {found.target}: {fault}"
        for module, path in MODULES.items()
        for found in imports_of(module, path)
        if (fault := fault_of(found))
    ]
    assert not faults, "\n".join(faults)


def test_models_never_import_each_other():
    def model(name: str) -> str:
        return ([*name.split("."), "", ""])[2] if name.startswith("spiking.models.") else ""

    faults = [
        f"{found.file}:{found.line}: {found.module} imports {found.target}"
        for module, path in MODULES.items()
        for found in imports_of(module, path)
        if model(module) and model(found.target) and model(module) != model(found.target)
    ]
    assert not faults, "\n".join(faults)


def test_the_walk_sees_what_it_should(tmp_path, monkeypatch):
    """An upward import, one inside a function, a relative one and one by name are all found."""
    folder = tmp_path / "spiking"
    folder.mkdir()
    (folder / "loss.py").write_text(
        "from . import training\ndef f():\n    from spiking.models.nmnist import run\n"
        "import importlib\nimportlib.import_module('spiking.cli.main')\nfrom .errors import SpikingError\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (folder / "__init__.py").write_text("from .neuron import LIF\n")
    found = list(imports_of("spiking.loss", folder / "loss.py"))
    assert sorted((f.line, f.target) for f in found if fault_of(f)) == [
        (1, "spiking.training"),
        (3, "spiking.models.nmnist.run"),
        (5, "spiking.cli.main"),
    ]


def is_public(module: str, name: str) -> bool:
    """Whether a module offers a name: it lists it in __all__, or has no such list and does not begin it with _."""
    if f"{module}.{name}" in MODULES:
        return True
    for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return name in ast.literal_eval(node.value)
    return not name.startswith("_")


def test_examples_and_benchmarks_use_public_names():
    faults = []
    for module, path in (sources("examples") | sources("benchmarks")).items():
        for found in imports_of(module, path):
            private = any(part.startswith("_") for part in found.target.split("."))
            if private or (found.name and not is_public(found.target, found.name)):
                faults.append(f"{found.file}:{found.line}: {found.target} {found.name} is not public")
    assert not faults, "\n".join(faults)


# What an import costs

HEAVY = [
    "matplotlib",
    "h5py",
    "sklearn",
    "accelerate",
    "typer",
    "rich",
    "scipy",
    "huggingface_hub",
    "safetensors",
    "cupy",
    "pooch",
    "jinja2",
    "yaml",
    "tonic",
    "snntorch",
    "spikingjelly",
    "norse",
    "sinabs",
]
IMPORT_BOTH = """
import json, sys, time
start = time.perf_counter(); import torch
middle = time.perf_counter(); already = set(sys.modules)
import spiking
end = time.perf_counter()
print(json.dumps([middle - start, end - start, sorted({m.split(".")[0] for m in set(sys.modules) - already})]))
"""


def import_both(folder: Path) -> tuple[float, float, list[str]]:
    """Seconds of `import torch`, seconds of that and `import spiking` in the same process, and what came with the second."""
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_BOTH], cwd=folder, capture_output=True, text=True, check=True
    )
    torch_alone, both, names = json.loads(out.stdout)
    return torch_alone, both, names


def test_import_is_quick_and_brings_nothing_heavy(tmp_path):
    runs = [import_both(tmp_path) for _ in range(3)]
    assert not set(HEAVY) & set(runs[0][2])
    ratio = statistics.median(both / alone for alone, both, _ in runs)
    if ratio >= 1.5:  # this machine may have been busy with something else
        runs = [import_both(tmp_path) for _ in range(5)]
        ratio = statistics.median(both / alone for alone, both, _ in runs)
    assert ratio < 1.5, f"import spiking takes {ratio:.2f} × import torch"


# Facts that stand in two places


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_commands_are_what_ci_runs():
    first_screen = readme().split("\n## ")[0]
    commands = re.findall(r"```bash\n(.*?)\n```", first_screen, re.DOTALL)
    assert len(commands) == 2
    assert all("pip install" in command for command in commands)
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    for command in commands:
        assert command in lines, f".ci/run has no line that reads: {command}"


def environment_variables() -> dict[str, set[str]]:
    """Every SPIKING_… string in the library -> the files that hold it."""
    found: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if module.startswith("spiking.benchmarks"):  # it sets them for its child processes
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and re.fullmatch("SPIKING_[A-Z_]+", node.value)
            ):
                found.setdefault(node.value, set()).add(str(path.relative_to(ROOT)))
    return found


def test_settings_table_is_what_the_code_reads():
    table = re.findall(r"^\| `(SPIKING_\w+)` \|", readme(), re.MULTILINE)
    assert len(table) == len(set(table))
    assert set(table) == set(environment_variables())


def test_environment_is_read_in_two_places():
    named = set().union(*environment_variables().values())
    read = {
        str(path.relative_to(ROOT))
        for module, path in MODULES.items()
        if not module.startswith("spiking.benchmarks")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv")
    }
    assert read == named == {"cuda_kernels/backend.py", "datasets/cache.py"}


def test_readme_pictures_exist():
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme()):
        assert (ROOT / picture).is_file(), f"README shows {picture}"


def test_version_comes_from_one_place():
    import spiking

    stated = re.search(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated is not None
    assert spiking.__version__ == importlib.metadata.version("spiking") == stated[1]
    elsewhere = [
        str(path.relative_to(ROOT))
        for path in [*MODULES.values(), ROOT / "CMakeLists.txt"]
        if re.search(rf"""__version__ = ['"]|\bVERSION {re.escape(stated[1])}""", path.read_text(encoding="utf-8"))
    ]
    assert not elsewhere


PUBLIC = ("spiking", "spiking.surrogate", "spiking.functional", "spiking.neuron", "spiking.layer", "spiking.encode",
          "spiking.loss", "spiking.trace", "spiking.plot", "spiking.training", "spiking.checkpoint", "spiking.datasets",
          "spiking.hw_models", "spiking.models", "spiking.convert", "spiking.models.iir",
          "spiking.models.spikegpt")  # fmt: skip


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_exist_and_say_what_they_are(module):
    found = importlib.import_module(module)
    names = found.__all__ if hasattr(found, "__all__") else own_names(found)
    assert names
    assert len(set(names)) == len(names)
    for thing in [found, *(getattr(found, name) for name in names)]:
        if inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing):
            first = inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0]
            assert re.match(r"\S[^\n]+[.:)]", first), f"{module}: {thing} begins with {first!r}; expected a sentence"


def own_names(module: Any) -> list[str]:
    """Public classes and functions that a module defines itself."""
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", "") == module.__name__ and callable(thing)
    ]


def text_files() -> Iterator[tuple[str, str]]:
    """Name and text of every file of ours that people or machines read."""
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT)
        hidden = any(part.startswith(".") and part != ".ci" for part in name.parts)
        if (
            path.is_file()
            and not hidden
            and SKIPPED.isdisjoint(name.parts)
            and not name.name.endswith((".png", ".npz", ".so"))
        ):
            try:
                yield str(name), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_no_file_names_this_machine_or_a_package_host():
    paths = re.compile(r"(?<![\w.])/(?:work|tmp|home|root)/")
    hosts = re.compile(
        "|".join(("pypi" + r"\.org", "python" + r"hosted\.org", "download" + r"\.pytorch", "artifact" + "ory"))
    )
    unfinished = re.compile(r"\b(?:TO" + "DO|FIX" + "ME|XX" + r"X)\b")
    faults = [
        f"{name}: {match[0]}"
        for name, text in text_files()
        for pattern in (paths, hosts, unfinished)
        if name != "LICENSE" and (match := pattern.search(text))
    ]
    assert not faults, "\n".join(faults)


# Numbers that Python and C++ share


def enum_of(header: str, name: str) -> dict[str, int]:
    text = (ROOT / "cuda_kernels/include" / header).read_text(encoding="utf-8")
    body = re.search(rf"enum class {name} : int \{{(.*?)\}}", text, re.DOTALL)
    assert body is not None
    plain = re.sub(r"//[^\n]*", "", body[1])
    return {key: int(value) for key, value in re.findall(r"(\w+) = (\d+)", plain)}


def test_surrogate_ids_equal_the_enum():
    from spiking import surrogate

    enum = enum_of("surrogate.h", "Surrogate")
    count = enum.pop("count")
    assert sorted(enum.values()) == list(range(count))
    snake = {"ATan": "atan", "StraightThrough": "straight_through", "PiecewiseLeakyReLU": "piecewise_leaky_relu",
             "FastSigmoid": "fast_sigmoid", "SuperSpike": "fast_sigmoid"}  # fmt: skip
    ids = {snake.get(kind.__name__, kind.__name__.lower()): kind.kernel_id for kind in surrogate.ALL}
    assert ids == enum


def test_kinds_and_resets_equal_the_enums():
    from spiking.cuda_kernels import ops

    assert {name: i for i, name in enumerate(ops.KINDS)} == enum_of("neuron.h", "Kind")
    assert {name: i for i, name in enumerate(ops.RESETS)} == enum_of("neuron.h", "Reset")


def slots_in_cpp() -> dict[str, tuple[str, int]]:
    """Field of NeuronCall -> ("rule" or "numbers", index), as neuron_bind.cpp reads them."""
    text = (ROOT / "cuda_kernels/cpu/neuron_bind.cpp").read_text(encoding="utf-8")
    return {
        field: (array, int(index)) for field, array, index in re.findall(r"p\.(\w+) = (rule|numbers)\[(\d+)\]", text)
    }


def test_rules_are_packed_in_the_order_in_which_cpp_unpacks_them():
    from spiking.cuda_kernels import ops
    from spiking.cuda_kernels.reference import Rule

    from spiking import surrogate

    def flat(rule: Rule, **cells: float) -> dict[str, list[float]]:
        numbers = {"beta": 0.0, "threshold": 1.0, "beta_syn": 0.0} | cells
        integers, packed = ops.pack(rule, *numbers.values())
        return {"rule": [-1, -1, *integers], "numbers": packed}  # dtype and save come first, see ops.py

    slots = slots_in_cpp()
    assert sum(array == "rule" for array, _ in slots.values()) == 12
    assert sum(array == "numbers" for array, _ in slots.values()) == 9
    plain = Rule(surrogate.ATan(alpha=2.0))
    other: dict[str, Any] = {"kind": "cuba", "reset": "zero", "surrogate": surrogate.StraightThrough(scale=5.0), "tie": "gt",
                             "refractory": 3, "v_reset": 0.25, "v_leak": 0.5, "beta_adapt": 0.75, "adapt_scale": 1.5}  # fmt: skip
    changes = {f.name: flat(replace(plain, **{f.name: other.get(f.name, True)})) for f in fields(Rule)}
    changes |= {name: flat(plain, **{name: 0.125}) for name in ("beta", "threshold", "beta_syn")}
    changes |= {"a": flat(replace(plain, surrogate=surrogate.ATan(alpha=3.0))),
                "b": flat(replace(plain, surrogate=surrogate.ATan(scale=3.0)))}  # fmt: skip
    del changes["surrogate"]  # moves three slots: the id, a and b
    before = flat(plain)
    for name, after in changes.items():
        moved = [(array, i) for array in before for i, value in enumerate(before[array]) if after[array][i] != value]
        assert moved == [slots[{"tie": "tie_gt"}.get(name, name)]], name
    assert changes.keys() | {"dtype", "save", "surrogate", "tie_gt"} == slots.keys() | {"tie"}


# Without a compiler

RUN_LIF = """
import sys, warnings
import torch, spiking
from spiking.cuda_kernels import backend
from spiking import datasets
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    layer = spiking.LIF(beta=0.5)
    first = layer(torch.full((4, 1, 1), 0.6)).flatten().tolist()
    layer(torch.full((4, 1, 1), 0.6))
    chosen = backend.choose(torch.device("cpu")).name
    frames = datasets.ToFrames(time_bins=2)(datasets.Events([0, 9], [0, 1], [0, 0], [1, 0], (2, 1)))
print(spiking.__file__)
print(first, chosen, int(frames.sum()), [str(w.message) for w in said])
"""


def test_installs_and_runs_without_a_compiler(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("cmake", "ninja"):
        found = shutil.which(tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
        if found is None:
            pytest.skip(f"{tool} is not installed; it is needed to build without build isolation")
        (tools / tool).symlink_to(Path(found).resolve())
    bare = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "PYTHONPATH", "CMAKE_ARGS")}
    bare |= {"PATH": str(tools), "CXX": "/nonexistent/c++", "CC": "/nonexistent/cc"}
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "wheels"),
         "-C", f"build-dir={tmp_path / 'build'}", str(ROOT)],
        env=bare, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").glob("spiking-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert "spiking/cuda_kernels/reference.py" in names
    assert "spiking/py.typed" in names
    assert not [name for name in names if "_cpu" in Path(name).name and not name.endswith((".cpp", ".h"))]

    # -S: an editable install of this checkout must not put itself before the wheel.
    path = os.pathsep.join(
        [str(tmp_path / "site"), *(p for p in sys.path if "site-packages" in p or "dist-packages" in p)]
    )
    ran = subprocess.run(
        [sys.executable, "-S", "-P" if sys.version_info >= (3, 11) else "-B", "-c", RUN_LIF],
        env={**bare, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    where, answer = ran.stdout.splitlines()
    assert where.startswith(str(tmp_path / "site"))
    start = "[0.0, 0.0, 1.0, 0.0] reference 2 ['spiking: the CPU kernels were not built"
    assert answer.startswith(start)
    assert answer.count("spiking: the CPU kernels") == 1
