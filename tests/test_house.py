"""The house rules: who may import whom, what stays light, and what the README promises."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pix2pixhd_cli.options import settings_table
from pix2pixhd_cli.settings import Settings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pix2pixhd_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")

# From the top of the house to its foundation; nobody imports from a floor above.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"options", "pipeline"},
    {"studio"},
    {"training", "stepping", "memory", "painting", "scenes", "coarse_to_fine"},
    {"validation", "mirror"},
    {"judges"},
    {
        "features",
        "runs",
        "images",
        "perceptual_weights",
        "reference",
        "evaluation",
        "metrics",
        "overview",
        "chapters",
        "charts",
        "page",
    },
    {"model", "data", "devices", "meeting"},
    {"console", "engine", "boundary", "sealed", "settings", "urls"},
    {"errors", "__init__"},
]
HEAVY = {"tensorflow", "keras", "numpy", "sklearn", "scipy", "PIL"}
LEAN = ["cli", "options", "settings", "errors", "console", "engine", "meeting", "sealed", "urls"]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def floor(name: str) -> int:
    return next(n for n, rooms in enumerate(FLOORS) if name in rooms)


def imports(path: Path, *, everywhere: bool = True) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            rooms = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= rooms if node.module == "pix2pixhd_cli" else {node.module}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imports(path):
        if module.split(".")[0] == "pix2pixhd_cli" and module != "pix2pixhd_cli.__version__":
            other = room(module)
            assert other == own or floor(other) >= floor(own), f"{own} imports {other}"
            assert {own, other} != {"model", "data"}, "networks and data do not know each other"


def test_only_build_reads_settings_among_the_networks() -> None:
    readers = {p.name for p in (PACKAGE / "model").glob("*.py") if "pix2pixhd_cli.settings" in imports(p)}
    assert readers == {"build.py"}


@pytest.mark.parametrize("name", LEAN)
def test_lean_modules_import_nothing_heavy(name: str) -> None:
    found = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py", everywhere=False)}
    assert not found & HEAVY


@pytest.mark.parametrize(
    "verb", [[], *([verb] for verb in ("prepare", "pack", "train", "encode", "cluster", "generate"))]
)
def test_help_loads_nothing_heavy(verb: list[str]) -> None:
    code = (
        "import sys; from pix2pixhd_cli.cli import main\n"
        f"try: main({[*verb, '--help']})\n"
        "except SystemExit as stop: assert not stop.code\n"
        f"print(sorted(set(sys.modules) & {HEAVY}))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"


def test_only_the_console_prints() -> None:
    for path in MODULES:
        names = [
            node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)
        ]
        assert "print" not in names, path


def test_there_is_no_junk_drawer() -> None:
    assert not [path for path in MODULES if path.stem in ("utils", "helpers", "common", "misc")]


def test_the_file_map_names_every_file_with_a_phrase() -> None:
    block = README.split("<!-- file map -->")[1]
    mapped = dict(re.findall(r"^- `([^`]+)`: (.+)$", block, re.MULTILINE))
    files = {
        str(path.relative_to(ROOT)) for path in MODULES if path.stem != "__init__" or path.read_text().count("\n") > 5
    }
    folders = [name for name in mapped if name.endswith("/")]
    found = [str(path.relative_to(ROOT)) for path in (ROOT / "examples").rglob("*.*") if path.suffix != ".pyc"]
    assert all(any(name.startswith(folder) for name in found) for folder in folders)
    files |= {name for name in found if not name.startswith(tuple(folders))} | set(folders)
    assert set(mapped) == files
    assert all(len(phrase.split()) > 2 for phrase in mapped.values())


def test_the_readme_has_the_settings_as_they_are() -> None:
    assert settings_table() in README


def test_the_readme_has_the_two_commands() -> None:
    assert "pip install . && python examples/quickstart.py" in README
    assert "pip install '.[test]' && pytest" in README


def test_every_section_has_a_docstring_and_every_field_a_description() -> None:
    for section in Settings.model_fields.values():
        model = section.annotation
        assert model is not None and model.__doc__
        for field in model.model_fields.values():
            assert field.description and field.description.endswith(".")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_every_recipe_loads(path: Path) -> None:
    from pix2pixhd_cli.settings import load_settings

    assert load_settings(config=path) != Settings()
