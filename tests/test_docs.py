"""The documentation: its commands, its Python blocks, its fields and its links.

A fenced block without a language holds shell commands. A Python block whose first line is
`# NAME.py` is that file; the blocks of `docs/tasks.md` together are `discs.py`.
"""

import re
import shlex
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
from absl import flags
from ml_collections import config_flags
from running import ROOT, TINY, run

import focalnet_jax.convert.__main__ as convert
import focalnet_jax.data.prepare.__main__ as prepare
import focalnet_jax.parity.__main__ as parity
from focalnet_jax.train import check_field_name, command_line
from focalnet_jax.train.recipes import load_recipe

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_FIELDS = {"discs.variant"}  # of the task that docs/tasks.md adds
MODULES = {
    "focalnet_jax.convert": convert.parse,
    "focalnet_jax.data.prepare": prepare._parse,
    "focalnet_jax.parity": parity.parse,
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(page):
    """The arguments of each `python` command in blocks and in inline code."""
    text = "".join(blocks(page, "")).replace("\\\n", "")
    inline = re.findall(r"`(python [^`\n]+)`", page.read_text())
    for line in [*text.splitlines(), *inline]:
        words = shlex.split(line, comments=True)
        if words[:1] == ["python"]:
            yield [*words, ">"][1 : [*words, ">"].index(">")]


def write_files(page, directory):
    """Writes the files that the page shows; returns the code of its other blocks."""
    code = blocks(page, "python")
    if page.name == "tasks.md":
        (directory / "discs.py").write_text("\n\n".join(code))
        return ""
    others = []
    for block in code:
        if name := re.match(r"# (\w+\.py)\n", block):
            (directory / name[1]).write_text(block)
        else:
            others.append(block)
    return "\n".join(others)


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_test_command_stands_where_ci_looks_for_it():
    readme = (ROOT / "README.md").read_text()
    [command] = re.findall(
        r"^<!-- the test command -->\n```\n(.*?)^```", readme, re.M | re.S
    )
    assert "-m pytest" in command
    assert "<!-- the test command -->" in (ROOT / ".ci" / "run").read_text()


def test_the_page_of_fields_is_up_to_date():
    command = [sys.executable, "-m", "focalnet_jax.train.fields_page"]
    page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    message = "python -m focalnet_jax.train.fields_page > docs/configuration.md"
    assert (ROOT / "docs" / "configuration.md").read_text() == page, message


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert anchor in [heading_anchor(heading) for heading in headings], target


def heading_anchor(heading):
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@each_page
def test_fields_exist(page):
    for name in re.findall(r"--(?:no)?config\.([\w.]*\w)", page.read_text()):
        if name not in ("FIELD", *OWN_FIELDS):
            check_field_name(name)


@each_page
def test_shell_blocks_are_shell(page):
    for block in blocks(page, ""):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@each_page
def test_commands_can_be_parsed(page, tmp_path, monkeypatch):
    write_files(page, tmp_path)
    for directory in ("configs", "benchmarks", "docs", "main.py"):
        (tmp_path / directory).symlink_to(ROOT / directory)
    monkeypatch.chdir(tmp_path)
    for program, *arguments in commands(page):
        if program != "-m":
            assert (tmp_path / program).exists(), program
        else:
            program, *arguments = arguments
        if program in MODULES:
            MODULES[program](arguments)
        elif program in ("main.py", "focalnet_jax.train"):
            check_training_command(arguments)


def check_training_command(arguments):
    values = dict(argument.partition("=")[::2] for argument in arguments)
    recipe = values.pop("--config", "digits")
    fields = [a for a in arguments if re.match("--(no)?config[.]", a)]
    if any(name in field for field in fields for name in OWN_FIELDS):
        return  # The task is added where the recipe is run: below.
    if recipe != "discs.py":
        parsed = flags.FlagValues()
        config_flags.DEFINE_config_dict("config", load_recipe(recipe), flag_values=parsed)
        parsed(["main.py", *(f for f in fields if not f.endswith(("FIELD=VALUE", "=N")))])
    for argument in set(arguments) - set(fields):
        name = argument.removeprefix("--").partition("=")[0]
        assert name in flags.FLAGS, argument


assert command_line  # It defines the flags of `main.py`.


@pytest.fixture(scope="module")
def place(tmp_path_factory, environment):
    """A directory in which the digits were trained, with an image of one."""
    directory = tmp_path_factory.mktemp("docs")
    PIL.Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(directory / "seven.png")
    code, _, errors = run(*TINY, directory=directory, environment=environment)
    assert code == 0, errors
    return directory


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md", "docs/weights.md"])
def test_python_blocks_run(name, place, environment):
    code = write_files(ROOT / name, place)
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for comment in re.findall(r"print\(.*\.shape\)  # (.*)", code):
        assert comment in result.stdout


@pytest.mark.parametrize(
    ("page", "recipe", "options"),
    [
        ("architecture.md", "mean_modulation.py", TINY),
        ("training.md", "my_digits.py", TINY),
        (
            "tasks.md",
            "discs.py",
            ["--config.num_steps=2", "--config.accumulate_steps=2"],
        ),
    ],
)
def test_recipes_train(page, recipe, options, tmp_path, environment):
    write_files(ROOT / "docs" / page, tmp_path)
    code, output, errors = run(
        f"--config={recipe}", *options, directory=tmp_path, environment=environment
    )
    assert code == 0, errors
    assert "finished: step" in output
