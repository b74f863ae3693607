"""The benchmark on GPUs, `benchmarks/gpu.py`, on a CPU and with tiny nets."""

import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import chex
import gpu
import gpu_contenders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import turns
from tiny import TINY

from focalnet_jax.ops import IMPLEMENTATIONS, aggregate_context

FAKE = pathlib.Path(__file__).with_name("fake_contender.py")
ABOUT = {
    "card": "a card",
    "driver": None,
    "python": "3.12.1",
    "versions": {"jax": "0.12.0", "torch": None},
    "command": "python benchmarks/gpu.py",
}
SUBJECT = {"model": "focalnet_tiny_lrf", "batch_size": 2, "image_size": 32}


# --- Measuring -----------------------------------------------------------------


def group(name, *kinds):
    return gpu.Group(name, ("first", "second"), {k: {"kind": k} for k in kinds}, SUBJECT)


@pytest.fixture
def measure(tmp_path):
    """A function that measures groups with contenders that compute nothing.

    It returns what is left and the file's data. `prepared` has all that was prepared.
    """

    def start(name, spec):
        assert spec["batch_size"] == 2
        return turns.Contender(
            name,
            [sys.executable, str(FAKE), spec["kind"], str(tmp_path / "log")],
            environment={"PYTHONPATH": str(pathlib.Path(turns.__file__).parent)},
            lane=name,
        )

    def measure(*groups, seconds=math.inf, about=ABOUT, start=start, **options):
        results = gpu.Results(tmp_path / "gpu.json", about, **options)
        until = time.monotonic() + seconds
        try:
            left = gpu.measure(
                groups, results, start, rounds=2, until=until, patience=math.inf
            )
        except KeyboardInterrupt:
            left = None
        return left, json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))

    def prepared():
        with contextlib.suppress(FileNotFoundError):
            return (tmp_path / "log").read_text(encoding="utf-8").splitlines()
        return []

    measure.start, measure.prepared = start, prepared
    return measure


def test_results_are_data_and_errors_are_results(measure, tmp_path):
    left, data = measure(group("a", "good", "raises"))
    assert left == []
    assert data["about"] == ABOUT
    expected = {
        "subject": SUBJECT,
        "contenders": {
            "good": {"losses": [1.0], "seconds": [2.0, 2.0]},
            "raises": {"error": "RuntimeError: INTERNAL: no algorithm"},
        },
        "is_whole": True,
    }
    assert data["measurements"] == {"a: first": expected, "a: second": expected}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpu.json", "log"]


def test_goes_on_where_it_was_ended(measure):
    def start(name, spec):
        if name == "fast":
            raise KeyboardInterrupt
        return measure.start(name, spec)

    groups = group("a", "good", "raises"), group("b", "good", "fast")
    left, data = measure(*groups, start=start)
    assert left is None
    assert list(data["measurements"]) == ["a: first", "a: second"]
    before = measure.prepared()

    left, data = measure(*groups, about=ABOUT | {"command": "another"})
    assert left == []
    assert data["about"]["command"] == "another"
    assert list(data["measurements"]) == [
        *("a: first", "a: second", "b: first", "b: second")
    ]
    assert sorted(measure.prepared()[len(before) :]) == sorted(
        f"{name} {task}" for name in ("good", "fast") for task in ("first", "second")
    )
    # A contender that was not there is not forgotten.
    _, data = measure(group("a", "good", "fast"))
    assert set(data["measurements"]["a: first"]["contenders"]) == {"good", "fast"}


def test_ends_when_the_time_is_up(measure):
    left, data = measure(group("a", "good"), group("b", "good"), seconds=0)
    assert left == ["a: first", "a: second", "b: first", "b: second"]
    assert data["measurements"] == {}
    assert measure.prepared() == []


def test_what_was_broken_off_is_measured_again(measure):
    groups = group("a", "good", "hangs"), group("b", "good")
    left, data = measure(*groups, seconds=4)
    assert left == ["a: first", "a: second", "b: first", "b: second"]
    assert list(data["measurements"]) == ["a: first"]
    assert data["measurements"]["a: first"]["is_whole"] is False
    left, data = measure(group("a", "good", "fast"), seconds=0)
    assert left == ["a: first", "a: second"]
    assert set(data["measurements"]["a: first"]["contenders"]) == {"good"}
    left, data = measure(group("a", "good", "fast"))
    assert left == []
    assert data["measurements"]["a: first"]["is_whole"] is True
    assert set(data["measurements"]["a: first"]["contenders"]) == {"good", "fast"}


def test_results_of_another_card_are_not_mixed_in(measure):
    measure(group("a", "good"))
    other = ABOUT | {"card": "another card"}
    with pytest.raises(SystemExit, match="'a card', and here it is 'another card'"):
        measure(group("a", "good"), about=other)
    _, data = measure(about=other, anew=True)
    assert data == {"about": other, "measurements": {}}


def test_the_whole_program(tmp_path):
    """With contenders as they are, of which one is not there."""
    path = tmp_path / "gpu.json"
    program = pathlib.Path(gpu.__file__)
    command = [sys.executable, str(program), "--tiny", f"--json={path}", "--rounds=2"]
    command += ["--groups", "operator", "--contenders", "lax", "torch"]
    # This machine's torch, if there is one, stands for one that fails.
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "torch.py").write_text("raise ImportError('no torch')", encoding="utf-8")
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["about"]["card"] == "cpu"
    assert data["about"]["versions"]["jax"] == jax.__version__
    assert set(data["measurements"]) == {
        "operator: copy",
        *(
            f"operator: stage {s} {w}"
            for s in range(1, 5)
            for w in ("forward", "gradient")
        ),
    }
    for measurement in data["measurements"].values():
        assert len(measurement["contenders"]["lax"]["seconds"]) == 2
        assert measurement["contenders"]["torch"] == {"error": "ImportError: no torch"}
    assert "| stage 4 gradient |" in result.stdout
    again = [sys.executable, str(program), "--table", f"--json={path}"]
    table = subprocess.run(again, capture_output=True, text=True, check=True).stdout
    assert table == result.stdout


def test_a_card_is_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu.py", f"--json={tmp_path / 'gpu.json'}"])
    monkeypatch.setattr(gpu, "about_here", lambda: ABOUT | {"platform": "cpu"})
    with pytest.raises(SystemExit, match="error: jax finds no GPU"):
        gpu.main()
    assert not (tmp_path / "gpu.json").exists()


def test_names_are_checked():
    groups = gpu.plan()
    [one] = gpu.chosen(groups, ["focalnet_base_lrf"], ["ours", "lax"])
    assert list(one.contenders) == ["ours"]
    with pytest.raises(SystemExit, match="nothing is called lux: there are auto"):
        gpu.chosen(groups, None, ["lux"])


def test_what_is_planned():
    """Each implementation's step comes first; then all that was asked for."""
    groups = gpu.plan()
    assert groups[0].tasks == ("training",)
    assert set(groups[0].contenders) == {"auto", "lax", "shifted", "triton"}
    assert set(groups[0].contenders) == {*IMPLEMENTATIONS} - gpu.NOT_FOR_GPUS
    names = [f"{group.name}: {task}" for group in groups for task in group.tasks]
    for name in ("tiny_lrf", "small_lrf", "base_lrf", "large_fl4"):
        assert f"focalnet_{name}: training" in names
        assert f"focalnet_{name}: inference" in names
    assert [n for n in names if "stage 2" in n] == [
        *("operator: stage 2 forward", "operator: stage 2 gradient")
    ]


def trained(**contenders):
    """Measurements of implementations: seconds, and the first loss."""
    answers = {
        name: {"seconds": [seconds], "losses": [loss, 6.8]}
        for name, (seconds, loss) in contenders.items()
    }
    return {gpu.IMPLEMENTATIONS_TRAIN: {"contenders": answers}}


@pytest.mark.parametrize(
    ("measurements", "expected"),
    [
        ({}, "auto"),
        (trained(lax=(3.0, 6.9), triton=(2.0, 6.91)), "triton"),
        (trained(lax=(3.0, 6.9), triton=(2.0, 6.4)), "lax"),
        (trained(lax=(3.0, 6.9), triton=(2.0, math.nan)), "lax"),
        (trained(shifted=(3.0, 6.9), triton=(2.0, 6.9)), "triton"),
        (trained(triton=(2.0, 6.9)), "auto"),  # Nothing says that it is right.
    ],
)
def test_our_nets_take_the_fastest_implementation_that_is_right(measurements, expected):
    assert gpu.fastest(measurements) == expected
    error = {"error": "RuntimeError: no memory"}
    measurements.get(gpu.IMPLEMENTATIONS_TRAIN, {"contenders": {}})["contenders"].update(
        auto=error
    )
    assert gpu.fastest(measurements) == expected


def test_what_is_chosen_is_what_starts(measure, tmp_path):
    started = []

    def start(name, spec):
        started.append(spec["implementation"])
        return measure.start(name, spec)

    measurements = trained(lax=(3.0, 6.9), triton=(2.0, 6.9))
    before = {"about": ABOUT, "measurements": measurements}
    (tmp_path / "gpu.json").write_text(json.dumps(before), encoding="utf-8")
    contenders = {"good": {"kind": "good", "implementation": "fastest"}}
    measure(gpu.Group("b", ("first",), contenders, SUBJECT), start=start)
    assert started == ["triton"]


# --- Contenders ----------------------------------------------------------------

NET = SUBJECT | {"platform": "cpu", "turn_seconds": 0.0, "options": TINY}
OPERATOR = {
    "platform": "cpu",
    "turn_seconds": 0.0,
    "batch_size": 2,
    "map_size": 16,
    "embed_dim": 8,
    "windows": (3, 5, 7),
}


def test_steps_learn_and_agree(peers):
    contenders = [
        gpu_contenders.OfJax(NET | {"implementation": "shifted"}),
        gpu_contenders.OfTorch(NET | {"kind": "timm", "compiled": False}),
    ]
    for contender in contenders:
        turn, told = contender.prepare("training")
        assert turn() > 0
        first, *_, last = told["losses"]
        assert last < first
        assert abs(first - math.log(1000)) < 0.5  # Nothing is known yet.
        turn, agreement = contender.prepare("agreement")
        assert turn is None
        # The unit of rounding is 0.004 in bfloat16; there are three blocks.
        assert 1e-4 < agreement["logits_error"] < 0.04
        assert 1e-4 < agreement["gradients_error"] < 0.04


@pytest.mark.parametrize("kind", ["timm", "transformers"])
def test_peers_infer(kind, peers):
    contender = gpu_contenders.OfTorch(NET | {"kind": kind, "compiled": False})
    turn, _ = contender.prepare("inference")
    assert turn() > 0


def test_our_inference():
    turn, told = gpu_contenders.OfJax(NET | {"implementation": "lax"}).prepare(
        "inference"
    )
    assert turn() > 0
    assert told["prepare_seconds"] > 0


def test_a_framework_without_the_card():
    spec = NET | {"implementation": "lax", "platform": "gpu"}
    with pytest.raises(RuntimeError, match="it runs on the cpu, not on the gpu"):
        gpu_contenders.OfJax(spec).prepare("training")


def operands():
    context, gates, kernels = gpu_contenders.operator_shapes(OPERATOR, 2)
    assert context == (2, 8, 8, 16)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape)),
        (context, gates, kernels),
        is_leaf=lambda shape: isinstance(shape, tuple) and isinstance(shape[0], int),
    )


def test_candidates_compute_the_operator(float64):
    def compute(function):
        y, pull_back = jax.vjp(function, *operands())
        return y, pull_back(jnp.sin(y))

    expected = compute(lambda *given: aggregate_context(*given, implementation="lax"))
    # The sums of products are rounded in another order, in float64.
    chex.assert_trees_all_close(
        compute(gpu_contenders.shifted_and_lax), expected, rtol=1e-10, atol=1e-10
    )


def test_torch_computes_the_operator(torch, float64):
    def to_torch(x):
        return torch.tensor(np.asarray(x))

    context, gates, kernels = operands()
    y = gpu_contenders.aggregate(
        to_torch(context).permute(0, 3, 1, 2),
        to_torch(gates).permute(0, 3, 1, 2),
        [to_torch(kernel).permute(3, 2, 0, 1) for kernel in kernels],
    )
    expected = aggregate_context(context, gates, kernels, implementation="lax")
    np.testing.assert_allclose(y.permute(0, 2, 3, 1), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", ["forward", "gradient"])
def test_torch_runs_the_operator(way, torch):
    contender = gpu_contenders.OfTorch(OPERATOR | {"compiled": False})
    turn, _ = contender.prepare(f"stage 1 {way}")
    assert turn() > 0


# --- Tables --------------------------------------------------------------------


def test_times_that_memory_needs():
    """At 3 TB/s, a level of stage 1 of FocalNet-B takes 69 microseconds at batch 128."""
    subject = {"batch_size": 128, "map_size": 56, "embed_dim": 128, "windows": (3,)}
    [apart, fused] = gpu.floors(subject, 1, "forward", 3e12)
    assert round(apart * 1e6) == 69
    assert apart < fused < 1.02 * apart  # One level is read and written, and two gates.
    assert gpu.floors(subject, 4, "gradient", 3e12)[0] == pytest.approx(apart / 2)
    levels = gpu.floors(subject | {"windows": (3, 5, 7)}, 1, "forward", 3e12)
    assert levels[0] == pytest.approx(3 * apart)
    assert gpu.floors(subject, 1, "forward", None) == (None, None)


def test_tables():
    def measured(**contenders):
        return {"subject": OPERATOR | SUBJECT, "contenders": contenders, "is_whole": True}

    copy = measured(lax={"bytes": 2e9, "seconds": [1e-3]})
    net = measured(
        ours={"seconds": [0.1, 0.1, 0.2], "implementation": "triton"},
        timm={"seconds": [0.2, 0.3, 0.2]},
        transformers={"error": "it is not there"},
    )
    told = ("float32_loss", "bfloat16_loss", "logits_error", "gradients_error")
    agreement = dict(zip(told, [6.9, 6.95, 0.0123, 0.0234]))
    trained = {"losses": [6.9, 6.8], "seconds": [1.0]}
    measurements = {
        "operator: copy": copy,
        "operator: stage 1 forward": measured(lax={"seconds": [4e-3, 2e-3, 3e-3]}),
        "focalnet_tiny_lrf: training": net,
        "one block a stage: training": measured(lax=trained, fused={"error": "no card"}),
        "one block a stage: agreement": measured(ours=agreement),
    }
    text = "\n".join(gpu.tables({"about": ABOUT, "measurements": measurements}))
    assert "a card, Python 3.12.1, jax 0.12.0:" in text
    assert "| operator, ms (copies at 2.00 TB/s) | lax |" in text
    assert "| stage 1 forward | 3.000 |" in text
    assert (
        "| focalnet_tiny_lrf, 32 pixels, batch 2, training by `triton` | 20 | 10 |  |  "
        "| 2.00 (1.00 to 3.00) |  |  |"
    ) in text
    assert "| lax | 2 | 6.9000, 6.8000 |" in text
    assert "| fused | error |  |" in text
    assert "| ours | 6.9000 | 6.9500 | 1.2e-02 | 2.3e-02 |" in text
    assert "* focalnet_tiny_lrf: training, transformers: it is not there" in text


def test_tables_of_nothing():
    assert len(list(gpu.tables({"about": ABOUT, "measurements": {}}))) == 2
