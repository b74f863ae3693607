"""`create_model` and `create_backbone` against odd options; `-s` prints the counts."""

import collections

import pytest
from odd_values import objects_for
from tiny import TINY

from focalnet_jax import create_backbone, create_model
from focalnet_jax.errors import OptionError
from focalnet_jax.models.options import NUM_CLASSES, OPTION_VALUES, OUT_STAGES
from focalnet_jax.models.variants import ENCODER_OPTIONS
from focalnet_jax.values import Flag, Text

# Those whose values aren't told by a description alone.
FREE = {"modulation": Text(("focal",)), "dtype": Text(("float32",))}
FREE["param_dtype"] = FREE["dtype"]
NAME = "focalnet_tiny_srf"


def test_every_option_says_what_it_takes():
    assert OPTION_VALUES.keys() | FREE.keys() == ENCODER_OPTIONS.keys()


def made_or_message(create, **options):
    try:
        return create(NAME, **TINY | options), None
    except OptionError as error:
        return None, str(error)


def test_odd_options_are_one_line_or_kept():
    counts = collections.Counter()
    for option, values in (OPTION_VALUES | FREE | {"num_classes": NUM_CLASSES}).items():
        for value in objects_for(values):
            model, message = made_or_message(create_model, **{option: value})
            counts["made" if model else "refused"] += 1
            if message is not None:
                assert "\n" not in message
                assert len(message) < 400
                continue
            kept = getattr(model if option == "num_classes" else model.encoder, option)
            if option in OPTION_VALUES:
                expected = values.convert(value)
                assert kept == expected
                assert type(kept) is type(expected)
            hash(model)  # A model is compared when it is compiled.
    print(f"create_model: {counts['refused']} refused, {counts['made']} made")
    assert min(counts.values()) > 50


def test_odd_options_of_backbones():
    counts = collections.Counter()
    for option, values in {"out_stages": OUT_STAGES, "out_norm": Flag()}.items():
        for value in objects_for(values):
            options = {"out_stages": (0, 1), option: value}
            backbone, message = made_or_message(create_backbone, **options)
            counts["made" if backbone else "refused"] += 1
            assert backbone or "\n" not in message
            assert not backbone or getattr(backbone, option) == values.convert(value)
    print(f"create_backbone: {counts['refused']} refused, {counts['made']} made")


@pytest.mark.parametrize("name", [None, 3, [], {}, "", "x" * 10_000, "tiny\n"])
def test_odd_names(name):
    with pytest.raises(ValueError, match="no model is named") as raised:
        create_model(name)
    assert len(str(raised.value)) < 600  # it lists the models


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depths=(1000, 1)), "depths=.1000, 1. are 1,001 blocks: 1,000 at most"),
        (dict(embed_dim=65536, depths=(500, 500)), "embed_dim=65536.* parameters: 1e"),
        (dict(embed_dim=65536, num_classes=10**9), "1,000,000,000 classes, makes more"),
        (dict(depths=(1,) * 17), "depths=.* is not a tuple of 1 to 16 whole numbers"),
        (dict(depths=(10**6, 1)), "is not a tuple of 1 to 16 whole numbers from 1 to 1"),
        (dict(embed_dim=10**9), "from 1 to 65,536; the nearest is 65536"),
        (dict(dtype="float8_e4m3fn"), "dtype='float8_e4m3fn' is not a floating point"),
        (dict(modulation=int), "modulation=<class 'int'> is unknown"),
        (dict(scan=1), "scan=1 is not True or False"),
        (dict(remat=None), "remat=None is not .none. or .dots. or .full."),
    ],
)
def test_nets_that_nobody_means(options, message):
    with pytest.raises(OptionError, match=message):
        create_model(NAME, **TINY | options)
