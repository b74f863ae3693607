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
        lines = []
        kinds = self._counts.keys() - {DEAD_LINK, SPECIAL, CYCLE, TWICE}
        if endings := sorted(kinds, key=lambda kind: (-self._counts[kind], kind)):
            parts = [
                f"{self._counts[ending]:,} "
                + (f"ending in {ending}" if ending else "without an ending")
                for ending in endings
            ]
            lines.append(
                f"files left out of {root}: {', '.join(parts)}, such as "
                f"{self._first[endings[0]]!r}. Images end in {', '.join(extensions)}"
                + self._way_out(endings)
            )
        for kind, text in (
            (DEAD_LINK, "links left out of {root}, which can't be followed"),
            (CYCLE, "links left out of {root}, which lead to a directory above them"),
            (SPECIAL, "left out of {root}, since they are no regular files"),
            (TWICE, "directories that are in {root} twice, by links, and count twice"),
        ):
            if count := self._counts[kind]:
                text = text.format(root=root)
                lines.append(f"{text}: {count:,}, such as {self._first[kind]!r}")
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
