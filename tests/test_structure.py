"""The house stands on its ground floor: imports go down, and never in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {"unicorn_hf": "unicorn_hf"} | {
    folder: f"unicorn_hf.{folder}" for folder in ("modeling", "dataset_scripts", "recipes")
}
# From the ground up; a module imports from its own floor and from those below.
FLOORS = (
    "errors", "lazy", "progress", "device", "options", "modeling", "reasoning", "system_turn", "executors", "data",
    "dataset_scripts", "hub", "embedding", "transfer", "dataset_scripts.publishing", "synthesis",
    "training", "recipes", "evaluation", "sandbox", "cli", "__main__",
)  # fmt: skip


def modules():
    files = {}
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            names = path.relative_to(ROOT / folder).with_suffix("").parts
            files[".".join([package, *(name for name in names if name != "__init__")])] = path
    return files


def imports():
    """Module -> the modules of the package that it imports, at its top or in a function."""
    files = modules()
    found = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                above = [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
                base = ".".join(above) if node.level else node.module
                named = {base, *(f"{base}.{alias.name}" for alias in node.names)}
            else:
                continue
            found[name] |= named & files.keys() - {name}
    return found


def test_no_module_imports_in_a_circle():
    graph = {
        name: {other for other in others if not name.startswith(f"{other}.")}  # a package that lists its own modules
        for name, others in imports().items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def floor_of(module):
    name = module.removeprefix("unicorn_hf.")
    return max((floor for floor in FLOORS if f"{name}.".startswith(f"{floor}.")), key=len)


def test_imports_go_down():
    upward = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in others - {"unicorn_hf"}
        if name != "unicorn_hf" and FLOORS.index(floor_of(other)) > FLOORS.index(floor_of(name))
    ]
    assert not upward, "\n".join(upward)


def test_modeling_stands_alone():
    for name, others in imports().items():
        if name.startswith("unicorn_hf.modeling"):
            assert all(other.startswith("unicorn_hf.modeling") for other in others), name


def test_the_page_of_the_architecture_names_every_floor_and_every_file_of_the_ground_floor():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    ground = [path.name for path in (ROOT / "unicorn_hf" / "data").glob("[!_]*.py")]
    top = [path.name for path in (ROOT / "unicorn_hf").glob("[!_]*.py")]
    folders = [path.parent.name for path in (ROOT / "unicorn_hf").glob("*/__init__.py")]
    folders = [f"{name}/" for name in {*folders, *PACKAGES} - {"unicorn_hf"}]
    assert not [name for name in (*ground, *top, *folders) if f"`{name}`" not in page]
