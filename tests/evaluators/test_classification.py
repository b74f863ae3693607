"""Accuracies are exact counts over what the mask keeps."""

import jax.numpy as jnp
import numpy as np
import pytest

from focalnet_jax.evaluators import Classification


def evaluate(logits, labels, mask):
    """Runs the evaluator over logits given as images, in batches of 4."""
    batches = [
        {"image": logits[i : i + 4], "label": labels[i : i + 4], "mask": mask[i : i + 4]}
        for i in range(0, len(labels), 4)
    ]
    evaluator = Classification(lambda params, x: x * params, lambda: batches)
    return dict(evaluator.run(jnp.float32(1)))


def test_counts_by_hand():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 12)).astype(np.float32)
    labels = rng.integers(0, 12, 40).astype(np.int32)
    mask = np.arange(40) < 37
    ranks = (logits > logits[np.arange(40), labels][:, None]).sum(1)[:37]
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses = -log_probabilities[np.arange(40), labels][:37]
    metrics = evaluate(logits, labels, mask)
    assert metrics["test/examples"] == 37
    assert metrics["test/top1"] == (ranks < 1).mean()
    assert metrics["test/top5"] == (ranks < 5).mean()
    assert metrics["test/loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_fewer_than_five_classes():
    metrics = evaluate(
        np.eye(4, 3, dtype=np.float32), np.array([0, 1, 2, 1]), np.ones(4, bool)
    )
    # The last row is flat: the first class wins it.
    assert metrics["test/top1"] == 0.75
    assert metrics["test/top5"] == 1
