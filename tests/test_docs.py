"""The documentation: its commands, its Python blocks, its fields and its links.

A fenced block without a language holds shell commands. A Python block whose first line is
`# NAME.py` is that file; the blocks of `docs/tasks.md` together are `discs.py`.
"""

import ast
import collections
import os
import re
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest
from mask_files import ade
from running import ROOT, TIMEOUT, TINY, run

import focalnet_jax.convert.__main__ as convert
import focalnet_jax.data.prepare.__main__ as prepare
import focalnet_jax.demo.__main__ as demo
import focalnet_jax.evaluate.__main__ as evaluate
import focalnet_jax.export.__main__ as export
import focalnet_jax.finetune.__main__ as finetune
import focalnet_jax.parity.__main__ as parity
import focalnet_jax.predict as predict
import focalnet_jax.segment as segment
import focalnet_jax.visualize.__main__ as visualize
from focalnet_jax.__main__ import COMMANDS
from focalnet_jax.convert import to_torch
from focalnet_jax.models import abstract_params, create_model
from focalnet_jax.tasks.registry import TASKS
from focalnet_jax.train import (
    check_field_name,
    command_line,
    default_config,
    load_recipe,
    recipes_page,
)
from focalnet_jax.train.config import all_fields
from focalnet_jax.train.overrides import apply_overrides, split_overrides

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
OWN_FIELDS = {"discs.variant"}  # of the task that docs/tasks.md adds
MODULES = {
    "focalnet_jax.convert": convert.parse,
    "focalnet_jax.data.prepare": prepare._parse,
    "focalnet_jax.demo": demo.parse,
    "focalnet_jax.evaluate": evaluate.parse,
    "focalnet_jax.export": export.parse,
    "focalnet_jax.finetune": finetune.parse,
    "focalnet_jax.parity": parity.parse,
    "focalnet_jax.predict": predict.parse,
    "focalnet_jax.segment": segment.parse,
    "focalnet_jax.visualize": visualize.parse,
}

# A fenced block.
FENCE = r"(?ms)^```\w*\n.*?^```$"

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [block for its_language, block in found if its_language == language]


def sections(page):
    """The parts of a page, each from one heading to the next."""
    return re.split(r"^(?=##+ )", page.read_text(), flags=re.M)


def shell_lines(text):
    """The lines of shell blocks; one that goes on in the next line is one."""
    return "".join(blocks(text, "")).replace("\\\n", "").splitlines()


def commands(page):
    """The commands of all sections of a page, as `commands_in` has them."""
    return [command for text in sections(page) for command in commands_in(text)]


def commands_in(text):
    """The words after `python` of each command, in blocks and in inline code.

    `focalnet NAME` is `python -m MODULE`.

    A flag of its own in inline code is one of `main.py`, unless its value is a word in
    capitals, for which readers put something else.
    """
    inline = re.findall(r"`([^`\n]+)`", text)
    for line in shell_lines(text) + inline:
        command = written_command(line)
        if named := re.match(r"focalnet ([a-z]+)", command):
            command = f"python -m {COMMANDS[named[1]]}{command[named.end() :]}"
        # Inline code may name a module without its arguments.
        if re.match(r"python (\S+[.]py|-m \S+ \S)", command):
            yield shlex.split(command, comments=True)[1:]
    for flag in inline:
        if re.match(r"--config[.][a-z_.]+=.*[^A-Z]", flag):
            yield ["main.py", *shlex.split(flag)]


def written_command(line):
    """A command without what it reads from and what it writes to."""
    _, _, command = line.rpartition(" | ")
    command, _, _ = command.partition(" > ")
    return command


def write_files(page, directory):
    """Writes the files that the page shows; returns the code of its other blocks."""
    code = blocks(page.read_text(), "python")
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
    _, _, after = readme.partition("\n<!-- the test command -->\n```\n")
    command, _, _ = after.partition("\n```\n")
    assert "-m pytest" in command
    assert "<!-- the test command -->" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    ("module", "page"),
    [("fields_page", "configuration.md"), ("recipes_page", "recipes.md")],
)
def test_pages_made_of_code_are_up_to_date(module, page):
    command = [sys.executable, "-m", f"focalnet_jax.train.{module}"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    message = f"python -m focalnet_jax.train.{module} > docs/{page}"
    assert (ROOT / "docs" / page).read_text() == made, message


def test_recipes_have_their_text_and_what_they_change(tmp_path):
    (tmp_path / "mine.py").write_text(
        'r"""A recipe.\n\n    python main.py \\\n        --config=mine.py\n\nText.\n\n'
        '    A    1\n"""\n'
        "from focalnet_jax.train import default_config\n\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.batch_size, config.data.flip = 7, False\n"
        "    return config\n"
    )
    _, mine = recipes_page.page({"mine": tmp_path / "mine.py"}).split("\n## ")
    assert mine == (
        "`mine`: A recipe\n\n"
        "```\npython main.py \\\n    --config=mine.py\n```\n\n"
        "Text.\n\n"
        "```text\nA    1\n```\n\n"
        "| field | value | default |\n|---|---|---|\n"
        "| `batch_size` | `7` | `1024` |\n"
        "| `data.flip` | `False` | `True` |\n"
    )


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
def test_files_exist(page):
    shown = re.findall(r"^# (\w+[.]py)$", page.read_text(), re.M)
    for name in re.findall(r"`([\w/]+[.](?:py|jsonl))`", page.read_text()):
        places = [ROOT / name, ROOT / "focalnet_jax" / name]
        is_there = any(place.exists() for place in places)
        assert is_there or name in (*shown, "discs.py", "metrics.jsonl"), name


@pytest.mark.parametrize("name", ["architecture.md", "tasks.md", "tour.md"])
def test_names_of_code_exist(name):
    """Each `word` or `dotted.name` of these pages stands somewhere in the code."""
    files = [*(ROOT / "focalnet_jax").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    text = (ROOT / "docs" / name).read_text()
    code = "\n".join([*(path.read_text() for path in files), *re.findall(FENCE, text)])
    words = set(re.findall(r"\w+", code))
    prose = re.sub(FENCE, "", text)
    for name in re.findall(r"`([\w.]+)(?:\([^`]*\))?`", prose):
        assert set(name.removesuffix(".py").split(".")) <= words, name


@each_page
def test_fields_exist(page):
    for name in re.findall(r"--(?:no)?config\.([\w.]*\w)", page.read_text()):
        if name not in ("FIELD", *OWN_FIELDS):
            # Pages on other tasks than classification name fields of theirs.
            tasks = [task for task in TASKS if name in all_fields(task)]
            check_field_name(name, *tasks[:1])


@each_page
def test_shell_blocks_are_shell(page):
    for block in blocks(page.read_text(), ""):
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


# What the documented programs may import at once: the standard library, this package,
# what is installed with it, and each other. Else they have to tell what they need.


def test_documented_programs_need_what_is_installed():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = {re.match(r"[\w-]*", line)[0].lower().replace("-", "_") for line in lines}
    modules = {"pillow": "PIL", "absl_py": "absl", "scikit_learn": "sklearn"}
    known = {modules.get(name, name) for name in names} | {"focalnet_jax", "jaxlib"}
    known |= sys.stdlib_module_names | {path.stem for path in ROOT.glob("benchmarks/*")}
    shown = {command[0] for page in PAGES for command in commands(page)} - {"-m"}
    assert len([name for name in shown if name.startswith("benchmarks/")]) >= 2
    for name in {path for path in shown if (ROOT / path).exists()}:
        for node in ast.parse((ROOT / name).read_text()).body:
            if isinstance(node, ast.Import):
                imported = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported = {node.module.partition(".")[0]}
            else:
                continue
            assert imported <= known, (name, imported)


def check_training_command(arguments):
    recipe = dict(a.partition("=")[::2] for a in arguments).get("--config")
    fields = [a for a in arguments if re.match("--(no)?config[.]", a)]
    if recipe == "discs.py":  # It adds a task; another test runs it.
        return
    overrides, others = split_overrides(fields)
    # A flag without a recipe is one of any task.
    names = [re.match(r"--(?:no)?config[.]([\w.]+)", field)[1] for field in fields]
    if recipe:
        config = load_recipe(recipe)
    else:
        task = next(task for task in TASKS if {*names} <= all_fields(task).keys())
        config = default_config(task)
    assert apply_overrides(config, overrides) == others == []
    for argument in set(arguments) - set(fields):
        name = argument.removeprefix("--").partition("=")[0]
        assert name in command_line.flags.FLAGS, argument


def train(page, recipe, *arguments, directory, environment):
    """Trains by a recipe that a page shows."""
    write_files(ROOT / "docs" / page, directory)
    code, output, errors = run(
        f"--config={recipe}", *arguments, directory=directory, environment=environment
    )
    assert code == 0, errors
    assert "finished: step" in output


def test_python_blocks_run(tmp_path, environment):
    """In one process, since imports take most of the time."""
    here = dict(directory=tmp_path, environment=environment)
    # A segmenter, which the page on weights makes of it, has two stages or more.
    stages = dict(depths="(1,1)", focal_levels="(1,1)", focal_windows="(3,3)")
    flags = [flag for flag in TINY if not re.search("[.](depths|focal_)", flag)]
    flags += [f"--config.model.{name}={value}" for name, value in stages.items()]
    train("training.md", "my_digits.py", *flags, "--workdir=runs/digits", **here)
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/seven.png", tmp_path / "docs")
    codes = [write_files(page, tmp_path) for page in PAGES]
    program = "\n".join(f"exec({code!r}, {{}})" for code in codes)
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    shown = re.findall(r"^print\(.*\.shape\)  # (.*)", "\n".join(codes), re.M)
    assert shown
    for comment in shown:
        assert comment in result.stdout


def test_the_operator_trains(tmp_path, environment):
    here = dict(directory=tmp_path, environment=environment)
    train("architecture.md", "mean_modulation.py", *TINY, **here)


def test_the_task_trains(tmp_path, environment):
    options = ["--config.num_steps=2", "--config.accumulate_steps=2"]
    here = dict(directory=tmp_path, environment=environment)
    train("tasks.md", "discs.py", *options, **here)


# --- Tables that programs print ------------------------------------------------

TABLES = [
    pytest.param(page, arguments, id=f"{page.name} {arguments[0]}")
    for page in PAGES
    for arguments in commands(page)
    if "--table" in arguments
]


@pytest.mark.parametrize(("page", "arguments"), TABLES)
def test_tables_are_made_from_results(page, arguments, environment):
    """A page has those that the command beside them prints."""
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    printed = [part for part in result.stdout.split("\n\n") if part.startswith("|")]
    assert printed
    text = page.read_text()
    for table in printed:
        assert table.strip() in text, f"run again: python {' '.join(arguments)}"


def test_tables_have_their_command():
    programs = {parameter.values[1][0].split("/")[1] for parameter in TABLES}
    assert {"cpu.py", "input.py", "pod.py", "tpu.py"} <= programs


# --- Commands as they are shown ------------------------------------------------

# What programs get in addition, so that they end soon.
SHORTER = {
    "benchmarks/depthwise_conv.py": ["--rounds=1"],
    "benchmarks/fast_pixels.py": ["--count=2"],
    "benchmarks/gpu.py": ["--tiny", "--minutes=0", "--json=gpu.json"],
    "benchmarks/input.py": [
        *["--rounds=1", "--batches=1", "--workers", "1", "--tasks", "crop"]
    ],
    "benchmarks/pod.py": ["--table"],
    "benchmarks/tpu.py": ["--table"],
}
PLACEHOLDERS = r"\b(SOURCE|HOST:PORT|DATA|DIR|FILE|RUN)\b"
# What commands may lack, as they say in one line, and how the section with the command
# says so: data sets that are downloaded, weights on a server, what a reader puts in place
# of a word in capitals, and extras.
LACKING = {
    r"(?s)imagenet2012 .* focalnet_jax.data.prepare|tfds build imagenet": r"ImageNet",
    r"tfds build cifar": r"CIFAR-10",
    r"fashion_mnist": r"Fashion-MNIST",
    r"imagenet22k": r"ImageNet-22K",
    r"can't download https?://": r"Hub|hf:|release",
    r"focalnet_(large_lrf_384|base_lrf)[.]pth": r"file of the official release",
    r"there is no folder .*ADEChallengeData2016": r"folder is the download",
    PLACEHOLDERS: PLACEHOLDERS,
    r"pip install": r"pip install|\bextra",
    # Fields of another recipe.
    r"best_metric='test/iou' is unknown": r"of this task",
    r"reset_head=True needs init_from": r"reset_head",
}

# Commands of shell blocks that are not run here, and how their section says why, unless
# that goes without saying: .ci/run does it.
ELSEWHERE = {
    r"pip install|pytest |^ruff |^mypy|-m venv ": "",
    r"mkdocs build": "",  # by tests/test_site.py
    r"tfds build": r"the two official tar files",
    r"gcloud|on_all|export TPU|    |  *~/": r"have not been run",
}


@each_page
def test_other_commands_say_why_they_are_not_run(page):
    for text in sections(page):
        for line in filter(str.strip, shell_lines(text)):
            if re.match(r"(python|focalnet) ", written_command(line)):
                continue
            [says, *_] = [s for start, s in ELSEWHERE.items() if re.search(start, line)]
            assert re.search(says, text), line


@pytest.fixture(scope="session")
def run_of_digits(tmp_path_factory, environment):
    """A workdir for pages that use a run and do not train it."""
    directory = tmp_path_factory.mktemp("digits")
    here = dict(directory=directory, environment=environment)
    code, _, errors = run(*TINY, "--workdir=digits", **here)
    assert code == 0, errors
    return directory / "digits"


@pytest.mark.extended
@each_page
def test_commands_run(page, tmp_path, environment, run_of_digits, torch):
    """In the order of the page. Each runs, or says in one line what it needs.

    The section of the command says so, too.
    """
    write_files(page, tmp_path)
    for directory in ("configs", "benchmarks", "docs", "main.py"):
        (tmp_path / directory).symlink_to(ROOT / directory)
    write_tiny_weights(tmp_path / "focalnet_tiny_srf.pth", torch)
    if page.name == "segmentation.md":
        ade(tmp_path / "DIR", [("training", 8), ("validation", 2)])
        ade(tmp_path / "ADEChallengeData2016", [("training", 8), ("validation", 2)])
    else:
        write_folder(tmp_path / "DIR")
    found = [(text, command) for text in sections(page) for command in commands_in(text)]
    if ["main.py"] not in [command for _, command in found]:
        shutil.copytree(run_of_digits, tmp_path / "runs" / "digits")
    for name in ("photos/one.png", "more/two.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(tmp_path / name)
    environment = environment | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"],
        "HF_HUB_OFFLINE": "1",
    }
    ends = collections.Counter()
    for number, (text, arguments) in enumerate(found):
        command = [*arguments, *shorter(arguments, f"runs/{number}")]
        result = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            input="docs/seven.png\n",  # for a command that reads names
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        end = "ran"
        if result.returncode:
            assert "Traceback" not in result.stderr, (command, result.stderr)
            # The line may be followed by the command that helps, and where archives go.
            [end] = re.findall(r"^error: .*\Z", result.stderr, re.M | re.S)
            assert len(end.splitlines()) <= 4, (command, end)
            reasons = [LACKING[lacking] for lacking in LACKING if re.search(lacking, end)]
            assert reasons, (command, end)
            assert any(re.search(reason, text) for reason in reasons), (command, reasons)
        ends["said what it needs" if result.returncode else "ran"] += 1
        print(page.name, *arguments, "->", end)
    print(page.name, dict(ends))


# Recipes whose models may be as small as `TINY`; None is the default.
ON_DIGITS = (
    *(None, "configs/simmim.py:digits"),
    *("my_digits.py", "mean_modulation.py", "no_gates.py"),
)


# What makes runs of segmentation small. The second one starts from a whole FocalNet-T.
SMALL_SEGMENTERS = {
    "configs/segmentation_sample.py": [
        *(flag for flag in TINY if flag.startswith("--config.model.")),
        "--config.data.scale=(32,32)",
    ],
    "configs/upernet_ade20k.py:tiny_srf": [
        "--config.data.num_train_examples=None",
        "--config.data.scale=(64,32)",
        "--config.data.workers=0",
    ],
}
OF_HEADS = [
    *("--config.model.head_channels=8", "--config.model.auxiliary_channels=8"),
    *("--config.data.crop_size=32", "--config.batch_size=8"),
]


def shorter(arguments, workdir):
    """What a command gets in addition."""
    program, *flags = arguments
    if flags[:1] == ["focalnet_jax.finetune"]:
        return ["--config.num_steps=2"]
    if program != "main.py":
        return SHORTER.get(program, [])
    given = dict(flag.partition("=")[::2] for flag in flags)
    smaller = ["--config.num_steps=2"]
    if "--compile_for" in given:
        smaller = ["--config.model.depths=(1,1,1,1)", "--config.model.embed_dim=32"]
        smaller.append("--config.data.image_size=64")
    elif given.get("--config") in ON_DIGITS:
        smaller = [flag for flag in TINY if flag.partition("=")[0] not in given]
        smaller.append("--config.batch_size=32")  # of eight devices, in four parts
    elif (recipe := given.get("--config")) in SMALL_SEGMENTERS:
        smaller += [*SMALL_SEGMENTERS[recipe], *OF_HEADS]
        smaller = [flag for flag in smaller if flag.partition("=")[0] not in given]
    # A run of other fields than the page's first one has a place of its own.
    is_changed = any(re.match("--(no)?config[.]", flag) for flag in flags)
    if is_changed and "--workdir" not in given:
        smaller.append(f"--workdir={workdir}")
    return smaller


def write_tiny_weights(path, torch):
    """Official weights of FocalNet-T (SRF), but with random numbers."""
    model = create_model("focalnet_tiny_srf")
    params = abstract_params(model)
    numbers = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: numbers.normal(0, 0.02, leaf.shape), params)
    arrays = to_torch(params, model, dialect="microsoft", dtype=np.float32)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"model": tensors}, path)


def write_folder(directory):
    """Images in folders by split and class."""
    numbers = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in range(10):
            parent = directory / split / f"class {label}"
            parent.mkdir(parents=True)
            for index in range(count):
                pixels = numbers.integers(0, 256, (40, 50, 3), np.uint8)
                PIL.Image.fromarray(pixels).save(parent / f"{index}.png")
