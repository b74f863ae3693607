"""Directories that transformers and timm load, compared with both, and read back."""

import dataclasses
import json
import pathlib
import re

import chex
import jax
import numpy as np
import PIL.Image
import pytest
from tiny import random_params, tiny_backbone, tiny_model

from focalnet_jax import load_model
from focalnet_jax.convert import to_torch
from focalnet_jax.convert.configs import TIMM_OPTIONS
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.export import export_hub
from focalnet_jax.export.__main__ import main
from focalnet_jax.export.hub_files import SET_BY_TIMM
from focalnet_jax.models.variants import ENCODER_OPTIONS, VARIANTS
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.pretrained import Pretrained

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "export.md"
RNG = np.random.default_rng(0)
IMAGES = [
    PIL.Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
    # Of these, some give a crop whose place is between two pixels.
    for size in ((50, 61), (83, 50), (64, 64), (51, 47))
]
SMALL = Preprocessing(image_size=64)


def network(model, preprocessing=SMALL, classes=None):
    net = Pretrained(model, random_params(model, "float32"), preprocessing)
    net.classes = classes
    return net


def written(net, path):
    directory = export_hub(net)
    directory.write(path, overwrite=True)
    return directory


def both(net, torch, compute):
    """Our results for images of normal numbers, and what `compute` makes of them."""
    channels = net.model.encoder.in_channels
    images = RNG.normal(size=(2, 64, 32, channels)).astype(np.float32)
    ours, _ = jax.jit(net.model.apply)({"params": net.params}, images)
    with torch.no_grad():
        theirs = compute(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return np.asarray(ours), theirs.numpy()


def assert_close(ours, theirs):
    """Sums in another order, in float32: about ten roundings of 6e-8, in three blocks."""
    tolerance = 1e-5 * np.abs(ours).max()
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance)


EVERYTHING = dict(
    use_conv_embed=True,
    use_layerscale=True,
    layerscale_value=0.5,
    use_postln=True,
    use_postln_in_modulation=True,
    normalize_modulator=True,
    drop_rate=0.1,
    drop_path_rate=0.2,
)
MODELS = {
    "the usual one": tiny_model,
    "everything": lambda: tiny_model(**EVERYTHING),
    "three levels": lambda: tiny_model(focal_levels=(3, 2), focal_windows=(5, 3)),
    "small patches": lambda: tiny_model(patch_size=2, mlp_ratio=2.0),
    "shades of grey": lambda: tiny_model(in_channels=1),
    "padding": lambda: tiny_model(pad_to_patch=True),
    "no head": lambda: tiny_model(num_classes=0),
}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same(name, tmp_path, peers, torch):
    import transformers

    model = MODELS[name]()
    channels = (0.5,) * model.encoder.in_channels
    net = network(model, Preprocessing(image_size=64, mean=channels, std=channels))
    written(net, tmp_path / "net")
    kind = "FocalNetForImageClassification" if model.num_classes else "FocalNetModel"
    theirs, loading = getattr(transformers, kind).from_pretrained(
        tmp_path / "net", output_loading_info=True
    )
    assert not any(loading.values())
    assert theirs.config.architectures == [kind]
    result = "logits" if model.num_classes else "pooler_output"
    assert_close(*both(net, torch, lambda images: getattr(theirs.eval()(images), result)))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_again(name, tmp_path, caplog):
    model = MODELS[name]()
    channels = (0.25,) * model.encoder.in_channels
    preprocessing = Preprocessing(
        image_size=48, mean=channels, std=channels, crop=0.9, interpolation="lanczos"
    )
    classes = tuple("abcde") if model.num_classes else None
    net = network(model, preprocessing, classes)
    written(net, tmp_path / "net")
    again = load_model(tmp_path / "net")
    assert again.model == net.model
    assert again.preprocessing == net.preprocessing
    assert again.classes == classes
    chex.assert_trees_all_equal(again.params, net.params)
    assert not caplog.records


@pytest.mark.parametrize("floor_offsets", [False, True])
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("image_size", [33, (24, 40)])
def test_every_preprocessing_is_read_again(image_size, squash, floor_offsets, tmp_path):
    preprocessing = Preprocessing(
        image_size=image_size, crop=0.83, squash=squash, floor_offsets=floor_offsets
    )
    written(network(tiny_model(), preprocessing), tmp_path / "net")
    assert load_model(tmp_path / "net").preprocessing == preprocessing


def test_what_is_changed_in_the_files_is_heeded(tmp_path):
    written(network(tiny_model(), SMALL, tuple("abcde")), tmp_path / "net")
    for name, entry, value in (
        ("preprocessor_config.json", "size", {"shortest_edge": 80}),
        ("config.json", "id2label", dict(enumerate("ABCDE"))),
    ):
        path = tmp_path / "net" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    again = load_model(tmp_path / "net")
    assert again.preprocessing == Preprocessing(64, crop=0.8, floor_offsets=True)
    assert again.classes == tuple("ABCDE")
    path = tmp_path / "net" / "preprocessor_config.json"
    for own in ([], {"crop": 7}, {"crop": 0.8, "squash": "x", "floor_offsets": False}):
        content = json.loads(path.read_text()) | {"focalnet_jax": own}
        path.write_text(json.dumps(content))
        with pytest.raises(SetupError, match=r"focalnet_jax.*; mend the entry"):
            load_model(tmp_path / "net")


def test_a_head_may_have_more_rows_than_names(tmp_path, peers):
    import transformers

    written(network(tiny_model(), SMALL, ("a", "b", "c")), tmp_path / "net")
    assert load_model(tmp_path / "net").classes == ("a", "b", "c")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "net")
    assert config.id2label == {0: "a", 1: "b", 2: "c", 3: "LABEL_3", 4: "LABEL_4"}
    assert config.label2id == {label: index for index, label in config.id2label.items()}
    [*_, note, _] = written(network(tiny_model()), tmp_path / "net").notes
    assert "transformers calls them LABEL_0" in note
    assert load_model(tmp_path / "net").classes is None


def test_a_directory_of_others_is_not_replaced(tmp_path):
    directory = export_hub(network(tiny_model()))
    (tmp_path / "mine/sub").mkdir(parents=True)
    (tmp_path / "mine/sub/thesis.txt").write_text("mine")
    for options, problem in (
        (dict(), "mine is there already; overwrite=True replaces it"),
        (dict(overwrite=True), "mine holds sub/thesis.txt, which is not written there"),
    ):
        with pytest.raises(SetupError, match=problem):
            directory.write(tmp_path / "mine", **options)
    assert (tmp_path / "mine/sub/thesis.txt").read_text() == "mine"
    directory.write(str(tmp_path / "net"))
    with pytest.raises(SetupError, match="net is there already; overwrite=True"):
        directory.write(tmp_path / "net")


# --- timm --------------------------------------------------------------------


def timms(**options):
    """The smallest FocalNet that timm makes by a name."""
    return tiny_model(
        **dict(depths=(2, 2, 6, 2), embed_dim=96, mlp_ratio=0.25)
        | dict(focal_levels=(1,) * 4, focal_windows=(3,) * 4)
        | options
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(normalize_modulator=True, use_postln=True, use_layerscale=True),
        dict(focal_levels=(3,) * 4, in_channels=1),
        dict(num_classes=0),
    ],
    ids=str,
)
def test_one_directory_serves_timm_and_transformers(options, tmp_path, peers, torch):
    import timm
    import transformers

    model = timms(**options)
    channels = (0.5,) * model.encoder.in_channels
    net = network(model, dataclasses.replace(SMALL, mean=channels, std=channels))
    path = tmp_path / "net"
    directory = written(net, path)
    assert {"timm.safetensors", "transformers.safetensors"} == directory.weights.keys()
    theirs = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    assert_close(*both(net, torch, theirs))
    kind = transformers.FocalNetForImageClassification
    kind = kind if model.num_classes else transformers.FocalNetModel
    theirs = kind.from_pretrained(path).eval()
    take = (lambda r: r.logits) if model.num_classes else (lambda r: r.pooler_output)
    assert_close(*both(net, torch, lambda images: take(theirs(images))))
    again = load_model(path)
    assert again.model == net.model
    chex.assert_trees_all_equal(again.params, net.params)


def test_the_documented_programs_load_it(tmp_path, peers, torch, monkeypatch):
    """From a directory as the command before them writes one."""
    monkeypatch.chdir(tmp_path)
    section = DOCS.read_text().partition("\n## transformers and timm\n")[2]
    assert "--format=hf tiny_hf\n" in section
    model = timms(num_classes=7, focal_levels=(3,) * 4)
    params = random_params(model, "float32")
    tensors = to_torch(params, model, dialect="timm")
    write_weights(tmp_path / "net.safetensors", tensors)
    main(["--weights=net.safetensors", "--format=hf", "tiny_hf"])
    net = Pretrained(model, params, SMALL)
    blocks = re.findall(r"^```py\n(.*?)^```$", section, re.M | re.S)
    assert len(blocks) == 3
    for block in blocks:
        names = {}
        exec(block, names)
        theirs = names["net"].eval()

        def compute(images, theirs=theirs):
            result = theirs(images)
            return getattr(result, "logits", result)

        assert_close(*both(net, torch, compute))
        if "checkpoint_path" in block:
            block = block.replace("tiny_hf/timm.safetensors", "tiny_hf")
            with pytest.raises(FileNotFoundError):
                exec(block, {})


def test_timm_takes_the_right_file_from_the_hub(tmp_path, peers, torch, monkeypatch):
    import timm
    from huggingface_hub.errors import EntryNotFoundError

    net = network(timms())
    written(net, tmp_path)

    def download(repository=None, filename=None, repo_id=None, **_):
        assert (repository or repo_id) == "somebody/net"
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    theirs = timm.create_model("hf-hub:somebody/net", pretrained=True).eval()
    assert_close(*both(net, torch, theirs))


def test_timms_functions_set_what_is_said(peers, monkeypatch):
    import timm.models.focalnet as of_timm

    monkeypatch.setattr(of_timm, "_create_focalnet", lambda *_, **arguments: arguments)
    functions = {name for name in timm_names() if hasattr(of_timm, name)}
    assert functions == SET_BY_TIMM.keys()
    for name, fixed in SET_BY_TIMM.items():
        make = getattr(of_timm, name)
        for theirs, ours in TIMM_OPTIONS.items():
            if ours in fixed:
                with pytest.raises(TypeError, match="multiple values"):
                    make(**{theirs: None})
            else:
                assert make(**{theirs: 7})[theirs] == 7
        settings = make()
        settings["use_layerscale"] = settings.get("layerscale_value") is not None
        names = TIMM_OPTIONS | {"use_layerscale": "use_layerscale"}
        for theirs, ours in names.items():
            if ours in fixed:
                expected = VARIANTS[name].get(ours, ENCODER_OPTIONS[ours].default)
                given = settings[theirs]
                given = tuple(given) if isinstance(given, list) else given
                assert given == expected, (name, theirs)


def timm_names():
    import timm

    return timm.list_models("focalnet*")


# --- Pixels ------------------------------------------------------------------

PREPROCESSINGS = [
    Preprocessing(image_size=32),
    Preprocessing(image_size=33, crop=0.8, interpolation="bilinear"),
    Preprocessing(image_size=32, crop=1.0, squash=True, interpolation="lanczos"),
    Preprocessing(image_size=(24, 40), crop=0.9, squash=True),
    Preprocessing(image_size=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0)),
]


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS, ids=str)
def test_transformers_prepares_images_alike(preprocessing, tmp_path, peers):
    from transformers import AutoImageProcessor

    written(network(tiny_model(), preprocessing), tmp_path / "net")
    processors = {
        backend: AutoImageProcessor.from_pretrained(tmp_path / "net", backend=backend)
        for backend in ("pil", "torchvision")
    }
    floored = dataclasses.replace(preprocessing, floor_offsets=True)
    for image in IMAGES:
        expected = floored(image).transpose(2, 0, 1)
        theirs = {
            backend: processor(image, return_tensors="np")["pixel_values"][0]
            for backend, processor in processors.items()
        }
        # They subtract and divide in another order, in float32.
        np.testing.assert_allclose(theirs["pil"], expected, rtol=0, atol=1e-5)
        if not preprocessing.squash:
            # torchvision resizes with rougher weights than PIL: by one level of 255.
            level = 1 / 255 / min(preprocessing.std)
            np.testing.assert_allclose(
                theirs["torchvision"], expected, rtol=0, atol=1.001 * level
            )


def test_a_middle_without_halves_is_the_same_everywhere(tmp_path, peers):
    """The crop of these images begins on a pixel, so nothing is rounded."""
    from transformers import AutoImageProcessor

    preprocessing = Preprocessing(image_size=32, crop=0.8)
    written(network(tiny_model(), preprocessing), tmp_path / "net")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "net", backend="pil")
    for size in ((40, 48), (80, 80)):
        image = PIL.Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8))
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        ours = preprocessing(image).transpose(2, 0, 1)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


def test_transformers_squeezes_into_what_is_no_square(tmp_path, peers):
    from transformers import AutoImageProcessor

    preprocessing = Preprocessing(image_size=(24, 40), crop=0.8)
    [note, *_] = written(network(tiny_model(), preprocessing), tmp_path / "net").notes
    assert "transformers cuts no 24 x 40 out of images of all proportions" in note
    processor = AutoImageProcessor.from_pretrained(tmp_path / "net", backend="pil")
    image = PIL.Image.fromarray(RNG.integers(0, 256, (48, 80, 3), dtype=np.uint8))
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    ours = preprocessing(image).transpose(2, 0, 1)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


def test_shades_of_grey_are_prepared_alike(tmp_path, peers):
    from transformers import AutoImageProcessor

    preprocessing = Preprocessing(image_size=32, mean=(0.4,), std=(0.3,))
    net = network(tiny_model(in_channels=1), preprocessing)
    assert any("shades of grey" in n for n in written(net, tmp_path / "net").notes)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "net", backend="pil")
    image = PIL.Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8))
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    ours = preprocessing(image).transpose(2, 0, 1)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preprocessing", PREPROCESSINGS, ids=str)
def test_timm_prepares_images_alike(preprocessing, peers):
    from timm.data import create_transform, resolve_data_config

    config = export_hub(network(timms(), preprocessing)).texts["config.json"]
    transform = create_transform(
        **resolve_data_config(pretrained_cfg=config["pretrained_cfg"])
    )
    for image in IMAGES:
        ours = preprocessing(image).transpose(2, 0, 1)
        # torch multiplies by 1 / 255, which can change the last bit.
        np.testing.assert_allclose(transform(image).numpy(), ours, rtol=0, atol=1e-6)


# --- What can't be said --------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "preprocessing", "note"),
    [
        (tiny_model, SMALL, "for transformers alone: timm has no FocalNet with depths"),
        (lambda: timms(patch_size=2), SMALL, "timm's FocalNet always has patch_size=4"),
        (
            lambda: timms(embed_dim=8),
            SMALL,
            "transformers may cut it out one pixel further left or up",
        ),
        (
            tiny_model,
            dataclasses.replace(SMALL, interpolation="hamming"),
            'transformers resizes with hamming by backend="pil" alone',
        ),
        (
            timms,
            dataclasses.replace(SMALL, floor_offsets=True),
            "timm may cut it out one pixel further right or down",
        ),
        (
            lambda: timms(pad_to_patch=True),
            Preprocessing(image_size=80),
            "timm leaves out the last rows and columns of maps",
        ),
        (
            timms,
            Preprocessing(image_size=80),
            "80 x 80 pixels are no multiple of the stride: transformers pads maps",
        ),
    ],
)
def test_what_a_library_cannot_do_is_said(model, preprocessing, note):
    directory = export_hub(network(model(), preprocessing, tuple("abcde")))
    assert sum(note in given for given in directory.notes) == 1
    assert not any("dialect" in given for given in directory.notes)


def test_nothing_is_said_where_all_is_the_same():
    exact = Preprocessing(image_size=64, crop=1.0, squash=True)
    assert export_hub(network(timms(), exact, tuple("abcde"))).notes == ()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (tiny_backbone, "no place for the norms of a backbone"),
        (lambda: tiny_model(focal_factor=4), "focal_factor=2; the model has 4"),
        (lambda: tiny_model(patch_size=(4,)), "transformers's FocalNet is for images"),
        (lambda: tiny_model(causal=True), "causal=True"),
        (
            lambda: tiny_model(use_conv_embed=True, stem_padding=3),
            "always has stem_padding=2",
        ),
    ],
)
def test_models_that_transformers_lacks_are_refused(model, message):
    with pytest.raises(SetupError, match=message):
        export_hub(network(model()))


# --- The command -------------------------------------------------------------


def test_the_command_writes_a_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    params = random_params(model, "float32")
    write_weights(tmp_path / "net.safetensors", to_torch(params, model, dialect="timm"))
    arguments = ["--weights=net.safetensors", "--format=hf", "hub"]
    main([*arguments, "--image-size=64"])
    out = capsys.readouterr().out
    assert "note: the directory is for transformers alone" in out
    assert "hub: a directory for transformers\n" in out
    assert {path.name for path in pathlib.Path("hub").iterdir()} == {
        *("config.json", "preprocessor_config.json", "model.safetensors")
    }
    with pytest.raises(SetupError, match="is there already; overwrite=True replaces it"):
        main(arguments)
    main([*arguments, "--overwrite", "--image-size=96"])
    assert load_model("hub").preprocessing.image_size == 96
    pathlib.Path("hub/README.md").write_text("mine")
    with pytest.raises(SetupError, match="holds README.md, which is not written there"):
        main([*arguments, "--overwrite"])
    assert pathlib.Path("hub/README.md").read_text() == "mine"
