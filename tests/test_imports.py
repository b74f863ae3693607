"""Who may import whom, and what must not be imported at all at run time."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "focalnet_jax"

# What each room may import of the others; all may import `errors`.
ALLOWED = {
    "errors": set(),
    "ops": set(),
    "models": {"ops"},
    "data": {"paths"},
    "evaluators": set(),
    "model_description": {"data", "models", "paths"},
    "saved_params": {"paths"},
    "paths": set(),
    "chips": set(),
    "pages": set(),
    "releases": {"paths"},
    "convert": {
        "model_description",
        "models",
        "releases",
        "saved_params",
        "paths",
    },
    "pretrained": {"convert", "data", "model_description"},
    "parity": {"convert", "data", "models", "pages", "releases", "paths"},
    "train": {
        "chips",
        "data",
        "evaluators",
        "model_description",
        "models",
        "pages",
        "saved_params",
        "paths",
    },
    "__init__": {"convert", "models", "pretrained"},
}
# Libraries that are at home in few rooms.
HOMES = {
    "flax": {"models", "convert"},
    "torch": {"convert", "parity"},
    "timm": {"parity"},
    "transformers": {"parity"},
    "matplotlib": {"pages", "parity", "train"},
    "tensorflow": set(),
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_point_one_way(path):
    room = room_of(path)
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "focalnet_jax":
            assert parts[1] in ALLOWED[room] | {room, "errors"}, module
        elif parts[0] in HOMES:
            assert room in HOMES[parts[0]], module


def test_neither_tensorflow_nor_torch_at_run_time():
    program = (
        "import sys, focalnet_jax.train, focalnet_jax.parity.__main__\n"
        "print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
