"""The benchmark of TPU programs, `benchmarks/tpu.py`, without its compilations."""

import ast
import dataclasses

import pytest
import tpu

from focalnet_jax.train.aot import hlo

JOB = tpu.Job(
    "step",
    "base:base_lrf",
    (
        "--config.model.depths=(2,6)",
        "--config.model.focal_levels=(2,1)",
        "--config.model.focal_windows=(3,5)",
        "--config.model.embed_dim=16",
        "--config.data.image_size=32",
    ),
    8,
    "v5e:2x2",
)
NET = "jvp(FocalNet)/encoder/encoder.stages"
ABOUT = {"depths": [1, 2], "parameters": 1000, "image": [32, 32, 3], "problem": None}


def operation(source, cycles=1000, *, kind="fusion", result="bf16[8,4,4,16]{3,0,2,1}"):
    return hlo.Operation(
        name="fusion.1",
        kind=kind,
        result=result,
        source=f"jit(train_step)/{source}" if source else "",
        cycles=cycles,
        open_loops=0,
        times=1,
        is_in_open_loop=False,
        is_kernel=kind == "custom-call",
        text="",
    )


OPERATOR = f"{NET}/layers_0/blocks_0/modulation/modulation.aggregate"
# What the compiler prints for the project's own step.
SOURCES = [
    (f"{NET}/layers_0/blocks_0/mlp/fc1/fc1/dot_general", "matrix products, forward"),
    (
        "transpose(jvp(FocalNet))/encoder/layers_0/blocks_0/mlp/fc1/dot_general",
        "matrix products, backward",
    ),
    (
        "transpose(jvp(FocalNet))/encoder/layers_0/blocks_0/modulation/f/reduce_sum",
        "matrix products, backward",
    ),
    (f"{OPERATOR}/conv_general_dilated", "depthwise convolutions"),
    (f"{OPERATOR}/add_any", "gates and sums of the operator"),
    (f"{NET}/layers_0/blocks_0/norm1/reduce_sum", "norms"),
    (f"{NET}/downsample/proj/conv_general_dilated", "embeddings"),
    ("jvp(FocalNet)/encoder/encoder.embed/patch_embed/norm/reduce_sum", "embeddings"),
    (
        "jvp(FocalNet)/encoder/encoder.embed/convert_element_type",
        "mixing, erasing, preparing",
    ),
    ("jit(_beta)/jit(_gamma)/while/body/add", "mixing, erasing, preparing"),
    ("jit(_where)/select_n", "mixing, erasing, preparing"),
    ("jvp(jit(log_softmax))/reduce_sum", "head and loss"),
    ("jvp(FocalNet)/head/head/dot_general", "head and loss"),
    ("", "other"),
]
KERNELS = [
    (f"{OPERATOR}/shard_map/focal_aggregation", "kernels of the operator, forward"),
    (
        f"transpose({OPERATOR})/focal_aggregation_gradient",
        "kernels of the operator, backward",
    ),
    (f"{NET}/layers_0/blocks_0/projection", "kernels of positions, forward"),
    (f"transpose({NET})/layers_0/blocks_0/k", "kernels of positions, backward"),
    (f"{NET}/downsample/biased_norm", "embeddings"),
]


@pytest.mark.parametrize(("source", "name"), SOURCES)
def test_operations_belong_to_categories(source, name):
    assert name in tpu.CATEGORIES
    assert tpu.category(operation(source), 8) == name


@pytest.mark.parametrize(("source", "name"), KERNELS)
def test_kernels_belong_to_categories(source, name):
    assert name in tpu.CATEGORIES
    assert tpu.category(operation(source, kind="custom-call"), 8) == name


def test_products_that_change_the_layout_are_no_copies():
    source = f"transpose({NET})/layers_0/blocks_0/transpose"
    fused = dataclasses.replace(operation(source), text="fusion(%x), kind=kOutput")
    assert tpu.category(operation(source), 8) == "copies between layouts"
    assert tpu.category(fused, 8) == "matrix products, backward"


def test_what_has_no_row_for_an_image_is_the_optimisers():
    of_weights = operation("jit(_where)/select_n", result="f32[16,64]{1,0}")
    assert tpu.category(of_weights, 8) == "optimiser"
    assert tpu.category(operation("", kind="copy"), 8) == "copies between layouts"


def test_blocks_that_were_left_out_are_counted():
    """Stages have 2 and 6 blocks, and 1 and 2 of them were compiled."""
    _, task = JOB.config_and_task()
    operations = [
        operation(f"{NET}/layers_0/blocks_0/norm1/add", 1_500_000),
        operation(f"{NET}/layers_1/blocks_1/norm1/add", 1_500_000),
        operation("jvp(FocalNet)/head/head/dot_general", 1_500_000),
        operation("jit(_where)/select_n", 1_500_000, result="f32[16]{0}"),
        operation(f"{NET}/layers_1/blocks_0/k", 3_000_000, kind="custom-call"),
        operation(f"{NET}/layers_1/blocks_1/k", None, kind="custom-call"),
    ]
    figures = tpu.figures(JOB, operations, ABOUT, task)
    assert figures["categories"]["norms"] == 2 + 3  # ms, at 1.5 GHz
    assert figures["categories"]["head and loss"] == 1
    parameters = tpu.count_params(task.model)
    assert figures["categories"]["optimiser"] == pytest.approx(
        parameters / 1000,
        abs=1e-3,  # as it is rounded
    )
    assert figures["categories"]["kernels of positions, forward"] == 3 * 2
    assert figures["kernels"] == {"calls": 3, "uncounted_calls": 1, "open_loops": 0}
    total = figures["milliseconds"]
    assert total == pytest.approx(sum(figures["categories"].values()), abs=1e-2)
    assert figures["images_per_second_and_chip"] == pytest.approx(
        8e3 / total,
        abs=0.1,  # as it is rounded
    )


def test_limits_are_those_of_the_chip():
    _, task = JOB.config_and_task()
    about = ABOUT | {"bytes_accessed": 819e6}
    limits = tpu.limits(JOB, task, about)
    # 197 T operations a second, and 819 GB of memory.
    matrix = 3 * 2 * task.multiply_adds * 8 / 197e12
    assert limits["matrix unit"] == pytest.approx(1e3 * matrix, abs=1e-3)
    assert limits["memory"] == pytest.approx(1)
    # The taps of kernels of 3 and 5, and of 5, at 8 x 8 x 16 and 4 x 4 x 32, are a large
    # part of the whole.
    taps = 2 * 3 * (2 * (9 + 25) * 8 * 8 * 16 + 6 * 25 * 4 * 4 * 32)
    peak = 4 * 8 * 128 * 1.5e9
    large = dataclasses.replace(JOB, batch_per_chip=80_000)
    vector = tpu.limits(large, task, about)["vector unit"]
    assert 0.3 < 1e3 * taps * 80_000 / peak / vector < 1
    forward = dataclasses.replace(JOB, kind="forward")
    assert tpu.limits(forward, task, about)["matrix unit"] == pytest.approx(
        limits["matrix unit"] / 3,
        abs=1e-3,  # as it is rounded
    )
    quick = dataclasses.replace(JOB, is_quick=True)
    assert "memory" not in tpu.limits(quick, task, about)


def result(job, milliseconds, **fields):
    return (
        dataclasses.asdict(job)
        | ABOUT
        | {
            "categories": dict.fromkeys(tpu.CATEGORIES, 0) | {"norms": milliseconds},
            "milliseconds": milliseconds,
            "images_per_second_and_chip": 8e3 / milliseconds,
            "multiply_adds": 10**6,
            "compiled_depths": [1, 2],
            "kernels": {},
            "limits": {"matrix unit": 0.5},
            "argument_bytes": 10**9,
            "temporary_bytes": 2 * 10**9,
            "compile_seconds": 7.0,
            "commit": "abc",
        }
        | fields
    )


def test_results_are_added_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tpu, "RESULTS", tmp_path / "results" / "tpu.json")
    before = dataclasses.replace(JOB, version="before")
    tpu.write_result(before.key, result(before, 20.0))
    tpu.write_result(JOB.key, result(JOB, 10.0))
    assert len(tpu.read_results()) == 2
    assert [*tpu.RESULTS.parent.iterdir()] == [tpu.RESULTS]
    tpu.print_table(tpu.read_results())
    table = capsys.readouterr().out
    assert "| ms | before | now |" in table
    assert "| norms | 20.00 | 10.00 |" in table
    assert "| images/s/chip | 400 | 800 |" in table
    assert "| limit: matrix unit | 0.5 | 0.5 |" in table


def test_what_does_not_fit_has_an_empty_column(capsys):
    before = dataclasses.replace(JOB, version="before")
    failed = result(before, 1.0) | {"problem": "Ran out of memory", "milliseconds": None}
    del failed["kernels"], failed["argument_bytes"]
    tpu.print_table({"a": failed, "b": result(JOB, 10.0)})
    assert "| norms |  | 10.00 |" in capsys.readouterr().out


def test_growth_is_a_table_and_a_plot(tmp_path, capsys):
    results = {}
    for job in tpu.growth_jobs("v5e:2x2", (), is_quick=False):
        sizes = ast.literal_eval(job.overrides[-1].partition("=")[2])
        count = job.batch_per_chip * sizes[0] * sizes[1]
        results[job.key] = result(
            job, count / 1e5, image=[*sizes, 3], temporary_bytes=100 * count
        )
    assert len(results) == 2 * (10 + 3)
    tpu.print_growth(results)
    lines = capsys.readouterr().out.splitlines()
    # The square of 224 pixels is also one of the batches.
    assert len(lines) == 1 + 2 + 2 * (5 + 5 + 4)
    assert all("| 10.00 |" in line and "| 100 |" in line for line in lines[3:])
    tpu.plot_growth(results, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    tpu.print_table(results)
    assert not capsys.readouterr().out


@pytest.mark.extended
def test_programs_of_two_checkouts_are_compiled(tmp_path, monkeypatch, capsys):
    pytest.importorskip("libtpu", reason="it is the compiler")
    monkeypatch.setattr(tpu, "RESULTS", tmp_path / "tpu.json")
    monkeypatch.setattr(tpu, "commit_of", lambda checkout: "abc")
    flags = [
        "--quick",
        "--kinds=forward",
        "--batch-size=8",
        f"--before={tpu.HERE.parent}",
    ]
    monkeypatch.setattr(tpu.sys, "argv", ["tpu.py", *flags, *JOB.overrides])
    tpu.main()
    table = capsys.readouterr().out
    assert "| ms | before | now |" in table
    assert "Compiled with [1, 2] blocks" in table
    results = tpu.read_results()
    assert len(results) == 2
    before, now = (result["milliseconds"] for result in results.values())
    assert before == now > 0
    monkeypatch.setattr(tpu.sys, "argv", ["tpu.py", "--resume", *flags, *JOB.overrides])
    monkeypatch.setattr(tpu, "compile_job", lambda *_: pytest.fail("it is known"))
    tpu.main()
