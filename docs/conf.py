"""Builds the site: `python docs/build.py`. Sphinx with furo and MyST-NB; every number on a page is computed by its build.

Done by hand here: the demos become executed notebooks, docstrings are shown as they are typed, formulas become MathML when the
site is built (no page needs a script for them), and what a screen reader or a keyboard needs is added.
Sources: the documentation of Sphinx, MyST-NB, jupytext and math-core.
"""

import inspect
import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat.v4
from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)          # the cells of the pages run in processes of their own

project = html_title = "minifcn"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.githubpages"]
exclude_patterns = ["_build"]
nitpicky, html_copy_source, html_show_sphinx, autodoc_member_order = True, False, False, "bysource"
html_show_copyright = False
autodoc_typehints = "none"                    # the docstrings say more: shapes, ranges, units
nitpick_ignore_regex = [("py:.*", r"(numpy|np|cupy|pathlib)\..*")]        # not ours
myst_enable_extensions, myst_heading_anchors = ["dollarmath", "amsmath", "colon_fence"], 3
nb_execution_mode, nb_execution_timeout, nb_merge_streams = "force", 600, True
nb_execution_show_tb = True                   # a cell that raises is a warning with its traceback, and warnings fail the build
html_theme, html_static_path, html_css_files, html_favicon = "furo", ["_static"], ["site.css"], "_static/icon.svg"
html_math_renderer, MATH = "mathml", LatexToMathML(fancy_error=False)

# The demos that are pages, each with the alternative text of its pictures.
DEMOS = {
    "1_transposed_convolution": "A convolution or its transpose, one step after the other",
    "2_autograd": "The graph of a computation, its nodes and gradients",
    "3_bilinear": "A picture enlarged by a transposed convolution, beside bilinear resizing",
    "4_fcn": "Training curves, or images beside their masks",
    "5_unet": "Masks of FCN-8s and a U-Net beside the truth",
    "e1_matrix_multiplication": "Time and memory of six ways to do a convolution",
    "e2_inverse": "An image, its convolution and what comes back",
    "e3_xavier": "Curves and masks from two initialisations",
    "e4_hyperparameters": "Scores of ten trainings",
    "e5_all_pixels": "Masks of whole images by four methods",
    "e6_skips": "Masks of FCN-32s, FCN-16s and FCN-8s beside the truth",
    "e7_augmentation": "What augmentations do to a mask",
}
SETUP = """import sys
sys.path[:0] = ["../..", "../../demos"]
sys.argv = ["NAME.py", "--quick", "--out", "../_build/demos/NAME"]"""
PICTURES = """from IPython.display import Image, display
for path in sorted([*args.out.glob("*.png"), *args.out.glob("*.gif")]):
    display(Image(path))"""


def notebook(name, alt):
    """demos/NAME.py -> docs/demos/NAME.ipynb, which MyST-NB executes: the short form of the demo, as CI runs it."""
    book, cell = jupytext.read(ROOT / "demos" / f"{name}.py", fmt="py:percent"), nbformat.v4.new_code_cell
    title, _, rest = book.cells[0].source.strip().strip('"').partition("\n")
    book.cells[0] = nbformat.v4.new_markdown_cell(
        f"# {title.strip()}\n\n```text\n{inspect.cleandoc(rest)}\n```\n\nThe page runs `python demos/{name}.py --quick`; "
        f"without `--quick` trainings last as long as they should. {{nb-download}}`{name}.ipynb` is this page as a notebook.")
    book.cells.insert(1, cell(SETUP.replace("NAME", name), metadata={"tags": ["remove-cell"]}))
    book.cells.append(cell(PICTURES, metadata={"tags": ["remove-input"], "mystnb": {"image": {"alt": alt}}}))
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for n, one in enumerate(book.cells):
        one["id"] = f"cell-{n}"                                          # random otherwise
    (HERE / "demos").mkdir(exist_ok=True)
    jupytext.write(book, HERE / "demos" / f"{name}.ipynb", fmt="ipynb")


def plain(app, what, name, obj, options, lines):
    """Docstrings as they are typed: indented formulas and >>> keep their lines, the rest is text."""
    out, block = [], ""
    for line in lines:
        start = "pycon" if line.startswith(">>>") else "text" if line.startswith("    ") else ""
        if start and not block:
            out += ["", f".. code-block:: {start}", ""]
            block = start
        elif not line.strip() or (block == "text" and not start):
            out.append("")
            block = ""
        if block:
            out.append("   " + (line[4:] if block == "text" else line))
        elif line.strip():
            out.append("| " + re.sub(r"([*`|_\\])", r"\\\1", line))
    lines[:] = out


def mathml(self, node, block):
    """TeX -> MathML; a formula with an error is a warning, and warnings fail the build."""
    try:
        html = MATH.convert_with_local_state(node.astext(), displaystyle=block)
    except LatexError as error:
        html = logging.getLogger(__name__).warning("TeX: %s", error, location=node) or ""
    self.body.append(f'<div class="math" tabindex="0">{html}</div>' if block else html)
    raise nodes.SkipNode


def accessible(app, error):
    """What axe-core calls serious: a heading's level that Sphinx 9 leaves out, and boxes that only a mouse can scroll."""
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text()
        text = text.replace('class="caption" role="heading"', 'class="caption" role="heading" aria-level="2"')
        text = text.replace('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper')
        path.write_text(text.replace("<pre>", '<pre tabindex="0">'))


def setup(app):
    for name, alt in DEMOS.items():
        notebook(name, alt)
    app.connect("autodoc-process-docstring", plain)
    app.connect("build-finished", accessible)
    app.add_html_math_renderer("mathml", (lambda s, n: mathml(s, n, False), None), (lambda s, n: mathml(s, n, True), None))
