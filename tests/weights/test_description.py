"""`model.json`: what it holds, and how it is read."""

import dataclasses
import json

import pytest

from focalnet_jax.errors import SetupError
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.weights.description import (
    ModelDescription,
    find_description,
    parse_description,
)

DESCRIPTION = ModelDescription(
    name="focalnet_tiny_srf",
    overrides={"num_classes": 5},
    preprocessing=Preprocessing(image_size=32, mean=(0.5,), std=(0.1,), crop=1.0),
    classes=list("abcde"),
)


def test_a_description_is_read_as_it_was_written(tmp_path):
    for description in (
        DESCRIPTION,
        dataclasses.replace(DESCRIPTION, source={"file": "a.pth"}),
    ):
        description.write(tmp_path)
        assert find_description(tmp_path) == description
        assert find_description(tmp_path / "checkpoints" / "7") == description


def test_the_task_comes_first_and_older_files_lack_it():
    content = DESCRIPTION.to_json()
    assert next(iter(content)) == "task"
    del content["task"]
    assert parse_description(json.dumps(content), origin="old") == DESCRIPTION


@pytest.mark.parametrize(
    ("given", "written", "read"),
    [(32, 32, 32), ((32, 32), 32, 32), ((24, 48), [24, 48], (24, 48))],
)
def test_the_size_of_a_square_is_one_number(given, written, read, tmp_path):
    """Readers that know squares alone read it, too."""
    preprocessing = dataclasses.replace(DESCRIPTION.preprocessing, image_size=given)
    dataclasses.replace(DESCRIPTION, preprocessing=preprocessing).write(tmp_path)
    assert json.loads((tmp_path / "model.json").read_text())["image_size"] == written
    assert find_description(tmp_path).preprocessing.image_size == read


@pytest.mark.parametrize("size", [0, -3, "big", [24], [24, 48, 3], None])
def test_a_size_that_cannot_be_is_said(size):
    content = DESCRIPTION.to_json() | {"image_size": size}
    with pytest.raises(SetupError, match="a file is no description.*is no size in pix"):
        parse_description(json.dumps(content), origin="a file")


def test_all_numbers_of_the_preprocessing_are_needed():
    for name in Preprocessing().to_json():
        content = DESCRIPTION.to_json()
        del content[name]
        with pytest.raises(SetupError, match=f"a file is no description.*{name}"):
            parse_description(json.dumps(content), origin="a file")
