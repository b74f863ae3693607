"""What is installed with the package."""

import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parents[1]


def test_all_rooms_and_the_recipes_are_installed():
    """pyproject.toml lists them, since the recipes lie outside of the package."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = content["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "focalnet_jax").rglob("__init__.py")
    }
    assert {*listed} == found | {"focalnet_jax.configs"}
    assert len(listed) == len({*listed})
    for path in (ROOT / "focalnet_jax").rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path
