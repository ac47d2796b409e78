"""`pixel-perception evaluate --data`: a configuration over the papers' data sets."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from pixel_perception.evaluation import comparison, figures
from pixel_perception.evaluation.judge import Endpoint, Judge
from pixel_perception.evaluation.predictors import EvaluationError, open_predictor
from pixel_perception.evaluation.run import check, chosen, open_splits, run

PICTURES = 24
"""Answers of a split on the contact sheet."""
TOGETHER = {"muse/test": ("muse/test_less", "muse/test_many")}
"""Splits whose records are also summed up together, as the papers print them."""


def evaluate(arguments: Namespace, refuse: Callable[[str], object]) -> int:
    """Ask, print the table and, when asked, the JSON line; write everything with --out. `refuse` ends with a usage error.

    Raises ValueError of this package or PerceptionError for what cannot be evaluated, each one sentence.
    """
    if (arguments.limit is not None and arguments.limit < 1) or arguments.max_new_tokens < 1:
        refuse("--limit and --max-new-tokens: expected 1 or more")
    if bool(arguments.judge) != bool(arguments.judge_model):
        refuse("--judge and --judge-model: expected both or none")
    if arguments.judge and not arguments.out:
        refuse("--judge needs --out, where its verdicts are kept")
    out = Path(arguments.out) if arguments.out else None
    tasks = [task for argument in arguments.data for task in open_splits(argument, arguments.split)]
    names = [f"{task.name}/{task.split}" for task in tasks]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise EvaluationError(f"--data: {double} is named twice")
    judge = Judge(Endpoint(arguments.judge, arguments.judge_model, os.environ.get("PIXEL_PERCEPTION_JUDGE_KEY")),
                  out / "verdicts.jsonl") if arguments.judge else None  # fmt: skip
    weights = arguments.weights or (arguments.bundle if arguments.config == "compact" else None)
    predictor = open_predictor(arguments.config, weights, {"backend": arguments.backend, "threads": arguments.threads},
                               {"device": arguments.device, "longest": arguments.max_new_tokens})  # fmt: skip
    for task in tasks:
        check(predictor, task)

    from tqdm import tqdm

    records: dict[str, list[dict]] = {}
    for name, task in zip(names, tasks, strict=True):
        with tqdm(total=len(chosen(len(task), arguments.limit)), unit="image", desc=name, file=sys.stderr) as bar:
            records[name] = run(predictor, task, arguments.limit, out, PICTURES, bar.update)
    for name, parts in TOGETHER.items():
        if all(part in records for part in parts):
            records[name] = [record for part in parts for record in records[part]]
    summaries = {name: figures.summarise(name, rows, judge) for name, rows in records.items()}
    counts = {name: {"images": len(rows), "requests": sum(len(row["requests"]) for row in rows)} for name, rows in records.items()}
    whole = comparison.report(predictor.name, predictor.identity, counts, summaries, predictor.kinds)
    if out:
        from pixel_perception.evaluation import pictures, plots

        comparison.write(out, whole, [row for name in names for row in records[name]])
        plots.write(out / "plots", summaries)
        pictures.sheet(out)
    print(comparison.table(whole))
    if arguments.json:
        print(json.dumps(whole))
    return 0
