"""Writes checkpoints in several files, as the libraries of the Hub do."""

import json

from focalnet_jax.convert.weight_files import write_weights


def write_shards(directory, tensors, stem="model", suffix=".safetensors"):
    """Writes two files and their index, as `save_pretrained` does; returns the index."""
    names = [f"{stem}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    weight_map = {key: names[i % 2] for i, key in enumerate(tensors)}
    for name in names:
        part = {key: array for key, array in tensors.items() if weight_map[key] == name}
        write_weights(directory / name, part)
    index = directory / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index
