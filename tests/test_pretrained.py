"""`load_model`, and what it downloads."""

import functools
import json
import threading
from http.server import SimpleHTTPRequestHandler

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from servers import Server
from sharded import write_shards
from tiny import random_params, tiny_model

from focalnet_jax import demo, load_model
from focalnet_jax.convert import from_torch, to_torch
from focalnet_jax.convert.configs import CONFIGS
from focalnet_jax.convert.weight_files import write_weights
from focalnet_jax.errors import SetupError
from focalnet_jax.export.__main__ import ABOUT, PARAMS, PROGRAM
from focalnet_jax.preprocessing import Preprocessing
from focalnet_jax.tasks.images import normalize
from focalnet_jax.visualize.__main__ import FILES as VISUALIZED
from focalnet_jax.weights import releases
from focalnet_jax.weights.params import find_params


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def params(model):
    return random_params(model, "float32")


class Handler(SimpleHTTPRequestHandler):
    """Serves a directory, and redirects `/resolve/` as the Hugging Face Hub does."""

    requests: list
    served = ("model.safetensors",)

    def do_GET(self):
        self.requests.append((self.path, self.headers.get("Authorization")))
        if "/resolve/" in self.path:
            name = self.path.rpartition("/")[2]
            if name not in self.served or "nobody" in self.path:
                self.send_error(404)
                return
            self.send_response(302)
            self.send_header("Location", f"/{name}")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A fake network: a server for the Hub and the releases, and an empty cache."""
    directory = tmp_path / "served"
    directory.mkdir()
    requests = []
    handler = functools.partial(
        type("Recording", (Handler,), {"requests": requests}), directory=str(directory)
    )
    server = Server(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://localhost:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(releases, "_GITHUB", address)
    monkeypatch.chdir(tmp_path)
    yield directory, requests
    server.shutdown()
    server.server_close()


def assert_same(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_give_model_parameters_and_preprocessing(model, params, tmp_path):
    path = tmp_path / "net.safetensors"
    write_weights(path, to_torch(params, model, dialect="transformers"))
    loaded, given, preprocessing = load_model(path)
    assert loaded == model
    assert_same(given, params)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 256, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    prepared = preprocessing(tmp_path / "image.png")
    assert prepared.shape == (224, 224, 3)
    assert prepared.dtype == np.float32
    np.testing.assert_array_equal(prepared, preprocessing(image))
    np.testing.assert_array_equal(prepared, preprocessing(pixels))
    logits, _ = loaded.apply({"params": given}, prepared[None])
    assert logits.shape == (1, 5)
    half = load_model(path, dtype="bfloat16", normalize_modulator=True)
    assert half.model.encoder.dtype == jnp.bfloat16
    assert half.model.encoder.normalize_modulator


def test_the_hub_is_asked_once(network, model, params):
    directory, requests = network
    write_weights(
        directory / "model.safetensors", to_torch(params, model, dialect="timm")
    )
    for _ in range(2):
        assert_same(load_model("hf:someone/net").params, params)
    base = "/someone/net/resolve/main"
    assert requests == [
        *((f"{base}/{name}", "Bearer secret") for name in CONFIGS),  # None is there.
        (f"{base}/model.safetensors", "Bearer secret"),
        ("/model.safetensors", None),  # The token is not sent to the redirected address.
    ]
    load_model("hf:someone/net@v2")
    assert requests[-2][0] == "/someone/net/resolve/v2/model.safetensors"


def test_the_hub_gives_what_lies_beside_weights(network, model, params, monkeypatch):
    directory, requests = network
    monkeypatch.setattr(Handler, "served", ("model.safetensors", "config.json"))
    write_weights(
        directory / "model.safetensors", to_torch(params, model, dialect="transformers")
    )
    names = dict(enumerate("abcde"))
    config = dict(model_type="focalnet", normalize_modulator=True, id2label=names)
    (directory / "config.json").write_text(json.dumps(config))
    for _ in range(2):
        loaded = load_model("hf:someone/net")
        assert loaded.model == tiny_model(normalize_modulator=True)
        assert loaded.classes == tuple("abcde")
    assert [path for path, _ in requests].count("/config.json") == 1


def test_what_can_not_be_asked_for_is_said(network, model, params, monkeypatch, caplog):
    """Weights that an older release of this package downloaded, without a network."""
    directory, _ = network
    write_weights(
        directory / "model.safetensors", to_torch(params, model, dialect="transformers")
    )
    load_model("hf:someone/net")
    for file in releases.cache_directory().rglob("*.missing"):
        file.unlink()
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")  # Nobody listens there.
    assert_same(load_model("hf:someone/net").params, params)
    assert "what config.json, preprocessor_config.json, processor_" in caplog.text
    assert "may say of hf:someone/net is unknown: can't download http" in caplog.text


def test_weights_are_not_taken_without_what_lies_beside_them(network, model, monkeypatch):
    _, requests = network
    answer = Handler.do_GET

    def do_get(self):
        if self.path.endswith("/config.json"):
            requests.append((self.path, None))
            self.send_error(500)
        else:
            answer(self)

    monkeypatch.setattr(Handler, "do_GET", do_get)
    for _ in range(2):
        with pytest.raises(SetupError, match=r"config.json answers 500") as error:
            load_model("hf:someone/net")
        assert "\n" not in str(error.value)
    assert len(requests) == 2


def test_releases_download_by_name(network, model, params, torch):
    directory, requests = network
    tensors = to_torch(params, model, dialect="microsoft")
    write_weights(directory / "focalnet_tiny_srf.pth", tensors, wrapper="model")
    for name in ("focalnet_tiny_srf", "focalnet_tiny_srf.pth"):
        assert_same(load_model(name).params, params)
    assert requests == [("/focalnet_tiny_srf.pth", None)]


def test_what_is_not_there_is_said(network, tmp_path):
    with pytest.raises(
        SetupError, match=r"nobody/net has no model.safetensors or pytorch"
    ):
        load_model("hf:nobody/net")
    with pytest.raises(SetupError, match="not of the form hf:OWNER/NAME"):
        load_model("hf:net")
    with pytest.raises(SetupError, match="answers 404"):
        load_model("focalnet_base_lrf")
    with pytest.raises(SetupError, match="did you mean 'focalnet_tiny_srf'"):
        load_model("focalnet_tiny_sr")
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_names_of_paths_are_answered_with_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/digits", "runs/birds", "w"):
        (tmp_path / name).mkdir(parents=True)
    hub = "on the Hugging Face Hub, give 'hf:microsoft/net'"
    for given, end in (
        ("runs/digitss", "; did you mean 'runs/digits'?"),
        ("./runs/digitss", "; did you mean './runs/digits'?"),
        ("run/digits", "; did you mean 'runs/digits'?"),
        ("digits", "; did you mean 'runs/digits'?"),
        ("runs/photos-of-cats", "; runs holds 'birds', 'digits'"),
        ("w/runs/digits", ", and there is no directory 'w/runs'"),
        ("w/none.pth", "is named 'w/none.pth'"),
        ("w/none", "is named 'w/none'"),
        ("none/w.safetensors", ", and there is no directory 'none'"),
        ("microsoft/net", hub),
    ):
        with pytest.raises(SetupError) as raised:
            load_model(given)
        assert str(raised.value).endswith(end)
    monkeypatch.chdir(tmp_path / "w")  # Nothing was trained here.
    with pytest.raises(SetupError, match="and there is no directory 'runs'$"):
        load_model("runs/digits")


def test_the_hub_may_have_pytorchs_file_only(network, model, params, torch, monkeypatch):
    directory, requests = network
    monkeypatch.setattr(Handler, "served", ("pytorch_model.bin",))
    write_weights(
        directory / "pytorch_model.bin", to_torch(params, model, dialect="transformers")
    )
    assert_same(load_model("hf:someone/net").params, params)
    assert [path.rpartition("/")[2] for path, _ in requests] == [
        *CONFIGS,
        "model.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin",
    ]


def test_checkpoints_in_several_files(network, model, params, monkeypatch, tmp_path):
    directory, requests = network
    index = write_shards(directory, to_torch(params, model, dialect="transformers"))
    names = sorted(path.name for path in directory.iterdir())
    monkeypatch.setattr(Handler, "served", names)
    for _ in range(2):
        assert_same(load_model("hf:someone/net").params, params)
    fetched = [path for path, _ in requests if "/resolve/" not in path]
    assert sorted(fetched) == [f"/{name}" for name in names]  # Each of them once.
    for source in (directory, index):
        assert_same(load_model(source).params, params)
    monkeypatch.setattr(Handler, "served", [index.name])
    with pytest.raises(SetupError, match="model-00001-of-00002.safetensors answers 404"):
        load_model("hf:someone/net@v2")


def test_directories_say_which_file_they_hold(model, params, tmp_path, caplog):
    weights = to_torch(params, model, dialect="timm")
    write_weights(tmp_path / "best.safetensors", weights)
    with pytest.raises(SetupError, match="but 'best.safetensors': give the path of the"):
        load_model(tmp_path)
    write_weights(tmp_path / "model.safetensors", weights)
    (tmp_path / "pytorch_model.bin").touch()
    assert_same(load_model(tmp_path).params, params)
    assert "holds model.safetensors and pytorch_model.bin: the first one" in caplog.text


@pytest.mark.parametrize(
    ("files", "given", "kind"),
    [
        ([PROGRAM, PARAMS, ABOUT], "made", "a program of StableHLO"),
        ([PROGRAM, PARAMS, ABOUT], f"made/{PROGRAM}", "a program of StableHLO"),
        ([PROGRAM, PARAMS, ABOUT], f"made/{PARAMS}", "a program of StableHLO"),
        (demo.page.SITE, "made", "a page of python -m focalnet_jax.demo"),
        (VISUALIZED, "made", "what python -m focalnet_jax.visualize shows"),
    ],
)
def test_what_was_made_of_a_net_is_no_source_of_it(
    files, given, kind, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    for name in files:
        (tmp_path / "made" / name).touch()
    with pytest.raises(SetupError, match=rf"made is {kind}.*give what it was made of"):
        load_model(given)
    if given == "made":
        with pytest.raises(SetupError, match=rf"made is {kind}"):
            find_params(given)


def test_addresses_are_answered_with_names(network, model, params, torch):
    directory, requests = network
    weights = to_torch(params, model, dialect="microsoft")
    write_weights(directory / "focalnet_tiny_srf.pth", weights)
    address = f"{releases._GITHUB}/focalnet_tiny_srf.pth"
    assert_same(load_model(address).params, params)
    file = (directory / "focalnet_tiny_srf.pth").as_uri()
    assert_same(load_model(file).params, params)
    hub = "https://huggingface.co/microsoft/focalnet-tiny"
    for source, answer in {
        "https://example.org/focalnet_base_lrf.pth": "release, 'focalnet_base_lrf'",
        "http://example.org/net.pth": "download the file and give its path",
        "ftp://example.org/net.pth": "download the file and give its path",
        hub: "give 'hf:microsoft/focalnet-tiny'",
        f"{hub}/tree/v2": "give 'hf:microsoft/focalnet-tiny@v2'",
        f"{hub}/resolve/main/model.safetensors": "give 'hf:microsoft/focalnet-tiny'",
        "huggingface.co/microsoft/focalnet-tiny": "give 'hf:microsoft/focalnet-tiny'",
        "hf://microsoft/focalnet-tiny": "give 'hf:microsoft/focalnet-tiny'",
        "microsoft/focalnet-tiny": "give 'hf:microsoft/focalnet-tiny'",
        "s3://bucket/net": "s3://bucket/net can't be reached: ",
        "file:///nowhere/net.pth": "no file, directory or release is named",
        "~/nowhere/net.pth": "no file, directory or release is named '~/nowhere",
    }.items():
        with pytest.raises(SetupError) as error:
            load_model(source)
        assert answer in str(error.value)
        assert "\n" not in str(error.value)
    for source in ("hf:microsoft/focalnet-tiny", "focalnet_tiny_srf", address):
        with pytest.raises(SetupError, match="focalnet_jax.load_model and python -m foc"):
            from_torch(source, model)
    assert len(requests) == 1


@pytest.mark.parametrize(
    "name", ["hf:a", "hf:/x", "hf:a/b/c", "hf:a/b c", "hf:a/bé", "hf:a/../b", "hf:a/b@/x"]
)
def test_names_on_the_hub_stay_in_the_cache(name, network):
    with pytest.raises(SetupError, match="not of the form hf:OWNER/NAME"):
        load_model(name)
    assert network[1] == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<html>", "a web page"),
        (b"what?\r\n\r\n", "can't download"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: many\r\n\r\n", "can't download"),
    ],
)
def test_odd_answers_are_one_line(answer, message, network, monkeypatch, tmp_path):
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.wfile.write(answer))
    with pytest.raises(SetupError, match=message) as error:
        load_model("focalnet_tiny_srf")
    assert "\n" not in str(error.value)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_an_answer_that_breaks_off_is_not_kept(network, monkeypatch, tmp_path):
    def send_half(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 500)

    monkeypatch.setattr(Handler, "do_GET", send_half)
    with pytest.raises(
        SetupError, match="broke off after 500 of 1,000 bytes|IncompleteRead"
    ):
        load_model("focalnet_tiny_srf")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_no_network_is_said_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")  # Nobody listens there.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(releases, "_GITHUB", "http://localhost:9")
    files = "fetch model.safetensors or pytorch_model.bin and the .json files beside it"
    for source, instead in (
        ("hf:microsoft/focalnet-tiny", f"{files} from .*microsoft/focalnet-tiny elsewh"),
        ("focalnet_tiny_srf", "fetch the file elsewhere and give its path"),
    ):
        with pytest.raises(SetupError, match=instead) as error:
            load_model(source)
        assert "\n" not in str(error.value)


def test_directories_need_a_description(tmp_path):
    (tmp_path / "params").mkdir()
    with pytest.raises(SetupError, match=r"no model.json to say of what model"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(SetupError, match=r"model.json is no description of a model"):
        load_model(tmp_path)
    with pytest.raises(SetupError, match="there is no checkpoint in"):
        load_model(tmp_path / "params")


def test_normalisation_equals_that_of_training():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    preprocessing = Preprocessing()
    expected = normalize(pixels, mean=preprocessing.mean, std=preprocessing.std)
    # XLA may multiply by the reciprocal, which can change the last bit.
    np.testing.assert_allclose(preprocessing.normalize(pixels), expected, rtol=1e-6)
