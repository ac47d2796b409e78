"""MUSE: matching and scores against cases worked out by hand; the judge against a real server on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from pixel_perception.evaluation import muse
from pixel_perception.evaluation.judge import Endpoint, Judge, JudgeError, parse


def block(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((10, 10), bool)
    mask[y0:y1, x0:x1] = True
    return mask


NOTHING = block(0, 0, 0, 0)
# Two objects of 16 pixels; the first is drawn whole, the second to the half, and 4 pixels where nothing is.
TRUE = [block(0, 0, 4, 4), block(6, 6, 10, 10)]
PREDICTED = [block(6, 6, 10, 8), block(0, 8, 2, 10), block(0, 0, 4, 4)]


def triples(pairs):
    return [(p.predicted, p.true, p.intersection, p.union) for p in pairs]


def test_what_is_left_over_is_held_against_nothing():
    assert triples(muse.match(PREDICTED, TRUE)) == [(0, 1, 8, 16), (2, 0, 16, 16), (1, None, 0, 4)]
    assert triples(muse.match(PREDICTED[:1], TRUE)) == [(0, 1, 8, 16), (None, 0, 0, 16)]
    assert triples(muse.match([], TRUE)) == [(None, 0, 0, 16), (None, 1, 0, 16)]
    assert [p.iou for p in muse.match(PREDICTED, TRUE)] == [0.5, 1.0, 0.0]


def test_empty_masks():
    assert [p.iou for p in muse.match([], [])] == [1.0]
    # An object that is announced but not drawn is no success, whether it has a partner or not.
    assert [p.iou for p in muse.match([NOTHING], [])] == [0.0]
    assert [p.iou for p in muse.match([NOTHING], TRUE[:1])] == [0.0]


def test_logits_are_masks_where_they_are_positive():
    logits = np.where(PREDICTED[0], 0.1, -7.0)
    logits[0, 0] = 0.0
    assert triples(muse.match([logits], TRUE[1:])) == [(0, 0, 8, 16)]


def test_the_two_rules_can_disagree():
    # Both predictions are positive on the same pixels; only the logits tell which is surer of the object's other half.
    half = block(0, 0, 4, 2)
    near, far = (np.where(half, 5.0, -5.0) for _ in range(2))
    near[2:4, 0:4] = -0.1
    assert triples(muse.match([far, near], TRUE[:1], rule="release"))[0][:2] == (1, 0)
    assert triples(muse.match([far, near], TRUE[:1]))[0][:2] == (0, 0)  # equal IoU: the first


def test_release_cost_by_hand():
    # One pixel of two is meant. Logits 0: entropy ln 2, DICE 1 - (2 * 0.5 + 1) / (1 + 1 + 1).
    cost = muse._release_cost(np.zeros((1, 2)), np.array([[1.0, 0.0]]))
    assert cost == pytest.approx(np.log(2) + 1 / 3)


@pytest.mark.parametrize("rule", ["iou", "release"])
def test_points_match_like_all_pixels_and_scores_stay_whole(rule):
    logits = [np.where(mask, 4.0, -4.0) for mask in PREDICTED]
    assert muse.match(logits, TRUE, rule, points=2000) == muse.match(logits, TRUE, rule)
    few = [muse.match(logits, TRUE, rule, points=5, seed=s) for s in (3, 3)]
    assert few[0] == few[1]


def test_bad_masks_are_named():
    with pytest.raises(ValueError, match="one size"):
        muse.match([np.zeros((4, 4))], TRUE)
    with pytest.raises(ValueError, match="logits"):
        muse.match(PREDICTED, TRUE, rule="release")
    with pytest.raises(ValueError, match='"iou" or "release"'):
        muse.match(PREDICTED, TRUE, rule="dice")


def test_summary_by_hand():
    answers = [muse.match(PREDICTED, TRUE), muse.match(PREDICTED[2:], TRUE)]
    # IoU: 0.5, 1, 0 and 1, 0. Intersections 8 + 16 + 16, unions 16 + 16 + 4 + 16 + 16.
    figures = muse.summarise(answers)
    assert figures["n"] == 2 and figures["masks"] == 5
    assert figures["giou"] == pytest.approx(2.5 / 5)
    assert figures["answer_giou"] == pytest.approx((0.5 + 0.5) / 2)
    assert figures["ciou"] == pytest.approx(40 / 68)
    # An IoU of exactly 0.5 is no hit: 2 hits of 4 predicted and 4 true.
    assert figures["precision"] == figures["recall"] == figures["f1"] == pytest.approx(0.5)
    assert figures["count_error"] == 1 and figures["count_exact"] == 0
    assert "judged_giou" not in figures
    judged = muse.summarise(answers, [[10, 5, 0], [8, 0]])
    assert judged["judged_giou"] == pytest.approx((0.5 + 0.5 + 0.8) / 5)
    assert judged["judged_ciou"] == pytest.approx((8 + 8 + 12.8) / 68)


def test_summary_of_nothing():
    assert muse.summarise([])["giou"] is None
    empty = muse.summarise([muse.match([], [])])
    assert empty["giou"] == empty["answer_giou"] == empty["count_exact"] == 1
    assert empty["ciou"] is None and empty["f1"] is None


def test_scores_must_fit():
    pairs = [muse.match(PREDICTED, TRUE)]
    with pytest.raises(ValueError, match="each pair"):
        muse.summarise(pairs, [[1, 2]])
    with pytest.raises(ValueError, match="0 to 10"):
        muse.summarise(pairs, [[1, 2, 11]])


def test_descriptions_stand_where_the_masks_were():
    pairs = muse.match(PREDICTED, TRUE)
    answer = "Sit in the kayak {seg}, mind the rock {seg}, use the paddle {seg}."
    text, numbered = muse.annotate(answer, pairs, ["a red kayak", "a\npaddle"])
    assert text == "Sit in the kayak (1: a paddle), mind the rock (nothing), use the paddle (2: a red kayak)."
    assert numbered == [0, 1]
    with pytest.raises(ValueError, match="3 times"):
        muse.annotate("one {seg}", pairs, ["a", "b"])


def test_the_last_scores_of_a_reply_count():
    assert parse('{"scores": [7, 9.5]}', 2) == [7, 9.5]
    assert parse('First I thought {"scores": [1, 1]}. But [2] says more:\n```json\n{"scores": [3, 4]}\n``` see [5, 6]', 2) == [3, 4]
    assert parse("[3, 4]", 2) == [3, 4]
    for wrong in ("", "[3]", "[0, 4]", "[3, 11]", '[true, "4"]', '{"scores": 3}', "{[", "[NaN, 1]"):
        assert parse(wrong, 2) is None


class Server:
    """A judge that gives scripted answers, (status, content) each, and remembers what it was asked."""

    def __init__(self):
        self.script: list[tuple[int, str]] = []
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                server.keys.append(self.headers.get("Authorization"))
                server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))) | {"path": self.path})
                status, content = server.script.pop(0)
                body = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}) if status == 200 else content
                self.send_response(status)
                if status in (301, 302, 307):
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    out = Server()
    yield out
    out.http.shutdown()
    out.http.server_close()


def endpoint(server, **settings):
    return Endpoint(server.url, "judge-1", wait_s=0.01, **settings)


def ask(judge, name="q1"):
    pairs = muse.match(PREDICTED, TRUE)
    return muse.judged(judge, name, "How do I cross?", "{seg} and {seg} and {seg}", pairs, ["a red kayak", "a paddle"])


def test_judge_end_to_end(server, tmp_path):
    server.script = [(503, "busy"), (200, "I would rather not."), (200, 'Well: {"scores": [9, 4]}')]
    file = tmp_path / "runs" / "verdicts.jsonl"
    assert ask(Judge(endpoint(server, key="secret"), file)) == [9, 4, 0]
    first, _, last = server.asked
    assert first["path"] == "/v1/chat/completions" and first["model"] == "judge-1" and first["temperature"] == 0
    question = first["messages"][0]["content"]
    assert "(1: a paddle) and (nothing) and (2: a red kayak)" in question and "How do I cross?" in question
    assert [m["role"] for m in last["messages"]] == ["user", "assistant", "user"]
    assert server.keys == ["Bearer secret"] * 3
    row = json.loads(file.read_text())
    assert (row["name"], row["model"], row["scores"]) == ("q1", "judge-1", [9, 4])
    assert row["messages"] == last["messages"] and row["reply"].startswith("Well")
    assert "secret" not in file.read_text() and "secret" not in repr(endpoint(server, key="secret"))


def test_judge_goes_on_where_it_stopped(server, tmp_path):
    file = tmp_path / "verdicts.jsonl"
    server.script = [(200, '{"scores": [9, 4]}')]
    ask(Judge(endpoint(server), file))
    with file.open("a") as out:
        out.write('{"key": "cut o')
    assert ask(Judge(endpoint(server), file)) == [9, 4, 0]  # nothing left in the script: it is not asked again
    assert len(file.read_text().splitlines()) == 1
    server.script = [(200, '{"scores": [1, 1]}')]
    other = Judge(Endpoint(server.url, "judge-2"), file)
    assert ask(other) == [1, 1, 0]  # another judge is asked
    assert len(file.read_text().splitlines()) == 2
    file.write_text("nonsense\n")
    with pytest.raises(JudgeError, match="line 1"):
        Judge(endpoint(server), file)


def test_judge_is_not_asked_without_a_match(tmp_path):
    judge = Judge(Endpoint("http://127.0.0.1:1/v1", "none"), tmp_path / "v.jsonl")
    assert muse.judged(judge, "q", "?", "{seg}", muse.match(PREDICTED[:1], []), []) == [0]


def test_judge_errors_say_what_is_wrong(server, tmp_path):
    judge = Judge(endpoint(server, attempts=2), tmp_path / "v.jsonl")
    server.script = [(401, "no such key")]
    with pytest.raises(JudgeError, match="401.*no such key"):
        ask(judge)
    server.script = [(307, "")]
    with pytest.raises(JudgeError, match="307"):
        ask(judge)
    assert all(request["path"] == "/v1/chat/completions" for request in server.asked)  # the key goes nowhere else
    server.script = [(200, "no"), (200, "never")]
    with pytest.raises(JudgeError, match="q1: no 2 scores.*'never'.*2 attempts"):
        ask(judge)
    assert not (tmp_path / "v.jsonl").exists()
    with pytest.raises(JudgeError, match="no answer from"):
        ask(Judge(Endpoint("http://127.0.0.1:1/v1", "m", attempts=1), tmp_path / "v.jsonl"))
    with pytest.raises(ValueError, match="http"):
        Endpoint("file:///etc", "m")
