"""Builds the site from nothing and checks it.

    pip install -e '.[docs]'
    python docs/build.py                 then open docs/_build/html/index.html

Any warning fails the build: a page in no menu, a broken link, a cell that raises, a name that is gone, an error in TeX. Always
from nothing: Sphinx gives no warning for a page that it has read before, and would show new code beside old numbers.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    start, html = time.perf_counter(), HERE / "_build" / "html"
    shutil.rmtree(HERE / "_build", ignore_errors=True)
    shutil.rmtree(HERE / "demos", ignore_errors=True)
    for command in (["-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-d", HERE / "_build" / "trees", "-b", "html",
                     HERE, html], [HERE / "check.py", html]):
        code = subprocess.run([sys.executable, *command]).returncode
        if code:
            return code
    print(f"{len(list(html.rglob('*.html')))} pages in {time.perf_counter() - start:.0f} s: {html / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
