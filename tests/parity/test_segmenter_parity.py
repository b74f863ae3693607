"""`python -m focalnet_jax.parity` on segmenters, in float64 and end to end."""

import sys

import jax
import pytest
from tiny import tiny_segmenter, write_segmenter

from focalnet_jax.convert.dialects import Dialect
from focalnet_jax.errors import SetupError
from focalnet_jax.parity.__main__ import main


@pytest.fixture
def path(tmp_path):
    """A checkpoint of mmsegmentation; at the end JAX is set as before."""
    write_segmenter(tmp_path / "segmenter.pth")
    before = {
        name: getattr(jax.config, name)
        for name in ("jax_enable_x64", "jax_default_matmul_precision")
    }
    yield tmp_path / "segmenter.pth"
    for name, value in before.items():
        jax.config.update(name, value)


def run(path, *arguments):
    # Sides that don't divide by the patches, so that transformers pads them.
    size = "--image-size=41x56"
    return main([f"--torch={path}", size, "--precision=float64", *arguments])


def test_heads_of_mmsegmentation(mmseg, peers, path, capsys):
    assert run(path) is True
    printed = capsys.readouterr().out
    assert "transformers' encoder with the heads of mmsegmentation, float64" in printed
    rows = [line.split()[0] for line in printed.splitlines() if "e-" in line]
    assert rows[: rows.index("logits") + 1] == [
        "stem",
        "stage0/block0",
        "stage0/downsample",
        "stage1/block0",
        "stage1/block1",
        "auxiliary_logits",
        "logits",
    ]


def test_heads_of_transformers_where_the_others_are_not_there(
    peers, path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "mmseg", None)
    assert run(path) is True
    printed = capsys.readouterr().out
    assert "mmsegmentation's heads are left, because it is not installed" in printed
    assert "transformers' encoder with the heads of transformers, float64" in printed


def test_a_mistake_in_a_layout_is_found(peers, path, capsys, monkeypatch):
    from_torch = Dialect.from_torch

    def mistaken(self, path, array):
        array = from_torch(self, path, array)
        is_chosen = path == "decode_head/fpn_bottleneck/conv/kernel"
        return array.swapaxes(0, 1) if is_chosen else array

    monkeypatch.setattr(Dialect, "from_torch", mistaken)
    assert run(path, "--against=transformers") is False
    assert "the first layer beyond the tolerance is logits" in capsys.readouterr().out


def test_what_is_for_classifiers(path, peers):
    with pytest.raises(SetupError, match="has no net for a Segmenter: give mmsegm"):
        run(path, "--against=timm")
    with pytest.raises(SetupError, match="--golden is for classifiers"):
        run(path, "--golden")


def test_segmenters_without_auxiliary_head(peers, tmp_path, path):
    write_segmenter(tmp_path / "one.pth", tiny_segmenter(auxiliary_channels=0))
    assert run(tmp_path / "one.pth", "--against=transformers") is True
