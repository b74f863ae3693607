"""`focalnet_jax.demo`: the command, the files of the page, and the page in a browser."""

import base64
import contextlib
import email.message
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import socket
import tarfile
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from browser import Page, chromium
from tiny import random_params, tiny_backbone, tiny_model

from focalnet_jax import load_model
from focalnet_jax.convert import to_torch
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.demo import Runtime, find_runtime, page, runtime, write_page
from focalnet_jax.demo.__main__ import main
from focalnet_jax.errors import SetupError
from focalnet_jax.export import export_onnx
from focalnet_jax.preprocessing import INTERPOLATIONS, Preprocessing
from focalnet_jax.pretrained import Pretrained
from focalnet_jax.visualize import look_inside

SITE = pathlib.Path(page.__file__).parent / "site"
SIZE = 36  # pixels, of which the last ones belong to no position of the second stage
PACKAGE = {
    "package/package.json": b'{"version": "1.30.0"}',
    "package/dist/ort.wasm.bundle.min.mjs": b"throw new Error('no real runtime');",
    "package/dist/ort-wasm-simd-threaded.wasm": b"wasm",
}
OUTPUTS = [
    f"{block}/{kind}"
    for block in ("stage0/block0", "stage1/block1")
    for kind in ("gates", "modulator")
]


def archive_of(files, mode="w:gz"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def write_net(model, path):
    tensors = to_torch(random_params(model, "float32"), model, dialect="timm")
    write_weights(pathlib.Path(path), tensors)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A directory with weights, an archive that is not the real one, and two images."""
    monkeypatch.chdir(tmp_path)
    write_net(tiny_model(num_classes=7), "net.safetensors")
    pathlib.Path("ort.tgz").write_bytes(archive_of(PACKAGE))
    rng = np.random.default_rng(0)
    image = PIL.Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8))
    # It asks for other colours, which this package does not give it.
    linear = PIL.PngImagePlugin.PngInfo()
    linear.add(b"gAMA", (100_000).to_bytes(4, "big"))
    image.save("a <b> 50%.png", pnginfo=linear)
    image.resize((300, 200)).save("photo.jpg", quality=90)
    return tmp_path


def run(*arguments):
    sizes = [f"--image-size={SIZE}", "--runtime=ort.tgz"]
    main(["--weights=net.safetensors", *sizes, *arguments])


def about_of(directory):
    text = (directory / "about.js").read_text()
    return json.loads(re.fullmatch(r"const about = (.*);\n", text)[1])


# --- The files ---------------------------------------------------------------


def test_the_page_holds_what_it_needs(files, monkeypatch, capsys):
    pytest.importorskip("onnx", reason="the model is written as ONNX")
    monkeypatch.setattr(page, "_PART", 3000)  # The model needs several parts then.
    run("site", "--example=photo.jpg", "--title=A net")
    directory = files / "site"
    assert f"open {directory / 'index.html'} in a browser" in capsys.readouterr().out
    assert {path.name for path in directory.iterdir()} == {
        *("about.js", "demo.css", "demo.js", "index.html", "load.js", "parts"),
        *("onnxruntime-licence.txt", "prepare.js", "worker.js"),
    }
    about = about_of(directory)
    found = {}
    for name, entry in about["files"].items():
        texts = [(directory / path).read_text() for path in entry["parts"]]
        codes = [re.fullmatch(r'part\("(.*)"\);\n', text)[1] for text in texts]
        found[name] = b"".join(map(base64.b64decode, codes))
        assert entry["size"] == len(found[name])
    net = load_model("net.safetensors", image_size=SIZE)
    graph = export_onnx(net.model, net.params, outputs=OUTPUTS)
    assert found == {
        "script": PACKAGE["package/dist/ort.wasm.bundle.min.mjs"],
        "wasm": PACKAGE["package/dist/ort-wasm-simd-threaded.wasm"],
        "model": graph.SerializeToString(),
    }
    assert len(about["files"]["model"]["parts"]) > 2
    assert about["title"] == "A net"
    assert about["preprocessing"]["image_size"] == SIZE
    assert about["blocks"] == [
        {"name": "stage0/block0", "stride": [4, 4]},
        {"name": "stage1/block1", "stride": [8, 8]},
    ]
    [example] = about["examples"]
    assert (example["name"], example["type"]) == ("photo.jpg", "image/jpeg")
    assert base64.b64decode(example["data"]) == (files / "photo.jpg").read_bytes()


def test_the_page_names_no_other_host(files):
    pytest.importorskip("onnx", reason="the model is written as ONNX")
    run("site")
    for path in (files / "site").glob("*.*"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?i)\b(https?|wss?|ftp):|(src|href)=\"//", text), path
        # The policy of the page doesn't keep it from these.
        assert not re.search(r"RTC|location(\s*=|\.(href|assign|replace))", text), path
        assert not re.search(r"\bopen\(|\btarget=|http-equiv=\"refresh", text), path


def test_it_is_overwritten(files):
    pytest.importorskip("onnx", reason="the model is written as ONNX")
    run("site")
    large = (files / "site" / "parts" / "model0.js").stat().st_size
    run("site", "--title=Another one", "--overwrite", "--dtype=float16")
    assert about_of(files / "site")["title"] == "Another one"
    assert (files / "site" / "parts" / "model0.js").stat().st_size < 0.8 * large
    assert not [path for path in files.iterdir() if path.name.startswith(".")]
    mine = files / "site" / "parts" / "model.js"
    mine.write_text("mine")
    with pytest.raises(SetupError, match="site holds parts/model.js, which is not writ"):
        run("site", "--overwrite")
    assert mine.read_text() == "mine"


# --- What is wrong -----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([""], "DIR is empty"),
        (["net.safetensors"], "net.safetensors is there already, and is a file"),
        (["net.safetensors/site"], "can't be written: .*net.safetensors is a file"),
        (["there"], "there is there already; overwrite=True replaces it"),
        (["there", "--overwrite"], "there holds notes.txt, .* not overwritten"),
        (["/"], "^/ is there already; overwrite=True replaces it"),
        (["site", "--example=nothing.png"], "nothing.png can't be read: No such"),
        (["site", "--example=there"], "--example=there can't be read: Is a directory"),
        (["site", "--example=net.safetensors"], "net.safetensors can't be read: can"),
        (["site", "--example=scan.tif"], "scan.tif is a TIFF, which not all"),
        (["site", "--example=photo.jpg", "--example=./photo.jpg"], "two --example have"),
        (["site", "--runtime=nothing.tgz"], "--runtime=nothing.tgz isn't there"),
        (["site", "--runtime=photo.jpg"], "photo.jpg can't be read as the package"),
        (["site", "--runtime=there"], "there is not the package onnx.*-web .* lacks"),
        (["site", "--runtime=half.tgz"], "half.tgz can't be read as the package"),
        (["site", "--runtime=half.tar.xz"], "half.tar.xz can't be read as the package"),
        (["site", "--runtime=other.tgz"], "other.tgz is not the package onnxruntime-web"),
        (["site", "--image-size=7"], "image_size=7 is too small for .* needs 8 x 8"),
        (["site", "--weights=without.safetensors"], "the model has no head"),
        (["site", "--weights=five.safetensors"], "takes 5 channels, and images"),
    ],
)
def test_what_is_given_wrongly_is_said(files, arguments, problem):
    pytest.importorskip("onnx", reason="the model is written as ONNX")
    (files / "there").mkdir()
    (files / "there" / "notes.txt").write_text("mine")
    (files / "other.tgz").write_bytes(archive_of({"package/package.json": b"{}"}))
    for name, mode in (("half.tgz", "w:gz"), ("half.tar.xz", "w:xz")):
        whole = archive_of(PACKAGE, mode)
        (files / name).write_bytes(whole[: len(whole) // 2])
    PIL.Image.open("photo.jpg").save("scan.tif")
    write_net(tiny_model(num_classes=0), "without.safetensors")
    write_net(tiny_model(in_channels=5), "five.safetensors")
    before = sorted(files.rglob("*"))
    with pytest.raises(SetupError, match=problem):
        run(*arguments)
    assert sorted(files.rglob("*")) == before


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (tiny_backbone, "the model has no head"),
        (lambda: tiny_model(patch_size=(4,)), "inputs of 1 spatial axis"),
        (lambda: tiny_model(modulation=lambda **_: None), "focal modulation itself"),
    ],
)
def test_other_nets_are_said(tmp_path, make, problem):
    net = Pretrained(make(), {}, Preprocessing())
    with pytest.raises(SetupError, match=problem):
        write_page(tmp_path / "site", net, runtime=Runtime("1", b"", b""))
    assert not (tmp_path / "site").exists()


def test_a_model_too_large_for_a_browser_is_said(monkeypatch):
    monkeypatch.setattr(page, "_LARGEST_MODEL", 1000)
    with pytest.raises(SetupError, match=r"parameters, and a browser holds 250"):
        page.check_can_show(Pretrained(tiny_model(), {}, Preprocessing()))


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (errno.ENOSPC, "write_text"),
        (errno.ENOSPC, "write_bytes"),
        (errno.EACCES, "mkdir"),
    ],
)
def test_a_page_that_cannot_be_written_leaves_nothing(files, monkeypatch, error, name):
    pytest.importorskip("onnx", reason="the model is written as ONNX")

    def fail(self, *_, **__):
        raise OSError(error, os.strerror(error), str(self))

    monkeypatch.setattr(pathlib.Path, name, fail)
    said = f"{files / 'new' / 'site'} can't be written: {os.strerror(error)}"
    with pytest.raises(SetupError) as raised:
        run("new/site")
    assert str(raised.value) == said
    assert not (files / "new").exists()


def test_a_page_replaces_no_other_directory(tmp_path):
    net = Pretrained(tiny_model(), {}, Preprocessing())
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "thesis.txt").write_text("mine")
    for options in (dict(), dict(overwrite=True)):
        with pytest.raises(SetupError, match="overwrite=True|holds thesis.txt, which"):
            write_page(tmp_path / "site", net, runtime=Runtime("1", b"", b""), **options)
    assert (tmp_path / "site" / "thesis.txt").read_text() == "mine"


# --- ONNX Runtime Web --------------------------------------------------------


def test_an_unpacked_package_serves_too(files, capsys):
    pytest.importorskip("onnx", reason="the model is written as ONNX")
    with tarfile.open("ort.tgz") as archive:
        archive.extractall("unpacked", filter="data")
    found = find_runtime("unpacked/package")
    assert found == find_runtime("ort.tgz")
    assert found.version == "1.30.0"
    path = pathlib.Path("unpacked/package/package.json")
    path.write_text('{"version": "1.22.0"}')
    run("site", "--runtime=unpacked/package")
    assert "note: ONNX Runtime Web 1.22.0 is not 1.30.0" in capsys.readouterr().out


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Answers of npm's registry, by address, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    answers = {}

    def answer(request, timeout):
        if request.full_url not in answers:
            raise urllib.error.URLError("no network")
        stream = io.BytesIO(answers[request.full_url])
        stream.headers = email.message.Message()
        stream.headers["Content-Type"] = "application/octet-stream"
        return stream

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    return answers


def test_it_is_downloaded_once(registry, monkeypatch):
    data = archive_of(PACKAGE)
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    monkeypatch.setattr(runtime, "_SHA512", digest)
    registry[runtime._URL] = data
    found = find_runtime()
    assert found.wasm == b"wasm"
    registry.clear()
    assert find_runtime() == found
    runtime.cached_archive().write_bytes(data + b"\0")
    with pytest.raises(SetupError, match="its SHA-512 is another one"):
        find_runtime()
    assert not runtime.cached_archive().exists()


def test_without_a_network_there_is_a_way(registry):
    with pytest.raises(SetupError) as raised:
        find_runtime()
    assert "can't download https://registry.npmjs.org/" in str(raised.value)
    assert str(raised.value).endswith("give its path as --runtime=FILE")
    assert "\n" not in str(raised.value)


# --- In a browser ------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium()
    with Page(directory=tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def real_runtime(browser, tmp_path_factory):
    """ONNX Runtime Web, which is downloaded unless the command has done so already."""
    with pytest.MonkeyPatch.context() as patch:
        if not runtime.cached_archive().exists():
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        try:
            return find_runtime()
        except SetupError as error:
            if "can't download" not in str(error):
                raise
            pytest.skip(str(error))


SETTINGS = [
    dict(image_size=size, crop=crop, interpolation=interpolation)
    for interpolation in INTERPOLATIONS
    for size, crop in ((24, 0.875), ((20, 33), 0.9), (64, 1.0))
] + [
    dict(squash=True, image_size=(30, 21)),
    dict(squash=True, image_size=40, crop=1.0),
    dict(floor_offsets=True, image_size=23),
    dict(floor_offsets=True, image_size=(23, 40)),
    dict(image_size=20, mean=(0.4,), std=(0.3,)),
]


def test_images_are_prepared_as_by_pil(browser):
    """To the bit, at sizes that shrink and that grow, on either side."""
    browser.open("about:blank")
    browser.evaluate(
        f"{(SITE / 'prepare.js').read_text()}\n"
        "const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));\n"
        "const text = (array) => btoa(Array.from(new Uint8Array(array.buffer),\n"
        "  (byte) => String.fromCharCode(byte)).join(''));\n0"
    )
    rng = np.random.default_rng(0)
    for width, height in ((90, 61), (31, 47), (36, 36), (5, 4), (20, 90)):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        code = base64.b64encode(pixels.tobytes()).decode()
        image = f"{{pixels: bytes('{code}'), width: {width}, height: {height}}}"
        for settings in SETTINGS:
            preprocessing = Preprocessing(**settings)
            expected = np.moveaxis(preprocessing(pixels), -1, 0)
            numbers = json.dumps(
                {"squash": False, "floor_offsets": False} | preprocessing.to_json()
            )
            given = browser.evaluate(f"text(prepare({image}, {numbers}).values)")
            given = np.frombuffer(base64.b64decode(given), np.float32)
            np.testing.assert_array_equal(
                given.reshape(expected.shape), expected, f"{settings} {width}x{height}"
            )


STATUS = "document.getElementById('status').textContent"
ENDED = "['done', 'failed'].includes(document.body?.dataset.state)"


def shown_classes(browser):
    """Names and probabilities as they stand on the page."""
    rows = browser.evaluate(
        "[...document.querySelectorAll('#classes li')].map((row) => ["
        "  row.querySelector('span').textContent, row.querySelector('data').value,"
        "  row.querySelector('data').textContent])"
    )
    for _, value, text in rows:
        assert text == f"{100 * float(value):.2f}%"
    return [(name, float(value)) for name, value, _ in rows]


def test_the_page_predicts_as_the_model_does(browser, files, real_runtime):
    """The page is a file, as for somebody who opens it from a disk."""
    pytest.importorskip("onnx", reason="the model is written as ONNX")
    net = load_model("net.safetensors", image_size=SIZE)
    net.classes = ("one", "two", "<three>", "four", "five & six", "seven", "eight")
    example, photo = "a <b> 50%.png", "photo.jpg"
    data = {example: pathlib.Path(example).read_bytes()}
    write_page(files / "site", net, runtime=real_runtime, examples=data)

    def check(image):
        browser.wait_for(ENDED)
        assert browser.evaluate(STATUS).startswith(f"{image}: computed in ")
        inside = look_inside(net, image)
        assert len(inside.predictions) == 5
        for shown, expected in zip(
            shown_classes(browser), inside.predictions, strict=True
        ):
            assert shown[0] == expected.name
            # Some roundings of float32, in another order.
            np.testing.assert_allclose(shown[1], expected.probability, atol=2e-6)
        for block in inside.last_blocks():
            for kind in ("gates", "modulator"):
                values = browser.evaluate(
                    f"Array.from(shown.results['{block.name}/{kind}'].data)"
                )
                expected = np.moveaxis(getattr(block, kind), -1, 0)
                most = np.abs(expected).max()
                given = np.reshape(values, expected.shape)
                np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5 * most)

    browser.requests.clear()
    browser.problems.clear()
    url = (files / "site" / "index.html").as_uri()
    browser.open(f"{url}#{urllib.parse.quote(example)}")
    check(example)
    captions = "[...document.querySelectorAll('figcaption')].map((c) => c.textContent)"
    levels = ["gate, level 1", "gate, level 2", "gate, global", "modulator, norm"]
    assert browser.evaluate(captions) == levels + levels[:1] + levels[2:]

    browser.choose_file("#file", files / photo)
    browser.wait_for(f"{STATUS}.includes('{photo}')")
    check(photo)
    turns = browser.evaluate("turns")
    browser.choose_file("#file", files / photo)  # It may have changed meanwhile.
    browser.wait_for(f"turns === {turns + 1}")
    check(photo)

    (files / "no.png").write_text("no image")
    browser.choose_file("#file", files / "no.png")
    browser.wait_for("document.body.dataset.state === 'failed'")
    assert browser.evaluate(STATUS) == "no.png is no image that this browser can read."

    # What is dropped and what is pasted.
    code = base64.b64encode(data[example]).decode()
    browser.evaluate(
        "const carried = new DataTransfer();"
        f"carried.items.add(new File([bytesOf('{code}')], '{example}'));"
        "document.dispatchEvent(new DragEvent('drop', { dataTransfer: carried })); 0"
    )
    browser.wait_for("document.body.dataset.state !== 'failed'")
    check(example)
    browser.evaluate(
        "document.dispatchEvent(new ClipboardEvent('paste',"
        "  { clipboardData: new DataTransfer() })); 0"
    )
    browser.wait_for("document.body.dataset.state === 'failed'")
    assert browser.evaluate(STATUS) == "What was pasted is no file of an image."

    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data", "blob"}
    assert browser.problems == []


def test_parameters_in_float16_predict_nearly_the_same(browser, files, real_runtime):
    pytest.importorskip("onnx", reason="the model is written as ONNX")
    net = load_model("net.safetensors", image_size=SIZE)
    data = {"photo.jpg": pathlib.Path("photo.jpg").read_bytes()}
    options = dict(runtime=real_runtime, dtype="float16", examples=data)
    write_page(files / "site", net, **options)
    browser.open("about:blank")
    browser.open((files / "site" / "index.html").as_uri() + "#photo.jpg")
    browser.wait_for(ENDED)
    [expected] = net.predict("photo.jpg", topk=7)
    expected = {prediction.name: prediction.probability for prediction in expected}
    for name, probability in shown_classes(browser):
        # Each parameter is rounded to a 2,048th of it.
        np.testing.assert_allclose(probability, expected[name], atol=5e-3)


# What code of the page might ask for; {} is the address of a server without its scheme.
ASKED = [
    "void fetch('http:{}', {{mode: 'no-cors'}}).catch(String)",
    "new Image().src = 'http:{}'",
    "new WebSocket('ws:{}')",
    "new EventSource('http:{}')",
    "navigator.sendBeacon('http:{}', 'a')",
    "document.head.append(made('script', {{src: 'http:{}'}}))",
    "document.head.append(made('link', {{rel: 'stylesheet', href: 'http:{}'}}))",
    "document.body.append(made('iframe', {{src: 'http:{}'}}))",
    "document.body.append(made('video', {{src: 'http:{}'}}))",
]


def sent_to(server, *, seconds):
    """What the next client sends, if there is one within some seconds.

    For a frame that it then refuses, Chromium opens a connection and sends nothing on it.
    """
    server.settimeout(seconds)
    while True:
        client, _ = server.accept()
        client.settimeout(0.5)
        with client, contextlib.suppress(OSError):
            if sent := client.recv(1000):
                return sent


def test_the_policy_refuses_what_code_may_load(browser, files):
    """But for WebRTC and for other pages, of which it has no say.

    Without the policy a server hears each of these requests.
    """
    pytest.importorskip("onnx", reason="the model is written as ONNX")
    run("site")
    index = files / "site" / "index.html"
    bare, count = re.subn(r"<meta http-equiv=[^>]*>", "", index.read_text())
    assert count == 1
    for seconds, is_heard in ((0.5, False), (60, True)):
        browser.open("about:blank")
        browser.open(index.as_uri())
        browser.wait_for(ENDED)
        for ask in ASKED:
            with socket.create_server(("127.0.0.1", 0)) as server:
                address = f"//127.0.0.1:{server.getsockname()[1]}/"
                tried = f"(async () => {{ {ask.format(address)}; }})().catch(String)"
                browser.evaluate(tried)
                if is_heard:
                    assert b" / HTTP" in sent_to(server, seconds=seconds), ask
                else:
                    with pytest.raises(TimeoutError):
                        sent_to(server, seconds=seconds)
        index.write_text(bare)


def test_what_keeps_the_model_from_running_is_said(browser, files):
    pytest.importorskip("onnx", reason="the model is written as ONNX")
    run("site", "--example=photo.jpg")
    url = (files / "site" / "index.html").as_uri()

    def said(url):
        browser.open("about:blank")
        browser.open(url)
        browser.wait_for(ENDED)
        assert browser.evaluate("document.body.dataset.state") == "failed"
        return browser.evaluate(STATUS)

    assert said(url) == said(f"{url}#photo.jpg") == "no real runtime"
    script = browser.call(
        "Page.addScriptToEvaluateOnNewDocument", source="delete window.WebAssembly"
    )
    assert said(url) == "This browser has no WebAssembly, or it is switched off."
    browser.call("Page.removeScriptToEvaluateOnNewDocument", **script)
    part = files / "site" / "parts" / "model0.js"
    part.write_text("")
    assert said(url) == "parts/model0.js is damaged: write the page again."
    part.unlink()
    assert said(url).startswith("parts/model0.js is missing: all files of the page")
