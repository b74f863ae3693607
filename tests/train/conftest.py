"""What tests of training share beside what all tests do."""

import pytest

from focalnet_jax.train.aot import slices


@pytest.fixture
def device_of():
    """Gives a device of a slice that isn't here, for which the real compiler compiles."""
    pytest.importorskip("libtpu", reason="it is the compiler")
    with slices.without_flags():
        yield lambda slice_name: slices.devices_of_slice(slice_name)[0]


@pytest.fixture
def v5e(device_of):
    return device_of("v5e:2x2")
