"""`model.json`: what it holds, and how it is read."""

import dataclasses
import json

import numpy as np
import pytest
from tiny import ODD_VALUES

from focalnet_jax.errors import SetupError
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.weights.description import (
    ModelDescription,
    changed_options,
    create_of_any_kind,
    entries_that_differ,
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


def test_a_segmenter_has_a_scale_and_colours(tmp_path):
    description = dataclasses.replace(
        DESCRIPTION,
        overrides={"num_classes": 2, "head_channels": 8, "segment": True},
        classes=["sea", "land"],
        scale=[2048, 512],
        colors=[[0, 0, 200], [0, 200, 0]],
    )
    description.write(tmp_path)
    assert find_description(tmp_path) == description
    assert description.task == "semantic_segmentation"
    assert description.create().head_channels == 8


def test_options_that_make_another_net_are_found():
    name = "focalnet_tiny_srf"
    for overrides, expected in (
        ({}, []),
        ({"num_classes": 3, "drop_path_rate": 0.3, "dtype": "bfloat16"}, []),
        ({"depths": [2, 2, 6, 2], "embed_dim": 48}, ["embed_dim"]),
        (
            {"out_stages": (0,), "patch_size": 2, "mlp_ratio": 2},
            ["patch_size", "mlp_ratio"],
        ),
        ({"reconstruct": True, "focal_levels": (2, 2, 2, 1)}, ["focal_levels"]),
    ):
        model = create_of_any_kind(name, overrides)
        given = changed_options(name, model)
        assert sorted(given) == sorted(expected)


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(name="focalnet_tny"), "did you mean 'focalnet_t"),
        (dict(name=3), "name is '3', not the name of a variant"),
        (dict(scale=[2048]), "scale is '[2048]', not a list of 2 whole numbers"),
        (dict(colors=[[0, 0, 256]]), "colors is '[[0, 0, 256]]', not a list of "),
        (dict(overrides={"segment": 1}), "segment=1 says of no kind of model"),
        (dict(overrides=[]), "overrides is '[]', not options"),
        (dict(overrides={"depth": 3}), "no option 'depth'"),
        (dict(overrides={"depths": 3}), "depths=3 is not a tuple"),
        (dict(image_size=22.5), "image_size is '22.5', not a whole number"),
        (dict(image_size=True), "image_size is 'True'"),
        (dict(image_size=[24]), "image_size is '[24]'"),
        (dict(image_size=[24, 48, 3]), "image_size is '[24, 48, 3]'"),
        (dict(mean=0.5), "mean is '0.5', not a list of numbers"),
        (dict(mean=[float("nan")]), "mean is '[nan]'"),
        (dict(mean=[0.5, 0.5]), "mean and std differ in their number"),
        (dict(std=[0]), "std is '[0]', not a list of numbers in [1e-06, 1,000,000]"),
        (dict(std=[1e-320]), "std is '[1e-320]', not"),
        (dict(mean=[1e300]), "mean is '[1e+300]', not a list of numbers in [-1,0"),
        (dict(mean=[], std=[]), "mean is '[]', not a list of"),
        (dict(image_size="32"), "image_size is '32', not a whole number"),
        (dict(crop=float("inf")), "crop is 'inf', not a number in [0.1, 1]"),
        (dict(crop=1e-4), "crop is '0.0001', not a number in [0.1, 1]"),
        (dict(crop=5), "crop is '5', not a number in [0.1, 1]"),
        (dict(interpolation="cubic"), "interpolation is 'cubic', not"),
        (dict(classes="abcde"), "classes is 'abcde', not a list of names"),
        (dict(classes=[1]), "classes is '[1]'"),
        (dict(classes=list("abcdef")), "classes has 6 names, and the model has 5"),
        (dict(source="a.pth"), "source is 'a.pth', not what convert writes"),
        (dict(source={"dtype": "float12"}), "source is "),
        (dict(source={"dtype": {"norm/bias": 3}}), "source is "),
        (dict(version=2), "has the entry 'version', which is unknown here: a newer"),
        (dict(task="detection"), "is of the task 'detection'"),
    ],
)
def test_each_entry_is_checked(changes, message):
    text = json.dumps(DESCRIPTION.to_json() | changes)
    with pytest.raises(SetupError) as error:
        parse_description(text, origin="run/model.json")
    assert message in str(error.value)
    assert str(error.value).startswith("run/model.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entry", DESCRIPTION.to_json() | {"squash": 0, "source": 0})
def test_odd_values_are_read_or_refused_in_one_line(entry):
    for value in ODD_VALUES:
        text = json.dumps(DESCRIPTION.to_json() | {entry: value})
        message = ""
        try:
            preprocessing = parse_description(text, origin="model.json").preprocessing
        except SetupError as error:
            message = str(error)
        else:
            assert np.isfinite(preprocessing.normalize(np.uint8([255]))).all(), value
        assert "\n" not in message, value


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", b"\xff\xfe{", "[" * 10**5])
def test_what_is_no_json_object_is_one_line(text, tmp_path):
    path = tmp_path / "model.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (find_description, lambda path: entries_that_differ(path, {})):
        with pytest.raises(SetupError, match="model.json is ") as error:
            read(tmp_path)
        assert "\n" not in str(error.value)


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


def test_all_numbers_of_the_preprocessing_are_needed():
    for name in Preprocessing().to_json():
        content = DESCRIPTION.to_json()
        del content[name]
        with pytest.raises(SetupError, match=f"a file is no description.*{name}"):
            parse_description(json.dumps(content), origin="a file")
