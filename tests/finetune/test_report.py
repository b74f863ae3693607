"""The page of results: what is counted, and that it can be read for any classes."""

import html.parser
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from focalnet_jax.data.sources.listed import Listed
from focalnet_jax.finetune.confusion import matrix
from focalnet_jax.finetune.report import Outcome, write_report
from focalnet_jax.finetune.results import Answer, OfClass, Results, interval
from focalnet_jax.finetune.split import Split

CLASSES = ("a", "b", "<c>")
ANSWERS = [
    Answer("a/1.png", 0, 0, 0.9, 0.9),
    Answer("a/2.png", 0, 1, 0.6, 0.3),
    Answer("a/3.png", 0, 1, 0.8, 0.1),
    Answer("b/1.png", 1, 1, 0.5, 0.5),
]


def test_answers_are_counted():
    results = Results(CLASSES, ANSWERS)
    assert (results.right, results.accuracy) == (2, 0.5)
    assert results.confusion().tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]
    assert [answer.file for answer in results.mistakes] == ["a/3.png", "a/2.png"]
    rows = [Listed("x", "a", "train"), Listed("y", "a", "train"), Listed("z", "b", "")]
    assert results.by_class(rows) == [
        OfClass("a", trained=2, tested=3, right=1, given=1),
        OfClass("b", trained=0, tested=1, right=1, given=3),
        OfClass("<c>", trained=0, tested=0, right=0, given=0),
    ]
    assert Results(CLASSES, []).accuracy == 0


def test_the_interval_is_wilsons():
    """The values are those of Newcombe, Statistics in Medicine 17 (1998), Table I."""
    for right, count, expected in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ):
        np.testing.assert_allclose(interval(right, count), expected, atol=5e-5)


@pytest.mark.parametrize("count", [2, 12, 100, 400])
def test_a_matrix_has_a_cell_for_each_number(count):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (count, count)) * (rng.random((count, count)) < 0.3)
    names = [f"class & {index}" + "x" * 30 * (index == 1) for index in range(count)]
    tree = xml.etree.ElementTree.fromstring(matrix(names, counts))
    groups = tree.findall("g")
    assert len(groups) == (counts > 0).sum()
    titles = [group.find("title").text for group in groups]
    for title in titles:
        truth, answer, number = re.fullmatch(
            r"class & (\d+)x* taken for class & (\d+)x*: (\d+) \(\d+%\)", title
        ).groups()
        assert counts[int(truth), int(answer)] == int(number)
    # All lies within the picture, and long names are cut.
    *_, width, height = map(float, tree.get("viewBox").split())
    for rect in tree.iter("rect"):
        assert float(rect.get("x")) + float(rect.get("width")) <= width
        assert float(rect.get("y")) + float(rect.get("height")) <= height
    assert width <= 905
    labels = [text.text for text in tree.findall("text")]
    if count <= 100:
        assert labels.count("class & 1xxxxxxxxxxxx…") == 2
        assert len(labels) == 2 * count
    else:  # They would lie on each other.
        assert count / 5 < len(labels) < count
    has_numbers = all(group.find("text") is not None for group in groups)
    assert has_numbers == (count <= 40)


class Page(html.parser.HTMLParser):
    """What a page loads, and its text."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        names = ("src", "href", "srcset", "data", "xlink:href")
        self.loads += [value for name, value in attributes if name in names]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def outcome(tmp_path, write_image):
    for answer in ANSWERS[:3]:
        write_image(tmp_path / "photos" / answer.file)
    workdir = tmp_path / "runs" / "my photos"
    workdir.mkdir(parents=True)
    rows = [Listed(answer.file, CLASSES[answer.truth], "test") for answer in ANSWERS]
    rows += [Listed("<c>/1.png", "<c>", "train"), Listed("\udcff.png", "a", "", "<bad>")]
    return Outcome(
        root=tmp_path / "photos",
        workdir=workdir,
        split=Split(rows),
        results=Results(CLASSES, ANSWERS),
        step=7,
        is_best=True,
        metric="test/top1",
        facts={"weights": "<new>"},
        pictures=[],
    )


def test_the_page_needs_no_other_file(outcome):
    text = write_report(outcome).read_text("utf-8")
    page = Page(text)
    assert "2 of 4 images are classified correctly, 50.0%." in page.text
    assert "between 15% and 85%" in page.text
    assert "a taken for b: 2 of 3" in page.text
    assert "1 of 333.3%100.0%" in page.text  # accuracy and precision of the first class
    assert text.index("a/3.png") < text.index("a/2.png")
    assert text.count('src="data:image/jpeg;base64,') == 2
    others = [load for load in page.loads if not load.startswith(("data:", "#"))]
    assert {*others} == {"images.csv"}  # This is a link.
    # Nothing that somebody else has named becomes a part of the page.
    assert "<c>" not in text
    assert "<bad>" not in text
    assert "\\udcff.png" in text
    assert "--weights='" in page.text
    assert "prefers-color-scheme: dark" in text


def test_what_chose_the_checkpoint_is_said(outcome):
    def said(**changes):
        path = write_report(outcome._replace(**changes))
        return " ".join(Page(path.read_text("utf-8")).text.split())

    assert "chosen by test/top1 on the same 4 images, so its accuracy on" in said()
    rows = [*outcome.split.rows, Listed("v.png", "a", "val")]
    chosen = said(split=Split(rows))
    assert (
        "chosen by test/top1 on the 1 image of the split 'val', and tested on" in chosen
    )
    newest = said(is_best=False, metric=None)
    assert "The newest checkpoint, of step 7, was tested. None was chosen" in newest


def test_many_mistakes_are_cut(outcome):
    many = [ANSWERS[1]] * 30
    text = write_report(outcome._replace(results=Results(CLASSES, many))).read_text()
    assert text.count("<figure>") == 24
    assert "There are 6 more." in text
    none = write_report(outcome._replace(results=Results(CLASSES, ANSWERS[:1])))
    assert "There is none." in none.read_text()
