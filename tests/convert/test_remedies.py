"""Each way out that a message names is taken by the function or tool that shows it."""

import collections
import dataclasses
import inspect
import re
import shlex

import numpy as np
import pytest
from odd_values import objects_for
from tiny import TINY, random_params, tiny_backbone, tiny_model

from focalnet_jax import load_model
from focalnet_jax.command_line import assigned
from focalnet_jax.convert import __main__ as convert
from focalnet_jax.convert import from_torch, infer_model, to_torch
from focalnet_jax.convert.model_arguments import reading, spell
from focalnet_jax.convert.reading import _VALUES, Reading
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.parity import __main__ as parity
from focalnet_jax.values import Values

OPTIONS = {field.name for field in dataclasses.fields(Reading)}


def test_every_door_takes_all_options_of_reading():
    parameters = inspect.signature(load_model).parameters.values()
    keywords = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}
    assert keywords == OPTIONS
    for tool, needed in ((convert, ["a", "b"]), (parity, ["--torch=a"])):
        assert reading(tool.parse(needed)) == Reading(ignore=[])
    from_torchs = inspect.signature(from_torch).parameters.keys()
    # The model is given to it, which says the name; and images it does not prepare.
    assert OPTIONS - from_torchs == {"name", "image_size"}


def prefixed(weights, prefix):
    return {f"{prefix}.{name}": tensor for name, tensor in weights.items()}


def faults(weights):
    """By name: weights, and options of the model that do not suffice for them."""
    nan = {"norm.bias": weights["norm.bias"] * np.nan}
    other = {"transformer.weight": np.zeros(2)}
    cut = {n: t for n, t in weights.items() if n != "layers.0.blocks.0.mlp.fc1.weight"}
    return {
        "prefix": (prefixed(weights, "student"), {}),
        "several": (prefixed(weights, "a") | prefixed(weights, "teacher"), {}),
        "outside": (prefixed(weights, "backbone.0") | other, {}),
        "foreign": (weights | other | {"n_averaged": np.zeros(())}, {}),
        "inside": (weights | {"layers.0.num_batches_tracked": np.zeros(())}, {}),
        "brackets": (weights | {"head[0]": np.zeros(1)}, {}),
        "nan": (weights | nan, {}),
        "classes": (weights, dict(num_classes=3)),
        "backbone": (weights, dict(out_stages=(0, 1))),
        "levels": (weights, dict(focal_levels=(3, 3))),
        "windows": (weights, dict(focal_windows=(9, 9))),
        "lacks": (cut, {}),
    }


NAMES = faults(dict.fromkeys(["norm.bias"], np.zeros(1))).keys()


@pytest.fixture
def weights():
    model = tiny_model()
    return to_torch(random_params(model, "float32"), model, dialect="microsoft")


def as_flags(options):
    return [f"--set={name}={value}" for name, value in options.items()]


@pytest.mark.parametrize("name", NAMES)
def test_what_python_is_told_helps(name, weights, tmp_path):
    tensors, options = faults(weights)[name]
    write_weights(tmp_path / "a.safetensors", tensors)
    with pytest.raises(SetupError) as error:
        load_model(tmp_path / "a.safetensors", **options)
    remedies = error.value.remedies
    assert remedies
    for option, value in remedies.items():
        assert f"{option}={value!r}" in str(error.value)
    if name == "lacks":  # The name makes clear what is missing, but not what was there.
        with pytest.raises(SetupError, match=r"mlp.fc1.weight \[32, 8\] is missing"):
            load_model(tmp_path / "a.safetensors", **remedies, **TINY)
        return
    load_model(tmp_path / "a.safetensors", **options, **remedies)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_tools_tell_helps(name, weights, tmp_path):
    tensors, options = faults(weights)[name]
    write_weights(tmp_path / "a.safetensors", tensors)
    arguments = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors")]
    with pytest.raises(SetupError) as error:
        convert.main([*arguments, *as_flags(options)])
    shown = error.value.spelt(spell, assigned)
    remedies = re.findall(r"--[a-z-]+(?:=(?:'[^']*'|[^\s,;:']+)+)?", shown)
    assert remedies
    remedies = [word for remedy in remedies for word in shlex.split(remedy)]
    remedies = [word for word in remedies if word != "--model"]  # "by --model, such as"
    parity.parse(["--torch=a", *remedies])
    if name == "lacks":
        with pytest.raises(SetupError, match=r"mlp.fc1.weight \[32, 8\] is missing"):
            convert.main([*arguments, *remedies, *as_flags(TINY)])
        return
    convert.main([*arguments, *as_flags(options), *remedies])
    assert (tmp_path / "b.safetensors").exists()


def test_misfits_of_many_tensors_are_counted(weights):
    detector = prefixed(weights, "backbone.0")
    detector |= {f"decoder.{i}.weight": np.zeros(2) for i in range(1200)}
    with pytest.raises(SetupError) as error:
        from_torch(detector, tiny_model())
    lines = str(error.value).splitlines()
    assert (
        "  1,200 tensors are not of the FocalNet: prefix='backbone.0' takes" in lines[1]
    )
    assert "  and 1,192 more like the last of these" in lines
    assert len(lines) < 15


def test_models_without_a_head_take_classifiers(weights, tmp_path, caplog):
    """Without a head there is nothing new, so nothing has to be allowed."""
    path = tmp_path / "a.safetensors"
    write_weights(path, weights)
    features = load_model(path, num_classes=0)
    assert features.model.num_classes == 0
    assert "head" not in features.params
    assert "the model has no head: head.bias, head.weight are left out" in caplog.text
    stages = load_model(path, out_stages=(1,), out_norm=False)
    assert stages.params.keys() == {"patch_embed", "layers_0", "layers_1"}
    np.testing.assert_array_equal(
        from_torch(weights, tiny_backbone(out_norm=False))["patch_embed"]["proj"]["bias"],
        weights["patch_embed.proj.bias"],
    )


def test_load_model_knows_its_own_options(weights, tmp_path):
    path = tmp_path / "a.safetensors"
    write_weights(path, weights)
    for given, meant in (
        ("imagesize", "image_size"),
        ("allow_nans", "allow_nan"),
        ("depth", "depths"),
        ("numclasses", "num_classes"),
    ):
        with pytest.raises(
            SetupError, match=f"no option '{given}'; did you mean '{meant}"
        ):
            load_model(path, **{given: 1})
    assert load_model(path, image_size=160).preprocessing.image_size == 160
    for size in (0, 2.5, "big", True):
        with pytest.raises(SetupError, match="is no size in pixels"):
            load_model(path, image_size=size)
    said = r"image_size=3 is too small for focalnet_tiny_srf, which needs 8 x 8 \(or pad_"
    with pytest.raises(SetupError, match=said):
        load_model(path, image_size=3)
    with pytest.raises(SetupError, match=r"image_size=\(32, 7\) is too small"):
        load_model(path, image_size=(32, 7))
    load_model(path, image_size=3, pad_to_patch=True)
    with pytest.raises(SetupError, match="head='reste' is unknown; did you mean 'reset'"):
        load_model(path, head="reste")
    with pytest.raises(SetupError, match="tensors are given, not a path"):
        load_model(weights)
    for nothing in ("", None, 3, tiny_model()):
        with pytest.raises(SetupError, match="is neither a path nor a name") as error:
            load_model(nothing)
        assert "\n" not in str(error.value)


def made_or_message(name, value):
    try:
        return getattr(Reading(**{name: value}), name), None
    except SetupError as error:
        return None, str(error)


def test_odd_arguments_are_one_line_or_kept():
    """`Reading` is made by each door before anything is read."""
    counts = collections.Counter()
    for name in OPTIONS:
        takes = _VALUES.get(name, Values())  # That of image_size is no description.
        for value in objects_for(takes):
            kept, message = made_or_message(name, value)
            counts["refused" if message else "kept"] += 1
            if message:
                assert "\n" not in message
                assert message.startswith(f"{name}=")
                assert len(message) < 400
            elif name != "image_size":
                assert kept == (None if value is None else takes.convert(value))
    assert min(counts.values()) > 100


def test_odd_arguments_are_one_line_at_each_door(weights, tmp_path):
    model = tiny_model()
    for given, message in (
        (dict(seed="a"), "seed='a' is not a whole number from 0 to 4,294,967,295"),
        (dict(seed=2**32), "seed=4294967296 is not .*; the nearest is 4294967295"),
        (dict(ignore=3), "ignore=3 is not a tuple of patterns"),
        (dict(ignore=None), "ignore=None is not a tuple of patterns"),
        (dict(prefix=""), "prefix='' is empty: leave it out to take all names"),
        (dict(allow_nan="x"), "allow_nan='x' is not True or False"),
    ):
        with pytest.raises(SetupError, match=message):
            load_model("a.safetensors", **given)
        with pytest.raises(SetupError, match=message):
            from_torch(weights, model, **given)
    with pytest.raises(SetupError, match="name=3 is not a text"):
        load_model("a.safetensors", name=3)
    with pytest.raises(SetupError, match="wrapper=3 is not a name"):
        infer_model(weights, wrapper=3)
    with pytest.raises(SetupError, match=r"no dialect is named \['timm'\]"):
        from_torch(weights, model, dialect=["timm"])
    with pytest.raises(SetupError, match="'focalnet_tiny_srf' is no model: give what cr"):
        from_torch(weights, "focalnet_tiny_srf")
    write_weights(tmp_path / "a.safetensors", weights)
    assert "head" not in load_model(tmp_path / "a.safetensors", ignore="head.*").params


def test_odd_seeds_are_one_line_at_the_tools(capsys):
    for tool, needed in ((convert, ["a", "b"]), (parity, ["--torch=a"])):
        for seed in ("99999999999999999999", "-1", "a", "9" * 5000):
            with pytest.raises(SystemExit):
                tool.parse([*needed, f"--seed={seed}"])
            last = capsys.readouterr().err.splitlines()[-1]
            assert "is not a whole number from 0 to 4,294,967,295" in last
            assert len(last) < 300
