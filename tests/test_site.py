"""The site that is built of the documentation: it is complete, and needs no network."""

import ast
import html.parser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.parse

import pytest
from running import ROOT, TIMEOUT


def build(directory):
    """Builds the site in a copy of what it is made of; a warning is an error."""
    for name in ("docs", "focalnet_jax"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, directory / name, ignore=ignored)
    shutil.copy(ROOT / "mkdocs.yml", directory)
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=directory,
        env=os.environ | nowhere,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return directory / "site"


class Page(html.parser.HTMLParser):
    """What a page has, where it leads to, and what a browser loads for it."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif tag == "link":
            self.loaded.append(attributes["href"])
        elif "src" in attributes:
            self.loaded.append(attributes["src"])


def test_the_site_is_whole(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers"):
        if not importlib.util.find_spec(module):
            pytest.skip(f"{module} is not installed: pip install '.[docs]'")
    site = build(tmp_path)
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > len([*(ROOT / "docs").rglob("*.md")])  # and one for errors
    check_nothing_is_loaded_from_the_network(site, pages)
    check_what_pages_link_to_is_there(site, pages)
    check_all_public_names_are_documented(pages)


def is_outside(link):
    return bool(urllib.parse.urlsplit(link).netloc)


def check_nothing_is_loaded_from_the_network(site, pages):
    for path, page in pages.items():
        assert page.loaded
        assert not [link for link in page.loaded if is_outside(link)], path
    for path in site.rglob("*.css"):
        links = re.findall(r"(?:url\(|@import )['\"]?([^'\")]+)", path.read_text())
        assert not [link for link in links if is_outside(link)], path


def check_what_pages_link_to_is_there(site, pages):
    for path, page in pages.items():
        inside = [link for link in page.links if not is_outside(link)]
        for link in inside + page.loaded:
            name, _, anchor = urllib.parse.unquote(link).partition("#")
            target = path
            # The page for errors is shown at any address: its links are absolute.
            if name:
                start = site if name.startswith("/") else path.parent
                target = (start / name.lstrip("/")).resolve()
            if target.is_dir():
                target /= "index.html"
            assert target.exists(), (path, link)
            if anchor and target in pages:
                assert anchor in pages[target].ids, (path, link)


def check_all_public_names_are_documented(pages):
    """Those in the list `__all__` of a package, but for packages themselves."""
    ids = {name for page in pages.values() for name in page.ids if name}
    documented = {name.rpartition(".")[2] for name in ids if "focalnet_jax." in name}
    for path in (ROOT / "focalnet_jax").rglob("__init__.py"):
        packages = {package.parent.name for package in path.parent.glob("*/__init__.py")}
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
                names = {*ast.literal_eval(node.value)} - packages
                assert names <= documented, (path, names - documented)
