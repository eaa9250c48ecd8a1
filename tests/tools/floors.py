"""Prints the oldest versions that setup.cfg allows, as a constraints file for pip:

    python tests/tools/floors.py > floors.txt
    pip install -c floors.txt -e '.[test]'
"""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXTRAS = ("test",)                  # the other extras are not part of the suite


def floors(text):
    """["numpy==2.0", ...] from the text of setup.cfg."""
    config = configparser.ConfigParser()
    config.read_string(text)
    lines = config["options"]["install_requires"].split() + [
        line for extra in EXTRAS for line in config["options.extras_require"][extra].split()]
    return [re.sub(r">=([\d.]+).*", r"==\1", line) for line in lines]


if __name__ == "__main__":
    print(*floors((ROOT / "setup.cfg").read_text()), sep="\n")
