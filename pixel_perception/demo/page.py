"""The page of the demo: every answer drawn over its image, with its words, score and times, and the standing instruction."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from pixel_perception.demo.recording import RecordedFrame, Recording
from pixel_perception.demo.script import result_from_plain
from pixel_perception.drawing import draw
from pixel_perception.types import Result

STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1180px;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(350px,1fr));gap:1.2em}
figure{margin:0;border:1px solid #ddd;border-radius:6px;overflow:hidden}img{width:100%;display:block}figcaption{padding:.6em .8em}
.kind{color:#777;font-size:.85em}.ask{font-weight:600}.lost{background:#fdd}.small{color:#666;font-size:.85em}
table{border-collapse:collapse}td,th{text-align:left;padding:.2em 1em .2em 0;font-weight:normal}th{color:#777}"""


def write_page(output: Path, recording: Recording, results: dict) -> Path:
    """Write overlays and index.html into `output`; `results` is what results.json holds. Returns the page's path."""
    folder = output / "overlays"
    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for number, row in enumerate(results["answers"], start=1):
        picture = None
        if row["result"] and row["frame"]:
            picture = _save(folder / f"{number:02d}.jpg", find(recording, row["frame"]), result_from_plain(row["result"]), row)
        figures.append(_figure(row, picture, output))
    strip = _following(output, recording, results) if results["following"] else ""
    model = results["model"]
    credits_ = "".join(f"<li>{escape(scene.name)}: {escape(scene.credit)}</li>" for scene in recording.scenes)
    page = output / "index.html"
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>pixel_perception demo</title><style>{STYLE}</style>'
        f"<h1>What the node answered</h1><p>{escape(model['name'])} {escape(model['version'])}, {escape(model['backend'])}, "
        f"{results['memory_mb']:.0f} MB resident; a camera at {results['rate_hz']:g} Hz. "
        f"Answers: <a href='results.json'>results.json</a>, messages: <a href='bag'>bag</a> (MCAP).</p>"
        f"<div class=grid>{''.join(figures)}</div>{strip}"
        f"<h2>Where the images come from</h2><ul class=small>{credits_}</ul></html>\n",
        encoding="utf-8",
    )
    return page


def find(recording: Recording, key: list) -> RecordedFrame:
    """The frame [scene, index] of a recording."""
    return recording.scene(key[0]).frames[key[1]]


def _save(file: Path, frame: RecordedFrame, result: Result, row: dict | None = None) -> Path:
    image: np.ndarray = frame.image()
    told = row is not None and row["step"]["task"] == "NARRATE"
    drawn = draw(image, result.instances, result.regions, result.words if told else (), result.text)
    Image.fromarray(drawn).save(file, quality=88)
    return file


def _following(output: Path, recording: Recording, results: dict) -> str:
    row = results["following"]
    figures = []
    for k, picture in enumerate(p for p in row["pictures"] if p["frame"]):
        frame, result = find(recording, picture["frame"]), result_from_plain(picture["result"])
        file = _save(output / "overlays" / f"standing-{k}.jpg", frame, result)
        figures.append(f'<figure><img src="{file.relative_to(output)}" alt=""></figure>')
    return (f"<h2>A standing instruction: “{escape(row['text'])}”</h2><p>{row['frames']} frames in {row['seconds']} s "
            f"({row['frames_per_s']} frames/s of {results['rate_hz']:g}); language ran in {row['language_runs']} of them. "
            f"Mask IoU {row['iou']}, image age {row['image_age_ms']} ms.</p><div class=grid>{''.join(figures)}</div>")  # fmt: skip


def _figure(row: dict, picture: Path | None, output: Path) -> str:
    step, result, ms = row["step"], row["result"], row["ms"]
    image = f'<img src="{picture.relative_to(output)}" alt="">' if picture else ""
    head = (f"{image}<figcaption><div class=kind>{escape(step['kind'])} · by {escape(step['via'])}</div>"
            f"<div class=ask>{escape(row['title'])}</div>")  # fmt: skip
    if not row["arrived"]:
        return f"<figure class=lost>{head}{escape(row['error'] or 'no answer')}</figcaption></figure>"
    absent = [t["label"] for t in result["targets"] if not t["present"]]
    kind = "instance" if result["targets"] else "region"
    count = len(result[f"{kind}s"])
    facts = [f"{count} {kind}{'' if count == 1 else 's'}"]
    facts += [f"score {max(t['score'] for t in result['targets']):.2f}"] if result["targets"] else []
    facts += [f"IoU {row['iou']:.2f}"] if row["iou"] is not None else []
    facts += [f"first mask {ms['first_mask']:.0f} ms"] if ms["first_mask"] is not None else []
    facts.append(f"all {ms['total']:.0f} ms")
    said = result["text"] or "; ".join(r["caption"] for r in result["regions"])
    note = f" <em>(not there: {escape(', '.join(absent))})</em>" if absent else ""
    return (f"<figure>{head}<div>→ {escape(said)}{note}</div>"
            f"<div class=small>{escape(' · '.join(facts))}</div></figcaption></figure>")  # fmt: skip
