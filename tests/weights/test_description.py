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


def test_older_files_lack_the_newer_numbers():
    content = DESCRIPTION.to_json()
    assert not {"squash", "floor_offsets"} & content.keys()
    assert parse_description(
        json.dumps(content | {"squash": False}), origin="a file"
    ) == (DESCRIPTION)
    squash = dataclasses.replace(DESCRIPTION.preprocessing, squash=True)
    description = dataclasses.replace(DESCRIPTION, preprocessing=squash)
    text = json.dumps(description.to_json())
    assert parse_description(text, origin="a file") == description


def test_all_numbers_of_the_preprocessing_are_needed():
    for name in Preprocessing().to_json():
        content = DESCRIPTION.to_json()
        del content[name]
        with pytest.raises(SetupError, match=f"a file is no description.*{name}"):
            parse_description(json.dumps(content), origin="a file")
