"""Open every page of a site from disk in Chromium, and report what is broken.

That is: links to files or places that are not there, missing pictures, formulas that MathJax
refuses, errors in the console, requests that leave the disk, and pages wider than a phone. Links
to other sites are counted, not followed. It needs Chromium or Chrome.
"""

import argparse
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from playwright.sync_api import Page, sync_playwright

BROWSERS = ("chromium", "google-chrome")
PHONE = {"width": 400, "height": 800}
LEADS_ON = re.compile('http-equiv="refresh" content="0; url=([^"]*)"')

# Pictures are asked for at once: those further down load only when one scrolls to them.
CONTENT = """async () => {
  for (const picture of document.images) picture.loading = 'eager';
  await Promise.allSettled([...document.images].map(picture => picture.decode()));
  if (window.MathJax?.startup) await MathJax.startup.promise;
  const of = (selector, read) => [...document.querySelectorAll(selector)].map(read);
  return {
    places: of('[id], a[name]', element => element.id || element.name),
    links: of('a[href]', link => link.href),
    missing: of('img', picture => picture.naturalWidth ? null : picture.src).filter(Boolean),
    formulas: of('[data-mjx-error]', formula => formula.dataset.mjxError),
    excess: document.documentElement.scrollWidth - innerWidth,
  };
}"""


def visit(page: Page, file: Path) -> dict:
    """Open a page; return its places, links and faults. One that leads on at once is a link."""
    if goal := LEADS_ON.search(file.read_text()):
        links = [urljoin(file.as_uri(), goal[1])]
        return {"places": [], "links": links, "missing": [], "formulas": [], "excess": 0}
    page.goto(file.as_uri())
    return page.evaluate(CONTENT)


def broken(url: str, site: Path, places: dict[Path, set[str]]) -> bool:
    """Tell whether a link leads nowhere, or out of the site; `places` has those of each page."""
    address, fragment = urldefrag(url)
    file = Path(unquote(urlsplit(address).path))
    if file not in places:
        return not (file.is_file() and file.is_relative_to(site))
    return fragment != "" and unquote(fragment) not in places[file]


def check(site: Path, chromium: str) -> tuple[list[str], str]:
    """Return what is broken, a line for each, and a summary."""
    faults = []
    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_page(viewport=PHONE)
        errors: list[str] = []
        page.on("console", lambda said: said.type == "error" and errors.append(said.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "requestfailed",
            lambda request: (
                request.failure == "net::ERR_ABORTED"  # the page has been left
                or errors.append(f"not found: {request.url}")
            ),
        )
        page.on(
            "request",
            lambda request: (
                urlsplit(request.url).scheme in ("file", "data", "blob")
                or errors.append(f"leaves the disk: {request.url}")
            ),
        )
        for file in sorted(site.rglob("*.html")):
            errors.clear()
            found[file] = content = visit(page, file)
            name = file.relative_to(site)
            told = [*dict.fromkeys(errors)]
            told += [f"picture missing: {each}" for each in content["missing"]]
            told += [f"formula: {each}" for each in content["formulas"]]
            if content["excess"] > 0:
                told.append(f"{content['excess']} pixels wider than a phone")
            faults += [f"{name}: {each}" for each in told]
        browser.close()
    places = {file: set(content["places"]) for file, content in found.items()}
    local, elsewhere = 0, set()
    for file, content in found.items():
        for link in dict.fromkeys(content["links"]):
            if urlsplit(link).scheme == "file":
                local += 1
                if broken(link, site, places):
                    faults.append(f"{file.relative_to(site)}: link broken: {link}")
            else:
                elsewhere.add(link)
    faults = [each.replace(f"{site.as_uri()}/", "") for each in faults]
    pages = f"{len(found)} pages, {local} links checked"
    return faults, f"{pages}, {len(elsewhere)} to other sites not followed"


def main() -> int:
    """Check the site; without Chromium, only CI takes that for a failure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("site", type=Path)
    site = parser.parse_args().site.resolve()
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None:
        print(f"{site.name} not checked: there is none of the commands {', '.join(BROWSERS)}")
        return int(os.environ.get("CI") == "true")
    faults, summary = check(site, chromium)
    print("\n".join([*faults, f"{site.name}: {summary}, {len(faults)} faults"]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
