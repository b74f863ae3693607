"""`focalnet_jax.visualize.hover_page`, as a browser shows it."""

import numpy as np
import pytest
from browser import Page, chromium

from focalnet_jax.visualize import BlockMaps, Inside
from focalnet_jax.visualize.hover_page import hover_page

WHERE = "document.getElementById('where').textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium()
    with Page(directory=tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def shown(browser, tmp_path):
    """Opens the page of some blocks of one stage, and waits until it has drawn them."""

    def show(*blocks, size, stride):
        pixels = np.zeros((*size, 3), np.uint8)
        inside = Inside(pixels, blocks, (stride,))
        page = tmp_path / "index.html"
        text = hover_page(inside, title="a page", blocks=blocks, figures={})
        page.write_text(text, encoding="utf-8")
        browser.problems.clear()
        browser.open(page.as_uri())
        is_there = f"location.href === '{page.as_uri()}' && document.readyState"
        browser.wait_for(f"{is_there} === 'complete'")
        assert browser.problems == []
        browser.wait_for(f"{WHERE} !== ''")
        return browser

    return show


def maps(height, width, channels, *, name="stage0/block0"):
    """A block in which the modulator's norm of a position is its number in the map."""
    numbers = np.arange(height * width, dtype=np.float32).reshape(height, width, 1)
    modulator = np.zeros((height, width, channels), np.float32)
    modulator[..., -1:] = numbers
    most = height * width - 1
    gates = np.concatenate([numbers, -numbers / 2, numbers / 4], axis=-1) / most
    return BlockMaps(name, gates, modulator)


def test_a_block_of_very_many_numbers_is_shown(shown):
    """So many can't be the arguments of a function of JavaScript."""
    block = maps(400, 600, 1)
    assert min(block.norm.size, block.gates.size, block.modulator.size) > 200_000
    page = shown(block, size=(400, 600), stride=(1, 1))
    assert page.evaluate(WHERE).startswith("stage0/block0, row 200, column 300: ")
    most = "document.getElementById('scale').textContent"
    assert page.evaluate(most) == "The colours go from 0.00 to 2.40e+5."
    for kind in ("similarity", "0"):
        page.evaluate(
            f"document.getElementById('overlay').value = '{kind}';"
            "document.getElementById('overlay').dispatchEvent(new Event('change'))"
        )
        assert page.evaluate(most) == "The colours go from -1.00 to 1.00."
    assert page.problems == []


def test_each_place_has_its_row_of_numbers(shown):
    """Keys go from position to position of a map that is not square."""
    page = shown(maps(3, 5, 4), size=(28, 42), stride=(8, 8))

    def look(keys):
        for key in keys:
            page.evaluate(
                "document.getElementById('look').dispatchEvent("
                f"new KeyboardEvent('keydown', {{ key: 'Arrow{key}' }}))"
            )
        outputs = "[...document.querySelectorAll('#gates output')]"
        gates = page.evaluate(f"{outputs}.map((output) => Number(output.textContent))")
        return page.evaluate(WHERE), gates

    def expect(given, row, column):
        number = 5 * row + column
        where, gates = given
        start = f"stage0/block0, row {row}, column {column}: the modulator has a norm of "
        assert where.startswith(start)
        # Half of a step of 1/127 of the greatest.
        assert float(where.removeprefix(start)) == pytest.approx(number, abs=0.06)
        share = number / 14
        assert gates == pytest.approx([share, -share / 2, share / 4], abs=0.005)

    expect(look([]), 1, 2)  # the middle of the image
    expect(look(["Right"]), 1, 3)
    expect(look(["Up", "Left", "Left"]), 0, 1)
    # The last pixels of the image belong to no position, so to the last one.
    expect(look(["Down"] * 4 + ["Right"] * 6), 2, 4)


def test_each_gate_has_a_line_with_its_bar(shown):
    """Name, bar and number stand side by side, and the levels below each other."""
    page = shown(maps(4, 4, 4), size=(16, 16), stride=(4, 4))
    rows = page.evaluate(
        "[...document.querySelectorAll('#gates > *')].map((row) => ["
        "  row.textContent, ...[...row.children, row.querySelector('i')].map((part) => {"
        "    const { left, right, top, bottom } = part.getBoundingClientRect();"
        "    return [left, right, top, bottom]; })])"
    )
    number = 10  # of the position in the middle, of 16
    below = 0
    names = ["level 1", "level 2", "global"]
    for name, gate, (text, *parts) in zip(names, (1, -1 / 2, 1 / 4), rows, strict=True):
        gate *= number / 15
        assert text.startswith(name)
        label, track, value, bar = (dict(zip(("l", "r", "t", "b"), p)) for p in parts)
        assert label["r"] <= track["l"] < track["r"] <= value["l"]
        for part in (label, track, value):
            assert part["t"] >= below
            assert part["t"] < (track["t"] + track["b"]) / 2 < part["b"]
        below = max(part["b"] for part in (label, track, value))
        middle, width = (track["l"] + track["r"]) / 2, track["r"] - track["l"]
        assert width > 50
        ends = sorted([middle, middle + gate * width / 2])
        assert [bar["l"], bar["r"]] == pytest.approx(ends, abs=0.01 * width)
        assert [bar["t"], bar["b"]] == pytest.approx([track["t"], track["b"]], abs=0.5)
