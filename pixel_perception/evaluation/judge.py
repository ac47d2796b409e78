"""Asks a language model behind an OpenAI-compatible endpoint for scores, and keeps every prompt and verdict.

Works with whatever serves POST `URL/chat/completions`: a hosted model, or a local vLLM, llama.cpp or Ollama. Standard library
only. The file of verdicts is JSON lines; what is in it is not asked again, so an evaluation goes on where it stopped, and
anybody can see what was asked and answered.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from pixel_perception.evaluation.records import lines

RETRIED = {408, 409, 429, 500, 502, 503, 504}
"""HTTP states that may pass by themselves."""


class JudgeError(RuntimeError):
    """The judge could not be reached, refused, or never answered in the agreed form. The text says which."""


class _Passing(JudgeError):
    """Trouble that may be over at the next attempt."""


@dataclass(frozen=True)
class Endpoint:
    """Where the judge is. `url` is the base, for instance http://127.0.0.1:8000/v1."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    """Sent as a bearer token, never written anywhere."""
    timeout_s: float = 60.0
    """Deadline of one request."""
    attempts: int = 4
    """Requests for one verdict, at most."""
    wait_s: float = 1.0
    """Wait before the second attempt; doubles each time."""

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: expected http:// or https://, found {self.url!r}")
        if self.attempts < 1:
            raise ValueError(f"attempts: expected 1 or more, found {self.attempts}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to somebody else; it is reported instead."""

    def redirect_request(self, *_):
        return None


class Judge:
    """Verdicts of one endpoint, kept in one file. May be used by several threads.

    Each line of the file: {"key", "name", "model", "url", "messages", "reply", "scores"}; `key` is the SHA-256 of the model's
    name and the prompt, so that another prompt or another judge is asked anew.
    """

    def __init__(self, endpoint: Endpoint, file: Path | str):
        self.endpoint, self.file = endpoint, Path(file)
        self._lock = threading.Lock()
        self._open = urllib.request.build_opener(_NoRedirect).open
        self._known = self._load()

    def _load(self) -> dict[str, list[float]]:
        """The verdicts so far. A last line that was cut off by an interruption is removed; other damage is an error."""
        known = {}
        for number, line in enumerate(lines(self.file), 1):
            try:
                row = json.loads(line)
                known[row["key"]] = row["scores"]
            except (ValueError, KeyError, TypeError) as error:
                raise JudgeError(f"{self.file}, line {number}: not a verdict ({error!r})") from None
        return known

    def verdict(self, name: str, prompt: str, count: int) -> list[float]:
        """`count` scores from 1 to 10 for a prompt that asks for {"scores": [...]}; from the file when it was asked before.

        Raises:
            JudgeError: see the class.
        """
        key = hashlib.sha256(f"{self.endpoint.model}\n{prompt}".encode()).hexdigest()
        with self._lock:
            if key in self._known:
                return self._known[key]
        messages = [{"role": "user", "content": prompt}]
        problem, end = "", self.endpoint
        for attempt in range(end.attempts):
            try:
                reply = self._ask(messages)
            except _Passing as error:
                problem = str(error)
                if attempt + 1 < end.attempts:
                    time.sleep(end.wait_s * 2**attempt)
                continue
            scores = parse(reply, count)
            if scores is not None:
                self._keep(key, name, messages, reply, scores)
                return scores
            problem = f"no {count} scores from 1 to 10 in the reply {reply[:200]!r}"
            # The same words at temperature 0 get the same answer: say what was wrong with it.
            reminder = f'Reply with nothing but {{"scores": [...]}}: {count} numbers from 1 to 10.'
            messages = [*messages, {"role": "assistant", "content": reply}, {"role": "user", "content": reminder}]
        raise JudgeError(f"{name}: {problem}, after {end.attempts} attempts")

    def _ask(self, messages: list[dict]) -> str:
        """The text that answers one request. Raises _Passing where another attempt may help, else JudgeError."""
        end = self.endpoint
        body = json.dumps({"model": end.model, "messages": messages, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {end.key}"} if end.key else {})
        request = urllib.request.Request(end.url.rstrip("/") + "/chat/completions", body, headers)
        try:
            with self._open(request, timeout=end.timeout_s) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace").strip()
            kind = _Passing if error.code in RETRIED else JudgeError
            raise kind(f"the judge's endpoint answered {error.code} {error.reason}: {said}") from None
        except (OSError, http.client.HTTPException) as error:  # no connection, an unknown name, a broken answer, the deadline
            raise _Passing(f"no answer from {end.url}: {getattr(error, 'reason', error)}") from None
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _Passing(f"the answer of {end.url} is not a chat completion ({error!r})") from None

    def _keep(self, key: str, name: str, messages: list[dict], reply: str, scores: list[float]) -> None:
        row = {"key": key, "name": name, "model": self.endpoint.model, "url": self.endpoint.url,
               "messages": messages, "reply": reply, "scores": scores}  # fmt: skip
        with self._lock:
            self._known[key] = scores
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def parse(reply: str, count: int) -> list[float] | None:
    """The `count` numbers from 1 to 10 of a reply: its last {"scores": [...]}, else its last bare list; None without either.

    The last, because some models think aloud before they answer.
    """
    named = bare = None
    decoder = json.JSONDecoder()
    for start, character in enumerate(reply):
        if character not in "{[":
            continue
        try:
            value, _ = decoder.raw_decode(reply, start)
        except ValueError:
            continue
        scores = value.get("scores") if isinstance(value, dict) else value
        if isinstance(scores, list) and len(scores) == count and all(type(s) in (int, float) and 1 <= s <= 10 for s in scores):
            named, bare = (scores, bare) if isinstance(value, dict) else (named, scores)
    found = named or bare
    return [float(score) for score in found] if found else None
