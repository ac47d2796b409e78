"""From a trained model to a bundle that runs without torch; installed as `pixel_perception.export`.

`base_weights`, `language_graph`, `tokenizer`, `bundle` and `tiny` need numpy and onnx only; `vision` and `parity`
need torch, and import it where they are called from `bundle.write_parts` or the command line.
"""
