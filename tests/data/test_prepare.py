"""The command that prepares data sets: its files, its messages, and its accidents."""

import errno
import fcntl
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from focalnet_jax.command_line import run
from focalnet_jax.data import open_source
from focalnet_jax.data.prepare import writing
from focalnet_jax.data.prepare.__main__ import main
from focalnet_jax.data.sources.shards import CHECKSUMS, check_shards, write_shard
from focalnet_jax.errors import SetupError


@pytest.fixture
def folder(tmp_path):
    """An image folder with 20 images of noise in two splits."""
    rng = np.random.default_rng(0)
    counts = {"train/cat": 8, "train/dog": 6, "val/dog": 4, "val/emu": 2}
    for place, count in counts.items():
        directory = tmp_path / "folder" / place
        directory.mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(256, size=(9, 7, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(directory / f"{i}.png")
    return tmp_path / "folder"


@pytest.fixture
def command(folder, tmp_path):
    """The arguments that make the folder a data set of 5 + 5 files."""
    return [f"folder:{folder}", "--name=pets", f"--data-dir={tmp_path}", "--shards=5"]


def files(directory):
    """The content of each file in a directory that is not hidden, by its name."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("[!.]*")
        if path.is_file()
    }


def sole(directory, pattern):
    """The only path in a directory that fits a pattern."""
    [path] = directory.glob(pattern)
    return path


def flip(path, offset):
    """Inverts the bits of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 255
    path.write_bytes(data)


def test_a_folder_is_read_as_it_was(folder, tmp_path, command, capsys):
    main(command)
    options = f"--config.data.name=pets --config.data.data_dir={tmp_path} "
    options += "--config.data.test_split=val --config.model.num_classes=3"
    assert capsys.readouterr().out.endswith(f"use it with {options}\n")
    for split, count in {"train": 14, "val": 6}.items():
        source = open_source("pets", split=split, data_dir=str(tmp_path))
        assert source.class_names == ("cat", "dog", "emu")
        names = [record["file_name"].decode() for record in source.records]
        originals = [
            str(p.relative_to(folder / split)) for p in folder.glob(f"{split}/*/*")
        ]
        assert sorted(names) == sorted(originals)
        assert len(names) == count
        assert names != sorted(names)
        for name, record in zip(names, source.records):
            assert record["image"] == (folder / split / name).read_bytes()
            assert source.class_names[record["label"]] == name.split("/")[0]
        assert source.records[0]["image"].startswith(b"\x89PNG")


def test_a_folder_without_splits_is_train(folder, tmp_path):
    main([f"folder:{folder}/val", "--name=pets", f"--data-dir={tmp_path}"])
    source = open_source("pets", split="train", data_dir=str(tmp_path))
    assert (len(source), source.class_names) == (6, ("dog", "emu"))
    assert len(list((tmp_path / "pets/1.0.0").glob("*.array_record-*"))) == 1


def test_what_a_folder_lacks_and_leaves_out_is_said(folder, command, capsys):
    (folder / "train/cat/in").mkdir()
    (folder / "train/cat/0.png").rename(folder / "train/cat/in/0.jfif")
    (folder / "train/cat/1.HEIC").write_bytes(b"x")
    main(command)
    output = capsys.readouterr().out
    assert f"note: files left out of {folder / 'train'}: 1 ending in .heic" in output
    assert "note: the split 'train' has no images of 'emu'\n" in output
    assert "note: the split 'val' has no images of 'cat'\n" in output
    assert "20 records in 10 files" in output


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        ("train/cat", "train/train/cat", "'train' in .*train can be taken for a split"),
        ("train/cat/0.png", "train/0.png", "'0.png' in .*train belong to no class"),
        ("train", "north", None),
        ("train/cat", "north/cat", "belong to no class|can be taken"),
    ],
)
def test_folders_that_can_be_read_in_two_ways_are_not_prepared(
    folder, command, tmp_path, place, new, message
):
    (folder / new).parent.mkdir(exist_ok=True)
    (folder / place).rename(folder / new)
    if message is None:
        main(command)  # The other split's name shows what they are.
        assert len(open_source("pets", split="north", data_dir=str(tmp_path))) == 14
        return
    if new.startswith("north"):
        (folder / "val").rename(folder / "south")
        (folder / "train").rename(folder / "west")
    with pytest.raises(SetupError, match=message):
        main(command)
    assert not (tmp_path / "pets").exists()


def test_files_that_may_not_be_read_are_named(folder, command, monkeypatch, tmp_path):
    access = os.access
    monkeypatch.setattr(  # root, who runs tests, may read everything
        os, "access", lambda path, mode: path.name != "3.png" and access(path, mode)
    )
    with pytest.raises(SetupError, match=r"can't be read: .*denied: .*3.png"):
        main(command)
    assert not (tmp_path / "pets").exists()


def test_another_process_prepares_and_reads_without_tensorflow(tmp_path, command):
    program = (
        "import sys\n"
        "from focalnet_jax.data import open_source\n"
        "from focalnet_jax.data.prepare import __main__ as prepare\n"
        "prepare.main(sys.argv[2:])\n"
        "source = open_source('pets', split='train', data_dir=sys.argv[1])\n"
        "print(sum(len(r['image']) for r in source.records), 'tensorflow' in sys.modules)"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path), *command]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    source = open_source("pets", split="train", data_dir=str(tmp_path))
    size = sum(len(record["image"]) for record in source.records)
    assert output.splitlines()[-1] == f"{size} False"


@pytest.mark.parametrize(
    ("name", "config", "version", "asked_for"),
    [
        ("digits", "", "1.0.0", "digits"),
        ("imagenet_v2", "matched-frequency", "3.0.0", "imagenet_v2"),  # TFDS has code
        ("no_code", "small", "2.1.0", "no_code/small:2.1.0"),
    ],
)
def test_a_copy_has_the_same_records(
    data_dir, as_tfrecord, capsys, name, config, version, asked_for
):
    original = as_tfrecord(name, config, version)
    before = files(original)
    main([asked_for, f"--data-dir={original.parents[2 if config else 1]}"])
    assert files(original) == before

    options = capsys.readouterr().out.split("use it with ")[1]
    name, copy_dir = re.fullmatch(
        r"--config.data.name=(.+) --config.data.data_dir=(.+) "
        r"--config.data.test_split=test --config.model.num_classes=10+\n",
        options,
    ).groups()
    assert copy_dir.endswith("/tfrecord-array_record")
    for split in ("train", "test"):
        copy = open_source(name, split=split, data_dir=copy_dir)
        digits = open_source("digits", split=split, data_dir=data_dir)
        order = [j for i in range(3) for j in range(i, len(digits), 3)]
        assert len(copy) == len(digits)
        assert copy.class_names == digits.class_names
        for i in range(0, len(copy), 17):
            assert copy.records[i] == digits.records[order[i]]


def test_a_copy_goes_where_it_is_told(as_tfrecord, tmp_path):
    as_tfrecord()
    command = ["digits", f"--data-dir={tmp_path}/tfrecord"]
    main([*command, f"--to={tmp_path}/there"])
    assert len(list((tmp_path / "there/digits/1.0.0").glob("*.array_record-*"))) == 6
    with pytest.raises(SystemExit, match="error: --to=.* is where the original lies"):
        run(lambda: main([*command, f"--to={tmp_path}/tfrecord"]))


def test_what_is_array_record_already_is_used_as_it_is(data_dir, capsys):
    main(["digits", f"--data-dir={data_dir}"])
    output = capsys.readouterr().out
    assert "1.0.0 is array_record already" in output
    assert f"data.name=digits:1.0.0 --config.data.data_dir={data_dir} " in output


def test_a_damaged_original_is_named_and_the_rest_kept(as_tfrecord, tmp_path, capsys):
    original = as_tfrecord()
    file = sole(original, "digits-test.tfrecord-00001*")
    whole = file.read_bytes()
    flip(file, 1000)
    command = ["digits", f"--data-dir={tmp_path}/tfrecord", f"--to={tmp_path}/to"]
    with pytest.raises(SetupError, match=f"{file} is corrupt.* at byte"):
        main(command)
    assert not (tmp_path / "to/digits/1.0.0").exists()
    file.write_bytes(whole)
    main(command)
    assert "of 6 files are finished already" in capsys.readouterr().out
    assert (tmp_path / "to/digits/1.0.0").exists()


def test_an_original_must_have_all_files_and_records(as_tfrecord, tmp_path):
    original = as_tfrecord()
    command = ["digits", f"--data-dir={tmp_path}/tfrecord"]
    info = (original / "dataset_info.json").read_text()
    wrong = json.loads(info)
    wrong["splits"][0]["shardLengths"][0] += 1
    (original / "dataset_info.json").write_text(json.dumps(wrong))
    with pytest.raises(SetupError, match=r"promises \d+ records for .* the original has"):
        main(command)
    sole(original, "digits-train.tfrecord-00002*").unlink()
    with pytest.raises(SetupError, match="lacks 'digits-train.tfrecord-00002-of-00003'"):
        main(command)


def test_a_killed_run_goes_on(folder, tmp_path, command, capsys):
    program = (
        "import os, signal, sys\n"
        "from focalnet_jax.data.prepare import __main__ as prepare, writing\n"
        "write_shard, paths = writing.write_shard, []\n"
        "def killed(path, payloads):\n"
        "    paths.append(path)\n"
        "    if len(paths) == 4:\n"
        "        path.write_bytes(b'half a file')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return write_shard(path, payloads)\n"
        "writing.write_shard = killed\n"
        "prepare.main(sys.argv[1:])"
    )
    process = subprocess.run([sys.executable, "-c", program, *command])
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(SetupError, match="'pets'"):
        open_source("pets", split="train", data_dir=str(tmp_path))
    begun = sole(tmp_path, "pets/1.0.0.begun-*")
    assert len(list(begun.glob(".*"))) == 1  # the half-written file
    finished = {file: file.stat().st_mtime_ns for file in begun.glob("pets-*")}
    assert len(finished) == 3

    main(command)
    assert "3 of 10 files are finished already" in capsys.readouterr().out
    directory = tmp_path / "pets/1.0.0"
    assert [path.name for path in directory.parent.iterdir()] == ["1.0.0"]
    assert not list(directory.glob(".*"))
    for file, time in finished.items():
        assert (directory / file.name).stat().st_mtime_ns == time
    main([*command, f"--data-dir={tmp_path}/unbroken"])
    assert files(directory) == files(tmp_path / "unbroken/pets/1.0.0")


class FullDisk:
    """Stands for an ArrayRecordWriter on a disk with room for a few records."""

    room = 9
    writer = array_record_module.ArrayRecordWriter

    def __init__(self, path, options):
        self.writer = FullDisk.writer(path, options)

    def write(self, record):
        if not FullDisk.room:
            raise RuntimeError(
                "write() failed: No space left on device; writing x; at byte 3145728; "
                "Could not submit chunk: 669"
            )
        FullDisk.room -= 1
        self.writer.write(record)

    def close(self):
        self.writer.close()


def test_a_full_disk(folder, tmp_path, command, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(array_record_module, "ArrayRecordWriter", FullDisk)
        patch.setattr(FullDisk, "room", 9)
        message = "no space left in .*pets: 3 of 10 files are finished and stay"
        with pytest.raises(SetupError, match=message):
            main(command)
    begun = sole(tmp_path, "pets/1.0.0.begun-*")
    assert len(files(begun)) == 3 + 1  # and their checksums

    flip(sole(begun, "pets-train.array_record-00001*"), 70)
    main(command)
    output = capsys.readouterr().out
    assert "00001-of-00005 doesn't fit its checksum, and is written anew" in output
    assert "2 of 10 files are finished already" in output
    main([*command, f"--data-dir={tmp_path}/unbroken"])
    assert files(tmp_path / "pets/1.0.0") == files(tmp_path / "unbroken/pets/1.0.0")


def test_a_disk_that_is_full_when_metadata_are_written(tmp_path, command, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tfds.core.DatasetInfo, "write_to_directory", full)
        with pytest.raises(SetupError, match="no space left.* 10 of 10 files"):
            main(command)
    assert not (tmp_path / "pets/1.0.0").exists()
    main(command)
    assert (tmp_path / "pets/1.0.0").exists()


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("count", [1, 1000], ids=["at close", "at write"])
def test_array_records_own_error_of_a_full_disk(count):
    payloads = [np.random.default_rng(0).bytes(50_000)] * count
    with pytest.raises(OSError, match="No space left") as caught:
        write_shard(pathlib.Path("/dev/full"), payloads)
    assert caught.value.errno == errno.ENOSPC


def test_an_unfinished_data_set_is_gone_on_with_only_unchanged(
    folder, tmp_path, command, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(command)
    message = "begun with other .*: rm -r .*1.0.0.begun-"
    with pytest.raises(SetupError, match=message):
        main([*command, "--shards=4"])
    (folder / "train/cat/0.png").unlink()
    with pytest.raises(SetupError, match=message):
        main(command)


def test_two_at_once(tmp_path, command):
    (tmp_path / "pets").mkdir()
    with open(tmp_path / "pets/.1.0.0.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SetupError, match="another process is writing to .*pets"):
            main(command)
    main(command)


def test_what_is_prepared_stays(folder, tmp_path, command, capsys):
    main(command)
    before = files(tmp_path / "pets")
    (folder / "train/cat/0.png").unlink()
    main(command)
    output = capsys.readouterr().out
    assert "is prepared already: --verify compares it" in output
    assert output.count("--config.data.test_split=val") == 2
    assert files(tmp_path / "pets") == before


def test_what_is_no_data_set_stays(tmp_path, command):
    (tmp_path / "pets/1.0.0").mkdir(parents=True)
    with pytest.raises(SetupError, match="is there, but is no data set: move it away"):
        main(command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder:{folder}"], "needs a name for the data set: --name=NAME"),
        (["folder:{folder}", "--name=Pets"], "error: --name=Pets: .*letters a-z"),
        (
            ["folder:{folder}", "--name=cifar10"],
            "--name=cifar10 is a data set of TFDS: cho",
        ),
        (["folder:{folder}", "--name=pets", "--to=x"], "--data-dir=DIR"),
        (["folder:{folder}/train/cat", "--name=pets"], "'0.png', .* belong to no class"),
        (["folder:nowhere", "--name=pets"], "can't be listed: .*nowhere"),
        (["{folder}"], "can't be opened: .*an image folder is written folder:/"),
        (["pets", "--shards=3"], "--shards is for image folders.* write folder:pets"),
        (
            ["nothing"],
            r"(?s)'nothing' is no data set in .*\nData sets lie where --data-dir s",
        ),
        (["qqqqqqq", "--data-dir={data_dir}"], "in .*there are digits"),
        (["digit", "--data-dir={data_dir}"], "in .*; did you mean 'digits'"),
        (
            ["cifar10"],
            "(?s)'cifar10' is not prepared in .*--data-dir=.*tfds build cifar10",
        ),
        (["digits:9.9.9"], "'digits:9.9.9' can't be opened: .*only: 1.0.0"),
    ],
)
def test_errors_say_what_to_do(folder, data_dir, tmp_path, arguments, message):
    arguments = [text.format(folder=folder, data_dir=data_dir) for text in arguments]
    with pytest.raises(SystemExit, match=message):
        run(lambda: main([f"--data-dir={tmp_path}", *arguments]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train/cat/new.png", "empty files in .*train: 'cat/new.png'. Replace or delete"),
        ("train/ cat/new.png", "can't keep the names of the classes ' cat'"),
        ("my split/cat/new.png", "'my split' in .* can't be names of splits"),
    ],
)
def test_folders_that_make_no_data_set(folder, command, name, message):
    (folder / name).parent.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(b"" if name == "train/cat/new.png" else b"an image")
    with pytest.raises(SetupError, match=message):
        main(command)


def test_an_error_is_one_line_and_a_status():
    module = [sys.executable, "-m", "focalnet_jax.data.prepare"]
    process = subprocess.run(
        [*module, "folder:/nowhere", "--name=pets"], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert re.fullmatch("error: .*No such file.*/nowhere'\n", process.stderr)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "00002-of-00005 is missing"),
        (lambda file: file.write_bytes(b""), "00002-of-00005 is cut off or damaged"),
        (
            lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
            "00002-of-00005 is cut off or damaged",
        ),
        (
            lambda file: write_shard(file, [b"record"]),
            "00002-of-00005 holds 1 records, but 2 by dataset_info.json",
        ),
    ],
    ids=["missing", "empty", "half", "another"],
)
def test_files_that_are_missing_or_cut_off_are_named(tmp_path, command, damage, message):
    main(command)
    builder = tfds.builder("pets", data_dir=tmp_path)
    for split in ("train", "val"):
        check_shards(builder, split)
    damage(sole(tmp_path, "pets/1.0.0/pets-train*-00002-of-00005"))
    check_shards(builder, "val")
    check_shards(builder, "train[:40%]")  # lies before it
    with pytest.raises(SetupError, match=f"(?s)1 of the 5 files of pets.*{message}"):
        check_shards(builder, "train")
    with pytest.raises(SetupError, match=message):
        main(["pets", f"--data-dir={tmp_path}", "--verify"])


def test_damage_within_a_file_is_found_on_reading(tmp_path, command, capsys):
    main(command)
    verify = ["pets", f"--data-dir={tmp_path}", "--verify"]
    main(verify)
    assert "all 10 files fit their checksums" in capsys.readouterr().out
    flip(sole(tmp_path, "pets/1.0.0/pets-val*-00003-of-00005"), 200)
    source = open_source("pets", split="val", data_dir=str(tmp_path))
    with pytest.raises(RuntimeError, match="hash mismatch|corrupt|Corrupt"):
        list(source.records)
    with pytest.raises(
        SetupError, match="damage to 'pets-val.array_record-00003-of-0000"
    ):
        main(verify)


def test_only_what_this_command_wrote_has_checksums(data_dir):
    with pytest.raises(SetupError, match=f"has no {CHECKSUMS}, for it wasn't written by"):
        main(["digits", f"--data-dir={data_dir}", "--verify"])


@pytest.mark.extended
def test_a_copy_of_what_tensorflow_wrote(tmp_path):
    tf = pytest.importorskip("tensorflow", reason="it writes the original")
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(encoding_format="png"), "label": tf.int64}
    )
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(30, 9, 7, 3), dtype=np.uint8)

    class NoiseByTensorflow(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.3")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(images):
                yield i, {"image": image, "label": i}

    builder = NoiseByTensorflow(data_dir=tmp_path / "original")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=4)
    )
    main(
        [
            "noise_by_tensorflow",
            f"--data-dir={tmp_path}/original",
            f"--to={tmp_path}/copy",
        ]
    )
    name = "noise_by_tensorflow:1.2.3"
    copy = open_source(name, split="train", data_dir=str(tmp_path / "copy"))
    originals = builder.as_dataset(
        split="train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    for ours, theirs in zip(copy.records, originals.as_numpy_iterator(), strict=True):
        assert ours == theirs
        pixels = np.asarray(PIL.Image.open(io.BytesIO(ours["image"])))
        np.testing.assert_array_equal(pixels, images[ours["label"]])
