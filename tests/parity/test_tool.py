"""The command line `python -m focalnet_jax.parity`."""

import pathlib
import subprocess
import sys
import xml.etree.ElementTree

import jax
import numpy as np
import PIL.Image
import pytest
from tiny import random_params, tiny_model

from focalnet_jax.convert import to_torch
from focalnet_jax.convert.dialects import Dialect
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.parity import golden
from focalnet_jax.parity.__main__ import main
from focalnet_jax.parity.compare import Comparison, Difference, Verdict, difference, table
from focalnet_jax.parity.report import picture


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A function that writes weights in a dialect; at the end JAX is set as before."""
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    params = random_params(model, "float32")

    def write(dialect, **changes):
        path = tmp_path / f"{dialect}.safetensors"
        write_weights(path, to_torch(params, model, dialect=dialect) | changes)
        return path

    before = {
        name: getattr(jax.config, name)
        for name in ("jax_enable_x64", "jax_default_matmul_precision")
    }
    yield write
    for name, value in before.items():
        jax.config.update(name, value)


def run(*arguments):
    return main(["--image-size=32", *arguments])


@pytest.mark.parametrize(
    ("dialect", "options", "peer"),
    [
        ("microsoft", [], "transformers, float32"),
        ("timm", ["--precision=float64"], "timm, float64"),
        ("transformers", ["--against=timm"], "timm, float32"),
    ],
)
def test_both_sides_agree(dialect, options, peer, weights, peers, capsys):
    assert run(f"--torch={weights(dialect)}", "--report=page.html", *options) is True
    printed = capsys.readouterr().out
    assert f"against {peer}, 4 images of 32 x 32 pixels" in printed
    rows = [line.split()[0] for line in printed.splitlines() if "e-" in line]
    assert rows[: rows.index("logits") + 1] == [
        "stem",
        "stage0/block0",
        "stage0/downsample",
        "stage1/block0",
        "stage1/block1",
        "pre_logits",
        "logits",
    ]
    assert "\nPASS: " in printed
    assert "top-1 agreement 100.0%" in printed
    assert "both have normalize_modulator=False, use_postln=False; only" in printed
    page = pathlib.Path("page.html").read_text()
    assert "PASS" in page
    assert "stage1/block1" in page


def test_heads_may_be_other_than_those_of_the_weights(weights, peers, capsys):
    path = weights("timm")
    for options in (["--set=num_classes=0"], ["--head=reset", "--set=num_classes=3"]):
        assert run(f"--torch={path}", *options) is True
        assert "\nPASS: " in capsys.readouterr().out


def test_a_mistake_in_the_layouts_is_found(weights, peers, monkeypatch):
    """The way back would undo the mistake, but PyTorch has the original tensors."""
    from_torch = Dialect.from_torch

    def mistaken(self, path, array):
        array = from_torch(self, path, array)
        return array.T if path.endswith("/h/kernel") else array

    monkeypatch.setattr(Dialect, "from_torch", mistaken)
    assert run(f"--torch={weights('timm')}") is False
    assert run(f"--torch={weights('microsoft')}") is False


@pytest.mark.parametrize("peer", ["timm", "transformers"])
def test_images_that_are_no_squares(peer, weights, peers, capsys):
    arguments = [f"--torch={weights('timm')}", f"--against={peer}"]
    assert run(*arguments, "--image-size=24x48") is True
    assert "4 images of 24 x 48 pixels" in capsys.readouterr().out


def test_bad_arguments_end_the_program(weights, capsys):
    for argument in (
        "--batch-size=0",
        "--image-size=-1",
        "--image-size=24x",
        "--report=x.html",
        "--report=x.pdf",
        "--tolerance=1e-3",
        "--tolerance=nan",
        "--tolerance=-1",
        "--against=timm",
        "--batch-size=4",
        "--images=https://example.org/images",
    ):
        with pytest.raises(SystemExit):
            main([f"--torch={weights('timm')}", "--golden", argument])
    assert "error: " in capsys.readouterr().err


def test_images_of_a_directory(weights, peers, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(3):
        pixels = rng.integers(0, 256, (50, 40 + index, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    command = f"--torch={weights('timm')}", "--images=images", "--batch-size=2"
    assert run(*command) is True
    assert "3 images of 32 x 32 pixels" in capsys.readouterr().out
    (tmp_path / "images" / "broken.png").write_bytes(b"nothing")
    with pytest.raises(SetupError, match=r"broken.png is no readable image"):
        run(*command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--torch=none.pth"], "no file, directory or release is named 'none.pth'"),
        (["--torch=timm.safetensors", "--images=none"], "there is no directory .*none"),
        (["--torch=timm.safetensors", "--images=timm.safetensors"], "is a file: give"),
        (["--torch=timm.safetensors", "--set=dtype=float16"], "here --precision says"),
        (
            ["--torch=timm.safetensors", "--head=reset", "--set=out_stages=(0,1)"],
            "--head=reset --set=num_classes=0 compares the encoder",
        ),
        (["--torch=timm.safetensors", "--images=."], "holds no images"),
        (["--torch=timm.safetensors", "--golden"], "head is not that of ImageNet-1K"),
    ],
)
def test_errors(arguments, message, weights, peers):
    weights("timm")
    with pytest.raises(SetupError, match=message):
        run(*arguments)


def test_golden_logits(weights, monkeypatch, tmp_path, capsys):
    """The release and the photograph are made up here."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / golden.IMAGE, quality=95)
    path = weights("microsoft")
    monkeypatch.setattr(golden, "NUM_CLASSES", 5)
    command = f"--torch={path}", "--golden", f"--images={tmp_path}"
    assert run(*command) is False
    printed = capsys.readouterr().out
    assert "FAIL" in printed
    [line] = [line for line in printed.splitlines() if line.startswith("given")]
    given = tuple(float(word) for word in line.split("[")[1].rstrip("]").split())
    monkeypatch.setitem(golden.LOGITS, "focalnet_tiny_srf", given)
    assert run(*command) is True
    assert "PASS" in capsys.readouterr().out


def test_the_golden_image_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(golden, "_URL", "http://localhost:9/none")
    with pytest.raises(SetupError, match=r"for --golden, put 000000039769.jpg of COCO's"):
        golden.golden_image(tmp_path)
    with pytest.raises(
        SetupError, match="golden logits are known for focalnet_tiny_srf,"
    ):
        golden.golden_logits("focalnet_huge_fl3")


def test_measures():
    ours, theirs = np.array([1.0, 2.0, 4.5]), np.array([1.0, 2.0, 4.0])
    found = difference("x", ours, theirs)
    assert found.max_error == 0.5
    assert found.mean_error == pytest.approx(0.5 / 3)
    assert found.relative_error == 0.125
    assert found.cosine == pytest.approx(23 / np.sqrt(25.25 * 21))
    with pytest.raises(ValueError, match=r"x has shape \(3,\) here, \(2,\) there"):
        difference("x", ours, theirs[:2])
    assert "x" in table([found])


def test_ratios_have_floors():
    """No division by zero: all-zero outputs agree, and tiny ones have no digits."""
    zero, one = np.zeros(3), np.ones(3)
    same = difference("x", zero, zero)
    assert (same.relative_error, same.cosine) == (0, 1)
    other = difference("x", one, zero)
    assert other.relative_error > 1e30
    assert other.cosine == 0
    # JAX rounds what is below the normal numbers of float32 to zero.
    assert difference("x", zero, np.full(3, 1e-40)).relative_error < 2e-8
    assert difference("x", one * 1e-25, one * 1.1e-25).relative_error > 0.05
    assert difference("x", one * 1e-200, one * 1e-200).cosine == 1
    for bad in (np.nan, np.inf):
        both = difference("x", one * bad, one * bad)
        assert np.isnan(both.relative_error)


def test_what_is_not_finite_never_passes():
    net = {"stem": np.ones((2, 3)), "logits": np.eye(2, 3)}
    for bad in (np.nan, np.inf, -np.inf):
        wrong = net | {"stem": np.full((2, 3), bad)}
        for ours, theirs in ((wrong, wrong), (wrong, net), (net, wrong)):
            verdict = verdict_of((ours, theirs))
            assert not verdict.passes
            assert "in stem (tolerance" in str(verdict)
            assert picture(verdict).count("<svg") == 1


def verdict_of(*batches):
    comparison = Comparison(1e-5)
    for ours, theirs in batches:
        comparison.add(ours, theirs)
    return comparison.verdict()


def test_verdicts():
    net = {"stem": np.ones((2, 3)), "logits": np.eye(2, 3)}
    assert verdict_of((net, net)).passes
    other_class = net | {"logits": np.array([[1, 1.000001, 0], [0, 1, 0]])}
    assert not verdict_of((other_class, net)).passes
    assert verdict_of((other_class, net), (net, net)).top1_agreement == 0.75
    for bad in (2.0, np.nan):
        verdict = verdict_of((net | {"stem": net["stem"] * bad}, net), (net, net))
        assert not verdict.passes
        assert str(verdict).endswith("the first layer beyond the tolerance is stem")


def test_batches_count_as_their_whole():
    rng = np.random.default_rng(0)
    ours, theirs = ({"logits": rng.normal(size=(6, 5))} for _ in range(2))
    whole = verdict_of((ours, theirs)).differences[0]
    halves = [
        ({"logits": a}, {"logits": b})
        for a, b in zip(np.split(ours["logits"], [4]), np.split(theirs["logits"], [4]))
    ]
    parts = verdict_of(*halves).differences[0]
    for field in ("max_error", "mean_error", "relative_error", "cosine"):
        assert getattr(parts, field) == pytest.approx(getattr(whole, field), rel=1e-12)


def test_the_picture_is_drawn():
    layers = [Difference(f"layer{i}", 0, 0, i * 1e-7, 1) for i in range(100)]
    svg = picture(Verdict(layers, 1.0, 2e-5))
    assert xml.etree.ElementTree.fromstring(svg).tag.endswith("svg")
    assert "layer99" in svg


def test_the_program_ends_with_a_status(weights):
    """A process needs no torch to say what it lacks."""
    result = subprocess.run(
        [sys.executable, "-m", "focalnet_jax.parity", "--torch=none.safetensors"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr == (
        "error: no file, directory or release is named 'none.safetensors'\n"
    )


def test_a_peer_that_cannot_be_imported(peers, monkeypatch):
    """The last of several errors says little; the first one is told, and what helps."""

    def build(model):
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ImportError("Could not import module") from error

    monkeypatch.setitem(peers._PEERS, "timm", (build, None))
    message = r"operator torchvision::nms does not exist; .* --force-reinstall torch "
    with pytest.raises(SetupError, match=message):
        peers.build_peer("timm", tiny_model())
