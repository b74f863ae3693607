"""What is installed with the package, and what is published of it."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import numpy as np
import PIL.Image
import pytest
import yaml
from running import ROOT, TIMEOUT, TINY

import focalnet_jax

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def files(room):
    """The names of the files in a room, as they stand in the checkout."""
    paths = (path.relative_to(ROOT) for path in (ROOT / room).rglob("*"))
    paths = [path for path in paths if "__pycache__" not in path.parts]
    return {path.as_posix() for path in paths if (ROOT / path).is_file()}


def test_all_rooms_and_the_recipes_are_installed():
    """pyproject.toml lists them, since the recipes lie outside of the package."""
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "focalnet_jax").rglob("__init__.py")
    }
    assert {*listed} == found | {"focalnet_jax.configs"}
    assert len(listed) == len({*listed})
    for path in (ROOT / "focalnet_jax").rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path


def test_files_that_are_no_code_are_installed():
    listed = set()
    for room, names in PYPROJECT["tool"]["setuptools"]["package-data"].items():
        listed |= {f"{room.replace('.', '/')}/{name}" for name in names}
    assert listed == {name for name in files("focalnet_jax") if not name.endswith(".py")}


def test_the_version_stands_in_one_place():
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "focalnet_jax.__version__"
    }
    assert f"## [{focalnet_jax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_is_that_of_this_version_and_of_the_paper():
    """The paper as README.md has it for BibTeX."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["title"] == PYPROJECT["project"]["name"]
    assert citation["version"] == focalnet_jax.__version__
    assert citation["license"] == PYPROJECT["project"]["license"]
    assert citation["authors"]
    assert citation["message"]
    paper = citation["preferred-citation"]
    bibtex = re.findall(r"^  (\w+)=\{(.*)\},?$", (ROOT / "README.md").read_text(), re.M)
    authors = (f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    assert dict(bibtex) == {
        "title": paper["title"],
        "author": " and ".join(authors),
        "booktitle": f"{paper['collection-title']} (NeurIPS)",
        "year": str(paper["year"]),
    }
    assert paper["conference"]["name"] == f"NeurIPS {paper['year']}"
    number = paper["doi"].removeprefix("10.48550/arXiv.")
    assert paper["url"] == f"https://arxiv.org/abs/{number}"
    assert f"({paper['url']})" in (ROOT / "README.md").read_text()


# --- As people get it ------------------------------------------------------------


def call(*command, directory, environment):
    result = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env=environment,
        text=True,
        capture_output=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, (command, result.stdout, result.stderr)
    return result.stdout


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """An environment in which nothing says where the checkout is."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "TFDS_DATA_DIR")
    environment = {name: v for name, v in os.environ.items() if name not in hidden}
    data = str(tmp_path_factory.mktemp("data"))
    return environment | {"XLA_FLAGS": "", "TFDS_DATA_DIR": data}


@pytest.fixture(scope="module")
def published(tmp_path_factory, clean):
    """The directory with a source distribution, and the wheel that is built from it.

    They are made from a copy, since setuptools writes into the checkout.
    """
    pytest.importorskip("build", reason="it makes distributions")
    directory = tmp_path_factory.mktemp("published")
    ignored = (ROOT / ".gitignore").read_text().split()
    ignore = shutil.ignore_patterns(".git", *(line.rstrip("/") for line in ignored))
    shutil.copytree(ROOT, directory / "copy", ignore=ignore)
    build = [sys.executable, "-m", "build", "--outdir", directory / "dist"]
    call(*build, directory / "copy", directory=directory, environment=clean)
    return directory / "dist"


@pytest.fixture(scope="module")
def installed(tmp_path_factory, published, clean):
    """The programs of an environment into which the wheel has been installed."""
    directory = tmp_path_factory.mktemp("installed")
    here = dict(directory=directory, environment=clean)
    call(sys.executable, "-m", "venv", directory / "venv", **here)
    programs = directory / "venv" / "bin"
    [wheel] = published.glob("*.whl")
    call(programs / "pip", "install", "-q", wheel, **here)
    return programs


@pytest.mark.extended
def test_the_wheel_has_all_rooms_recipes_and_data(published):
    [wheel] = published.glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    recipes = {f"focalnet_jax/{name}" for name in files("configs")}
    assert names == files("focalnet_jax") | recipes


@pytest.mark.extended
def test_the_source_distribution_has_what_tests_need(published):
    [archive] = published.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    needed = {"main.py", "pyproject.toml", "CHANGELOG.md", "CITATION.cff"}
    for room in (".ci", "benchmarks", "configs", "docs", "requirements", "tests"):
        needed |= files(room)
    assert needed <= names


@pytest.mark.extended
def test_commands_work_where_there_is_no_checkout(installed, clean, tmp_path):
    here = dict(directory=tmp_path, environment=clean)
    program = "import focalnet_jax as f; print(f.__version__, f.__file__)"
    version, place = call(installed / "python", "-c", program, **here).split()
    assert version == focalnet_jax.__version__
    assert pathlib.Path(place).is_relative_to(installed.parent)
    focalnet = installed / "focalnet"
    assert "predict  Predicts the classes" in call(focalnet, "--help", **here)
    assert "usage: focalnet predict " in call(focalnet, "predict", "--help", **here)
    assert "\nfocalnet train " in call(focalnet, "train", "--help", **here)

    # The default recipe, and data that are prepared here.
    output = call(focalnet, "train", *TINY, "--config.data.workers=1", **here)
    assert "finished: step 4 of 4" in output
    PIL.Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(tmp_path / "seven.png")
    predict = [focalnet, "predict", "seven.png", "--weights=runs/digits", "--csv"]
    lines = call(*predict, "--topk=3", **here).splitlines()
    assert lines[0] == "image,rank,name,probability,index"
    assert len(lines) == 4
    call(focalnet, "convert", "runs/digits", "digits.safetensors", **here)
    assert (tmp_path / "digits.safetensors").exists()
