"""Checkpoints in several files with an index of them."""

import json
import os

import numpy as np
import pytest
from sharded import write_shards

from focalnet_jax import load_model
from focalnet_jax.convert.weight_files import read_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.weights.params import find_params

TENSORS = {f"layers.{i}.weight": np.full(3, i, np.float32) for i in range(4)}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_all_files_are_read(suffix, tmp_path, torch):
    weights = read_weights(write_shards(tmp_path, TENSORS, suffix=suffix))
    assert weights.tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(weights.tensors[name], array)
    assert len(weights.sha256) == 64


def test_a_missing_file_is_said(tmp_path):
    index = write_shards(tmp_path, TENSORS)
    os.remove(tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(SetupError, match="2 files, of which 1 are not beside it: 'mo"):
        read_weights(index)


def test_one_file_alone_is_refused(tmp_path):
    index = write_shards(tmp_path, TENSORS)
    part = tmp_path / "model-00001-of-00002.safetensors"
    with pytest.raises(SetupError, match="is one of 2 parts of a checkpoint: give its"):
        read_weights(part)
    index.unlink()
    with pytest.raises(SetupError, match="get model.safetensors.index.json, which be"):
        read_weights(part)


def test_a_directory_of_parts_asks_for_the_index(tmp_path):
    index = write_shards(tmp_path, TENSORS)
    content = index.read_bytes()
    index.unlink()
    asked = "is one of 2 parts of a checkpoint: get model.safetensors.index.json, which"
    for door in (load_model, find_params):
        with pytest.raises(SetupError, match=asked):
            door(tmp_path)
    (tmp_path / "other.pth").touch()
    with pytest.raises(SetupError, match="give the path of the file that you mean"):
        load_model(tmp_path)
    (tmp_path / "other.pth").unlink()
    index.write_bytes(content)
    with pytest.raises(SetupError, match=f"convert {tmp_path} DIRECTORY"):
        find_params(tmp_path)


def test_index_and_files_must_say_the_same(tmp_path):
    index = write_shards(tmp_path, TENSORS)
    content = json.loads(index.read_text())
    content["weight_map"]["norm.bias"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(SetupError, match="'norm.bias' is in model-00001-of-00002.safete"):
        read_weights(index)
    for name in ("norm.bias", "layers.0.weight"):
        del content["weight_map"][name]
    index.write_text(json.dumps(content))
    assert "does not name 'layers.0.weight'" in read_weights(index).notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map": ', "is damaged: it is no JSON"),
        ('{"weight_map": null}', "weight_map is None, and should map"),
        ('{"weight_map": {}}', "weight_map is {}"),
        ('{"weight_map": ["a"]}', r"weight_map is \['a'\]"),
        ('{"weight_map": {"a": 3}}', r"weight_map\['a'\] is 3, and should be the name"),
        (f'{{"weight_map": {{"a": "{"x" * 300}"}}}}', r"weight_map\['a'\] is 'xxxxx"),
        (f'{{"weight_map": {{"a": "{"é" * 130}"}}}}', r"weight_map\['a'\] is 'ééééé"),
        ('{"weight_map": {"a": "../b"}}', r"weight_map\['a'\] is '../b'"),
        ('{"weight_map": {"a": "/etc/passwd"}}', r"weight_map\['a'\] is '/etc/passwd'"),
    ],
)
def test_a_damaged_index_is_one_line(content, message, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(SetupError, match=message) as error:
        read_weights(tmp_path / "model.safetensors.index.json")
    assert "\n" not in str(error.value)
