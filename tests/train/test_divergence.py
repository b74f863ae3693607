"""What a run says, and does, about steps that are not finite."""

import jax.numpy as jnp
import pytest
from etils import epath
from running import read_metrics

from focalnet_jax.errors import SetupError
from focalnet_jax.tasks import classification
from focalnet_jax.tasks.losses import cross_entropy
from focalnet_jax.train import check_config, train
from focalnet_jax.train.feed import DeviceFeed
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


def test_steps_that_are_not_finite_are_skipped(
    tiny_config, tmp_path, monkeypatch, capsys
):
    """As many as are allowed, and with one more the run ends."""
    firsts = []
    take = DeviceFeed.next

    def noting(self, **options):
        batch = take(self, **options)
        firsts.append(batch["label"][0].item())
        return batch

    def broken_loss(logits, labels, **options):
        return jnp.where(
            labels[0] == 3, jnp.nan, cross_entropy(logits, labels, **options)
        )

    monkeypatch.setattr(DeviceFeed, "next", noting)
    monkeypatch.setattr(classification, "cross_entropy", broken_loss)
    tiny_config.num_steps = 40
    tiny_config.max_nonfinite_steps = 40
    workdir = epath.Path(tmp_path)
    train(*check_config(tiny_config), workdir)
    lines = read_metrics(workdir)
    skipped = [i for i, label in enumerate(firsts, start=1) if label == 3]
    assert len(skipped) > 1
    assert [line["step"] for line in lines if "train/loss" not in line] == skipped
    counts = [line["train/nonfinite_steps"] for line in lines]
    assert counts == [sum(s <= line["step"] for s in skipped) for line in lines]
    said = capsys.readouterr().out
    assert f"the loss of step {skipped[0]} is nan; skipped (1 of 40)" in said

    tiny_config.max_nonfinite_steps = 1
    message = rf"the loss of step {skipped[1]} is nan"
    with pytest.raises(SetupError, match=message):
        train(*check_config(tiny_config), workdir / "one")
