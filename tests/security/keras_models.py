"""Writes models of Keras into a folder; run as a script."""

from __future__ import annotations

import sys
from pathlib import Path

import keras  # type: ignore[import-not-found, import-untyped, unused-ignore]


@keras.saving.register_keras_serializable("mine")
class Custom(keras.layers.Dense):  # type: ignore[misc, name-defined, unused-ignore]
    pass


def main(folder: Path) -> None:
    good = folder / "good"
    good.mkdir()
    given = keras.Input((4,))
    middle = keras.layers.Dropout(0.1)(keras.layers.Dense(3, activation="relu", kernel_regularizer="l2")(given))
    net = keras.Model(given, keras.layers.Add()([middle, middle]))
    net.compile(keras.optimizers.Adam(1e-3), loss="mse", metrics=["mae"])
    net.save(good / "net.keras")
    net.save(good / "net.h5")
    net.save_weights(good / "net.weights.h5")
    (good / "net.json").write_text(net.to_json())
    net.export(good / "saved", verbose=False)
    keras.Model(given, Custom(2)(given)).save(folder / "custom.keras")
    double = keras.Model(given, keras.layers.Lambda(lambda x: x * 2)(given))
    double.save(folder / "lambda.keras")
    double.save(folder / "lambda.h5")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
