"""`report.html`: how well a trained net does, to be looked at by whoever trained it."""

import base64
import html
import io
import json
import pathlib
import shlex
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
from etils import epath

from focalnet_jax.command_line import as_called
from focalnet_jax.data import BadRecordError
from focalnet_jax.data.images.decoding import decode
from focalnet_jax.errors import counted
from focalnet_jax.finetune.confusion import matrix
from focalnet_jax.finetune.results import Answer, Results, interval
from focalnet_jax.finetune.split import Split
from focalnet_jax.finetune.workdir import IMAGES, REPORT
from focalnet_jax.pages import page
from focalnet_jax.paths import from_here, write_whole
from focalnet_jax.train.run.summary import METRICS, Picture, curves, read_lines

_MOST_MISTAKES = 24
_MOST_CONFUSED = 12
_MOST_LEFT_OUT = 100
# The longer side of a thumbnail in pixels.
_THUMBNAIL = 240


class Outcome(NamedTuple):
    """All that a report is about.

    Attributes:
      root: the folder of the images.
      workdir: of the run.
      split: of all images.
      results: on the images that are tested.
      step: of the checkpoint that was tested.
      is_best: whether it is the best one; else it is the newest.
      metric: by which it was chosen; None if it was not.
      facts: what else is to be known of the run: names and values.
      pictures: of the learning curve.
    """

    root: pathlib.Path
    workdir: pathlib.Path
    split: Split
    results: Results
    step: int
    is_best: bool
    metric: str | None
    facts: dict[str, str]
    pictures: Sequence[Picture]


def write_report(outcome: Outcome) -> pathlib.Path:
    """Writes the page, and returns its path."""
    results = outcome.results
    title = f"{outcome.workdir.name}: {results.accuracy:.1%} of {_images(results)} right"
    sections = [
        _summary(outcome),
        f"<h2>Use it</h2>\n{_commands(outcome)}",
        f"<h2>Learning curve</h2>\n{_curve(outcome)}",
        f"<h2>Accuracy by class</h2>\n{_classes(outcome)}",
        f"<h2>What is taken for what</h2>\n{_confusion(results)}",
        f"<h2>The most confident mistakes</h2>\n{_mistakes(outcome)}",
        f"<h2>The images</h2>\n{_images_and_splits(outcome)}",
    ]
    path = outcome.workdir / REPORT
    write_whole(epath.Path(path), page(_shown(title), "\n".join(sections)))
    return path


def commands(workdir: pathlib.Path) -> tuple[str, str]:
    """The commands that predict with a run, and that open its report."""
    place = shlex.quote(_shown(from_here(workdir)))
    report = (workdir / REPORT).absolute().as_uri()
    return (
        as_called(f"python -m focalnet_jax.predict IMAGE --weights={place}"),
        f"python -m webbrowser {report}",
    )


def chosen(outcome: Outcome) -> str:
    """Says which checkpoint was tested, and what that means for the result."""
    kind = "best" if outcome.is_best else "newest"
    text = f"The {kind} checkpoint, of step {outcome.step:,}, was tested"
    if not outcome.metric:
        return f"{text}. None was chosen by a metric."
    by = outcome.split.chooses
    images = counted(outcome.split.count(by), "image")
    text += f"; it was chosen by {outcome.metric}"
    if by != outcome.split.tests:
        return f"{text} on the {images} of the split {by!r}, and tested on others."
    return f"{text} on the same {images}, so its accuracy on new ones is likely lower."


def _summary(outcome: Outcome) -> str:
    results = outcome.results
    lines = []
    if results.answers:
        least, most = interval(results.right, len(results.answers))
        lines.append(
            f"<p><strong>{results.right:,} of {_images(results)} are classified "
            f"correctly, {results.accuracy:.1%}.</strong> With so many images, the "
            "accuracy on others of the same kind is likely between "
            f"{least:.0%} and {most:.0%}. "
            f"{html.escape(chosen(outcome))}</p>"
        )
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{_text(value)}</td></tr>"
        for name, value in outcome.facts.items()
    )
    return "\n".join([*lines, f'<table class="texts">{rows}</table>'])


def _commands(outcome: Outcome) -> str:
    predict, _ = commands(outcome.workdir)
    place = _shown(from_here(outcome.workdir))
    python = (
        "import focalnet_jax\n\n"
        f"net = focalnet_jax.load_model({place!r})\n"
        'for prediction in net.predict("IMAGE")[0]:\n'
        "    print(prediction.name, prediction.probability)"
    )
    return f"<pre>{html.escape(predict)}</pre>\n<pre>{html.escape(python)}</pre>"


def _curve(outcome: Outcome) -> str:
    lines = read_lines(epath.Path(outcome.workdir / METRICS)).good
    metrics = [json.loads(line) for line in lines]
    if not metrics:
        return "<p>There are no metrics.</p>"
    shown = curves(metrics, outcome.pictures, mark=outcome.step)
    return (
        f"{shown}\n<p>The dotted line is at the checkpoint that was tested. All "
        'curves are in <a href="summary.html">summary.html</a>.</p>'
    )


def _classes(outcome: Outcome) -> str:
    rows = []
    for found in outcome.results.by_class(outcome.split.rows):
        recall = precision = "not tested"
        bar = ""
        if found.tested:
            share = found.right / found.tested
            recall = f"{share:.1%}"
            bar = f'<span class="bar" style="width:{100 * share:.0f}%"></span>'
        if found.given:
            precision = f"{found.right / found.given:.1%}"
        elif found.tested:
            precision = "no answers"
        rows.append(
            f"<tr><td>{_text(found.name)}</td><td>{found.trained:,}</td>"
            f"<td>{found.right:,} of {found.tested:,}</td><td>{recall}</td>"
            f'<td class="bars">{bar}</td><td>{precision}</td></tr>'
        )
    return (
        "<table><tr><th>class<th>trained<th>right<th>accuracy"
        f'<th class="bars"><th>precision</tr>\n{"".join(rows)}</table>\n'
        "<p>The class with the lowest accuracy is the first. Accuracy is the share of "
        "the class's images that were taken for it. Precision is the share of the "
        "class's images among all that were taken for it.</p>"
    )


def _confusion(results: Results) -> str:
    counts = results.confusion()
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED]
    pairs = [divmod(int(i), len(counts)) for i in order if wrong.flat[i]]
    items = "".join(
        f"<li>{_text(results.classes[truth])} taken for "
        f"{_text(results.classes[answer])}: {counts[truth, answer]:,} of "
        f"{counts[truth].sum():,}</li>"
        for truth, answer in pairs
    )
    listed = f"<p>The most frequent mistakes:</p>\n<ol>{items}</ol>" if pairs else ""
    shown = [_shown(name) for name in results.classes]
    return (
        f"{matrix(shown, counts)}\n<p>Each row is a class, and its cells say how many of "
        "its images were taken for which class. Right answers are on the diagonal. Point "
        f"at a cell to read what it means.</p>\n{listed}"
    )


def _mistakes(outcome: Outcome) -> str:
    mistakes = outcome.results.mistakes
    if not mistakes:
        return "<p>There is none.</p>"
    figures = [_figure(outcome, answer) for answer in mistakes[:_MOST_MISTAKES]]
    more = ""
    if len(mistakes) > _MOST_MISTAKES:
        more = f"<p>There are {len(mistakes) - _MOST_MISTAKES:,} more.</p>"
    return f'<div class="pictures">{"".join(figures)}</div>\n{more}'


def _figure(outcome: Outcome, answer: Answer) -> str:
    classes = outcome.results.classes
    picture = _thumbnail(outcome.root / answer.file)
    image = f'<img src="{picture}" alt="">' if picture else "<em>can't be read</em>"
    return (
        f"<figure>{image}<figcaption>{_text(classes[answer.truth])} taken for "
        f"<strong>{_text(classes[answer.answer])}</strong>, "
        f"{answer.probability:.0%}<br><small>{_text(answer.file)}, "
        f"{answer.probability_of_truth:.0%} for its class</small></figcaption></figure>"
    )


def _thumbnail(path: pathlib.Path) -> str | None:
    """A small picture as the address of an image that holds its own bytes."""
    try:
        image = PIL.Image.fromarray(decode(path.read_bytes()))
    except (OSError, BadRecordError):
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _images_and_splits(outcome: Outcome) -> str:
    split = outcome.split
    counts = ", ".join(
        f"{split.count(name):,} in {name!r}"
        for name in ("train", "val", "test")
        if split.count(name)
    )
    text = (
        f"<p>{_text(str(outcome.root))}: {html.escape(counts)}. "
        f'<a href="{IMAGES}">{IMAGES}</a> says which image is in which split.</p>'
    )
    if left_out := [row for row in split.rows if not row.split]:
        rows = "".join(
            f"<tr><td>{_text(row.file)}</td><td>{_text(row.note)}</td></tr>"
            for row in left_out[:_MOST_LEFT_OUT]
        )
        text += (
            f"\n<details><summary>{counted(len(left_out), 'image')} left out</summary>"
            f'<table class="texts">{rows}</table></details>'
        )
    return text


def _images(results: Results) -> str:
    return counted(len(results.answers), "image")


def _shown(text: str) -> str:
    """A text that can be written as UTF-8, which names of files need not be."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(text: str) -> str:
    return html.escape(_shown(text))
