"""Looks at the built site as a reader does, in headless Chromium: run it after docs/build.py.

    apt-get install chromium chromium-driver;  pip install -e '.[docs,browser]'
    python docs/browser.py                     pictures in docs/_build/pictures; exits with 1 if something is wrong

Every page at 1280 and 390 pixels, light and dark: nothing scrolls sideways, no error in the console, nothing asked of another
host, no serious finding of axe-core (fetched by npm). The search finds a word. The explorer's arithmetic is compared with
minifcn on drawn geometries. The weight of the first page is printed: the bytes of all that it asks for, sent as they are.
"""

import argparse
import base64
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from selenium import webdriver

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import minifcn.functional as F  # noqa: E402

AXE = "axe-core@4.11.0"
WIDTHS, SCHEMES = (1280, 390), ("light", "dark")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and does not print a line for each."""

    def log_message(self, *_):
        pass


def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def draw_geometry(rng):
    """Settings of the explorer that give an output, inputs and a kernel of small integers."""
    ranges = {"h": (1, 12), "w": (1, 12), "kh": (1, 7), "kw": (1, 7), "s": (1, 4), "p": (0, 6), "d": (1, 3), "o": (0, 3)}
    while True:
        g = {key: int(rng.integers(low, high + 1)) for key, (low, high) in ranges.items()}
        axes = [(g["h"], g["d"] * (g["kh"] - 1)), (g["w"], g["d"] * (g["kw"] - 1))]         # (size, reach of the kernel - 1)
        conv = all(n + 2 * g["p"] > reach for n, reach in axes)
        transposed = g["o"] < max(g["s"], g["d"]) and all(
            (n - 1) * g["s"] - 2 * g["p"] + reach + g["o"] >= 0 for n, reach in axes)
        if conv or transposed:
            return g, conv, transposed, rng.integers(-9, 10, (g["h"], g["w"])), rng.integers(-9, 10, (g["kh"], g["kw"]))


def explorer_faults(driver, cases):
    """Compare explorer.run with F.conv2d and F.conv_transpose2d; yields a line for each difference."""
    rng, compared = np.random.default_rng(0), 0
    for _ in range(cases):
        g, conv, transposed, x, k = draw_geometry(rng)
        for kind, possible in (("conv", conv), ("transposed", transposed)):
            got = driver.execute_script("const r = explorer.run(...arguments); return r.error ? r : {size: r.size, y: r.y}",
                                        kind, g, x.ravel().tolist(), k.ravel().tolist())
            compared += 1
            if not possible:
                if "error" not in got:
                    yield f"explorer: {kind} {g} has no output, but one is shown"
                continue
            arrays = x[None, None].astype(float), k[None, None].astype(float)
            y = (F.conv2d(*arrays, None, g["s"], g["p"], g["d"]) if kind == "conv" else
                 F.conv_transpose2d(*arrays, None, g["s"], g["p"], g["o"], dilation=g["d"])).data[0, 0]
            if got.get("size") != list(y.shape) or got["y"] != y.ravel().tolist():
                yield f"explorer: {kind} {g} differs from minifcn"
    print(f"explorer: {compared} outputs compared")


def weight(driver, url):
    """A line about a page's weight in a browser that has seen none: the bytes that are sent for it, not compressed."""
    driver.get(url)
    driver.execute_script("return document.fonts.ready.then(() => 0)")
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"]["encodedDataLength"] for m in messages if m["method"] == "Network.loadingFinished"]
    return f"the first page weighs {sum(sent) / 1000:,.0f} KB in {len(sent)} files"


def page_faults(driver, base, page, axe, pictures):
    """Yield what is wrong with one page, at every width and in both colour schemes."""
    for width in WIDTHS:
        for scheme in SCHEMES:
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                   {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia",
                                   {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
            driver.get(base + page)
            where = f"{page} at {width}, {scheme}"
            sideways = driver.execute_script("return document.documentElement.scrollWidth - innerWidth")
            if sideways > 0:
                yield f"{where}: {sideways} pixels too wide"
            for line in driver.get_log("browser"):
                if line["level"] == "SEVERE":
                    yield f"{where}: {line['message']}"
            for entry in driver.get_log("performance"):
                message = json.loads(entry["message"])["message"]
                if message["method"] == "Network.requestWillBeSent":
                    url = message["params"]["request"]["url"]
                    if urlsplit(url).scheme.startswith("http") and not url.startswith(base):
                        yield f"{where}: asks {url}"
            driver.execute_script(axe)
            found = driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
            for violation in found["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    yield (f"{where}: axe {violation['id']} ({len(violation['nodes'])} places): {violation['help']}; "
                           f"{violation['nodes'][0]['html'][:100]}")
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
            (pictures / f"{page.replace('/', '_').removesuffix('.html')}_{width}_{scheme}.png").write_bytes(
                base64.b64decode(shot["data"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", type=Path, default=HERE / "_build" / "html")
    parser.add_argument("--cases", type=int, default=300, help="geometries for the explorer")
    parser.add_argument("--only", nargs="*", help="pages whose name contains one of these words")
    args = parser.parse_args()
    pictures = args.html.parent / "pictures"
    pictures.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        name = subprocess.run(["npm", "pack", "--silent", AXE], cwd=folder, check=True, capture_output=True, text=True).stdout
        subprocess.run(["tar", "xzf", name.strip()], cwd=folder, check=True)
        axe = (Path(folder) / "package" / "axe.min.js").read_text()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=args.html))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base, driver, faults = f"http://127.0.0.1:{server.server_port}/", chromium(), []
    try:
        print(weight(driver, base + "index.html"))
        pages = [str(path.relative_to(args.html)) for path in sorted(args.html.rglob("*.html")) if "_static" not in path.parts]
        pages = [page for page in pages if not args.only or any(word in page for word in args.only)]
        for page in pages:
            faults += page_faults(driver, base, page, axe, pictures)
        print(f"{len(pages)} pages, {len(pages) * len(WIDTHS) * len(SCHEMES)} pictures in {pictures}")
        driver.get(base + "explorer.html")
        faults += explorer_faults(driver, args.cases)
        driver.get(base + "search.html?q=im2col")
        deadline = time.monotonic() + 10
        while not driver.find_elements("css selector", "#search-results li") and time.monotonic() < deadline:
            time.sleep(0.1)
        if not driver.find_elements("css selector", "#search-results li"):
            faults.append("search: nothing found for im2col")
    finally:
        driver.quit()
        server.shutdown()
    print(*faults, f"{len(faults)} faults", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
