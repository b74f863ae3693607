"""The figures of the benchmark on CPUs, and the table that is made of them."""

import importlib.util
import json
import pathlib

import pytest

FILE = pathlib.Path(__file__).parents[2] / "benchmarks/cpu.py"


@pytest.fixture
def cpu():
    spec = importlib.util.spec_from_file_location("cpu_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_run(cpu, jax):
    seconds = {"ours": [1.0, 2.0, 4.0], "timm": [2.0, 2.0, 2.0]}
    names = ("processor", "cores", "python", "torch", "timm", "model", "batch_size")
    return {
        "about": dict.fromkeys(names, 8) | {"jax": jax},
        "tasks": {"forward float32": cpu.figures(seconds, 8)},
    }


def test_figures_are_medians_of_rounds(cpu):
    table = a_run(cpu, "1.0")["tasks"]["forward float32"]
    assert table["ours"] == {
        "images_per_second": [4.0, 2.0, 8.0],
        "x timm": [1.0, 0.5, 2.0],
    }
    assert table["timm"]["images_per_second"] == [4.0, 4.0, 4.0]


def test_a_run_takes_the_place_of_one_with_the_same_jax(cpu, tmp_path):
    path = tmp_path / "cpu.json"
    runs = [a_run(cpu, "0.9"), a_run(cpu, "0.12.0"), a_run(cpu, "0.9")]
    runs[2]["about"]["cores"] = 1
    for run in runs:
        cpu.add_run(path, run)
    assert json.loads(path.read_text()) == runs[1:]


def test_tasks_of_equal_runs_stand_together(cpu, tmp_path):
    path = tmp_path / "cpu.json"
    cpu.add_run(path, a_run(cpu, "0.9"))
    other = a_run(cpu, "0.9")
    other["tasks"] = {"gradient float32": other["tasks"].pop("forward float32")}
    cpu.add_run(path, other)
    [run] = json.loads(path.read_text())
    assert list(run["tasks"]) == ["forward float32", "gradient float32"]


def test_the_table_is_of_the_data(cpu):
    lines = cpu.markdown([a_run(cpu, "0.12"), a_run(cpu, "0.10")]).splitlines()
    assert [line for line in lines if line.startswith("jax")] == [
        f"jax {jax}, torch 8, timm 8, Python 8, 8 cores of 8; 8, batches of 8, images a "
        "second:"
        for jax in ("0.12", "0.10")
    ]
    rows = [line for line in lines if line.startswith("|")]
    assert rows[:3] == [
        "| | ours | timm |",
        "|---|---|---|",
        "| forward float32 | 4.0 | 4.0: 1.00 (0.50 to 2.00) |",
    ]
