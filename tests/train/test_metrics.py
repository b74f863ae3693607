"""What a run shows: metrics in its files, in a bucket, at W&B, and as a page."""

import math
import sys
import types

import jax
import pytest
from etils import epath
from running import ROOT, TINY, read_metrics, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from focalnet_jax import chips
from focalnet_jax.errors import SetupError
from focalnet_jax.tasks.classification import METRICS
from focalnet_jax.train import check_config, train
from focalnet_jax.train.run.metrics import MetricsWriter
from focalnet_jax.train.run.summary import draw_curves, pictures_of


def test_metrics_are_cut_back_to_the_restored_step(tmp_path):
    """In both places each step stands once, with what was written last."""
    workdir = epath.Path(tmp_path)
    with MetricsWriter(workdir, first_step=0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"train/loss": 1.0})
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # as a crash leaves it
    with MetricsWriter(workdir, first_step=2) as writer:
        writer.write(3, {"train/loss": 0.5})
    expected = [(1, 1.0), (2, 1.0), (3, 0.5)]
    lines = read_metrics(workdir)
    assert [(line["step"], line["train/loss"]) for line in lines] == expected
    events = EventAccumulator(str(workdir)).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == expected


def test_damaged_lines_are_left_out_and_told(tmp_path):
    workdir = epath.Path(tmp_path)
    good = ['{"step": 1, "train/loss": 1.0}', '{"step": 2, "train/loss": 0.5}']
    bad = ["[1]", '{"x": 1}', "{", "", "\udcff\udcfe", "[" * 100_000]
    bad += ['{"step": "1"}', '{"step": 1.5}', '{"step": 1, "train/loss": "0.5"}']
    bad += ['{"step": 1, "train/loss": NaN}', f'{{"step": 1, "a": 1{"0" * 400}}}']
    text = "\n".join([good[0], *bad, good[1], '{"step": 2, "tra'])
    (tmp_path / "metrics.jsonl").write_text(text, errors="surrogateescape")
    with MetricsWriter(workdir, first_step=2) as writer:
        [remark] = writer.remarks
        assert f"{len(bad)} of its lines are no metrics, the first is line 2;" in remark
        writer.summarize(title="title", pictures=pictures_of(METRICS, unit="images"))
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == good
    assert "train/loss" in (tmp_path / "summary.html").read_text()


def test_a_run_that_ends_before_its_first_line_has_no_page(tmp_path):
    with MetricsWriter(epath.Path(tmp_path), first_step=0) as writer:
        writer.summarize(title="title", pictures=pictures_of(METRICS, unit="images"))
    assert not (tmp_path / "summary.html").exists()


def test_what_is_not_finite_is_left_out(tmp_path):
    with MetricsWriter(epath.Path(tmp_path), first_step=0) as writer:
        writer.write(1, {"test/loss": math.nan, "test/top1": 0.5})
    assert read_metrics(tmp_path) == [{"step": 1, "test/top1": 0.5}]


def test_trace_of_steps(environment, tmp_path):
    """In a process of its own, for a trace is of all that a process has compiled."""
    here = dict(directory=ROOT, environment=environment)
    workdir = f"--workdir={tmp_path}"
    code, _, errors = run(*TINY, workdir, "--config.profile_steps=(2,3)", **here)
    assert code == 0, errors
    [trace] = (tmp_path / "plugins" / "profile").glob("*/*.xplane.pb")
    profile = jax.profiler.ProfileData.from_file(str(trace))
    lines = [line for plane in profile.planes for line in plane.lines]
    steps = [e for line in lines for e in line.events if e.name == "train"]
    assert [dict(step.stats)["step_num"] for step in steps] == [2, 3]


def test_page_of_a_run(tiny_config, tmp_path):
    workdir = epath.Path(tmp_path)
    tiny_config.evaluate_every_steps = 3
    train(*check_config(tiny_config), workdir)
    text = (workdir / "summary.html").read_text()
    assert text.startswith("<!doctype html>")
    assert "http" not in text.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("https://matplotlib.org", "").replace("http://creativecommons.org", "")
    last = read_metrics(workdir)[-1]
    assert f"<td>train/loss</td><td>{last['train/loss']:.5g}</td>" in text
    assert "batch_size" in text  # the configuration

    figures = draw_curves(read_metrics(workdir), pictures_of(METRICS, unit="images"))
    assert text.count('<svg class="figure"') == len(figures)
    lines = {line.get_label(): line for f in figures for line in f.axes[0].lines}
    assert lines.keys() >= {"train/loss", "test/loss", "test/top1", "train/weight_norm"}
    assert lines["train/loss"].get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert lines["test/loss"].get_xdata().tolist() == [3, 6]
    assert lines["test/loss"].get_ydata()[-1] == last["test/loss"]


def test_speeds_and_norms_are_measured(tiny_config, tmp_path):
    workdir = epath.Path(tmp_path)
    train(*check_config(tiny_config), workdir)
    first, *others = read_metrics(workdir)
    assert "train/images_per_second" not in first  # It was compiled.
    for line in others:
        speed, seconds = line["train/images_per_second"], line["train/step_seconds"]
        assert speed * seconds == pytest.approx(16)
        assert line["train/images_per_second_per_chip"] == pytest.approx(speed / 8)
        assert line["train/weight_norm"] > 0
        assert "train/mfu" not in line  # of CPUs nothing is claimed


def test_known_chips():
    def device(kind, **attributes):
        return types.SimpleNamespace(device_kind=kind, **attributes)

    assert chips.chip_of(device("TPU v5 lite")) is chips.TPUS["v5e"]
    assert chips.chip_of(device("TPU v5p")) is chips.TPUS["v5p"]
    assert chips.chip_of(device("TPU v5")) is chips.TPUS["v5p"]
    assert chips.chip_of(device("NVIDIA H100 PCIe")).peak == 756e12
    assert chips.chip_of(device("NVIDIA H100 80GB HBM3")).peak == 989e12
    assert chips.chip_of(device("cpu")) is None
    cores = [
        device("TPU v3", coords=(x, 0, 0), id=2 * x + c) for x in (0, 1) for c in (0, 1)
    ]
    assert chips.count_chips(cores) == 2
    assert chips.count_chips([device("NVIDIA A100", id=i) for i in range(3)]) == 3


def test_weights_and_biases(tmp_path, monkeypatch):
    """A stand-in for its package; a resumed run goes on under its id."""
    runs, logged = [], []

    def init(**options):
        runs.append(options)
        return types.SimpleNamespace(
            log=lambda metrics, step: logged.append((step, metrics)),
            finish=lambda exit_code: logged.append(exit_code),
        )

    workdir = epath.Path(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for first_step in (0, 1):
        with MetricsWriter(
            workdir, first_step=first_step, wandb_project="focal", config={"seed": 1}
        ) as writer:
            writer.write(first_step + 1, {"train/loss": 0.5})
    assert logged == [
        (1, {"train/loss": 0.5}),
        0,
        (2, {"train/loss": 0.5}),
        0,
    ]
    assert runs[0] == runs[1]
    assert runs[0]["project"] == "focal"
    assert runs[0]["resume"] == "allow"
    assert len(runs[0]["id"]) == 8

    with (
        pytest.raises(ZeroDivisionError),
        MetricsWriter(workdir, first_step=2, wandb_project="focal"),
    ):
        raise ZeroDivisionError
    assert logged[-1] == 1  # W&B shows that the run has failed

    (tmp_path / "wandb_run_id").write_text("../x")
    with pytest.raises(SetupError, match="wandb_run_id is damaged: it holds '../x', and"):
        MetricsWriter(workdir, first_step=2, wandb_project="focal")

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SetupError, match="pip install wandb"):
        MetricsWriter(workdir, first_step=2, wandb_project="focal")
