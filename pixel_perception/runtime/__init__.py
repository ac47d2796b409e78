"""Running a bundle: sessions, vision and the token loop. No torch, no ROS."""

BACKENDS = ("auto", "onnxruntime", "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt")
"""Names that `backends.open_backend` takes; "onnxruntime" is another name of "onnxruntime-cpu"."""
