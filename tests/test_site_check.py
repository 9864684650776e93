""".ci/check_site.py finds each kind of fault in a site."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "check_site.py"
HEAD = "<!doctype html><meta charset='utf-8'><link rel='icon' href='data:,'>"

# What to add to a page, and what is told of it.
FAULTS = {
    "no_page": ("<a href='none.html'>x</a>", "link broken: none.html"),
    "no_place": ("<a href='good/b.html#there'>x</a>", "link broken: good/b.html#there"),
    "no_place_here": ("<a href='#there'>x</a>", "link broken: no_place_here.html#there"),
    "outside": (f"<a href='{SCRIPT.as_uri()}'>x</a>", f"link broken: {SCRIPT.as_uri()}"),
    "no_picture": ("<img src='none.png'>", "picture missing: none.png"),
    "no_picture_below": (
        "<p style='height: 9999px'><img loading='lazy' src='none.png'>",
        "picture missing: none.png",
    ),
    "console": ("<script>console.error('oh')</script>", "oh"),
    "exception": ("<script>throw Error('oh')</script>", "oh"),
    "no_script": ("<script src='none.js'></script>", "not found: none.js"),
    "network": (
        "<script src='https://example.invalid/x.js'></script>",
        "leaves the disk: https://example.invalid/x.js",
    ),
    "formula": ("<b data-mjx-error='Undefined control'>x</b>", "formula: Undefined control"),
    "wide": ("<div style='width: 500px'>x</div>", "pixels wider than a phone"),
    "led_nowhere": (
        '<meta http-equiv="refresh" content="0; url=none.html">',
        "link broken: none.html",
    ),
}

pytestmark = pytest.mark.skipif(
    os.environ.get("CI") != "true"
    and not (
        importlib.util.find_spec("playwright")
        and (shutil.which("chromium") or shutil.which("google-chrome"))
    ),
    reason="needs playwright, and Chromium or Chrome",
)


def check(site: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), str(site)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def write_good_pages(folder: Path) -> None:
    """Write two pages that link to each other, one with a picture, and one that leads to them."""
    folder.mkdir(parents=True)
    (folder / "picture.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    )
    (folder / "index.html").write_text(f'{HEAD}<meta http-equiv="refresh" content="0; url=a.html">')
    (folder / "a.html").write_text(
        f"{HEAD}<a href='b.html#here'>b</a> <a href='https://python.org'>x</a>"
    )
    (folder / "b.html").write_text(
        f"{HEAD}<p id='here'><a href='a.html'>a</a> <img src='picture.svg'>"
    )


def test_a_sound_site_passes_and_its_links_are_counted(tmp_path) -> None:
    write_good_pages(tmp_path / "site")
    done = check(tmp_path / "site")
    assert done.stderr == ""
    assert done.stdout == (
        "site: 3 pages, 3 links checked, 1 to other sites not followed, 0 faults\n"
    )
    assert done.returncode == 0


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[str]:
    """Return what is told of a site with a page for each fault."""
    site = tmp_path_factory.mktemp("site")
    write_good_pages(site / "good")
    for name, (added, _) in FAULTS.items():
        (site / f"{name}.html").write_text(HEAD + added)
    done = check(site)
    assert done.returncode == 1
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(told, name) -> None:
    assert any(each.startswith(f"{name}.html: ") and FAULTS[name][1] in each for each in told)


def test_nothing_is_told_of_good_pages(told) -> None:
    assert [each for each in told if each.startswith("good/")] == []


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_without_a_browser_only_ci_fails(tmp_path, ci, code) -> None:
    done = check(tmp_path, PATH=str(tmp_path), CI=ci)
    assert "not checked" in done.stdout
    assert done.returncode == code
