"""The command that prepares a folder of images and masks as ArrayRecord files."""

import pytest
from mask_files import ade, encode, image_of, mask_of, write

from focalnet_jax.data import open_segmentation
from focalnet_jax.data.prepare.__main__ import main
from focalnet_jax.errors import SetupError


def prepare(root, *options):
    name = "own_scenes"
    main([f"masks:{root}", f"--name={name}", f"--data-dir={root}/tfds", *options])


def test_a_prepared_folder_has_the_same_records(tmp_path, capsys):
    root = ade(tmp_path)
    prepare(root, "--classes=ade20k", "--shards=2")
    said = capsys.readouterr().out
    assert "8 records in 4 files" in said
    assert "--config.data.train_split=training" in said
    assert "--config.data.test_split=validation --config.model.num_classes=150" in said
    for split, count in (("training", 5), ("validation", 3)):
        folder = open_segmentation(f"folder:{root}", split=split, classes="ade20k")
        source = open_segmentation("own_scenes", split=split, data_dir=f"{root}/tfds")
        assert len(source) == len(folder) == count
        assert source.mask_classes == folder.mask_classes
        expected = {
            record["file_name"]: record for record in map(folder.read, range(count))
        }
        for i in range(count):
            record = source.read(i)
            name = record["file_name"].decode()
            assert name in source.describe(i)
            for kind in ("image", "mask"):
                assert record[kind] == expected[name][kind]
        assert sorted(source.image_sizes().tolist()) == folder.image_sizes().tolist()
        assert source.fingerprint().keys() == {"names", "contents", "checksums"}
    prepare(root, "--classes=ade20k", "--shards=2")
    assert "is prepared already" in capsys.readouterr().out


def test_splits_are_found_by_patterns(tmp_path):
    image, mask = encode(image_of(0)), encode(mask_of(0, indices=(0, 1)))
    write(
        tmp_path,
        {
            f"{split}/{split}_{i}{ending}": content
            for split in ("train", "val")
            for i in range(2)
            for ending, content in ((".jpg", image), ("_mask.png", mask))
        },
    )
    prepare(
        tmp_path,
        "--images={split}/{split}_*.jpg",
        "--masks={split}/{split}_*_mask.png",
    )
    for split in ("train", "val"):
        source = open_segmentation("own_scenes", split=split, data_dir=f"{tmp_path}/tfds")
        assert len(source) == 2
        assert source.num_classes is None
        assert source.mask_labels(2).read(source.read(0)).max() == 1


def test_what_cannot_be_prepared_is_refused(tmp_path):
    root = ade(tmp_path)
    (root / "annotations/training/ADE_002.png").unlink()
    with pytest.raises(SetupError, match="ADE_002.jpg'.* move these images away$"):
        prepare(root)
    (root / "annotations/training/ADE_002.png").write_bytes(b"")
    with pytest.raises(SetupError, match="empty files .*'annotations/training/ADE_002."):
        prepare(root)
    with pytest.raises(SetupError, match="--classes is for images with masks: masks:DIR"):
        main([f"folder:{root}", "--name=x", "--classes=ade20k"])
    with pytest.raises(SetupError, match="masks:DIR needs a name"):
        main([f"masks:{root}"])
