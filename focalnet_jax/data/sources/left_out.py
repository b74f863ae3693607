"""What the listing of an image folder leaves out, as lines for people."""

import collections
import os
from collections.abc import Sequence

# Kinds of what is met. Any other kind is the ending of a file's name, such as ".heic".
NOTE = "note"
DEAD_LINK = "link"
SPECIAL = "special"
CYCLE = "cycle"
TWICE = "twice"

# Files of these names and endings are about images, or of a file manager. Nobody takes
# them for images, so nothing is said of them.
_NOTES = {"thumbs.db", "desktop.ini", "readme", "license", "licence", "makefile"}
_NOTE_ENDINGS = {
    *(".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".doc", ".docx", ".log"),
    *(".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".ini", ".toml"),
    *(".py", ".sh", ".ipynb", ".md5", ".sha256"),
}
# Endings of images that aren't read.
_OTHER_IMAGES = {
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jif", ".svg", ".psd"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".tga", ".ico", ".exr", ".eps"),
}


def kind_of_file(name: str) -> str:
    """The kind of a file that isn't read as an image: `NOTE`, or its name's ending."""
    name = name.lower()
    ending = os.path.splitext(name)[1]
    return NOTE if name in _NOTES or ending in _NOTE_ENDINGS else ending


class LeftOut:
    """Counts what is left out by its kind, and keeps the name of the first of each."""

    def __init__(self):
        self._counts: collections.Counter[str] = collections.Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, name: str) -> None:
        """Counts one; a note doesn't count."""
        if kind != NOTE:
            self._counts[kind] += 1
            self._first[kind] = min(name, self._first.get(kind, name))

    def lines(
        self, root: str | os.PathLike, *, extensions: Sequence[str]
    ) -> tuple[str, ...]:
        """What is to be said, a line for each kind of thing.

        Args:
          root: the folder.
          extensions: what the names of images end in.
        """
        counts, lines = self._counts, []
        endings = sorted(counts.keys() - {DEAD_LINK, SPECIAL, CYCLE, TWICE})
        if endings:
            parts = [
                f"{_files(counts[ending])} "
                + (f"ending in {ending}" if ending else "without an ending")
                for ending in endings
            ]
            lines.append(
                f"left out of {root}: {', '.join(parts)}, such as "
                f"{self._first[endings[0]]!r}. Images end in {', '.join(extensions)}"
                + self._way_out(endings)
            )
        for kind, text in (
            (DEAD_LINK, "{n} links that lead nowhere, such as {first!r}"),
            (SPECIAL, "{n} entries that are no regular files, such as {first!r}"),
            (CYCLE, "{n} links to a directory that they lie in, such as {first!r}"),
        ):
            if counts[kind]:
                what = text.format(n=f"{counts[kind]:,}", first=self._first[kind])
                lines.append(f"left out of {root}: {what}")
        if counts[TWICE]:
            lines.append(
                f"{counts[TWICE]:,} directories of {root} are there twice by links, such "
                f"as {self._first[TWICE]!r}: their images count twice, as in torchvision"
            )
        return tuple(lines)

    def _way_out(self, endings: Sequence[str]) -> str:
        """How to have images of formats that aren't read; empty if there are none."""
        for ending in endings:
            if ending in _OTHER_IMAGES:
                as_written = os.path.splitext(self._first[ending])[1]
                return (
                    ". Convert those of other formats, for example by ImageMagick: "
                    f"magick mogrify -format jpg *{as_written}"
                )
        return ""


def _files(count: int) -> str:
    return f"{count:,} file" + ("s" if count > 1 else "")
