"""The papers' figures: complete rows, and found by what they measure."""

from collections import Counter

import pytest

from pixel_perception.evaluation import published


def test_rows_are_complete_and_given_once():
    # 7 columns of MUSE and TFLOPs make 9 with overall, few, many; 8 splits of refCOCO.
    rows = Counter((f.paper, f.table, f.system, f.metric if f.table == "1" and f.paper == "PixelLLM" else "") for f in published.FIGURES)
    assert rows["PixelLM", "1", "PixelLM-7B", ""] == 9 and rows["PixelLM", "3", "PixelLM-7B", ""] == 8
    assert rows["PixelLLM", "1", "PixelLLM", "p50"] == rows["PixelLLM", "1", "PixelLLM", "ciou"] == 8
    assert rows["PixelLLM", "1", "VisionLLM", "p50"] == 1  # gaps are left out
    keys = [(f.paper, f.table, f.system, f.data, f.metric) for f in published.FIGURES]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("data", "metric", "system", "value"),
    [
        ("muse/val", "judged_giou", "PixelLM-7B", 42.6),
        ("muse/test", "judged_ciou", "PixelLM-13B", 51.0),
        ("muse/test_many", "judged_giou", "PixelLM-7B", 37.7),
        ("multi_refcoco+/testB", "ciou", "PixelLM-7B", 57.7),
        ("refcocog/val", "ciou", "PixelLLM", 70.7),
        ("refcoco/testA", "p50", "PixelLLM", 92.2),
        ("visual_genome/test", "dense_caption_map", "PixelLLM", 17.02),
        ("refcocog/val", "cider", "PixelLLM", 82.3),
        ("localized_narratives/val", "lbm", "PixelLLM", 0.153),
        ("efficiency", "tflops", "PixelLM-13B", 6.65),
    ],
)
def test_figures(data, metric, system, value):
    assert {f.system: f.value for f in published.find(data, metric)}[system] == value


def test_the_same_data_in_another_form_has_the_same_figures():
    assert published.find("multi_refcoco_released/val", "ciou") == published.find("multi_refcoco/val", "ciou") != []
    assert published.find("own/val", "giou") == []
    assert len(published.find("refcoco/val", "p50", None)) > 9


def test_where_a_figure_was_printed():
    (figure,) = published.find("localized_narratives/val", "lbm")
    assert published.where(figure) == "PixelLLM section 5.2"
    places = {published.where(f) for f in published.FIGURES}
    assert set(published.REMARKS) <= places
