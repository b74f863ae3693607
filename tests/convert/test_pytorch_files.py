"""PyTorch's files are read as torch reads them, and nothing that is in them runs."""

import argparse
import collections
import functools
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from focalnet_jax.convert.weight_files import read_weights
from focalnet_jax.errors import SetupError


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def net(torch):
    """Named tensors of every plain kind and of odd layouts."""
    numbers = torch.arange(24, dtype=torch.float32)
    return {
        "layers.0.weight": numbers.reshape(4, 6),
        "layers.0.turned": numbers.reshape(4, 6).T,
        "layers.0.part": numbers[3:20:2],
        "layers.0.repeated": torch.ones(1).expand(5),
        "layers.0.scalar": torch.tensor(3.0),
        "layers.0.empty": torch.zeros(0, 3),
        "layers.0.parameter": torch.nn.Parameter(torch.ones(2)),
        **{
            f"layers.1.{dtype}": torch.arange(3).to(getattr(torch, dtype))
            for dtype in (
                *("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8"),
                *("uint8", "uint16", "bool", "complex64", "complex128"),
            )
        },
    }


def assert_same(given, net):
    assert given.keys() == net.keys()
    for name, tensor in net.items():
        expected = tensor.detach()
        if str(expected.dtype) == "torch.bfloat16":
            assert given[name].dtype == "bfloat16"
            expected = expected.float()
            given = given | {name: given[name].astype("float32")}
        assert given[name].dtype == expected.numpy().dtype
        np.testing.assert_array_equal(given[name], expected.numpy(), strict=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(pickle_protocol=5),
        dict(_use_new_zipfile_serialization=False),
        dict(_use_new_zipfile_serialization=False, pickle_protocol=4),
    ],
    ids=str,
)
def test_every_kind_of_tensor(options, net, directory, torch):
    torch.save(net, directory / "a.pth", **options)
    assert_same(read_weights(directory / "a.pth").tensors, net)


def test_plain_pickles_of_arrays_and_of_tensors(net, directory, torch):
    for protocol in range(6):
        path = directory / "a.pkl"
        if protocol >= 2:
            path.write_bytes(pickle.dumps(net, protocol))
            assert_same(read_weights(path).tensors, net)
        arrays = {
            "a.b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            "a.c": np.ones(2),
        }
        for content in (
            {"model": arrays, "by": "somebody"},
            collections.OrderedDict(arrays),
            collections.defaultdict(None, model=arrays),
        ):
            path.write_bytes(pickle.dumps(content, protocol))
            given = read_weights(path).tensors
            for name, array in arrays.items():
                np.testing.assert_array_equal(given[name], array, strict=True)
    torch.save(net, path, _use_new_zipfile_serialization=False, pickle_protocol=1)
    assert_same(read_weights(path).tensors, net)


class Config(dict):
    """A mapping of a class that other machines don't have, as yacs' CfgNode is one."""


def trainers(net, torch):
    """What usual trainers save, and the entry in which the weights are."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    arguments = argparse.Namespace(lr=0.1, output=pathlib.Path("/runs"))
    common = dict(epoch=3, optimizer=optimizer.state_dict(), args=arguments)
    return {
        "checkpoint-3.pth.tar": common
        | dict(state_dict=net, metric=np.float64(82.1), amp_scaler={"scale": layer.bias}),
        "epoch=3-step=10.ckpt": {
            "state_dict": net,
            "hyper_parameters": Config(lr=0.1),
            "callbacks": {"best": torch.tensor(1.0)},
            "optimizer_states": [optimizer.state_dict()],
        },
        "official.pth": common
        | dict(
            model=net, config=Config(a=Config(b=1)), lr_scheduler=schedule.state_dict()
        ),
        "deepspeed.pt": dict(module=net, dp_world_size=1, ds_config=Config()),
        "fairseq.pt": dict(model=net, args=arguments, extra_state={"rng": np.arange(3)}),
        "mmcv.pth": dict(meta=dict(time="now"), state_dict=collections.OrderedDict(net)),
        "ema.pth": dict(state_dict_ema=net, epoch=3),
        "nested.pth": dict(ema=dict(module=net, decay=0.9)),
        "named.pth": dict(net=net, optimizer={"state": {"layers.0.weight": dict(net)}}),
        "seen.pth": dict(model=net, rng=torch.get_rng_state(), seen={1, 2}),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_usual_trainers(zipped, net, directory, torch):
    for name, content in trainers(net, torch).items():
        torch.save(content, directory / name, _use_new_zipfile_serialization=zipped)
        assert_same(read_weights(directory / name).tensors, net)


def test_of_several_entries_one_is_asked_for(net, directory, torch):
    torch.save(dict(student=net, ema={"a.b": torch.ones(1)}), directory / "a.pth")
    with pytest.raises(SetupError, match="in several entries, 'student', 'ema'") as error:
        read_weights(directory / "a.pth")
    assert_same(read_weights(directory / "a.pth", **error.value.remedies).tensors, net)
    with pytest.raises(SetupError, match="did you mean 'student'"):
        read_weights(directory / "a.pth", wrapper="studnet")


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_modules_give_their_parameters(zipped, directory, torch):
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    net[0].register_buffer("temporary", torch.ones(1), persistent=False)
    path = directory / "a.pth"
    for content in (net, {"model": net}):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        weights = read_weights(path)
        assert_same(weights.tensors, net.state_dict())
        assert "whole module, torch.nn.modules.container.Sequential" in weights.notes[0]


class Bomb:
    """A pickle that would call a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def touch(name="exploded"):
    pathlib.Path(name).touch()


BOMBS = [
    Bomb(os.system, "touch exploded"),
    Bomb(eval, "open('exploded', 'w')"),
    Bomb(exec, "open('exploded', 'w')"),
    Bomb(open, "exploded", "w"),
    Bomb(subprocess.check_call, ["touch", "exploded"]),
    Bomb(functools.partial, touch),
    Bomb(__import__, "antigravity"),
    Bomb(functools.reduce, getattr, ["system"], "os"),
    Bomb(map, touch, ["exploded"]),
]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.call[0].__name__)
def test_no_code_runs(bomb, protocol, directory, torch):
    """The tensors beside it are read, so the pickle went through to its end."""
    path = directory / "a.pth"
    for zipped in (True, False):
        torch.save(
            {"model": {"a.b": torch.ones(1)}, "bomb": bomb},
            path,
            _use_new_zipfile_serialization=zipped,
            pickle_protocol=max(protocol, 2),
        )
        assert read_weights(path).tensors.keys() == {"a.b"}
    path.write_bytes(pickle.dumps(bomb, protocol))
    with pytest.raises(SetupError) as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert not (directory / "exploded").exists()


def test_the_bombs_are_live(directory):
    """Python's own pickle runs them, so a reader that runs nothing has been tested."""
    pickle.loads(pickle.dumps(BOMBS[0]))
    assert (directory / "exploded").exists()


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00touchX\x01\x00\x00\x00aRb.",
        b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00K\x00K\x00tR.",
        b"\x80\x02Q.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_odd_programs_end_in_one_line_and_change_nothing(program, directory, net, torch):
    (directory / "a.pth").write_bytes(program)
    with pytest.raises(SetupError) as error:
        read_weights(directory / "a.pth")
    assert "\n" not in str(error.value)
    torch.save(net, directory / "b.pth")
    assert_same(read_weights(directory / "b.pth").tensors, net)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (9,), (1,)),
        (8, (1,), (1,)),
        (0, (2,), (8,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
    ],
)
def test_tensors_outside_of_their_storage_are_refused(
    offset, shape, strides, directory, torch
):
    """Such a tensor would show what else is in memory."""

    class Outside:
        def __reduce__(self):
            storage = torch.storage.TypedStorage(
                wrap_storage=torch.ones(8).untyped_storage(),
                dtype=torch.float32,
                _internal=True,
            )
            return torch._utils._rebuild_tensor, (storage, offset, shape, strides)

    torch.save({"a": Outside()}, directory / "a.pth")
    with pytest.raises(SetupError, match="a tensor lies outside of its storage"):
        read_weights(directory / "a.pth")


def test_no_torch_is_needed(net, directory, torch):
    torch.save({"a.b": torch.ones(2)}, directory / "a.pth")
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from focalnet_jax.convert.weight_files import read_weights\n"
        "print(read_weights('a.pth').tensors)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "array([1., 1.]" in result.stdout


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_says_of_a_tensor_is_heeded(zipped, directory, torch):
    path, ones = directory / "a.pth", torch.ones(2)
    net = {"a.b": torch._neg_view(ones), "a.c": ones}
    net["a.d"] = torch._neg_view(torch.arange(4.0).reshape(2, 2).T)
    net["a.e"] = torch._neg_view(torch.arange(3).to(torch.uint16).to(torch.bfloat16))
    resolved = {name: tensor.resolve_neg() for name, tensor in net.items()}
    assert_same(read_weights(net).tensors, resolved)
    torch.save(net, path, _use_new_zipfile_serialization=zipped)
    assert_same(read_weights(path).tensors, resolved)
    torch.save({"a.b": ones, "a.c": torch.ones(2).to(torch.complex64).conj()}, path)
    with pytest.raises(SetupError, match="'a.c' as a tensor marked conj, which can't"):
        read_weights(path)


class Marked:
    """A tensor of which a newer torch says something that is not known here."""

    def __init__(self, tensor, metadata):
        self.tensor, self.metadata = tensor, metadata

    def __reduce__(self):
        function, args = self.tensor.__reduce_ex__(2)
        return function, (*args[:6], self.metadata)


def test_unknown_marks_of_a_tensor_are_no_numbers(directory, torch):
    path = directory / "a.pth"
    torch.save({"a.b": Marked(torch.ones(2), {"neg": False, "new": True})}, path)
    with pytest.raises(SetupError, match="'a.b' as a tensor marked new, which can't be"):
        read_weights(path)
    torch.save({"a.b": Marked(torch.ones(2), {"neg": False})}, path)
    assert_same(read_weights(path).tensors, {"a.b": torch.ones(2)})
    torch.save({"a.b": Marked(torch.ones(2), "neg")}, path)
    with pytest.raises(SetupError, match="is damaged, or no PyTorch file"):
        read_weights(path)
