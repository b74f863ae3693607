"""What JSON files beside weights say: heeded, or said why not."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from tiny import ODD_VALUES, TINY, random_images, random_params, tiny_backbone, tiny_model

from focalnet_jax import create_model, load_model
from focalnet_jax.convert import (
    configs,
    from_torch,
    image_processors,
    infer_model,
    to_torch,
)
from focalnet_jax.convert.__main__ import main
from focalnet_jax.convert.reading import Reading
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.convert.weights_and_model import read_weights_and_model
from focalnet_jax.errors import SetupError

TIMM = {"architecture": "focalnet_tiny_srf"}
TIMM_ARGUMENTS = {**TINY, "num_classes": 5}


@pytest.fixture
def place(tmp_path):
    """Writes weights and files beside them, and returns the directory."""

    def place(dialect, files, model=None):
        model = model or tiny_model()
        tensors = to_torch(random_params(model, "float32"), model, dialect=dialect)
        write_weights(tmp_path / "model.safetensors", tensors)
        for name, content in files.items():
            (tmp_path / name).write_text(
                content if isinstance(content, str) else json.dumps(content)
            )
        return tmp_path

    return place


def preprocessor(**entries):
    return {"size": {"shortest_edge": 182}, "crop_size": 160, "resample": 2} | entries


def read(directory, **options):
    return read_weights_and_model(directory, Reading(), options)


def test_every_way_in_gives_what_the_files_say(place, caplog):
    directory = place(
        "transformers",
        {
            "config.json": {
                "model_type": "focalnet",
                "normalize_modulator": True,
                "use_post_layernorm": True,
                "drop_path_rate": 0.1,
                "hidden_sizes": [1, 2, 3],
                "id2label": dict(enumerate("abcde")),
            },
            "preprocessor_config.json": preprocessor(image_mean=[0.5] * 3),
        },
    )
    main([str(directory), str(directory / "converted")])
    main([str(directory), str(directory / "ours.safetensors")])
    for source in (
        directory,
        directory / "model.safetensors",
        directory / "converted",
        directory / "ours.safetensors",
    ):
        loaded = load_model(source)
        encoder = loaded.model.encoder
        assert (encoder.normalize_modulator, encoder.use_postln) == (True, True)
        assert encoder.drop_path_rate == 0.1
        assert loaded.preprocessing.image_size == 160
        assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
        assert loaded.preprocessing.interpolation == "bilinear"
        assert int(160 / loaded.preprocessing.crop) == 182
        assert loaded.classes == tuple("abcde")
    assert not caplog.records
    name, options = infer_model(directory / "model.safetensors")
    assert create_model(name, **options) == load_model(directory).model
    main([str(directory), str(directory / "new"), "--head=reset", "--num-classes=3"])
    assert load_model(directory / "new").classes is None


def test_timms_config_is_read_in_both_of_its_forms(place):
    options = dict(normalize_modulator=True, layerscale_value=1e-3)
    inner = dict(input_size=[3, 96, 96], mean=[0.5] * 3, crop_pct=1.0, num_classes=5)
    for config in (
        TIMM
        | dict(pretrained_cfg=inner, model_args=TIMM_ARGUMENTS | options)
        | dict(label_names=list("abcde")),
        TIMM | inner | dict(model_args=TIMM_ARGUMENTS | options, labels=list("abcde")),
    ):
        model = tiny_model(use_layerscale=True)
        loaded = load_model(place("timm", {"config.json": config}, model))
        assert loaded.model.encoder.normalize_modulator
        assert loaded.model.encoder.layerscale_value == 1e-3
        assert loaded.preprocessing.image_size == 96
        assert loaded.preprocessing.mean == (0.5, 0.5, 0.5)
        assert loaded.classes == tuple("abcde")


@pytest.mark.parametrize("options", [dict(normalize_modulator=True), {}], ids=str)
def test_timm_computes_the_same(options, peers, torch, tmp_path):
    """A directory that timm itself writes."""
    import timm
    from timm.models.focalnet import _create_focalnet

    # timm's function of this name does not take other depths.
    arguments = TIMM_ARGUMENTS | options
    peer = _create_focalnet("focalnet_large_fl4", **arguments).eval()
    timm.models.save_for_hf(peer, tmp_path, safe_serialization=True, model_args=arguments)
    model, params, preprocessing = load_model(tmp_path)
    images = random_images()
    logits, _ = jax.jit(model.apply)({"params": params}, images)
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = peer(pixels).numpy()
    # Sums in another order, in float32.
    np.testing.assert_allclose(logits, theirs, atol=1e-5)
    assert preprocessing.image_size == 384


def notes_of(found):
    return "\n".join(found.notes)


def test_what_was_assumed_is_said_once(place):
    notes = read(place("microsoft", {})).notes
    assert notes == (
        "not visible in the weights, so as in focalnet_tiny_srf: "
        "normalize_modulator=False, use_postln=False",
        "nothing says how images are prepared for these weights, so the preprocessing of "
        "the official evaluation is assumed: image_size=224, mean=(0.485, 0.456, 0.406), "
        "std=(0.229, 0.224, 0.225), interpolation=bicubic, crop=0.875",
    )
    config = {"model_type": "focalnet", "image_size": 96}
    found = read(place("transformers", {"config.json": config}))
    assert found.description.preprocessing.image_size == 96
    [note] = found.notes
    assert "nothing says how images are prepared" in note
    assert "image_size" not in note


@pytest.mark.parametrize(
    ("config", "note"),
    [
        (dict(layer_norm_eps=1e-6), "layer_norm_eps=1e-06"),
        (dict(label2id={"a": [1]}), "label2id that do not name the classes"),
        (dict(depths=[2, 2, 6, 2]), "says depths=(2, 2, 6, 2); the weights have depths"),
        (dict(num_channels=4), "says in_channels=4; the weights have in_channels=3"),
        (dict(mlp_ratio=3.0), "says mlp_ratio=3.0; the weights have mlp_ratio=4.0"),
        (dict(use_layerscale=True), "says use_layerscale=True; the weights have"),
        (dict(id2label={"0": "a", "1": "b"}), "names 2 classes, and the head has 5"),
        (dict(id2label={"1": "a", "2": "b"}), "id2label that do not name the classes"),
        (
            dict(id2label=dict(enumerate("abcde")), label2id={"a": 1}),
            "contradict each other",
        ),
        (dict(architectures=["FocalNetBackbone"]), "of a FocalNetBackbone"),
        (dict(image_size=[96]), "image_size=[96], which is no size"),
        (dict(image_size=96), "makes images of 160 pixels, which is taken"),
    ],
    ids=str,
)
def test_what_transformers_config_says_in_vain_is_said(config, note, place):
    files = {
        "config.json": {"model_type": "focalnet"} | config,
        "preprocessor_config.json": preprocessor(),
    }
    [given] = read(place("transformers", files)).notes
    assert note in given


@pytest.mark.parametrize(
    ("config", "note"),
    [
        (dict(model_args={"norm_layer": "x"}), "not heeded: 'norm_layer'"),
        (dict(num_classes=7), "says num_classes=7; the weights have num_classes=5"),
        (dict(pretrained_cfg={"crop_mode": "border"}), "crop_mode='border'"),
        (dict(label_names=["a"]), "names 1 classes, and the head has 5"),
    ],
    ids=str,
)
def test_what_timms_config_says_in_vain_is_said(config, note, place):
    arguments = TINY | config.pop("model_args", {})
    config = {
        "num_classes": 5,
        "pretrained_cfg": {"crop_pct": 0.9},
        "model_args": arguments,
    } | config
    [given] = read(place("timm", {"config.json": TIMM | config})).notes
    assert note in given


@pytest.mark.parametrize(
    ("dialect", "files", "message"),
    [
        ("transformers", {"config.json": "{"}, "config.json, beside the weights, is dam"),
        ("transformers", {"config.json": "[]"}, "holds list, not an object"),
        ("timm", {"preprocessor_config.json": "?"}, "preprocessor_config.json, beside"),
        (
            "transformers",
            {"config.json": {"model_type": "focalnet", "hidden_act": "relu"}},
            "hidden_act='relu', and the MLPs of this package have the exact GELU alone",
        ),
        (
            "transformers",
            {"config.json": {"model_type": "focalnet", "normalize_modulator": "yes"}},
            "normalize_modulator='yes', which is not True or False",
        ),
        (
            "transformers",
            {"config.json": {"model_type": "focalnet", "drop_path_rate": "x"}},
            "drop_path_rate='x', which is not a number",
        ),
        (
            "transformers",
            {"config.json": {"model_type": "focalnet", "layer_norm_eps": "1e-5"}},
            "config.json has layer_norm_eps='1e-5', which is not a number in [0, 1]",
        ),
        (
            "transformers",
            {"processor_config.json": {"image_processor": [1]}},
            "processor_config.json has image_processor=[1], which is not an object",
        ),
        ("timm", {"config.json": TIMM | {"global_pool": "max"}}, "global_pool='max'"),
        ("timm", {"config.json": TIMM | {"model_args": [1]}}, "model_args=[1], which is"),
    ],
    ids=str,
)
def test_what_makes_other_logits_is_refused_in_one_line(dialect, files, message, place):
    with pytest.raises(SetupError) as error:
        load_model(place(dialect, files))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Each file's entries by their place, and what stands beside them there.
_SIZE_ENTRIES = ("shortest_edge", "longest_edge", "height", "width")
_ENTRIES = {
    ("config.json",): (
        {"model_type": "focalnet"},
        {*configs.TRANSFORMERS_OPTIONS, "hidden_act", "layer_norm_eps", "architectures"}
        | {"image_size", "id2label", "label2id", "model_type", "backbone_config"},
    ),
    ("config.json", "model_args"): (
        TIMM,
        {*configs.TIMM_OPTIONS, "global_pool", "norm_layer"},
    ),
    ("config.json", "pretrained_cfg"): (
        TIMM,
        {*image_processors.TIMM_ENTRIES, "test_input_size", "test_crop_pct"}
        | {"num_classes", "label_names", "labels"},
    ),
    ("config.json", ""): (
        TIMM,
        {"architecture", "model_args", "pretrained_cfg", "global_pool", "num_classes"}
        | {"label_names", "labels"},
    ),
    ("preprocessor_config.json",): (
        {"do_normalize": True},
        {*image_processors._PROCESSORS["Bit"], *image_processors._KNOWN_STEPS}
        | {"do_pad", "rescale_factor", "pretrained_cfg"}
        | {"image_processor_type", "feature_extractor_type"},
    ),
    ("preprocessor_config.json", ""): (
        {"image_processor_type": "ConvNextImageProcessor"},
        ("size", "crop_pct", "do_center_crop"),
    ),
    ("preprocessor_config.json", "size"): ({}, _SIZE_ENTRIES),
    ("preprocessor_config.json", "crop_size"): ({}, _SIZE_ENTRIES),
    ("processor_config.json",): ({}, ("image_processor",)),
}


@pytest.mark.parametrize("place", _ENTRIES, ids="/".join)
def test_odd_values_of_entries_are_read_or_refused_in_one_line(place, tmp_path):
    (name, *within), (content, entries) = place, _ENTRIES[place]
    for entry, value in itertools.product(sorted(entries), ODD_VALUES):
        given = {entry: value}
        if within and within[0]:
            given = {within[0]: {"height": 224, "width": 224} | given}
        (tmp_path / name).write_text(json.dumps(content | given))
        try:
            beside = configs.read_beside(epath.Path(tmp_path / "model.safetensors"))
        except SetupError as error:
            lines = [str(error)]
            assert name in lines[0], given
        else:
            lines = beside.notes
            if beside.preprocessing is not None:
                channels = len(beside.preprocessing.mean)
                pixels = np.full(channels, 255, np.uint8)
                assert np.isfinite(beside.preprocessing.normalize(pixels)).all(), given
        assert all("\n" not in line and len(line) < 1000 for line in lines), given


def test_a_processor_for_the_channels_of_its_model(place):
    files = {
        "config.json": {"model_type": "focalnet", "num_channels": 4},
        "preprocessor_config.json": preprocessor(
            image_mean=[0.1, 0.2, 0.3, 0.4], image_std=[0.5] * 4
        ),
    }
    found = read(place("transformers", files, tiny_model(in_channels=4)))
    assert found.description.preprocessing.mean == (0.1, 0.2, 0.3, 0.4)
    assert not found.notes


def test_files_of_other_models_are_not_heeded(place):
    files = {"config.json": {"model_type": "swin", "normalize_modulator": True}}
    found = read(place("transformers", files))
    assert not found.model.encoder.normalize_modulator
    assert "config.json beside the weights is of swin" in notes_of(found)


def test_the_caller_comes_before_the_files_and_hears_of_it(place):
    config = {"model_type": "focalnet", "normalize_modulator": True}
    directory = place("transformers", {"config.json": config})
    found = read(directory, normalize_modulator=False)
    assert not found.model.encoder.normalize_modulator
    assert (
        "says normalize_modulator=True; the caller gives normalize_modulator=False"
    ) in notes_of(found)


def test_what_shapes_do_not_show_is_settled_by_files_or_by_the_caller(place):
    one_stage = dict(depths=(2,), focal_levels=(1,), focal_windows=(5,), patch_size=7)
    model = tiny_model(**one_stage)
    directory = place("microsoft", {}, model)
    found = read(directory)
    assert found.model.encoder.use_conv_embed
    notes = notes_of(found)
    assert "whether the stem of 7x7 overlaps (use_conv_embed=True, which" in notes
    assert "stem_padding=2" in notes
    assert "focal_factor=2" in notes
    for options in (dict(patch_size=7), dict(use_conv_embed=False)):
        found = read(directory, **options)
        assert found.model == model
        assert "stem" not in notes_of(found)
    found = read(directory, use_conv_embed=True, stem_padding=3, focal_factor=4)
    assert found.model.encoder.stem_padding == 3
    assert "stem" not in notes_of(found)
    config = {"model_type": "focalnet", "patch_size": 7}
    directory = place("transformers", {"config.json": config}, model)
    assert read(directory).model == model
    assert "stem" not in notes_of(read(directory))


def test_a_backbone_without_norms_is_a_guess_that_is_said(place):
    directory = place("microsoft", {}, tiny_backbone(out_norm=False))
    assert "taken for a backbone with out_stages=(0, 1)" in notes_of(read(directory))
    assert "taken for" not in notes_of(read(directory, out_stages=(0, 1)))


def test_transformers_padding_is_said_where_it_matters(place):
    files = {
        "config.json": {"model_type": "focalnet"},
        "preprocessor_config.json": preprocessor(crop_size=162),
    }
    directory = place("transformers", files)
    assert "162 pixels are not a multiple of 8 x 8" in notes_of(read(directory))
    assert not read(directory, pad_to_patch=True).notes


def test_a_given_model_that_contradicts_is_said(place, caplog):
    config = {"model_type": "focalnet", "normalize_modulator": True}
    directory = place("transformers", {"config.json": config})
    from_torch(directory / "model.safetensors", tiny_model())
    assert (
        "says normalize_modulator=True; the model has normalize_modulator=False"
    ) in caplog.text


def test_the_same_parameter_twice_is_refused():
    model = tiny_model()
    tensors = to_torch(random_params(model, "float32"), model, dialect="timm")
    twice = "layers.0.blocks.0.norm1_post.weight"
    tensors[twice] = tensors["layers.0.blocks.0.norm1.weight"] + 1
    with pytest.raises(SetupError, match="norm1.weight are the same parameter"):
        from_torch(tensors, model)


def test_what_a_pickle_has_no_place_for_is_said(place, capsys, torch):
    names = dict(enumerate("abcde"))
    files = {
        "config.json": {"model_type": "focalnet", "id2label": names},
        "preprocessor_config.json": preprocessor(),
    }
    directory = place("transformers", files)
    main([str(directory), str(directory / "out.pth")])
    printed = capsys.readouterr().out
    assert "has no place for the preprocessing, image_size=160" in printed
    assert "names of 5 classes" in printed


def test_heads_of_unknown_classes_are_said(place):
    directory = place("microsoft", {}, tiny_model(num_classes=1000))
    assert "nothing says which 1,000 classes the head has" in notes_of(read(directory))


def test_a_name_leaves_preprocessing_and_classes_of_a_file(place):
    config = {"model_type": "focalnet", "id2label": dict(enumerate("abcde"))}
    directory = place(
        "transformers",
        {"config.json": config, "preprocessor_config.json": preprocessor()},
    )
    ours = directory / "ours.safetensors"
    main([str(directory), str(ours)])
    found = read_weights_and_model(ours, Reading(name="focalnet_tiny_srf"), TINY)
    assert found.description.preprocessing.image_size == 160
    assert found.description.classes == list("abcde")
    assert "its options are not taken, because a name is given" in notes_of(found)


@pytest.mark.parametrize(
    ("dialect", "use_conv_embed"),
    [("microsoft", True), ("timm", False), ("transformers", True)],
)
def test_rgb_weights_fit_other_channels(dialect, use_conv_embed, place, caplog):
    model = tiny_model(use_conv_embed=use_conv_embed)
    directory = place(dialect, {}, model)
    rgb = load_model(directory)
    grey = jax.random.normal(jax.random.key(0), (2, 32, 32, 1))
    expected, _ = model.apply({"params": rgb.params}, jnp.repeat(grey, 3, axis=-1))
    loaded = load_model(directory, in_channels=1)
    logits, _ = loaded.model.apply({"params": loaded.params}, grey)
    # A sum of three products becomes the product with a sum, in float32.
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert "green and blue are summed for one channel" in caplog.text
    assert loaded.preprocessing.mean == pytest.approx([np.mean((0.485, 0.456, 0.406))])
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert loaded.preprocessing(pixels).shape == (224, 224, 1)

    five = load_model(directory, in_channels=5)
    stem = rgb.params["patch_embed"]["proj"]["kernel"]
    adapted = five.params["patch_embed"]["proj"]["kernel"]
    np.testing.assert_allclose(adapted, stem[:, :, [0, 1, 2, 0, 1]] * 0.6, rtol=1e-6)
    assert "repeated for 5 channels and multiplied by 3/5" in caplog.text
    with pytest.raises(SetupError, match="the model takes 5 channels, and image files"):
        five.preprocessing(pixels)
    assert five.preprocessing.normalize(np.zeros((4, 4, 5))).shape == (4, 4, 5)


def test_channels_equal_those_of_timm(place, peers, torch):
    from timm.models import adapt_input_conv

    draws = np.random.default_rng(0).normal(size=(8, 3, 4, 4)).clip(-2, 2)
    stem = torch.from_numpy(draws.astype(np.float32))
    model = tiny_model()
    tensors = to_torch(random_params(model, "float32"), model, dialect="timm")
    tensors["stem.proj.weight"] = stem.numpy()
    directory = place("timm", {})
    write_weights(directory / "model.safetensors", tensors)
    for channels in (1, 2, 4, 7):
        params = load_model(directory, in_channels=channels).params
        ours = np.asarray(params["patch_embed"]["proj"]["kernel"]).transpose(3, 2, 0, 1)
        theirs = adapt_input_conv(channels, stem)
        # They sum in float32, and here in float64: three roundings of values below 8,
        # each of at most 2.4e-7. The bound is absolute, for a sum may come close to zero.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_only_rgb_weights_are_adapted(place):
    directory = place("microsoft", {}, tiny_model(in_channels=4))
    with pytest.raises(SetupError, match="in_channels is 4 there, 3 in the model"):
        load_model(directory, in_channels=3)
