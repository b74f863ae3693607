"""`focalnet_jax.visualize`: the arrays, the figures, the page and the command."""

import base64
import html
import json
import pathlib
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import linen as nn
from tiny import TINY, random_params, tiny_backbone, tiny_model

from focalnet_jax import create_masked_model, load_model
from focalnet_jax.convert import to_torch
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.pretrained import Pretrained
from focalnet_jax.visualize import (
    BlockMaps,
    Inside,
    block_maps,
    depthwise_kernels,
    draw_gates,
    draw_kernels,
    draw_modulators,
    draw_receptive_fields,
    look_inside,
    receptive_fields,
)
from focalnet_jax.visualize.__main__ import main
from focalnet_jax.visualize.figures import half_radius
from focalnet_jax.visualize.hover_page import hover_page

SIZE = 36  # pixels, of which the last ones belong to no position of the second stage
BLOCKS = ["stage0/block0", "stage1/block0", "stage1/block1"]


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def net_of(model, change=lambda params: params):
    params = jax.tree.map(jnp.array, change(random_params(model, "float32")))
    return Pretrained(model, params, Preprocessing(image_size=SIZE, crop=1.0))


@pytest.fixture(scope="module")
def net():
    return net_of(tiny_model())


@pytest.fixture(scope="module")
def inside(net, image):
    return look_inside(net, image)


def test_the_maps_are_those_of_the_model(net, image, inside):
    _, outputs = net.model.apply({"params": net.params}, net.preprocessing(image)[None])
    assert [block.name for block in inside.blocks] == BLOCKS
    assert [block.stage for block in inside.blocks] == [0, 1, 1]
    assert [block.name for block in inside.last_blocks()] == [BLOCKS[0], BLOCKS[2]]
    for block in inside.blocks:
        for name in ("gates", "modulator"):
            given = getattr(block, name)
            expected = outputs[f"{block.name}/{name}"][0]
            # One program is compiled as a whole, the other one operation by operation.
            most = np.abs(expected).max()
            np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5 * most)
    np.testing.assert_array_equal(inside.pixels, image)
    assert inside.strides == ((4, 4), (8, 8))
    assert [p.index for p in inside.predictions] == [
        p.index for p in net.predict(image)[0]
    ]


def test_blocks_are_in_the_order_of_the_net():
    shape = jnp.zeros((2, 1, 1, 1))
    names = [f"stage2/block{index}" for index in range(11)]
    outputs = {f"{n}/{m}": shape for n in sorted(names) for m in ("gates", "modulator")}
    assert [block.name for block in block_maps(outputs)] == names


def test_an_image_of_a_batch_can_be_chosen(net):
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    _, outputs = net.model.apply({"params": net.params}, images)
    first, second = (block_maps(outputs, image=index)[0] for index in (0, 1))
    np.testing.assert_array_equal(first.gates, outputs["stage0/block0/gates"][0])
    np.testing.assert_array_equal(second.gates, outputs["stage0/block0/gates"][1])


def test_norm_and_similarity_of_a_modulator():
    modulator = np.zeros((2, 2, 2), np.float32)
    modulator[0] = [[3, 4], [-6, -8]]
    modulator[1, 0] = [4, -3]
    block = BlockMaps("stage0/block0", np.zeros((2, 2, 3), np.float32), modulator)
    np.testing.assert_array_equal(block.norm, [[5, 10], [5, 0]])
    # A modulator of zeros is like no other one.
    np.testing.assert_allclose(block.similarity(0, 0), [[1, -1], [0, 0]], atol=1e-7)


def test_a_backbone_has_no_predictions(image):
    inside = look_inside(net_of(tiny_backbone()), image)
    assert inside.predictions == ()
    assert [block.name for block in inside.blocks] == BLOCKS


def test_shades_of_grey_are_shown_in_colours(image):
    net = net_of(tiny_model(in_channels=1))
    grey = Preprocessing(image_size=SIZE, crop=1.0, mean=(0.5,), std=(0.5,))
    inside = look_inside(net._replace(preprocessing=grey), image)
    expected = np.asarray(PIL.Image.fromarray(image).convert("L"))
    assert inside.pixels.shape == (SIZE, SIZE, 3)
    np.testing.assert_array_equal(inside.pixels[..., 2], expected)


def test_padded_nets_that_are_computed_in_other_ways(image):
    """Images that are not square, padding, scan and bfloat16, all in one net."""
    wide = image[:30].repeat(2, axis=1)[:, :62]
    options = dict(pad_to_patch=True)
    nets = [
        net_of(tiny_model(**options, **more))._replace(
            preprocessing=Preprocessing(image_size=(30, 62), crop=1.0)
        )
        for more in ({}, dict(scan=True, dtype="bfloat16"))
    ]
    exact, near = (look_inside(net, wide) for net in nets)
    np.testing.assert_array_equal(near.pixels, wide)
    for ours, theirs in zip(near.blocks, exact.blocks, strict=True):
        assert ours.gates.shape[:2] == ((4, 8) if ours.stage else (8, 16))
        for name in ("gates", "modulator"):
            given, expected = getattr(ours, name), getattr(theirs, name)
            assert given.dtype == np.float32
            # bfloat16 has 8 bits; the blocks of a stage differ by much more.
            most = np.abs(expected).max()
            np.testing.assert_allclose(given, expected, rtol=0, atol=0.1 * most)
    # The last pixel stands in the last position, of which a part is padding.
    exact, near = (receptive_fields(net, wide, at=(29, 61)) for net in nets)
    for stage, expected in exact.items():
        assert near[stage].shape == (30, 62)
        assert near[stage].dtype == np.float32
        most = expected.max()
        assert expected[-2:, -2:].max() > 0.1 * most
        np.testing.assert_allclose(near[stage], expected, rtol=0, atol=0.2 * most)
    inside = look_inside(nets[0], wide)
    extents = [
        [*axes.images[0].get_extent(), *axes.get_xlim(), *axes.get_ylim()]
        for axes in draw_modulators(inside).figure.axes
        if axes.get_title().startswith("stage")
    ]
    # The maps reach over the image, and what reaches over it isn't shown.
    assert extents == [[-0.5, 63.5, 31.5, -0.5, -0.5, 61.5, 29.5, -0.5]] * 3


# --- Receptive fields --------------------------------------------------------


def without_global_level(params):
    """The global level has no gate; the first two levels of stage 0 are left."""
    params["layers_0"]["blocks_0"]["modulation"]["f"]["kernel"][:, -1] = 0
    params["layers_0"]["blocks_0"]["modulation"]["f"]["bias"][-1] = 0
    return params


def test_a_field_ends_where_the_kernels_end(image):
    """Kernels of 3 and 5 reach three positions, of four pixels each."""
    at = (17, 18)  # in the fifth position, which begins at pixel 16
    local = receptive_fields(net_of(tiny_model(), without_global_level), image, at=at)
    rows, columns = np.nonzero(local["stage0"])
    for pixels in (rows, columns):
        assert (pixels.min(), pixels.max()) == (16 - 12, 16 + 3 + 12)
    whole = receptive_fields(net_of(tiny_model()), image, at=at)
    assert np.count_nonzero(whole["stage0"]) == SIZE**2


def test_a_field_is_the_gradient(net, image):
    """Against differences of the position's sum, in float64."""
    fields = receptive_fields(net, image, at=(35, 0))  # beyond the last position
    assert [*fields] == ["stage0", "stage1"]
    prepared = np.float64(net.preprocessing(image))[None]
    types = dict(dtype="float64", param_dtype="float64")
    model = net.model.clone(encoder=net.model.encoder.clone(**types))

    with jax.enable_x64(True):

        @jax.jit
        def total(images):
            _, outputs = model.apply({"params": net.params}, images)
            return outputs["stage1"][0, 3, 0].sum()

        step = 1e-4
        for row, column in ((0, 0), (20, 7), (31, 3)):
            given = fields["stage1"][row, column]
            expected = 0
            for colour in range(3):
                change = np.zeros_like(prepared)
                change[0, row, column, colour] = step
                difference = total(prepared + change) - total(prepared - change)
                expected += abs(difference) / (2 * step)
            # The gradient is that of float32, and sums terms of both signs.
            np.testing.assert_allclose(given, expected, rtol=1e-3)


@pytest.mark.parametrize("at", ["ab", (1,), (1, 2, 3), 7, (1.0, 2), ("1", "2")])
def test_a_place_is_a_row_and_a_column(net, image, inside, at):
    problem = re.escape(f"at={at!r} is no place in an image")
    with pytest.raises(SetupError, match=problem):
        receptive_fields(net, image, at=at)
    with pytest.raises(SetupError, match=problem):
        draw_receptive_fields(inside, {"stage0": np.ones((SIZE, SIZE))}, at=at)


@pytest.mark.parametrize("at", [(-1, 0), (0, SIZE), (SIZE, 0)])
def test_a_place_lies_in_the_image(net, image, at):
    with pytest.raises(SetupError, match=rf"{at[0]},{at[1]} is outside .* 0 to 35"):
        receptive_fields(net, image, at=at)


def test_half_of_a_field_lies_within_a_radius():
    point = np.zeros((9, 9))
    point[2, 3] = 2
    assert half_radius(point) == 0
    ring = np.zeros((21, 21))
    ring[[5, 15, 10, 10], [10, 10, 5, 15]] = 1
    assert half_radius(ring) == 5
    ring[10, 10] = 8
    assert half_radius(ring) == 0
    assert half_radius(np.zeros((4, 4))) >= 0


# --- Figures -----------------------------------------------------------------


def drawn(figure):
    """The arrays of the images of a figure, by the title of their axes."""
    return [
        (axes.get_title(), np.asarray(axes.images[-1].get_array()))
        for axes in figure.axes
        if axes.images
    ]


def test_gates_are_drawn(inside):
    images = drawn(draw_gates(inside))
    first, last = inside.last_blocks()
    titles = [title for title, _ in images if not re.match("image|$", title)]
    assert titles == ["level 1", "level 2", "global", "level 1", "global"]
    gates = [values for title, values in images if title in titles]
    for given, expected in zip(gates, [*np.moveaxis(first.gates, -1, 0)]):
        np.testing.assert_array_equal(given, expected)
    np.testing.assert_array_equal(gates[-1], last.gates[..., -1])
    labels = [axes.get_ylabel() for axes in draw_gates(inside).axes]
    assert [*filter(None, labels)] == ["stage0/block0, 9 x 9", "stage1/block1, 4 x 4"]
    [only] = [v for title, v in drawn(draw_gates(inside, [last])) if title == "global"]
    np.testing.assert_array_equal(only, last.gates[..., -1])


def test_modulators_are_drawn_as_they_lie_in_the_image(inside):
    figure = draw_modulators(inside)
    images = [image for axes in figure.axes for image in axes.images]
    (photo, *maps), scales = images[:4], [i.colorbar for i in images if i.colorbar]
    np.testing.assert_array_equal(photo.get_array(), inside.pixels)
    for shown, block in zip(maps, inside.blocks, strict=True):
        np.testing.assert_array_equal(shown.get_array(), block.norm)
        assert shown.get_interpolation() == "nearest"
    assert [scale.mappable for scale in scales] == maps
    # The maps of the second stage end before the image does.
    assert maps[0].get_extent() == [-0.5, 35.5, 35.5, -0.5]
    assert maps[1].get_extent() == [-0.5, 31.5, 31.5, -0.5]


def test_of_many_blocks_eight_are_drawn(inside):
    maps = inside.blocks[0]
    many = tuple(maps._replace(name=f"stage0/block{index}") for index in range(18))
    figure = draw_modulators(type(inside)(inside.pixels, many, inside.strides))
    names = [title for title, _ in drawn(figure)][1:]
    assert len(names) == 8
    assert names[0].startswith("stage0/block0,")
    assert names[-1].startswith("stage0/block17,")


def test_the_strongest_kernels_are_drawn(net):
    kernels = depthwise_kernels(net.params)
    assert [*kernels] == BLOCKS
    shapes = {level: kernel.shape for level, kernel in kernels[BLOCKS[0]].items()}
    assert shapes == {"level 1": (3, 3, 8), "level 2": (5, 5, 8)}
    stored = net.params["layers_0"]["blocks_0"]["modulation"]["focal_layers_1"]["kernel"]
    np.testing.assert_array_equal(kernels[BLOCKS[0]]["level 2"], stored[:, :, 0])
    figure = draw_kernels(kernels)
    images = [values for _, values in drawn(figure)]
    scales = [i for axes in figure.axes for i in axes.images if i.colorbar]
    assert len(scales) == 3 * 2  # of the means, and of the others of a row
    assert len(images) == 3 * 8  # two levels of the first stage, one of the second
    second = kernels[BLOCKS[0]]["level 2"]
    np.testing.assert_allclose(images[8], np.abs(second).mean(-1))
    strongest = np.square(second).sum((0, 1)).argmax()
    np.testing.assert_array_equal(images[9], second[..., strongest])


def test_fields_are_drawn(net, image, inside):
    fields = receptive_fields(net, image)
    images = dict(drawn(draw_receptive_fields(inside, fields)))
    field = fields["stage1"] / fields["stage1"].max()
    expected = np.log10(np.maximum(field, 1e-4))
    np.testing.assert_allclose(images["stage1"], expected, atol=1e-6)


def test_the_global_level_of_a_causal_net_has_its_name():
    model = tiny_model(causal=True, causal_window=9)
    params = random_params(model, "float32")
    kernels = depthwise_kernels(params)
    assert [*kernels[BLOCKS[0]]] == ["level 1", "level 2", "global"]
    assert [*kernels[BLOCKS[2]]] == ["level 1", "global"]
    stored = params["layers_0"]["blocks_0"]["modulation"]["focal_layers_2"]["kernel"]
    np.testing.assert_array_equal(kernels[BLOCKS[0]]["global"], stored[:, :, 0])
    axes = draw_kernels(kernels).axes
    titles = [text.get_text().split("\n") for each in axes for text in each.texts]
    assert titles == [
        [BLOCKS[0], "level 1, 3 x 3"],
        [BLOCKS[0], "level 2, 5 x 5"],
        [BLOCKS[0], "global, 9 x 1"],
        [BLOCKS[2], "level 1, 3 x 3"],
        [BLOCKS[2], "global, 9 x 1"],
    ]


def test_figures_have_the_shape_of_the_image():
    """There is no empty space between rows of wide images."""
    norms = np.ones((4, 16, 2), np.float32)
    blocks = (BlockMaps("stage0/block0", norms, norms),)
    wide = Inside(np.zeros((16, 64, 3), np.uint8), blocks * 5, ((4, 4),))
    square = Inside(np.zeros((64, 64, 3), np.uint8), blocks * 5, ((4, 4),))
    heights = [draw_gates(i, i.blocks).get_size_inches()[1] for i in (wide, square)]
    assert heights[0] < heights[1] / 2


def test_of_nothing_there_is_no_figure(inside):
    for draw, noun in (
        (lambda: draw_gates(inside, []), "blocks"),
        (lambda: draw_kernels({}), "depthwise kernels"),
        (lambda: draw_receptive_fields(inside, {}), "receptive fields"),
        (lambda: hover_page(inside, title="", blocks=[], figures={}), "blocks"),
    ):
        with pytest.raises(SetupError, match=f"no {noun} are given, so there is nothing"):
            draw()


# --- The command -------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch, image):
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    tensors = to_torch(random_params(model, "float32"), model, dialect="timm")
    write_weights(pathlib.Path("net.safetensors"), tensors)
    PIL.Image.fromarray(image).save("an <image>.png")
    return tmp_path


def run(*arguments):
    main(
        [
            "an <image>.png",
            "--weights=net.safetensors",
            f"--image-size={SIZE}",
            *arguments,
        ]
    )


def test_the_command_writes_pictures_and_a_page(files, capsys):
    run()
    output = files / "an <image>-inside"
    assert "open " in capsys.readouterr().out
    names = {"gates", "modulators", "receptive_fields", "kernels"}
    assert {p.name for p in output.iterdir()} == {f"{n}.png" for n in names} | {
        "index.html"
    }
    for name in names:
        with PIL.Image.open(output / f"{name}.png") as picture:
            assert picture.size[0] > 200
            assert picture.mode == "RGBA"
            assert picture.getpixel((0, 0))[3] == 0  # It has no background.
    text = (output / "index.html").read_text()
    assert "<title>an &lt;image&gt;.png</title>" in text
    assert not re.search("(?:src|href)=.https?:", text)
    net = load_model("net.safetensors", image_size=SIZE)
    inside = look_inside(net, "an <image>.png")
    [data] = re.findall(r'<script type="application/json" id="data">(.*)</script>', text)
    for stored, block in zip(json.loads(data)["blocks"], inside.last_blocks()):
        assert stored["name"] == block.name
        for name in ("gates", "modulator"):
            expected = getattr(block, name)
            numbers = np.frombuffer(base64.b64decode(stored[name]["bytes"]), np.int8)
            given = numbers.reshape(expected.shape) * stored[name]["scale"]
            # Half of a step of the rounding, and a little for that of float32.
            step = np.abs(expected).max() / 127
            np.testing.assert_allclose(given, expected, rtol=0, atol=0.501 * step)


@pytest.mark.parametrize(
    ("sides", "expected"), [((56, 28, 14, 7), 3), ((16, 8, 4, 2), 1), ((6, 6, 3), 1)]
)
def test_the_page_begins_with_a_block_of_many_places(sides, expected):
    blocks = [
        BlockMaps(f"stage{stage}/block0", *[np.ones((side, side, 2), np.float32)] * 2)
        for stage, side in enumerate(sides)
    ]
    strides = tuple((2**stage, 2**stage) for stage in range(len(sides)))
    inside = Inside(np.zeros((56, 56, 3), np.uint8), tuple(blocks), strides)
    text = hover_page(inside, title="", blocks=blocks, figures={})
    [data] = re.findall(r'<script type="application/json" id="data">(.*)</script>', text)
    assert json.loads(data)["first"] == expected


def test_the_page_shows_a_place(files):
    """In a browser, if there is one: the middle of the image, at the beginning."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium or Chrome to open the page with")
    run("--output=out")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=5000", (files / "out" / "index.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    inside = look_inside(load_model("net.safetensors", image_size=SIZE), "an <image>.png")
    block = inside.blocks[0]  # The others have few places for so small an image.
    assert "stage0/block0, row 4, column 4: the modulator has a norm of" in shown
    [norm] = re.findall(r"has a norm of ([\d.e+-]+)", shown)
    np.testing.assert_allclose(float(norm), block.norm[4, 4], rtol=0.02)
    gates = [float(value) for value in re.findall(r"<output>(.*?)</output>", shown)]
    step = np.abs(block.gates).max() / 127
    np.testing.assert_allclose(gates, block.gates[4, 4], rtol=0, atol=step)


def test_the_command_shows_a_masked_model(files, capsys):
    """Of an image that is not square; it has no classes to predict."""
    model = create_masked_model("focalnet_tiny_srf", **TINY)
    tensors = to_torch(random_params(model, "float32"), model, dialect="transformers")
    write_weights(pathlib.Path("net.safetensors"), tensors)
    run("--image-size=24x40", "--output=out", "--at=23,39")
    assert "%" not in capsys.readouterr().out
    text = (files / "out" / "index.html").read_text()
    [data] = re.findall(r'<script type="application/json" id="data">(.*)</script>', text)
    content = json.loads(data)
    assert content["size"] == [24, 40]
    net = load_model("net.safetensors", image_size=(24, 40))
    prepared = net.preprocessing("an <image>.png")[None]
    _, outputs = jax.jit(net.model.apply)({"params": net.params}, prepared)
    for stored in content["blocks"]:
        expected = outputs[f"{stored['name']}/gates"][0]
        assert (stored["height"], stored["width"]) == expected.shape[:2]
        bytes_ = base64.b64decode(stored["gates"]["bytes"])
        numbers = np.frombuffer(bytes_, np.int8).reshape(expected.shape)
        step = stored["gates"]["scale"]
        np.testing.assert_allclose(numbers * step, expected, rtol=0, atol=0.51 * step)


class WithoutKernels(nn.Module):
    """An operator with gates and a modulator, but no depthwise kernels."""

    @nn.compact
    def __call__(self, x, *, train):
        modulator = nn.Dense(x.shape[-1])(x)
        return x * modulator, {"gates": modulator[..., :2], "modulator": modulator}


def test_an_operator_without_kernels_has_no_picture_of_them(files, monkeypatch):
    net = net_of(tiny_model(modulation=WithoutKernels))
    place = "focalnet_jax.visualize.__main__.load_model"
    monkeypatch.setattr(place, lambda *_, **__: net)
    run("--output=out")
    names = {"gates.png", "modulators.png", "receptive_fields.png", "index.html"}
    assert {path.name for path in (files / "out").iterdir()} == names


def test_blocks_can_be_chosen(files):
    run("--blocks=stage1/block0,stage0/block0", "--output=out")
    text = html.unescape(pathlib.Path("out/index.html").read_text())
    names = re.findall(r'"name": "(stage\d+/block\d+)"', text)
    assert names == ["stage1/block0", "stage0/block0"]
    run("--blocks=all", "--output=out", "--overwrite")
    names = re.findall(r'"name": "(\S+)"', pathlib.Path("out/index.html").read_text())
    assert names == BLOCKS


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--blocks=stage1/block3"], "--blocks=stage1/block3 is unknown; did you mean"),
        (["--at=36,0"], "36,0 is outside of the image"),
        (["--output=net.safetensors"], "net.safetensors is there already, and is a file"),
        (["--output=there"], "there is there already; overwrite=True"),
        (["--output=there", "--overwrite"], "there holds notes.txt, .* not overwritten"),
    ],
)
def test_what_is_given_wrongly_is_said(files, arguments, problem):
    (files / "there").mkdir()
    (files / "there" / "notes.txt").write_text("mine")
    with pytest.raises(SetupError, match=problem):
        run(*arguments)
    assert {p.name for p in files.iterdir()} == {
        "an <image>.png",
        "net.safetensors",
        "there",
    }
    assert (files / "there" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nothing.png", "nothing.png isn't there"),
        (".", "is a directory, and one image is shown"),
        ("net.safetensors", "net.safetensors can't be read"),
    ],
)
def test_what_is_no_image_is_said(files, name, problem):
    with pytest.raises(SetupError, match=problem):
        main([name, "--weights=net.safetensors", "--output=out"])
    assert not pathlib.Path("out").exists()


def test_a_full_disk_leaves_nothing(files, monkeypatch):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(OSError, match="No space left on device.*out"):
        run("--output=out")
    assert not [p for p in files.iterdir() if "out" in p.name]


def test_other_nets_are_said(image):
    with pytest.raises(SetupError, match="inputs of 1 spatial axis"):
        look_inside(net_of(tiny_model(patch_size=(4,))), image)
    with pytest.raises(SetupError, match="takes inputs of 3 spatial axes"):
        depthwise_kernels(random_params(tiny_model(patch_size=(4, 4, 4))))
    with pytest.raises(SetupError, match="returns no gates and modulators"):
        block_maps({"stem": jnp.zeros((1, 2, 2, 3)), "stage0/block0": jnp.zeros(1)})


@pytest.mark.parametrize("text", ["3", "a,b", "1,2,3", "-1,2", "1,", "²,3"])
def test_a_place_is_two_numbers(text, capsys):
    with pytest.raises(SystemExit):
        main(["a.png", "--weights=x", f"--at={text}"])
    assert "is not ROW,COLUMN" in capsys.readouterr().err
