"""The schedules of Pallas kernels, recorded and as libtpu writes them here."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
import small_kernel
from jax.sharding import SingleDeviceSharding

from focalnet_jax.train.aot import bundles, hlo

# What libtpu 0.0.52 writes for v5e of `small_kernel.add_rows` and 12 tiles.
RECORDED = pathlib.Path(__file__).parent / "golden" / "add_rows.final_bundles.txt"


def test_bundles_count_as_often_as_loops_run():
    inner = 10 * (0x33 - 0x2C + 1)
    nested = 5 * (inner + 1 + (0x38 - 0x34 + 1))
    from_two_to_nine = 7 * (0x40 - 0x39 + 1)
    of_unknown_length = 0x50 - 0x49 + 1
    others = (0x2B - 0x09) + (0x49 - 0x41) + (0x74 - 0x51)
    step = nested + from_two_to_nine + of_unknown_length + others
    before, after = 9, 4
    schedule = bundles.read_schedule(RECORDED.read_text())
    assert schedule == bundles.Schedule(before + 12 * step + after, open_loops=1)


def test_lengths_are_read_off_counters():
    """Of steps of two, and from a number that has been moved more than once."""
    text = RECORDED.read_text()
    known = bundles.read_schedule(text).cycles
    assert text.count("%s206_s0 = sadd.s32 1,") == 1
    by_two = text.replace("%s206_s0 = sadd.s32 1,", "%s206_s0 = sadd.s32 2,")
    loop = 0x40 - 0x39 + 1
    assert bundles.read_schedule(by_two).cycles == known - 12 * 3 * loop
    moved = text.replace("smov.u32 (%p184_p5), 2", "smov.u32 %s1 ;; %s1 = smov.u32 2")
    assert moved != text
    assert bundles.read_schedule(moved).cycles == known
    copied = text.replace(
        "sphi %s735_s0, %s206_s0", "sphi %s735_s0, %s980 ;; %s980 = smov.u32 %s206_s0"
    ).replace("sadd.s32 1, %s737_s0", "sadd.s32 1, %s990")
    assert copied.count("%s990") == 1
    assert bundles.read_schedule(copied).cycles == known
    grid = "%s713_s18 = sphi %s786_s18, %s19_s18"
    stored = text.replace(grid, "%s713_s18 = sld [smem:[#allocation9_spill]]")
    assert stored != text
    assert bundles.read_schedule(stored).cycles == known
    unknown = text.replace("smov.u32 (%p184_p5), 2", "sld [smem:[#allocation3]]")
    schedule = bundles.read_schedule(unknown)
    assert schedule == bundles.Schedule(known - 12 * 6 * loop, open_loops=2)


def compile_kernel(device, height, width):
    sharding = SingleDeviceSharding(device)
    count = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=sharding)
    shape = (small_kernel.ROWS, height, width)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    def thrice(count, x):
        y = small_kernel.add_rows(count, x)
        for _ in range(2):
            y = small_kernel.add_rows(count, x + y)
        return y

    lowered = jax.jit(thrice).lower(count, x)
    with bundles.collected() as schedule_of:
        return hlo.estimate(lowered.compile().as_text(), schedule_of)


def test_kernels_are_counted_where_they_are_compiled(v5e):
    small = compile_kernel(v5e, 64, 128)
    assert small.kernel_calls == 3
    assert small.uncounted_calls == 0
    assert small.open_loops == 3
    # Each step of the grid runs two loops of more than four bundles 5 * 10 + 7 times.
    assert small.kernel_cycles > 3 * 8 * (5 * 10 + 7) * 4
    assert small.cycles > small.kernel_cycles
    large = compile_kernel(v5e, 64, 384)
    # What stands before and after the grid is little.
    assert large.kernel_cycles == pytest.approx(3 * small.kernel_cycles, rel=0.05)


def test_what_libtpu_does_not_write_is_not_counted(v5e, monkeypatch):
    monkeypatch.setattr(bundles, "_directory", lambda: None)
    estimate = compile_kernel(v5e, 64, 128)
    assert estimate.kernel_calls == 0
    assert estimate.uncounted_calls == 3


def test_flags_that_libtpu_does_not_know_are_not_given(monkeypatch):
    """It would end the program."""
    pytest.importorskip("libtpu", reason="it is the compiler")
    monkeypatch.setattr(bundles, "_FLAGS", {"xla_jf_" + "dump_bundles_nicely": "true"})
    assert bundles._directory.__wrapped__() is None


def test_the_environment_is_as_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr(bundles, "_directory", lambda: tmp_path)
    for given in (None, "--xla_tpu_own=1"):
        monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
        if given:
            monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
        with bundles.requested():
            flags = bundles.os.environ["LIBTPU_INIT_ARGS"]
            assert flags.startswith(given or "")
            assert f"--xla_jf_dump_to={tmp_path}" in flags
        assert bundles.os.environ.get("LIBTPU_INIT_ARGS") == given


def test_what_somebody_else_asked_for_is_left_to_them(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_jf_dump_to=/somewhere")
    assert bundles._directory.__wrapped__() is None
