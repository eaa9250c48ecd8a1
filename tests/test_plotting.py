"""Pictures: what is drawn, whether text is whole, and that matplotlib's global state is left alone."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minifcn.data.classes import VOC, VOID_COLOUR, Classes
from minifcn.plotting import curves, overlay, picture_rows, png, prediction_rows, roomy


def rows(epochs=3):
    history = []
    for i in range(1, 5 * epochs + 1):
        row = {"epoch": i / 5, "loss": 1 / i, "accuracy": 1 - 0.5 / i,
               "val_loss": None, "val_pixel_accuracy": None, "val_mean_iou": None}
        if i % 5 == 0:
            row |= {"val_loss": 1.1 / i, "val_pixel_accuracy": 0.8, "val_mean_iou": 0.5}
        history.append(row)
    return history


def assert_nothing_clipped(figure):
    """All that is drawn, text and legends included, lies within the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    drawn, page = figure.get_tightbbox(renderer), figure.bbox_inches               # inches
    assert 0 <= drawn.x0 and 0 <= drawn.y0 and drawn.x1 <= page.width and drawn.y1 <= page.height


def test_overlay_by_hand():
    image = np.full((1, 3, 3), 100, np.uint8)
    y = overlay(image, np.array([[0, 1, 255]], np.uint8), VOC, alpha=0.5)
    assert y.dtype == np.uint8
    assert y[0].tolist() == [[100, 100, 100], [114, 50, 50], [162, 162, 146]]      # aeroplane (128, 0, 0), void (224, 224, 192)
    assert (image == 100).all()
    assert np.array_equal(overlay(image, np.array([[0, 1, 255]]), VOC, alpha=0), image)


def test_curves():
    figure = curves(rows(), {"pixel_accuracy": 0.7, "mean_iou": 0.1})
    left, right = figure.axes
    training, validation = left.get_lines()
    assert training.get_xydata().tolist() == [[r["epoch"], r["loss"]] for r in rows()]
    assert validation.get_xydata().tolist() == [[r["epoch"], r["val_loss"]] for r in rows() if r["val_loss"]]
    assert [line.get_ydata()[0] for line in right.get_lines()[3:]] == [0.7, 0.1]
    assert_nothing_clipped(figure)


def test_curves_before_the_first_evaluation():
    assert_nothing_clipped(curves(rows()[:1]))


def test_prediction_rows():
    rng = np.random.default_rng(0)
    sizes = [(60, 90), (90, 60), (20, 90)]
    images = [rng.integers(0, 256, (*hw, 3), dtype=np.uint8) for hw in sizes]
    truths = [np.full(hw, k, np.uint8) for hw, k in zip(sizes, (0, 20, 255))]
    predictions = [np.full(hw, k, np.uint8) for hw, k in zip(sizes, (0, 5, 16))]
    figure = prediction_rows(images, predictions, truths, VOC)
    drawn = [axes.get_images()[0].get_array() for axes in figure.axes]
    assert all(np.array_equal(a, b) for a, b in zip(drawn[:3], images))
    assert (drawn[4] == VOC.palette[5]).all() and (drawn[7] == VOC.palette[20]).all() and (drawn[8] == VOID_COLOUR).all()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["background", "bottle", "potted plant", "tv/monitor", "void"]      # what occurs, void last
    names = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert names == [[], [], [], [], ["bottle"], ["potted plant"], [], ["tv/monitor"], []]
    assert_nothing_clipped(figure)


def test_regions_are_outlined_and_titles_fit():
    mask = np.zeros((40, 60), np.uint8)
    mask[8:30, 10:40], mask[8:10, 10:40] = 3, 255
    image = np.zeros((40, 60, 3), np.uint8)
    figure = picture_rows({"": [image, mask]}, VOC, ["what is seen", "what is there"])
    assert [len(axes.collections) for axes in figure.axes] == [0, 2]                    # white below black, round the one class
    assert [axes.get_title() for axes in figure.axes] == ["what is seen", "what is there"]
    assert_nothing_clipped(figure)


def test_every_wide_region_has_a_place_for_its_name():
    inside = np.zeros((64, 96), bool)
    inside[8:40, 8:36] = inside[24:60, 60:92] = True                                # two wide regions,
    inside[2:6, 40:90] = inside[50, 7] = True                                       # one narrow, one of a single pixel
    places = sorted(roomy(inside), key=lambda place: place[1])
    assert len(places) == 2
    for (row, column), (top, left, bottom, right) in zip(places, ((8, 8, 40, 36), (24, 60, 60, 92))):
        assert top + 10 <= row < bottom - 10 and left + 10 <= column < right - 10
    assert roomy(np.zeros((3, 3), bool)) == []
    assert roomy(np.ones((64, 96), bool)) == [(30, 46)]


def test_legend_of_all_classes_fits_one_column():
    labels = np.concatenate([np.arange(21), [255]]).astype(np.uint8)[None].repeat(22, axis=0)
    assert_nothing_clipped(prediction_rows([np.zeros((22, 22, 3), np.uint8)], [labels % 21], [labels], VOC))


def test_leaves_pyplot_alone():
    code = "import sys; import minifcn.plotting; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_overlay_of_floats_is_refused():
    with pytest.raises(TypeError, match="overlay: image must be uint8"):
        overlay(np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), VOC)


@pytest.mark.parametrize("name", [r"$\foo$", "a$b", "a_b^c", "$$$", r"\frac"])
def test_names_are_no_mathematics(name):
    classes = Classes(("background", name), np.array([(0, 0, 0), (9, 9, 200)], np.uint8), 255)
    mask = np.zeros((64, 96), np.uint8)
    mask[8:56, 8:88] = 1
    figure = picture_rows({"mask": [mask]}, classes)
    assert_nothing_clipped(figure)                                                 # drawing parses mathematics, and raises
    assert name in [text.get_text() for text in figure.legends[0].get_texts()]
    assert name in [text.get_text() for text in figure.axes[0].texts]


def test_png_is_drawn_with_matplotlibs_own_settings():
    """Settings that need TeX, or draw black on black, are those of the reader's own figures; they are left as they were."""
    import matplotlib

    plain = png(lambda: curves(rows()))
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "black", "savefig.dpi": 7}):
        assert png(lambda: curves(rows())) == plain
        assert matplotlib.rcParams["text.usetex"] is True and matplotlib.rcParams["savefig.dpi"] == 7
