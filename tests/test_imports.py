"""Which room may import which, and what is not loaded before somebody needs it."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "focalnet_jax"

# The rooms that each room may import. All may import `errors` and the version.
ALLOWED = {
    "__main__": {"command_line", "output"},
    "errors": set(),
    "trees": set(),
    "paths": set(),
    "pages": set(),
    "values": set(),
    "fields": {"values"},
    "output": set(),
    "command_line": {"output", "values"},
    "chips": set(),
    "csv_lines": set(),
    "placement": set(),
    "image_size": {"values"},
    "preprocessing": {"image_size", "values"},
    "kernels": set(),
    "ops": {"chips", "kernels", "placement"},
    "models": {"ops", "placement", "values"},
    "heads": {"models", "ops", "placement", "values"},
    "data": {"command_line", "csv_lines", "image_size", "paths"},
    "evaluators": set(),
    "weights": {
        "heads",
        "image_size",
        "models",
        "paths",
        "preprocessing",
        "trees",
        "values",
    },
    "convert": {
        "command_line",
        "heads",
        "image_size",
        "models",
        "paths",
        "preprocessing",
        "trees",
        "values",
        "weights",
    },
    "pretrained": {
        "convert",
        "heads",
        "image_size",
        "models",
        "preprocessing",
        "weights",
    },
    "export": {
        "command_line",
        "convert",
        "heads",
        "image_size",
        "models",
        "paths",
        "preprocessing",
        "pretrained",
        "trees",
    },
    "demo": {
        "command_line",
        "convert",
        "export",
        "image_size",
        "models",
        "pages",
        "paths",
        "pretrained",
        "visualize",
        "weights",
    },
    "label_pictures": set(),
    "segment": {
        "command_line",
        "convert",
        "csv_lines",
        "data",
        "heads",
        "label_pictures",
        "paths",
        "predict",
        "pretrained",
        "tasks",
    },
    "predict": {
        "command_line",
        "convert",
        "csv_lines",
        "data",
        "output",
        "paths",
        "preprocessing",
        "pretrained",
    },
    "visualize": {
        "command_line",
        "convert",
        "data",
        "models",
        "pages",
        "paths",
        "preprocessing",
        "pretrained",
        "trees",
    },
    "finetune": {
        "command_line",
        "convert",
        "data",
        "fields",
        "image_size",
        "pages",
        "paths",
        "predict",
        "preprocessing",
        "pretrained",
        "tasks",
        "train",
        "values",
        "weights",
    },
    "evaluate": {
        "command_line",
        "convert",
        "csv_lines",
        "data",
        "evaluators",
        "image_size",
        "models",
        "paths",
        "pretrained",
        "tasks",
        "train",
        "weights",
    },
    "parity": {
        "command_line",
        "convert",
        "heads",
        "image_size",
        "models",
        "pages",
        "paths",
        "preprocessing",
        "trees",
        "weights",
    },
    "tasks": {
        "data",
        "evaluators",
        "fields",
        "heads",
        "image_size",
        "label_pictures",
        "models",
        "ops",
        "paths",
        "preprocessing",
        "values",
        "weights",
    },
    "train": {
        "chips",
        "command_line",
        "data",
        "fields",
        "output",
        "pages",
        "paths",
        "placement",
        "tasks",
        "trees",
        "values",
        "weights",
    },
    "__init__": {"convert", "heads", "models", "pretrained"},
}
# The rooms that each room may import inside a function, beside those above.
ALLOWED_INSIDE = {"preprocessing": {"data"}}
# The rooms that may import these libraries.
HOMES = {
    "flax": {"heads", "models", "placement", "trees"},
    "torch": {"convert", "parity"},
    "timm": {"parity"},
    "transformers": {"parity"},
    "safetensors": {"convert"},
    "orbax": {"weights", "train"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "array_record": {"data"},
    "tensorboard": {"train"},
    "ml_collections": {"fields", "finetune", "tasks", "train"},
    "matplotlib": {"pages", "parity", "train"},
    "tensorflow": set(),
}

# What `import focalnet_jax` may load beside its own light rooms: paths need etils.
LIGHT_LIBRARIES = {"focalnet_jax", "etils"}
LIGHT_ROOMS = {
    "chips",
    "convert",
    "errors",
    "heads",
    "image_size",
    "kernels",
    "models",
    "ops",
    "paths",
    "placement",
    "preprocessing",
    "pretrained",
    "trees",
    "values",
    "weights",
}


def imports_of(path):
    """Pairs of a module's name and whether it is imported inside a function."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        inside = node not in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", inside) for alias in node.names)


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_point_one_way(path):
    room = room_of(path)
    for module, inside in imports_of(path):
        library, *parts = module.split(".")
        if library == "focalnet_jax":
            allowed = ALLOWED[room] | {room, "errors", "__version__"}
            if inside:
                allowed |= ALLOWED_INSIDE.get(room, set())
            assert parts[0] in allowed, module
        elif library in HOMES:
            assert room in HOMES[library], module


# The files of the trainer that may know what tasks there are. All others know the
# protocol alone.
KNOW_THE_REGISTRY = {"config", "recipes", "fields_page"}


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "train").rglob("*.py")), ids=lambda p: p.stem
)
def test_the_trainer_knows_the_protocol_alone(path):
    allowed = {"base"} | ({"registry"} if path.stem in KNOW_THE_REGISTRY else set())
    for module, _ in imports_of(path):
        library, *parts = module.split(".")
        if library == "focalnet_jax" and parts[0] == "tasks":
            assert parts[1] in allowed, module
        assert parts[:1] != ["models"], module


def printed_by(program):
    """The words that a program prints in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return result.stdout.split()


def test_neither_tensorflow_nor_torch_at_run_time():
    program = (
        "import sys, focalnet_jax.train, focalnet_jax.parity.__main__\n"
        "print(*[m for m in ('tensorflow', 'torch') if m in sys.modules])"
    )
    assert printed_by(program) == []


IMPORT = (
    "import focalnet_jax, focalnet_jax.convert, focalnet_jax.models, focalnet_jax.ops"
)
CONVERT = """
from focalnet_jax.convert import from_torch, infer_model, to_torch
model = focalnet_jax.create_model(
    "focalnet_tiny_srf", depths=(1,), embed_dim=8, focal_levels=(1,), focal_windows=(3,)
)
params = jax.tree.map(
    lambda leaf: numpy.zeros(leaf.shape, leaf.dtype),
    focalnet_jax.models.abstract_params(model),
)
state_dict = to_torch(params, model, dialect="timm")
from_torch(state_dict, model)
infer_model(state_dict)
"""


@pytest.mark.parametrize("program", [IMPORT, IMPORT + CONVERT], ids=["import", "convert"])
def test_models_and_conversion_load_nothing_of_data_and_training(program):
    modules = printed_by(
        "import sys\n"
        "import chex, flax.linen, jax, numpy\n"
        "known = {module.partition('.')[0] for module in sys.modules}\n"
        "known |= sys.stdlib_module_names\n"
        f"{program}\n"
        "print(*[m for m in sys.modules if m.partition('.')[0] not in known])"
    )
    assert "focalnet_jax.convert.conversion" in modules
    assert {module.partition(".")[0] for module in modules} <= LIGHT_LIBRARIES
    ours = [module.split(".") for module in modules if "focalnet_jax." in module]
    assert {room for _, room, *_ in ours} <= LIGHT_ROOMS


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_of_text_name_their_encoding(path):
    """Otherwise their content would depend on the locale."""
    positions = {"read_text": 0, "write_text": 1}
    for node in ast.walk(ast.parse(path.read_text())):
        name = getattr(getattr(node, "func", None), "attr", None)
        if isinstance(node, ast.Call) and name in positions:
            named = {keyword.arg for keyword in node.keywords}
            assert len(node.args) > positions[name] or "encoding" in named, node.lineno
