"""METEOR, CIDEr, BLEU and ROUGE of captions, through pycocoevalcap, the scorers of the COCO caption challenge.

Three of their habits decide what a figure means, so the result states them:

* The Penn Treebank tokeniser and METEOR are Java programs. Without Java, METEOR is left out and a plain tokeniser stands in;
  figures then differ a little from published ones, and a note says so.
* CIDEr weighs n-grams by how few references have them. The scorer counts in the references that it is given, so CIDEr belongs
  to its set: it does not compare between sets or subsets, and a single caption always has CIDEr 0.
* METEOR and BLEU of a set are computed from summed statistics; they are no means over captions.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

METEOR_BATCH = 1000
"""Captions handed to the METEOR process at once; its protocol puts them on one line."""


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions, as the scorers give them (CIDEr 0..10, the others 0..1; papers print 100 times that)."""

    n: int
    bleu: tuple[float, float, float, float]
    """BLEU-1 to BLEU-4."""
    rouge_l: float
    cider: float
    meteor: float | None
    """Of the whole set; None without Java."""
    meteor_mean: float | None
    """Mean over captions, "averaged per object"."""
    tokeniser: str
    """ "ptb" or "plain"."""
    cider_documents: int
    """Sets of references whose n-grams CIDEr counted: those of this very set."""
    notes: tuple[str, ...]

    def row(self) -> dict:
        """All of it as plain data for JSON."""
        return asdict(self)


def has_java() -> bool:
    """Whether a `java` is on the path."""
    return shutil.which("java") is not None


def score(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Score one caption for each key against its references.

    Args:
        candidates: {key: caption}; a caption may be empty.
        references: {key: captions}, of the same keys, at least one each, none empty.

    Raises:
        ValueError: for no captions, different keys, or missing references, naming the first key concerned.
        RuntimeError: without pycocoevalcap, or when a Java program fails.
    """
    _check(candidates, references)
    scorers = _scorers()
    keys = sorted(candidates)
    texts = [candidates[key] for key in keys] + [text for key in keys for text in references[key]]
    tokeniser = "ptb" if has_java() else "plain"
    tokens = iter(ptb_tokens(texts) if has_java() else [plain_tokens(text) for text in texts])
    said = {key: [next(tokens)] for key in keys}
    meant = {key: [next(tokens) for _ in references[key]] for key in keys}
    notes = [f"CIDEr counts document frequencies in the references of these {len(keys)} captions."]
    if len(keys) == 1:
        notes.append("With one caption all CIDEr weights are 0, and so is CIDEr.")
    meteor = mean = None
    if has_java():
        meteor, each = _meteor([said[key][0] for key in keys], [meant[key] for key in keys])
        mean = float(np.mean(each))
    else:
        notes.append("No Java: METEOR is left out, and a plain tokeniser stands in for that of the Penn Treebank.")
    bleu, _ = scorers["bleu"](4).compute_score(meant, said, verbose=0)
    return CaptionScores(
        len(keys), tuple(float(b) for b in bleu), float(scorers["rouge"]().compute_score(meant, said)[0]),
        float(scorers["cider"]().compute_score(meant, said)[0]), meteor, mean, tokeniser, len(keys), tuple(notes),
    )  # fmt: skip


def meteor_each(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """(n,) METEOR of each caption against its references, untokenised as dense captioning has it (METEOR normalises itself).

    Raises:
        RuntimeError: without Java or pycocoevalcap, or when METEOR fails.
    """
    if not has_java():
        raise RuntimeError("METEOR is a Java program, and there is no java on the path")
    if not candidates:
        return np.zeros(0)
    return np.array(_meteor(candidates, references, summed=False)[1])


def plain_tokens(text: str) -> str:
    """Lower-case words and numbers, separated by spaces, punctuation gone."""
    return " ".join(re.findall(r"\w+(?:['’-]\w+)*", text.lower()))


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Texts as lower-case Penn Treebank tokens separated by spaces, punctuation gone, as in the COCO challenge.

    As there, brackets stay, as -lrb- and -rrb-: the list of punctuation has them in capitals.

    Calls the Java program of pycocoevalcap itself: its wrapper writes into the installed package, and loses count of captions
    that hold a line break.

    Raises:
        RuntimeError: without Java or pycocoevalcap, or when the program fails.
    """
    folder = _package() / "tokenizer"
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(folder / STANFORD_CORENLP_3_4_1_JAR),
               "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]  # fmt: skip
    given = "".join(_line(text) + "\n" for text in texts)
    done = subprocess.run(command, input=given.encode(), capture_output=True, check=False)
    lines = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(lines) != len(texts):
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise RuntimeError(f"the Penn Treebank tokeniser returned {len(lines)} lines for {len(texts)}: {said}")
    gone = set(PUNCTUATIONS)
    return [" ".join(token for token in line.split() if token not in gone) for line in lines]


def _meteor(candidates: Sequence[str], references: Sequence[Sequence[str]], summed: bool = True) -> tuple[float | None, list[float]]:
    """METEOR of the whole set (None unless `summed`) and of each caption."""
    said = {i: [_line(text).replace("|||", " ")] for i, text in enumerate(candidates)}
    meant = {i: [_line(text).replace("|||", " ") for text in texts] for i, texts in enumerate(references)}
    # The score of the set needs all of it on one line; those of single captions do not.
    step = len(said) if summed else METEOR_BATCH
    batches = [range(start, min(start + step, len(said))) for start in range(0, len(said), step)]
    scorer = _meteor_process()
    try:
        results = [scorer.compute_score({i: meant[i] for i in batch}, {i: said[i] for i in batch}) for batch in batches]
    except (OSError, ValueError) as error:  # it ended: a broken pipe, or an empty line where a number should be
        _meteor_process.cache_clear()
        scorer.meteor_p.kill()
        complaint = scorer.meteor_p.stderr.read().decode(errors="replace").strip()[-300:]
        # What its destructor would stumble over: unsent words, and a lock that the failure left closed.
        with contextlib.suppress(OSError):
            scorer.meteor_p.stdin.close()
        if scorer.lock.locked():
            scorer.lock.release()
        raise RuntimeError(f"METEOR failed ({error}): {complaint}") from None
    each = [float(value) for _, values in results for value in values]
    return (float(results[0][0]) if summed else None), each


@functools.lru_cache(maxsize=1)
def _meteor_process():
    """METEOR's Java process, kept: it reads a table of paraphrases for seconds before its first score."""
    _package()
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def _line(text: str) -> str:
    """A text on one line: the Java programs count lines."""
    return " ".join(text.split())


def _check(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    """ValueError where captions and references do not go together."""
    if not candidates:
        raise ValueError("there are no captions to score")
    if different := sorted(set(candidates) ^ set(references)):
        raise ValueError(f"captions and references must have the same keys, {different[0]!r} is only in one of them")
    for key, texts in references.items():
        if isinstance(texts, str) or not texts or not all(text.strip() for text in texts):
            raise ValueError(f"references of {key!r}: expected a list of captions that are not empty, found {texts!r}")


def _package() -> Path:
    """The folder of pycocoevalcap; RuntimeError where it is not installed."""
    try:
        import pycocoevalcap.eval as package
    except ImportError as error:
        raise RuntimeError(f"captions are scored by pycocoevalcap, which is not installed ({error})") from None
    return Path(package.__file__).parent


def _scorers() -> dict:
    """The scorer classes of pycocoevalcap."""
    _package()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    return {"bleu": Bleu, "cider": Cider, "rouge": Rouge}
