"""What a run says, and does, about steps that are not finite."""

import jax.numpy as jnp
import pytest

from focalnet_jax.errors import SetupError
from focalnet_jax.train.run.divergence import NonFiniteSteps


def metrics(**wrong):
    finite = dict(loss=1.0, gradient_norm=1.0, weight_norm=1.0)
    return {name: jnp.float32(value) for name, value in (finite | wrong).items()}


@pytest.fixture
def lines():
    return []


@pytest.fixture
def steps(lines):
    return NonFiniteSteps(
        1, say=lines.append, describe_newest_checkpoint=lambda: "begin at step 0"
    )


def test_a_step_that_is_skipped_is_said(steps, lines):
    steps.add(3, metrics(loss=jnp.nan, gradient_norm=jnp.nan))
    steps.look_at_all()
    assert lines == ["the loss of step 3 is nan; skipped (1 of 1)"]


def test_one_too_many_ends_the_run(steps):
    steps.add(3, metrics(loss=jnp.inf))
    steps.add(4, metrics(loss=jnp.inf))
    with pytest.raises(SetupError, match="step 4 is inf; begin at step 0"):
        steps.look_at_all()


def test_weights_that_are_lost_end_the_run_at_once(steps, lines):
    """No step has been skipped, and no later one would mend them."""
    steps.add(3, metrics(weight_norm=jnp.inf))
    with pytest.raises(SetupError, match="the weight norm of step 3 is inf; begin at"):
        steps.look_at_all()
    assert lines == []
