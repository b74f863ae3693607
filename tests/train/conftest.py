"""What tests of training share beside what all tests do."""

import pytest

from focalnet_jax.train.aot import slices


@pytest.fixture
def v5e():
    """A device that isn't here, and for which the real compiler compiles."""
    pytest.importorskip("libtpu", reason="it is the compiler")
    with slices.without_flags():
        yield slices.devices_of_slice("v5e:2x2")[0]
