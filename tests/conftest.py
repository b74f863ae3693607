"""Set-up that all tests share: eight fake CPU devices, tiny models, prepared digits."""

import faulthandler
import importlib.metadata
import os
import shutil
import sys
import tempfile
import types
import warnings

# Before jax is imported anywhere. Most of the tests' time is compilation: the second flag
# halves it, and so does the third, which later compilers don't know.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# A process that crashes says where each of its threads was.
os.environ["PYTHONFAULTHANDLER"] = "1"

# Many tests compile the same programs: what one has compiled the others find, in other
# processes, too.
if is_first := "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="focalnet_jax_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import importlib.util
import pathlib

import jax
import pytest

from focalnet_jax.data import open_source
from focalnet_jax.train import default_config, loop, train
from focalnet_jax.train.run import metrics
from focalnet_jax.train.run.metrics import MetricsWriter
from focalnet_jax.train.run.preemption import Preemption


@pytest.hookimpl(trylast=True)  # Pytest's own plugin writes it where it may be lost.
def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        return
    directory = pathlib.Path(config.rootpath, ".pytest_cache", "crashes")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{config.workerinput['workerid']}-{os.getpid()}.txt"
    config.crash_file = path.open("w")
    faulthandler.enable(config.crash_file)


def pytest_unconfigure(config):
    if hasattr(config, "crash_file"):  # It ends without a crash.
        faulthandler.disable()
        config.crash_file.close()
        pathlib.Path(config.crash_file.name).unlink(missing_ok=True)
    if is_first:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def signals_are_for_pytest():
    """A signal that ends the tests does so, and isn't a notice to the run in a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Preemption, "__enter__", lambda self: self)
        yield


@pytest.fixture(scope="session")
def torch():
    """PyTorch, such that torchvision, timm and transformers can be imported after it."""
    torch = pytest.importorskip("torch", reason="the reference is written in torch")
    torchvision = importlib.util.find_spec("torchvision")
    if torchvision:
        [compiled] = pathlib.Path(torchvision.origin).parent.glob("_C.*")
        try:
            torch.ops.load_library(compiled)
        except OSError:
            # Built for CUDA beside a torch for CPUs, as some package indexes pair them.
            # Its import asks for two operators, which nothing here calls.
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou) -> Tensor")
            torch.torchvision_operators = library  # to live as long as torch
    return torch


@pytest.fixture(scope="session")
def peers(torch):
    """The module that builds timm's and transformers' FocalNet."""
    pytest.importorskip("timm", reason="it is one of the references")
    pytest.importorskip("transformers", reason="it is one of the references")
    from focalnet_jax.parity import peers

    return peers


@pytest.fixture(scope="session")
def mmseg(torch):
    """The module mmseg, which is mmsegmentation, without compiled operators of mmcv."""
    if not importlib.util.find_spec("mmseg"):
        pytest.skip("it is one of the references; tests/mmsegmentation.txt has it")

    class Absent(types.ModuleType):
        """All operators by name; nothing that is compared here calls one of them."""

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)

    sys.modules["mmcv._ext"] = Absent("mmcv._ext")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that are as old as it is
        import mmseg.models
    return mmseg


@pytest.fixture
def float64():
    """Arrays may be float64 in this test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A directory in which the digits are prepared."""
    directory = str(tmp_path_factory.mktemp("tfds"))
    open_source("digits", split="train", data_dir=directory)
    return directory


@pytest.fixture(scope="session")
def environment(data_dir):
    """Of processes as on a machine with one CPU device and the digits prepared."""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"
    return os.environ | {"TFDS_DATA_DIR": data_dir, "XLA_FLAGS": flags}


@pytest.fixture
def tiny_config(data_dir):
    """A run on the digits that takes seconds: a net of one block, dropout and shuffling.

    Most of what such a test costs is the compilation of its step, so the net is as small
    as one can be. Tests of more than the run's course make it larger.
    """
    config = default_config()
    config.batch_size = 16
    config.num_steps = 6
    config.learning_rate = 1e-2
    config.learning_rate_batch_size = 0
    config.warmup_epochs = 0.02
    config.model.num_classes = 10
    config.model.depths = (1,)
    config.model.embed_dim = 8
    config.model.focal_levels = (1,)
    config.model.focal_windows = (3,)
    config.model.drop_rate = 0.1
    config.data.name = "digits"
    config.data.data_dir = data_dir
    config.data.test_split = "test[:60]"
    config.data.image_size = 16
    config.checkpoint.every_steps = 3
    config.log_every_steps = 1
    return config


# What a run compiles, by all that this depends on.
PROGRAMS = {}

# Fields of a config that no compiled program depends on.
UNCOMPILED = ("checkpoint", "evaluate_every_steps", "init_from", "log_every_steps")


@pytest.fixture
def shared_programs(monkeypatch):
    """Runs of equal configs share what they compile.

    Where a test changes the code of what is compiled, its runs would neither see the
    change nor keep it to themselves: such tests do without.
    """
    make = loop.make_program

    def make_or_find(config, task, mesh, **options):
        fields = config.to_dict()
        for name in UNCOMPILED:
            del fields[name]
        key = repr((fields, mesh, options))
        if key not in PROGRAMS:
            PROGRAMS[key] = make(config, task, mesh, **options)
        return PROGRAMS[key]

    monkeypatch.setattr(loop, "make_program", make_or_find)


@pytest.fixture
def no_summaries(monkeypatch):
    """Runs draw no `summary.html`, which takes them longer than some steps."""
    monkeypatch.setattr(metrics, "write_summary", lambda *_, **__: None)


@pytest.fixture
def train_until(monkeypatch):
    """A function that trains a run from `check_config` and stops as a crash would."""

    class Crash(Exception):
        pass

    def train_until(run, workdir, step):
        write = MetricsWriter.write

        def crash_after(self, at, metrics):
            write(self, at, metrics)
            if at == step:
                raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(MetricsWriter, "write", crash_after)
            with pytest.raises(Crash):
                train(*run, workdir)

    return train_until
