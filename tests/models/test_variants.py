"""The published variants have their sizes and settings, and options are checked."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from tiny import tiny_model

import focalnet_jax
from focalnet_jax import count_multiply_adds, count_params, create_backbone, create_model
from focalnet_jax.errors import OptionError
from focalnet_jax.models import FocalNetEncoder, size
from focalnet_jax.ops import IMPLEMENTATIONS

# The numbers of parameters in the official code: without a head, with one for 1,000
# classes, and with one for 21,842.
PARAMETERS = {
    "focalnet_tiny_srf": (27_658_116, 28_427_116, 44_454_614),
    "focalnet_tiny_lrf": (27_878_928, 28_647_928, 44_675_426),
    "focalnet_small_srf": (49_122_216, 49_891_216, 65_918_714),
    "focalnet_small_lrf": (49_573_440, 50_342_440, 66_369_938),
    "focalnet_base_srf": (87_123_144, 88_148_144, 109_511_194),
    "focalnet_base_lrf": (87_724_768, 88_749_768, 110_112_818),
    "focalnet_tiny_iso": (5_687_280, 5_880_280, 9_902_786),
    "focalnet_small_iso": (21_991_344, 22_376_344, 30_400_514),
    "focalnet_base_iso": (86_468_400, 87_237_400, 103_264_898),
    "focalnet_large_fl3": (205_563_744, 207_100_744, 239_134_898),
    "focalnet_large_fl4": (205_744_248, 207_281_248, 239_315_402),
    "focalnet_xlarge_fl3": (364_033_120, 366_082_120, 408_787_378),
    "focalnet_xlarge_fl4": (364_273_784, 366_322_784, 409_028_042),
    "focalnet_huge_fl3": (683_747_424, 686_564_424, 745_276_338),
    "focalnet_huge_fl4": (686_460_664, 689_277_664, 747_989_578),
    # The official code with depths and widths of the paper's Table 3, and use_conv_embed.
    "focalnet_tiny_deeper": (24_629_451, 25_142_451, 35_834_397),
    "focalnet_small_deeper": (37_646_968, 38_159_968, 48_851_914),
    "focalnet_base_deeper": (84_321_144, 85_090_144, 101_117_642),
}

# Billions of multiply-adds at 224 pixels, as in the paper and from the official flops().
GIGA_MULTIPLY_ADDS = {
    "focalnet_tiny_srf": ("4.4", "4.41"),
    "focalnet_tiny_lrf": ("4.5", "4.49"),
    "focalnet_small_srf": ("8.6", "8.61"),
    "focalnet_small_lrf": ("8.7", "8.73"),
    "focalnet_base_srf": ("15.3", "15.26"),
    "focalnet_base_lrf": ("15.4", "15.42"),
    "focalnet_tiny_iso": ("1.1", "1.11"),
    "focalnet_small_iso": ("4.3", "4.30"),
    "focalnet_base_iso": ("16.9", "16.93"),
}


def test_lists_the_official_variants():
    assert focalnet_jax.list_models() == list(PARAMETERS)
    assert focalnet_jax.list_models("*tiny*rf") == [
        "focalnet_tiny_srf",
        "focalnet_tiny_lrf",
    ]
    assert focalnet_jax.list_models("resnet*") == []


def some(names, *default):
    """The names of variants, of which all but the default are in the extended run."""
    return [
        pytest.param(name, marks=[] if name in default else pytest.mark.extended)
        for name in names
    ]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    assert count_params(create_model(name)) == PARAMETERS[name][1]


@pytest.mark.parametrize(
    "name", some(PARAMETERS, "focalnet_tiny_srf", "focalnet_huge_fl4")
)
def test_parameter_counts_with_other_heads(name):
    without_head, _, in_22k = PARAMETERS[name]
    assert count_params(create_model(name, num_classes=0)) == without_head
    assert count_params(create_model(name, num_classes=21842)) == in_22k


# In the default run one of each kind: levels, widths, depths, stages of equal size.
@pytest.mark.parametrize(
    "name",
    some(
        GIGA_MULTIPLY_ADDS,
        *("focalnet_tiny_srf", "focalnet_small_lrf", "focalnet_base_lrf"),
        "focalnet_base_iso",
    ),
)
def test_multiply_adds_are_the_papers(name):
    count = count_multiply_adds(create_model(name), 224) / 1e9
    in_paper, official = GIGA_MULTIPLY_ADDS[name]
    assert f"{count:.1f}" == in_paper
    # The official formula rounds the share of the last LayerNorm.
    assert count == pytest.approx(float(official), abs=0.006)


def test_multiply_adds_count_the_overlap_of_the_embeddings():
    # The official flops() gives 34.79. It takes kernels of 7x7 and 3x3 for 4x4 and 2x2.
    overlap = 3 * (7**2 - 4**2) * 192 * 56**2
    for stage in range(3):
        channels, side = 192 * 2**stage, 28 // 2**stage
        overlap += (3**2 - 2**2) * channels * 2 * channels * side**2
    count = count_multiply_adds(create_model("focalnet_large_fl3"), 224)
    assert (count - overlap) / 1e9 == pytest.approx(34.79, abs=0.006)


@pytest.mark.parametrize(
    ("name", "millions", "giga_multiply_adds"),
    [
        ("focalnet_tiny_deeper", "25.1", 4.0),
        pytest.param("focalnet_small_deeper", "38.2", 6.4, marks=pytest.mark.extended),
        pytest.param("focalnet_base_deeper", "85.1", 14.3, marks=pytest.mark.extended),
    ],
)
def test_deeper_variants_have_the_papers_sizes(name, millions, giga_multiply_adds):
    """The published parameters are those of the overlapping convolutions alone."""
    model = create_model(name)
    assert f"{count_params(model) / 1e6:.1f}" == millions
    patches = create_model(name, use_conv_embed=False)
    assert f"{count_params(patches) / 1e6:.1f}" != millions
    # The official flops() takes the convolutions for patches. It gives 14.24 for base.
    count = count_multiply_adds(patches, 224) / 1e9
    assert count == pytest.approx(giga_multiply_adds, abs=0.07)


def test_multiply_adds_do_not_depend_on_the_implementation():
    counts = {
        count_multiply_adds(
            tiny_model(implementation=implementation, **options), (64, 96)
        )
        for implementation in IMPLEMENTATIONS
        for options in ({}, {"remat": "full"}, {"scan": True})
    }
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("name", "normalized"),
    [
        ("focalnet_large_fl4", True),
        ("focalnet_large_fl3", False),
        ("focalnet_xlarge_fl4", False),
        ("focalnet_huge_fl4", False),
    ],
)
def test_normalized_modulators(name, normalized):
    assert create_model(name).encoder.normalize_modulator == normalized
    other = create_model(name, normalize_modulator=not normalized)
    assert other.encoder.normalize_modulator != normalized


def test_lists_and_names_of_types_are_accepted():
    model = create_model(
        "focalnet_tiny_srf", depths=[1, 1, 1, 1], focal_levels=[1] * 4, dtype="bfloat16"
    )
    assert model.encoder.depths == (1, 1, 1, 1)
    assert model.encoder.dtype == jnp.bfloat16
    assert create_model("focalnet_tiny_srf").encoder.drop_path_rate == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depths": (2, 2)}, "focal_levels has 4 entries and depths 2"),
        ({"depths": 2}, "depths=2 is not a tuple"),
        ({"focal_windows": (3, 3, 3, (3, 3, 3))}, r"focal_windows has \(3, 3, 3\)"),
        ({"focal_factor": (1, 2, 3)}, r"is for 2 spatial axes: give one number"),
        ({"patch_size": (4,), "downsample_stride": (2, 2)}, "is for 1 spatial axis:"),
        ({"patch_size": 8, "use_conv_embed": True}, "patch_size=8 has no effect"),
        ({"global_axes": (0, 2)}, r"global_axes=\(0, 2\) names an axis that is none of"),
        ({"global_axes": (0, 0)}, r"global_axes=\(0, 0\) names an axis twice"),
        ({"global_axes": (0,), "causal": True}, r"has no effect with causal=True"),
        ({"causal_window": 4}, "causal_window=4 has no effect without causal=True"),
        ({"use_conv_embed": True, "causal": True}, "reach into the future"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0 is not a number in \[0, 1\)"),
        ({"implementation": "shited"}, "did you mean 'shifted'"),
        ({"dtype": "int32"}, "dtype='int32' is not a floating point type"),
        ({"dtype": None}, "dtype=None is not a floating point type"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"embed_dim": 0}, "embed_dim=0"),
        ({"use_postln": "no"}, "use_postln='no' is not True or False"),
        ({"drop_rate": True}, "drop_rate=True is not a number"),
        ({"remat": ["dots"]}, "remat=.'dots'.* is not .none. or .dots. or .full."),
    ],
)
def test_values_that_make_no_network_are_errors(overrides, message):
    with pytest.raises(OptionError, match=message) as raised:
        create_model("focalnet_tiny_srf", **overrides)
    error = raised.value
    known = {field.name for field in dataclasses.fields(FocalNetEncoder)}
    assert error.option in known | {"num_classes"}
    assert str(error) == error.option + error.problem


def test_unknown_names_are_errors_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'focalnet_tiny_srf'"):
        create_model("focalnet_tiny_sfr")
    with pytest.raises(TypeError, match="did you mean 'focal_levels'"):
        create_model("focalnet_tiny_srf", focal_level=2)


def test_products_in_a_scan_count_once_an_iteration():
    def body(x, _):
        return x @ jnp.ones((4, 4)), None

    program = jax.make_jaxpr(lambda x: jax.lax.scan(body, x, length=5)[0])(
        jnp.ones((4, 4))
    )
    assert size._matrix_multiply_adds(program.jaxpr) == 5 * 4**3


@pytest.mark.parametrize("given", [31.5, 0, "224", True, (32, 32, 32), None, (32, 0.5)])
def test_sizes_that_no_image_has_are_one_line(given):
    with pytest.raises(OptionError, match="^image_size=.* nor 2 such numbers$"):
        count_multiply_adds(create_model("focalnet_tiny_srf"), given)


def test_a_backbone_has_no_head():
    with pytest.raises(TypeError, match="no head, and so no num_classes"):
        create_backbone("focalnet_tiny_srf", num_classes=3)


@pytest.mark.parametrize("out_stages", [(), (4,), (1, 0), (1, 1)])
def test_stages_that_a_backbone_lacks_are_errors(out_stages):
    with pytest.raises(OptionError, match="out_stages=.* does not fit"):
        create_backbone("focalnet_tiny_srf", out_stages=out_stages)
