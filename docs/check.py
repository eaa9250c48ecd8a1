"""Checks the built pages: every link, anchor and file exists, every picture has a text, no other host is asked.

    python docs/check.py docs/_build/html

Sphinx checks the links that it makes; this checks what stands in the pages in the end, raw HTML included.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page points to, and the anchors that it offers."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.anchors, self.faults = [], {""}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name") if tag == "a" else None}
        if tag == "img" and not attributes.get("alt"):
            self.faults.append(f"a picture without a text: {attributes.get('src')}")
        for key in ("href", "src", "srcset", "data", "poster", "action"):
            if attributes.get(key):
                self.targets.append((tag, attributes[key]))


def check(root):
    """Yield a line for each fault in the pages under `root`."""
    pages = {path.resolve(): Page(path.read_text()) for path in sorted(root.rglob("*.html"))}
    links = 0
    for path, page in pages.items():
        yield from (f"{path.name}: {fault}" for fault in page.faults)
        for tag, target in page.targets:
            url, links = urlsplit(target), links + 1
            if url.scheme in ("mailto", "data", "javascript"):
                continue
            if url.netloc:
                if tag != "a":
                    yield f"{path.name}: <{tag}> asks another host: {target}"
                continue
            file = (path.parent / unquote(url.path)).resolve() if url.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.exists():
                yield f"{path.name}: no such file: {target}"
            elif file in pages and unquote(url.fragment) not in pages[file].anchors:
                yield f"{path.name}: no such anchor: {target}"
    print(f"{len(pages)} pages, {links} links checked")


if __name__ == "__main__":
    faults = list(check(Path(sys.argv[1])))
    print(*faults, sep="\n", end="\n" * bool(faults))
    sys.exit(bool(faults))
