"""Accuracies are exact counts over what the mask keeps."""

import jax.numpy as jnp
import numpy as np
import pytest

from focalnet_jax.evaluators import Accuracy


def evaluate(logits, labels, mask):
    """Runs the evaluator over logits given as images, in batches of 4."""
    batches = [
        {"image": logits[i : i + 4], "label": labels[i : i + 4], "mask": mask[i : i + 4]}
        for i in range(0, len(labels), 4)
    ]
    evaluator = Accuracy(lambda scale, batch: scale * batch["image"], lambda: batches)
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


def test_answers_are_sought_in_the_subset():
    logits = np.array([[9, 1, 2, 0], [9, 3, 2, 0], [9, 8, 0, 1]], np.float32)
    batch = {
        "image": logits,
        "label": np.array([2, 2, 1]),
        "mask": np.array([True, True, False]),
    }
    evaluator = Accuracy(lambda _, batch: batch["image"], lambda: [batch], subset=(1, 2))
    metrics = dict(evaluator.run(None))
    assert metrics["test/top1"] == 0.5
    assert metrics["test/examples"] == 2
    # Between two classes, one level apart, one right and one wrong.
    losses = np.log1p(np.exp([-1, 1]))
    assert metrics["test/loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_where_nothing_counts_there_is_only_the_count():
    metrics = evaluate(np.eye(4, dtype=np.float32), np.arange(4), np.zeros(4, bool))
    assert metrics == {"test/examples": 0}


def test_any_label_of_a_set_is_right_and_empty_sets_do_not_count():
    answers = np.array([0, 1, 3, 2, 0])
    labels = np.zeros((5, 3), bool)
    labels[0, [0, 2]] = labels[1, [0, 2]] = labels[2, :] = labels[4, 0] = True
    batch = {
        "image": np.eye(4, dtype=np.float32)[answers],
        "labels": labels,  # of three classes, where the model has four
        "mask": np.array([True, True, True, True, False]),
    }
    evaluator = Accuracy(lambda _, batch: batch["image"], lambda: [batch])
    # Right, wrong, beyond the sets' classes, empty set, masked. All four are among five.
    expected = {"test/top1": 1 / 3, "test/top5": 1, "test/examples": 3}
    assert dict(evaluator.run(None)) == expected


def test_five_answers_may_meet_a_set_of_labels():
    logits = np.float32([[9, 8, 7, 6, 5, 4, 3], [9, 8, 7, 6, 5, 4, 3]])
    labels = np.zeros((2, 7), bool)
    labels[0, [4, 6]] = labels[1, [5, 6]] = True
    batch = {"image": logits, "labels": labels, "mask": np.ones(2, bool)}
    evaluator = Accuracy(lambda _, batch: batch["image"], lambda: [batch])
    metrics = dict(evaluator.run(None))
    assert metrics == {"test/top1": 0, "test/top5": 0.5, "test/examples": 2}
