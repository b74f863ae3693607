"""Compiling for a TPU slice that isn't here."""

import dataclasses

import pytest

from focalnet_jax.errors import SetupError
from focalnet_jax.train import check_config, default_config
from focalnet_jax.train.aot import compile_for, hlo
from focalnet_jax.train.aot.bundles import Schedule
from focalnet_jax.train.aot.report import Report

PROGRAM = """\
%body.1 (x: f32[2]) -> f32[2] {
  %fusion.1 = f32[2]{0} fusion(%x), backend_config={"estimated_cycles":"7"}
  %all-reduce.2 = f32[]{:T(128)} all-reduce(%y), to_apply=%add
}

%condition.1 (x: (s32[], f32[2])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(3)
  %element.2 = s32[]{:T(128)} get-tuple-element(%x), index=0
  ROOT %lt.3 = pred[]{:T(512)} compare(%element.2, %constant.1), direction=LT, metadata={}
}

%async.2 (x: f32[2]) -> f32[2] {
  %all-gather.1 = f32[2]{0} all-gather(%x), dimensions={0}
}

%unused.2 (x: f32[2]) -> f32[2] {
  %fusion.2 = f32[2]{0} fusion(%x), backend_config={"estimated_cycles":"1000"}
}

ENTRY %main.3_spmd (x: f32[2]) -> f32[2] {
  %fusion.3 = f32[2]{0} fusion(%x), backend_config={"estimated_cycles":"100"}
  %while.4 = (s32[], f32[2]{0}) while(%x), condition=%condition.1, body=%body.1
  %start.4 = ((f32[2]), f32[2]) async-start(%x), calls=%async.2
  %all-gather.5 = bf16[4,3]{1,0:T(8,128)(2,1)} all-gather(%x), dimensions={0}
  %all-reduce.6 = (f32[2]{0:T(128)}, /*index=1*/f32[]) all-reduce(%x, %x), to_apply=%add
  %permute.7 = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%x)
  %permute.8 = f32[2]{0} collective-permute-done(%permute.7)
  ROOT %fusion.9 = f32[2]{0} fusion(%x), backend_config={"estimated_cycles":"20"}
}
"""


def tiny_config(**fields):
    config = default_config()
    config.batch_size = 8
    config.model.update(
        depths=(1,),
        embed_dim=16,
        focal_levels=(1,),
        focal_windows=(3,),
        num_classes=10,
        dtype="bfloat16",
    )
    config.data.image_size = 16
    config.data.num_train_examples = 1000
    config.update(fields)  # of parts of it, too
    return check_config(config)


def test_cycles_and_collectives_are_read_off_the_program():
    estimate = hlo.estimate(PROGRAM)
    assert estimate.cycles == 100 + 3 * 7 + 20
    assert estimate.collectives == {
        "all-gather": (2, 24 + 8),
        "all-reduce": (1 + 3, 12 + 3 * 4),
        "collective-permute": (1, 8),
    }


def test_loops_of_unknown_length_have_to_be_short():
    unknown = PROGRAM.replace("constant(3)", "copy(%x)")
    estimate = hlo.estimate(unknown)
    assert estimate.cycles is None
    assert estimate.collectives["all-reduce"] == (2, 16)
    estimate = hlo.estimate(unknown.replace(':"100"', ':"10000"'))
    assert estimate.cycles == 10000 + 7 + 20


KERNEL = """\
  %{name} = f32[2]{{0}} custom-call(%x), custom_call_target="tpu_custom_call", \
backend_config={{"custom_call_config":{{"body":"{body}"}}}}
"""


def test_kernels_count_by_their_schedules():
    """Of equal kernels the compiler writes one; in a loop they run more than once."""
    lines = [("sums.1", "TUzv"), ("sums.2", "TUzv"), ("sums.3", "TUzv"), ("other.4", "Q")]
    lines = [KERNEL.format(name=name, body=body) for name, body in lines]
    program = PROGRAM.replace("  ROOT %fusion.9", "".join(lines) + "  ROOT %fusion.9")
    program = program.replace("  %all-reduce.2", lines[0] + "  %all-reduce.2")
    schedules = {"sums.1": Schedule(500, 0), "sums.2": Schedule(600, 1)}
    estimate = hlo.estimate(program, schedules.get)
    assert estimate.kernel_calls == 3 + 3  # in the loop, and in the entry
    assert estimate.kernel_cycles == 3 * 500 + 500 + 600 + 600
    assert estimate.open_loops == 2
    assert estimate.uncounted_calls == 1
    assert estimate.cycles == 100 + 3 * 7 + 20 + estimate.kernel_cycles

    estimate = hlo.estimate(program)
    assert estimate.uncounted_calls == 7
    assert estimate.cycles == 100 + 3 * 7 + 20


FUSED = """\
%fused.1 (x: f32[2]) -> f32[2] {
KERNEL  ROOT %add.2 = f32[2]{0} add(%sums.1, %x)
}

ENTRY %main.3_spmd (x: f32[2]) -> f32[2] {
  ROOT %sums.3 = f32[2]{0} fusion(%x), kind=kCustom, calls=%fused.1
}
"""


def test_kernels_count_where_they_are_fused():
    """As in a loop that writes their results into a larger array."""
    program = FUSED.replace("KERNEL", KERNEL.format(name="sums.1", body="TUzv"))
    estimate = hlo.estimate(program, {"sums.3": Schedule(500, 0)}.get)
    assert estimate.kernel_calls == 1
    assert estimate.cycles == estimate.kernel_cycles == 500
    assert hlo.estimate(program).uncounted_calls == 1


BRANCHES = """\
%one.1 (x: f32[2]) -> f32[2] {
  ROOT %fusion.1 = f32[2]{0} fusion(%x), backend_config={"estimated_cycles":"7"}
}

%two.2 (x: f32[2]) -> f32[2] {
  ROOT %fusion.2 = f32[2]{0} fusion(%x), backend_config={"estimated_cycles":"11"}
}

ENTRY %main.3_spmd (x: f32[2]) -> f32[2] {
  %a = f32[2]{0} conditional(%p, %x, %x), branch_computations={%one.1, %two.2}
  ROOT %b = f32[2]{0} call(%x), to_apply=%one.1, metadata={op_name="jit(f)/call"}
}
"""


def test_all_branches_of_a_condition_count():
    assert hlo.estimate(BRANCHES).cycles == 7 + 11 + 7
    assert [operation.name for operation in hlo.operations(BRANCHES)] == [
        *("fusion.1", "fusion.2", "a", "fusion.1", "b")
    ]


def test_the_training_step_for_a_slice():
    pytest.importorskip("libtpu", reason="it is the compiler")
    config = tiny_config(
        mesh=dict(data=2, fsdp=2), model=dict(depths=(2,), scan=True), ema_decay=0.9
    )
    report = compile_for.compile_for(*config, "v5e:2x2")
    assert report.fits
    assert report.chips == 4
    # Adam's two moments and its count, the schedule's, and the average.
    assert report.optimizer_bytes == 3 * report.parameter_bytes + 2 * 4
    assert report.activation_bytes > 0
    assert {"all-gather", "all-reduce"} <= report.collectives.keys()
    assert 0 < report.model_flops_utilization < 1
    for part in (
        "4 chips",
        "fits",
        "images of 16 x 16 x 3",
        "ms a step",
        "images/s/chip",
        "MFU",
        "all-gather",
    ):
        assert part in str(report)
    with pytest.raises(SetupError, match='v5e:3x3: .*"v5e:3x3" is not divisible'):
        compile_for.compile_for(*config, "v5e:3x3")
    for name in ("v5e:2x2", "v4:2x2x1"):  # of each chip one device
        with pytest.raises(SetupError, match="batch_size=6 doesn't divide over 4 device"):
            compile_for.compile_for(*tiny_config(batch_size=6), name)

    report = compile_for.compile_for(*tiny_config(batch_size=1 << 24), "v5e:2x2")
    assert not report.fits
    assert "does NOT fit: the total memory required" in str(report)
    assert "ms a step" not in str(report)


def test_reports_say_how_kernels_were_counted():
    report = Report(
        slice_name="v5e:2x2",
        chips=4,
        mesh={"data": 4},
        model="tiny",
        batch_size=8,
        unit="images",
        input_shapes={"image": (16, 16, 3)},
        fits=True,
        parameter_bytes=1,
        optimizer_bytes=1,
        activation_bytes=1,
        multiply_adds=1,
        step_seconds=0.02,
        kernel_calls=40,
        kernel_seconds=0.0123,
        open_loops=2,
        uncounted_calls=3,
        collectives={},
        compile_seconds=1.0,
    )
    assert "of which kernels: 40 calls, 12.3 ms by bundles times grid" in str(report)
    assert "2 loops of unknown length in them count once" in str(report)
    assert "not counted: 3 calls of kernels" in str(report)
    plain = dict(kernel_calls=0, open_loops=0, uncounted_calls=0)
    assert "kernels" not in str(dataclasses.replace(report, **plain))


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on device, memory for HLO "
            "temporaries (19.32G) exceeds available HBM (15.75G). HLO temporaries: ...\n",
            "memory for HLO temporaries (19.32G) exceeds available HBM (15.75G)",
        ),
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent "
            "error. Ran out of memory in memory space hbm. Used 15.91G of 15.75G hbm. "
            "Exceeded hbm capacity by 166.56M.\n\nTotal hbm usage >= 16.16G:",
            "Used 15.91G of 15.75G hbm",
        ),
        ("RESOURCE_EXHAUSTED: otherwise", "RESOURCE_EXHAUSTED: otherwise"),
    ],
)
def test_the_compiler_says_what_is_too_large(message, problem):
    assert compile_for._memory_problem(message) == problem


@pytest.mark.parametrize("name", ["v5e", "v5e:", "v5e:2", "v9:2x2", "v5e:2x2; ls"])
def test_what_is_no_slice_is_said(name):
    with pytest.raises(SetupError, match="is no slice such as v5e:16x16 or v4:4x4x4"):
        compile_for.compile_for(*tiny_config(), name)


def test_the_schedule_needs_the_number_of_examples():
    with pytest.raises(SetupError, match="num_train_examples has to be set"):
        compile_for.compile_for(
            *tiny_config(data=dict(num_train_examples=None)), "v5e:2x2"
        )
