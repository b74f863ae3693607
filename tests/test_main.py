"""The program as people run it: commands and messages."""

import json
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import jax
import pytest
from running import ROOT, TINY, finish, run, start

import focalnet_jax
from focalnet_jax.errors import SetupError
from focalnet_jax.models import MODULATIONS
from focalnet_jax.train import command_line

MISSPELT = """
from focalnet_jax.train import default_config

def get_config():
    config = default_config()
    config.learning_rte = 1e-3
    return config
"""


# Runs main.py with each list of arguments, in a process of its own that has imported
# already what takes seconds to import.
EACH = """
import json, os, pathlib, runpy, sys
import focalnet_jax.train.command_line

for number, arguments in enumerate(json.loads(pathlib.Path("arguments").read_text())):
    sys.stdout.flush()
    if not (child := os.fork()):
        for descriptor, name in ((1, "output"), (2, "errors")):
            file = os.open(f"{name}-{number}", os.O_WRONLY | os.O_CREAT)
            os.dup2(file, descriptor)
        sys.argv = ["main.py", *arguments]
        runpy.run_path(os.environ["MAIN"], run_name="__main__")
        sys.exit()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    pathlib.Path(f"code-{number}").write_text(str(code))
"""

MISTAKES = [
    (["--config.learning_rte=1"], "no field learning_rte; did you mean 'learning_ra"),
    (["--config.model.nam=x"], "no field model.nam; did you mean 'model.name'"),
    (["--noconfig.data.flp"], "no field data.flp; did you mean 'data.flip'"),
    (["--config=misspelt.py"], "no field learning_rte; did you mean 'learning_ra"),
    (["--config=configs/bse.py"], "no recipe 'configs/bse.py'; did you mean 'confi"),
    (
        ["--config.seed=1", "--config=configs/base.py"],
        "tfds build imagenet2012 --file_format=array_rec",
    ),
    (["--config", "configs/base.py:tiny"], "did you mean 'tiny_"),
    (["--config=configs/digits.py:x"], "has no variants"),
    (["--config.model.name=focalnet_tny_srf"], "did you mean 'focalnet_tiny_srf'"),
    (["--workdir=file://runs/x"], "file://runs/x names the host 'runs'"),
    (["--config.data.name=folder:~nobody-of-that-name"], "has no home directory"),
    (["--config.mesh.fsdp=2"], "don't make up the 1 device here"),
    (
        ["--num_processes=2"],
        "each process of the run --coordinator_address=HOST",
    ),
    (["--compile_for=v5e:2x2"], "data.num_train_examples has to be set"),
    (["--mode=eval"], "holds no checkpoint and init_from is not set"),
]


@pytest.fixture(scope="module")
def ends(environment, tmp_path_factory):
    """The statuses, outputs and errors of commands with mistakes."""
    directory = tmp_path_factory.mktemp("mistakes")
    (directory / "configs").symlink_to(ROOT / "configs")
    (directory / "misspelt.py").write_text(MISSPELT)
    (directory / "each.py").write_text(EACH)
    given = [arguments for arguments, _ in MISTAKES]
    (directory / "arguments").write_text(json.dumps(given))
    environment = environment | {"MAIN": str(ROOT / "main.py")}
    program = dict(program="each.py", directory=directory, environment=environment)
    process = start(**program)
    results = finish([process])
    assert process.returncode == 0, results
    return [
        [(directory / f"{name}-{i}").read_text() for name in ("code", "output", "errors")]
        for i in range(len(MISTAKES))
    ]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_errors_are_one_message_without_a_trace(number, ends):
    code, output, errors = ends[number]
    assert code == "1"
    assert "Traceback" not in errors
    error = errors[errors.index("error: ") :]
    assert MISTAKES[number][1] in error
    assert not output


def test_default_run_resumes_and_is_evaluated(environment, tmp_path):
    """`python main.py`, stopped and started, then `--mode=eval`."""
    here = dict(directory=tmp_path, environment=environment)
    code, output, errors = run(*TINY, "--config.num_steps=3", **here)
    assert code == 0, errors
    assert "starting anew" in output
    # Before anything is compiled.
    assert output.startswith("focalnet_tiny_srf with 5 options changed, ")
    code, output, errors = run(*TINY, **here)
    assert code == 0, errors
    assert "resuming after step 3" in output
    assert "finished: step 4 of 4" in output
    code, again, _ = run(*TINY, **here)
    assert code == 0
    assert "the run is finished: step 4 of 4" in again
    for said in (output, again):
        assert "python -m focalnet_jax.predict IMAGE --weights=runs/digits\n" in said
        export = "python -m focalnet_jax.export --weights=runs/digits digits.onnx\n"
        assert export in said
        assert f"main.py {shlex.join([*TINY, '--mode=eval'])}\n" in said
    code, evaluated, _ = run(*TINY, "--mode=eval", **here)
    assert code == 0
    tests = [re.search("test: .*", text)[0] for text in (output, again, evaluated)]
    assert len(set(tests)) == 1
    lines = (tmp_path / "runs" / "digits" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_help_lists_the_flags(environment, tmp_path):
    here = dict(directory=tmp_path, environment=environment)
    code, output, _ = run("--help", **here)
    assert code == 0
    for flag in ("--config", "--workdir", "--mode", "--compile_for", "--process_id"):
        assert flag in output


def test_an_operator_of_ones_own_trains(environment, tmp_path):
    """By a recipe that defines it; the run's parameters need it again."""
    recipe = ROOT / "tests" / "train" / "operator_recipe.py"
    here = dict(directory=tmp_path, environment=environment)
    code, output, errors = run(f"--config={recipe}", *TINY, "--workdir=run", **here)
    assert code == 0, errors
    assert "finished: step 4 of 4" in output
    assert '"modulation": "row_mean"' in (tmp_path / "run" / "model.json").read_text()

    with pytest.raises(SetupError, match="modulation='row_mean' is unknown"):
        focalnet_jax.load_model(tmp_path / "run")
    runpy.run_path(str(recipe))  # It adds the operator to the table.
    try:
        model, params, _ = focalnet_jax.load_model(tmp_path / "run")
        assert not model.encoder.has_focal_modulation
    finally:
        del MODULATIONS["row_mean"]
    assert params["layers_0"]["blocks_0"]["modulation"].keys() == {"f", "proj"}


FULL = """
import errno, os, runpy
import focalnet_jax.train

def train(config, task, workdir, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

focalnet_jax.train.train = train
runpy.run_path(os.environ["MAIN"], run_name="__main__")
"""


def test_a_full_disk_is_told_where_that_can_be(environment, tmp_path):
    program = tmp_path / "full.py"
    program.write_text(FULL)
    command = [sys.executable, str(program)]
    environment = environment | {"MAIN": str(ROOT / "main.py")}
    result = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert result.returncode == 1
    message = "error: metrics.jsonl: No space left on device; make room, and the same "
    assert result.stderr.splitlines()[-1].startswith(message)
    if pathlib.Path("/dev/full").exists():  # Linux has it
        with open("/dev/full", "w") as full:
            result = subprocess.run(command, env=environment, stderr=full)
        assert result.returncode == 1


@pytest.mark.extended
def test_default_reaches_what_its_head_says(environment, tmp_path):
    optimized = environment | {"XLA_FLAGS": ""}
    code, _, errors = run(directory=tmp_path, environment=optimized)
    assert code == 0, errors
    last = (tmp_path / "runs" / "digits" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["test/top1"] >= 0.97
    assert json.loads(last)["test/examples"] == 360


@pytest.mark.extended
def test_kernels_train_as_well_as_convolutions(environment, tmp_path):
    """Interpreted, and for two epochs; the same seed draws the same batches."""
    ends = {}
    for implementation in ("interpreted", "lax"):
        arguments = ["--config.num_epochs=2", "--config.warmup_epochs=1"]
        arguments.append(f"--config.model.implementation={implementation}")
        directory = tmp_path / implementation
        directory.mkdir()
        code, _, errors = run(*arguments, directory=directory, environment=environment)
        assert code == 0, errors
        lines = (directory / "runs" / "digits" / "metrics.jsonl").read_text().splitlines()
        ends[implementation] = json.loads(lines[-1])
    given, expected = ends.values()
    # Roundings differ, and thirty steps make them larger.
    assert given["test/loss"] == pytest.approx(expected["test/loss"], rel=1e-2)
    assert given["test/top1"] == pytest.approx(expected["test/top1"], abs=4 / 360)
    assert expected["test/top1"] > 0.5


def test_platforms_that_are_not_here_are_told(monkeypatch):
    """Where JAX is not installed for them, its own error has no message."""

    def find_none():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", find_none)
    with pytest.raises(SetupError, match="JAX finds no devices for JAX_PLATFORMS=cpu"):
        command_line.find_devices()
