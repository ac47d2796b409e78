"""The backend onnxruntime-cuda with everything but the device: its graphs, bindings and answers, in the host's memory."""

import numpy as np
import onnx
import onnxruntime
import pytest
from host_device import HostCuda, OnHost
from pixellm_on_the_spot import lessons

from pixel_perception.errors import PerceptionError
from pixel_perception.export.cuda_graph import cuda_graph
from pixel_perception.export.fused_language import FusedLanguage
from pixel_perception.export.gpu_graph import gpu_graph
from pixel_perception.export.language_graph import language_graph
from pixel_perception.perception import Perception
from pixel_perception.runtime.meanwhile import Meanwhile
from pixel_perception.runtime.onnxruntime import OnnxRuntime
from pixel_perception.runtime.onnxruntime_cuda import SMALLEST, OnnxRuntimeCuda
from pixel_perception.types import Query


@pytest.fixture
def backend(converted):
    return OnHost(converted)


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("graph", ["image_encoder", "pixel_decoder", "location_head"])
def test_vision_is_fp16_and_answers_alike(tiny, backend, graph):
    session, other = backend.session(tiny.graph(graph)), OnnxRuntime(threads=1).session(tiny.graph(graph))
    shapes = {i.name: i.shape for i in onnxruntime.InferenceSession(tiny.graph(graph)).get_inputs()}
    rng = np.random.default_rng(0)
    feeds = {name: rng.uniform(0, 1, [d if isinstance(d, int) else 2 for d in shape]).astype(np.float32) for name, shape in shapes.items()}
    if "image" in feeds:
        feeds["image"] = (255 * feeds["image"]).astype(np.uint8)
    found, wanted = session.run(feeds), other.run(feeds)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=0.05, rtol=0.01)
    assert cuda_graph(tiny.graph(graph)) == gpu_graph(tiny.graph(graph))


@pytest.fixture(scope="module")
def graphs(tiny, tmp_path_factory):
    """The tiny language model in every precision, with its weights beside the graph: precision -> path."""
    weights, paths = FusedLanguage(onnx.load(tiny.graph("language_model")), tiny.graph("language_model")), {}
    for precision in ("int8", "int4", "fp32"):
        paths[precision] = tmp_path_factory.mktemp(precision) / "language_model.onnx"
        with open(f"{paths[precision]}.data", "wb") as beside:
            onnx.save(language_graph(weights.shape, weights, precision, beside=beside), paths[precision])
    return paths


@pytest.mark.parametrize("precision", ["int8", "int4", "fp32"])
def test_language_reads_the_weights_of_the_bundle_where_they_are(graphs, backend, precision, tmp_path):
    fused = FusedLanguage(onnx.load(graphs[precision], load_external_data=False), graphs[precision])
    exact = tmp_path / "language_model.onnx"
    onnx.save(language_graph(fused.shape, fused, "fp32"), exact)
    decoder, other = backend.decoder(graphs[precision]), OnnxRuntime(threads=1).decoder(exact)
    x = np.random.default_rng(1).normal(0, 0.5, (1, 14, 64)).astype(np.float32)
    past = expected = None
    for part in (x[:, :9], x[:, 9:10], x[:, 10:11], x[:, 11:]):
        step, wanted = decoder.read(part, past), other.read(part, expected)
        assert cosine(step.states[0], wanted.states[0]).min() > 0.99999
        assert np.abs(step.logits[0] - wanted.logits[0]).max() < 0.02
        past, expected = step.past, wanted.past
    model = cuda_graph(graphs[precision])
    assert {n.op_type for n in model.graph.node if n.domain} <= {"MatMulNBits"}  # the only one that is not plain
    stored = {t.name: t for t in model.graph.initializer}
    for name in ("layers.0.qkv.weight", "layers.1.down.weight", "logits.weight"):
        assert stored[name].SerializeToString() == fused.tensors[name].SerializeToString()


def test_a_robot_is_answered_by_the_cpu_until_the_device_agrees(tiny, perception, image, converted):
    backend = Meanwhile(OnnxRuntime(threads=1), OnHost(converted))
    opened = Perception(tiny, backend)
    assert backend.name == "onnxruntime-cuda (onnxruntime-cpu for 7 graphs)" and backend.wait(60)
    for text in ("the mug and the banana", "describe the scene", "the banana"):
        for _ in range(3):
            result, wanted = opened.ask(image, Query(text)), perception.ask(image, Query(text))
            assert result.text == wanted.text and len(result.instances) == len(wanted.instances)
    captions = opened.ask(image, Query("", boxes=((100, 70, 200, 170), (420, 250, 560, 370))))
    assert len(captions.regions) == 2 and backend.name == "onnxruntime-cuda"
    # The next start needs no comparison, but on another driver it does.
    assert all(OnHost(converted).ready(tiny.graph(name)) for name in tiny.manifest.graphs)
    other = HostCuda()
    other.driver = "another"
    assert not OnHost(converted, other).ready(tiny.graph("proposals"))


def test_pixellm(pixellm, backend):
    opened, wanted = Perception(pixellm.bundle, backend), Perception(pixellm.bundle, OnnxRuntime(threads=1))
    for image, question, _ in list(lessons())[:4]:
        ours, theirs = (perception.ask(image, Query(question)) for perception in (opened, wanted))
        assert ours.text == theirs.text and len(ours.instances) == len(theirs.instances) > 0
        assert cosine(ours.standing.queries, theirs.standing.queries).min() > 0.999


def test_pixels_overtake_words(tiny, converted):
    class Noting(OnHost):
        streams = ()

        def _providers(self, stream):
            self.streams += (stream,)
            assert super(OnHost, self)._providers(stream)[0][1]["user_compute_stream"] == str(stream)
            return super()._providers(stream)

    backend = Noting(converted)
    backend.session(tiny.graph("proposals"))
    decoder = backend.decoder(tiny.graph("language_model"))
    urgent, other = HostCuda().stream(True), HostCuda().stream(False)
    assert backend.streams == (urgent, other) and decoder._stream == other != urgent


def test_a_bundle_without_its_weights(graphs, backend, tmp_path):
    path = tmp_path / "language_model.onnx"
    path.write_bytes(graphs["int8"].read_bytes())
    with pytest.raises(PerceptionError, match="language_model.onnx") as caught:
        backend.decoder(path)
    assert caught.value.code == "INVALID_BUNDLE" and "\n" not in caught.value.message


def test_the_smallest_graph():
    session = onnxruntime.InferenceSession(SMALLEST, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones(1, np.float32)})[0] == -1


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_without_its_provider_it_says_what_to_install():
    with pytest.raises(PerceptionError, match="backend onnxruntime-cuda: .* install onnxruntime-gpu") as caught:
        OnnxRuntimeCuda(device=HostCuda())
    assert caught.value.code == "INVALID_QUERY"
