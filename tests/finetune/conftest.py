"""Folders of images whose classes are told by their colours."""

import pathlib

import numpy as np
import PIL.Image
import pytest

COLORS = {"red": (200, 40, 40), "grün": (40, 180, 60), "deep blue": (40, 60, 200)}


@pytest.fixture
def write_image():
    """A function that writes an image of one colour with noise."""

    def write(path, color=(90, 90, 90), seed=0):
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(-30, 30, (20, 24, 3))
        pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(path)

    return write


@pytest.fixture
def make_folder(tmp_path, monkeypatch, write_image):
    """A function that makes `photos/CLASS/x.png` in the cwd, and returns its path."""
    monkeypatch.chdir(tmp_path)

    def make(counts=None, *, place="photos"):
        counts = dict.fromkeys(COLORS, 6) if counts is None else counts
        for number, (name, count) in enumerate(counts.items()):
            color = COLORS.get(name, (90, 90, 30 * number))
            for index in range(count):
                seed = 1000 * number + index
                write_image(tmp_path / place / name / f"{index}.png", color, seed)
        return tmp_path / place

    return make
