"""Figures of the two papers, to print beside ours.

PixelLM: Ren et al., "PixelLM: Pixel Reasoning with Large Multimodal Model" (CVPR 2024). PixelLLM: Xu et al., "Pixel Aligned
Language Models" (CVPR 2024). Figures are as printed: percent, but TFLOPs, and LBM as a distance, lower is better.

What to know before comparing is in `REMARKS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One printed number."""

    paper: str
    """ "PixelLM" or "PixelLLM"."""
    table: str
    """Number of the table, or the section for a figure of the text."""
    system: str
    data: str
    """Data set and split, "muse/val"."""
    metric: str
    value: float


def _table(paper: str, table: str, columns: str, rows: str) -> Iterator[Figure]:
    """Figures of a table: `columns` names "data:metric" for each; each row is a system, "|", its figures; "-" is a gap."""
    heads = [column.split(":") for column in columns.split()]
    for row in rows.strip().splitlines():
        system, _, values = row.partition("|")
        for (data, metric), value in zip(heads, values.split(), strict=True):
            if value != "-":
                yield Figure(paper, table, system.strip(), data, metric, float(value))


def _refcoco(prefix: str, metric: str) -> str:
    """The eight splits of refCOCO, refCOCO+ and refCOCOg (umd), in the order of the tables."""
    splits = [f"{prefix}{name}/{split}:{metric}" for name in ("refcoco", "refcoco+") for split in ("val", "testA", "testB")]
    return " ".join([*splits, f"{prefix}refcocog/val:{metric}", f"{prefix}refcocog/test:{metric}"])


_MUSE = " ".join(f"muse/{split}:judged_{metric}" for split in ("val", "test_less", "test_many", "test") for metric in ("giou", "ciou"))
_ABLATION = "muse/val:judged_giou muse/val:judged_ciou refcocog/val:ciou refcocog/test:ciou"

FIGURES: tuple[Figure, ...] = (
    *_table("PixelLM", "1", f"efficiency:tflops {_MUSE}", """
        SEEM                               | 0.43  13.6 16.2 23.6 24.9  8.5 13.2 11.7 15.7
        LISA-7B                            | 7.16  18.8 29.0 24.7 36.5  9.6 24.5 12.8 27.1
        LISA-7B rec                        | 7.16  24.5 31.1 30.0 30.9 12.4 23.2 16.2 24.8
        LISA-7B aug                        | 7.16  42.0 46.1 43.5 52.0 37.7 42.3 38.9 44.4
        PixelLM-7B, no fusion and L_ref    | 3.57  39.9 48.0 43.1 56.7 36.0 38.2 37.5 42.2
        PixelLM-7B                         | 3.57  42.6 50.7 44.6 59.2 37.7 42.8 39.2 46.3
        LISA-13B                           | 10.24 20.4 29.2 27.5 38.5 10.9 25.6 14.4 28.4
        LISA-13B aug                       | 10.24 43.6 50.2 44.7 60.0 41.2 47.9 41.9 50.5
        PixelLM-13B, no fusion and L_ref   | 6.65  43.0 51.7 44.8 61.6 39.3 44.6 40.5 48.2
        PixelLM-13B                        | 6.65  44.8 54.1 45.2 62.9 41.5 47.6 42.3 51.0
    """),
    *_table("PixelLM", "2", _refcoco("multi_", "ciou"), """
        LISA                               | 36.7 38.3 36.4 34.0 36.3 32.1 34.5 36.2
        LISA aug                           | 68.9 70.8 66.3 59.8 62.2 54.1 62.3 63.9
        PixelLM-7B, no fusion and L_ref    | 70.3 74.2 66.2 64.4 69.6 57.0 64.0 67.0
        PixelLM-7B                         | 72.7 76.2 68.1 65.7 71.3 57.7 65.8 67.7
    """),
    *_table("PixelLM", "3", _refcoco("", "ciou"), """
        MCN                                | 62.4 64.2 59.7 50.6 55.0 44.7 49.2 49.4
        VLT                                | 67.5 70.5 65.2 56.3 61.0 50.1 55.0 57.7
        CRIS                               | 70.5 73.2 66.1 62.3 68.1 53.7 59.9 60.4
        LAVT                               | 72.7 75.8 68.8 62.1 68.4 55.1 61.2 62.1
        ReLA                               | 73.8 76.5 70.2 66.0 71.0 57.7 65.0 66.0
        X-Decoder                          | -    -    -    -    -    -    64.6 -
        SEEM                               | -    -    -    -    -    -    65.7 -
        LISA                               | 74.1 76.5 71.1 62.4 67.4 56.5 66.4 68.5
        LISA aug                           | 74.0 76.3 70.4 62.5 66.3 56.0 67.0 69.1
        PixelLM-7B                         | 73.0 76.5 68.2 66.3 71.7 58.3 69.3 70.5
    """),
    *_table("PixelLM", "4a", _ABLATION, """
        PixelLM-7B, 1 scale                | 40.1 47.2 64.3 65.6
        PixelLM-7B, 2 scales               | 42.6 50.7 69.3 70.5
        PixelLM-7B, 3 scales               | 42.3 51.4 69.8 70.4
        PixelLM-7B, CLIP-H                 | 47.8 55.2 72.6 73.0
    """),
    *_table("PixelLM", "4b", _ABLATION, """
        PixelLM-7B, N = 1                  | 40.7 48.6 68.0 68.3
        PixelLM-7B, N = 2                  | 42.0 49.5 69.0 69.9
        PixelLM-7B, N = 3                  | 42.6 50.7 69.3 70.5
        PixelLM-7B, N = 4                  | 43.0 50.3 69.1 70.6
    """),
    *_table("PixelLM", "4c", _ABLATION, """
        PixelLM-7B, no fusion and L_ref    | 39.9 48.0 68.0 68.3
        PixelLM-7B, fusion                 | 41.5 50.1 69.3 70.5
        PixelLM-7B, L_ref                  | 40.7 48.6 68.0 68.3
        PixelLM-7B, fusion and L_ref       | 42.6 50.7 69.3 70.5
    """),
    *_table("PixelLM", "4d", "muse/val:judged_giou muse/val:judged_ciou", """
        PixelLM-7B, 30k of GPT-4           | 30.0 35.7
        PixelLM-7B, 30k of GPT-4V          | 35.6 40.0
        PixelLM-7B, 100k of GPT-4V         | 38.9 45.7
        PixelLM-7B, 200k of GPT-4V         | 42.6 50.7
    """),
    *_table("PixelLM", "section 5.5", "reasonseg/val:giou reasonseg/val:ciou", """
        LISA                               | 52.9 54.0
        LISA with MUSE                     | 58.0 59.1
    """),
    *_table("PixelLLM", "1", _refcoco("", "p50"), """
        TransVG                            | 81.0 82.7 78.4 64.8 70.7 56.9 68.7 67.7
        UNITER                             | 81.4 87.0 74.2 75.9 81.5 66.7 74.0 68.7
        OFA                                | 80.0 83.7 76.4 68.3 76.0 61.8 67.6 67.6
        UniTAB                             | 86.3 88.8 80.6 78.7 83.2 69.5 80.0 80.0
        MDETR                              | 86.8 89.6 81.4 79.5 84.1 70.6 81.6 80.9
        VisionLLM                          | 86.7 -    -    -    -    -    -    -
        Shikra-7B                          | 87.0 90.6 80.2 81.6 87.4 71.1 82.3 82.2
        Ferret-7B                          | 87.5 91.4 82.5 80.8 87.4 73.1 83.9 84.8
        PixelLLM                           | 89.8 92.2 86.4 83.2 87.0 78.9 84.6 86.0
    """),
    *_table("PixelLLM", "1", _refcoco("", "ciou"), """
        ReLA                               | 73.8 76.5 70.2 66.0 71.0 57.7 65.0 66.0
        X-Decoder                          | -    -    -    -    -    -    64.6 -
        SEEM                               | -    -    -    -    -    -    65.7 -
        LISA                               | 74.9 79.1 72.3 65.1 70.8 58.1 67.9 70.6
        PixelLLM                           | 76.9 78.5 74.4 69.2 72.1 64.5 70.7 72.4
    """),
    *_table("PixelLLM", "2", "visual_genome/test:dense_caption_map", """
        FCLN                               | 5.39
        JIVC                               | 9.31
        ImgG                               | 9.25
        COCD                               | 9.36
        COCG                               | 9.82
        CAG-Net                            | 10.51
        TDC+ROCSU                          | 11.49
        GRiT                               | 15.48
        PixelLLM                           | 17.02
    """),
    *_table("PixelLLM", "3", "refcocog/val:meteor refcocog/val:cider visual_genome/test:meteor visual_genome/test:cider", """
        GRiT                               | 13.8 75.8 17.1 142.0
        Kosmos-2                           | 14.1 62.3 -    -
        GPT4RoI                            | -    -    17.4 145.2
        PixelLLM                           | 14.3 82.3 19.9 148.9
    """),
    *_table("PixelLLM", "4", "refcoco/val:p50", """
        PixelLLM, boxes as raw string      | 84.4
        PixelLLM, boxes as extra tokens    | 86.1
        PixelLLM, boxes regressed          | 87.6
        PixelLLM, regressed, with traces   | 89.8
    """),
    *_table("PixelLLM", "5", "refcoco/val:p50", """
        PixelLLM, T5 Small frozen          | 67.0
        PixelLLM, T5 Base frozen           | 70.3
        PixelLLM, T5 Large frozen          | 73.6
        PixelLLM, T5 XL frozen             | 81.9
        PixelLLM, T5 Small LoRA            | 75.6
        PixelLLM, T5 Base LoRA             | 80.8
        PixelLLM, T5 Large LoRA            | 84.8
        PixelLLM, T5 XL LoRA               | 89.8
    """),
    *_table("PixelLLM", "section 5.2", "localized_narratives/val:lbm", """
        MITR                               | 0.163
        PixelLLM                           | 0.153
    """),
)  # fmt: skip
"""All of them, in the papers' order. Splits that a paper does not name are those the data set is evaluated on by custom."""

REMARKS = {
    "PixelLM table 1": "MUSE, published: the figures contain the verdicts of a closed judge, whose prompt is not public; those of another "
                       "judge do not compare.",
    "PixelLM table 2": "Multi-referring, published: the table names neither measure nor size; the rows that it cites from others are cIoU, "
                       "and table 4 repeats figures of 7B.",
    "PixelLM table 3": "refCOCO, published for PixelLM: the table names neither measure nor size; the rows that it cites from others are "
                       "cIoU, and table 4 repeats figures of 7B. The answer's tokens were given.",
    "PixelLLM table 3": "Captions of boxes: CIDEr weighs n-grams by the references of the whole split, so that figures of a part of it do "
                        "not compare.",
    "PixelLLM section 5.2": "Narratives, published: LBM with k = 0 on those of COCO; whose words were placed is not said, and MITR's "
                            "figure, which stands beside it, is for given captions.",
}  # fmt: skip
"""Where a figure was printed, and what the print leaves open."""
MAIN = ("PixelLM-7B", "PixelLM-13B", "PixelLLM")
"""The papers' own systems in full."""


def find(data: str, metric: str, systems: Sequence[str] | None = MAIN) -> list[Figure]:
    """Figures of one measure on one split, one for each system (a repeated figure is given once); all systems for None.

    A data set in another form ("multi_refcoco_released", "localized_narratives_sentences") has the figures of the data set.
    """
    data = data.replace("_released/", "/").replace("_sentences/", "/")
    found: dict[str, Figure] = {}
    for figure in FIGURES:
        if (figure.data, figure.metric) == (data, metric) and (systems is None or figure.system in systems):
            found.setdefault(figure.system, figure)
    return list(found.values())


def where(figure: Figure) -> str:
    """ "PixelLM table 3"."""
    place = figure.table if figure.table.startswith("section") else f"table {figure.table}"
    return f"{figure.paper} {place}"
