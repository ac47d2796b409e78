"""The decoder that keeps its past on a device, for real but for the device: what it binds, copies and records is the host's, and
ONNX Runtime does the work, once behind TensorRT's interface and once as itself."""

import threading

import numpy as np
import onnx
import pytest
from host_device import HostCuda, HostEngine, OnHost, trt

from pixel_perception.errors import PerceptionError
from pixel_perception.export.fused_language import FusedLanguage
from pixel_perception.export.gpu_graph import gpu_graph
from pixel_perception.export.language_graph import language_graph
from pixel_perception.runtime.device_decoder import ALIGNED, KEPT, PLACES, DeviceDecoder, Layout
from pixel_perception.runtime.engine_key import POSITIONS, STEP
from pixel_perception.runtime.onnxruntime import OnnxRuntime
from pixel_perception.runtime.tensorrt_context import Context


@pytest.fixture(scope="module")
def model(tiny):
    return gpu_graph(tiny.graph("language_model"))


@pytest.fixture
def device():
    return HostCuda()


@pytest.fixture(params=["tensorrt", "onnxruntime-cuda"])
def decoder(request, tiny, converted, device):
    if request.param == "onnxruntime-cuda":
        return OnHost(converted, device).decoder(tiny.graph("language_model"))
    if trt is None:
        pytest.skip("no TensorRT for this machine")
    engine = HostEngine(request.getfixturevalue("model"), device, "language_model")
    return DeviceDecoder(lambda profile: Context(trt, engine, profile, device, 0, "language_model"), device, 0, "language_model")


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory):
    """The same weights in the fused graph, in fp32: the bundle's own rounds activations to 8 bits."""
    path = tmp_path_factory.mktemp("exact") / "language_model.onnx"
    weights = FusedLanguage(onnx.load(tiny.graph("language_model")), path)
    onnx.save(language_graph(weights.shape, weights, "fp32"), path)
    return OnnxRuntime(threads=1).decoder(path)


def embeddings(count, rows=1, seed=0):
    return np.random.default_rng(seed).normal(0, 0.5, (rows, count, 64)).astype(np.float32)


def same(step, wanted):
    """fp16 against fp32."""
    a, b = np.concatenate(list(step.states)), np.concatenate(list(wanted.states))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    near = all(np.abs(x - y).max() < 0.02 for x, y in zip(step.logits, wanted.logits, strict=True) if x.size)
    return cosine.min() > 0.99999 and near and step.past.lengths == wanted.past.lengths


def test_reading_in_steps_equals_the_other_backend(decoder, reference, device):
    past = expected = None
    for i, count in enumerate((30, 1, 1, 1, 4, 1, 1, 5, 1)):
        x = embeddings(count, seed=i)
        step, wanted = decoder.read(x, past), reference.read(x, expected)
        assert same(step, wanted), i
        past, expected = step.past, wanted.past
    # Six single tokens, of which the first prepares; the second is recorded and replayed too.
    assert device.launches == (5 if decoder._prompt.records else 0)


def test_a_past_has_any_number_of_continuations(decoder, reference):
    x = embeddings(20)
    past, expected = decoder.read(x, None).past, reference.read(x, None).past
    chains = []
    for seed in (1, 2, 3):
        step, wanted = decoder.read(embeddings(6, seed=seed), past), reference.read(embeddings(6, seed=seed), expected)
        assert same(step, wanted)
        chains.append((step.past, wanted.past))
    for seed in (4, 5):  # in turn, so that each would overwrite the others if they shared places
        for i, (mine, other) in enumerate(chains):
            step, wanted = decoder.read(embeddings(1, seed=seed), mine), reference.read(embeddings(1, seed=seed), other)
            assert same(step, wanted)
            chains[i] = step.past, wanted.past
    assert same(decoder.read(embeddings(1, seed=9), past), reference.read(embeddings(1, seed=9), expected))


def test_what_was_read_ahead_in_vain_is_forgotten(decoder, reference):
    past, expected = decoder.read(embeddings(10), None).past, reference.read(embeddings(10), None).past
    asked = [0, 3, 8]
    step, wanted = decoder.read(embeddings(9, seed=1), past, asked), reference.read(embeddings(9, seed=1), expected, asked)
    assert len(step.logits) == len(wanted.logits) == 3 and same(step, wanted)
    again, known = decoder.read(embeddings(2, seed=2), step.past.first(14)), reference.read(embeddings(2, seed=2), wanted.past.first(14))
    assert again.past.lengths == known.past.lengths == (16,) and same(again, known)
    # The same as if the four that were right had been read alone.
    right = reference.read(embeddings(9, seed=1)[:, :4], expected).past
    assert same(reference.read(embeddings(2, seed=2), right), known)


def test_rows_read_their_own_parts(decoder, reference):
    x = embeddings(12)
    past, expected = decoder.read(x, None).past, reference.read(x, None).past
    for counts in ((5, 2, 7), (1, 4, 0), (0, 1, 2), (1, 1, 1), (0, 1, 0)):
        parts = [embeddings(max(c, 1), seed=c)[0, :c] for c in counts]
        step, wanted = decoder.read(parts, past), reference.read(parts, expected)
        assert same(step, wanted)
        past, expected = step.past, wanted.past
    assert past.lengths == (19, 21, 22)
    with pytest.raises(ValueError, match="expected one for each of 3 rows"):
        decoder.read(parts[:2], past)
    with pytest.raises(ValueError, match="not all empty"):
        decoder.read([embeddings(1)[0, :0]] * 3, past)


def test_more_than_one_step_holds(decoder, reference):
    """A long prompt, and rows of which the last one alone is asked in the second step."""
    x = embeddings(STEP + 40)
    assert same(decoder.read(x, None), reference.read(x, None))
    step, wanted = decoder.read(x[:, :12], None), reference.read(x[:, :12], None)
    parts = [embeddings(STEP + 3, seed=1)[0], embeddings(9, seed=2)[0]]
    assert same(decoder.read(parts, step.past), reference.read(parts, wanted.past))


def test_places_grow_and_end(decoder, reference):
    x = embeddings(PLACES - 2)
    past, expected = decoder.read(x, None).past, reference.read(x, None).past
    for seed in range(5):
        step, wanted = decoder.read(embeddings(1, seed=seed), past), reference.read(embeddings(1, seed=seed), expected)
        assert same(step, wanted)
        past, expected = step.past, wanted.past
    assert past.lease.places.capacity == 2 * PLACES
    with pytest.raises(PerceptionError, match=f"expected at most {POSITIONS} positions of all rows together, found {POSITIONS + 1}"):
        decoder.read(embeddings(POSITIONS + 1 - past.lengths[0]), past)


def test_places_are_given_back_and_used_again(decoder):
    past = decoder.read(embeddings(4), None).past
    memory = past.lease.places.memory
    del past
    again = decoder.read(embeddings(6), None).past
    assert again.lease.places.memory is memory
    several = [decoder.read(embeddings(4), None).past for _ in range(KEPT + 4)]
    del several, again
    decoder.read(embeddings(4), None)
    assert len(decoder._free) <= KEPT + 1


def test_two_threads_may_decode(decoder, reference):
    wrong = []

    def work(seed):
        past = expected = None
        for i in range(6):
            x = embeddings(5 if i == 0 else 1, seed=10 * seed + i)
            step, wanted = decoder.read(x, past), reference.read(x, expected)
            past, expected = step.past, wanted.past
            if not same(step, wanted):
                wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(("heads", "size", "positions"), [(3, 64, 1), (3, 64, 256), (32, 128, 7), (1, 8, 3)])
def test_layout(heads, size, positions):
    names = ["inputs_embeds", "asked", *(f"past_key_values.{i}.{kind}" for i in range(12) for kind in ("value", "key"))]
    layout = Layout.of(names, heads, size, 2)
    assert layout.caches[:2] == ("past_key_values.0.key", "past_key_values.0.value") and layout.caches[-1] == "past_key_values.11.value"
    assert layout.new("past_key_values.3.key") == "new_key_values.3.key"
    assert layout.block(positions) % ALIGNED == 0 and layout.block(positions) >= heads * positions * size * 2
    assert layout.block(positions) == layout.rows(positions) * layout.pitch(positions)
