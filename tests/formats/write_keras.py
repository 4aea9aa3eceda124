"""Writes models with the real Keras into a folder, and what Keras itself says of their weights into ``<name>.npz``.

Run in a process of its own, since Keras settles its backend at import and takes seconds to import.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras  # type: ignore[import-untyped]
import numpy as np

layers: Any = keras.layers
FOLDER = Path(sys.argv[1])


def save(name: str, model: Any, formats: str = "keras weights.h5 h5") -> None:
    for suffix in formats.split():
        path = FOLDER / f"{name}.{suffix}"
        if suffix == "weights.h5":
            model.save_weights(path)
        else:
            model.save(path)
    values: dict[str, Any] = {}
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(variable.value)
        values[variable.path] = value.view(np.uint16) if value.dtype.name == "bfloat16" else value
    if getattr(model, "optimizer", None) is not None:
        for i, variable in enumerate(model.optimizer.variables):
            values[f"optimizer/{i}/{variable.path}"] = keras.ops.convert_to_numpy(variable.value)
    anything: Any = np.savez
    anything(FOLDER / f"{name}.npz", **values)


def functional() -> Any:
    inner = keras.Sequential(
        [layers.Input((8,)), layers.Dense(4, name="in_a"), layers.BatchNormalization()], name="block"
    )
    start = layers.Input((6, 3))
    x = layers.Dropout(0.1)(layers.Conv1D(5, 2)(start))
    x = layers.Bidirectional(layers.GRU(3), name="bi")(layers.Reshape((2, 2))(inner(layers.LSTM(8)(x))))
    end = layers.Dense(2)(layers.Dense(2, name="head")(x))
    model = keras.Model(start, end)
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((4, 6, 3)), np.ones((4, 2)), verbose=0)
    return model


def every_layer() -> Any:
    image, rows, flat = layers.Input((8, 8, 4)), layers.Input((6, 4)), layers.Input((5,))
    cube, words, frames = layers.Input((4, 4, 4, 2)), layers.Input((3,), dtype="int32"), layers.Input((2, 6, 6, 2))
    ends = [
        *(layer(image) for layer in (
            layers.Conv2D(3, 2), layers.Conv2D(3, 2, use_bias=False), layers.Conv2DTranspose(3, 2),
            layers.DepthwiseConv2D(2), layers.SeparableConv2D(3, 2), layers.SeparableConv2D(3, 2, use_bias=False),
            layers.BatchNormalization(), layers.GroupNormalization(2), layers.PReLU(),
        )),
        *(layer(rows) for layer in (
            layers.Conv1D(3, 2), layers.Conv1DTranspose(3, 2), layers.DepthwiseConv1D(2), layers.SeparableConv1D(3, 2),
            layers.LSTM(2), layers.GRU(2), layers.SimpleRNN(2), layers.LSTM(2, use_bias=False),
            layers.GRU(2, reset_after=False), layers.TimeDistributed(layers.Dense(3)),
            layers.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d"), layers.EinsumDense("abc,cd->abd", (None, 3)),
            layers.Bidirectional(layers.LSTM(2)), layers.RNN([layers.LSTMCell(2), layers.GRUCell(3)]),
        )),
        *(layer(flat) for layer in (
            layers.Dense(3), layers.Dense(3, use_bias=False), layers.LayerNormalization(),
            layers.RMSNormalization(), layers.UnitNormalization(),
        )),
        *(layer(cube) for layer in (layers.Conv3D(3, 2), layers.Conv3DTranspose(3, 2))),
        layers.Embedding(9, 2)(words),
        layers.ConvLSTM2D(2, 2)(frames),
        layers.MultiHeadAttention(2, 3)(rows, rows),
        layers.GroupQueryAttention(2, 4, 2)(rows, rows),
    ]  # fmt: skip
    return keras.Model([image, rows, flat, cube, words, frames], ends)


class Subclassed(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="subby")
        self.fc1 = layers.Dense(3)
        self.blocks = [layers.Dense(3), layers.Dense(3)]
        self.own = layers.Dense(3, name="own")
        self.scale = self.add_weight(shape=(3,), name="scale")

    def call(self, x: Any) -> Any:
        for layer in (self.fc1, *self.blocks, self.own):
            x = layer(x)
        return x * self.scale


def narrow(units: int, name: str) -> Any:
    return keras.Sequential(
        [layers.Input((4,)), layers.Dense(units, name="a"), layers.Lambda(lambda x: x * 2, name="twice")], name=name
    )


keras.utils.set_random_seed(0)
save("functional", functional())
keras.utils.clear_session()
save("every", every_layer())
keras.utils.clear_session()
start = layers.Input((4,))
nested = keras.Model(start, layers.Dense(4, name="ia")(start), name="fin")
save("nested", keras.Model(start, layers.Dense(2, name="out")(nested(start))))
save("switched", keras.Sequential([layers.Input((4,)), layers.LayerNormalization(scale=False)]))
save(
    "half", keras.Sequential([layers.Input((4,)), layers.Dense(3, dtype="bfloat16"), layers.Dense(2, dtype="float16")])
)
keras.utils.clear_session()
quantised = keras.Sequential([layers.Input((4,)), layers.Dense(3), layers.Dense(3, use_bias=False)])
quantised.quantize("int8")
save("int8", quantised, "keras weights.h5")
keras.utils.clear_session()
subclassed = Subclassed()
subclassed(np.ones((1, 4)))
save("subclassed", subclassed, "keras weights.h5")
keras.utils.clear_session()
save("narrow", narrow(3, "n"))
keras.utils.clear_session()
save("wide", narrow(5, "n"))
print(keras.__version__)
