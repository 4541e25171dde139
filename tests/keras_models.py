"""Small Keras models: `python tests/keras_models.py DIRECTORY`. Keras runs on PyTorch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"


def main(directory: Path) -> None:
    import keras
    from keras import Input, Model, Sequential, layers

    keras.utils.set_random_seed(1)
    classes = layers.Dense(3, "softmax", name="probabilities")
    mlp = Sequential([Input((4,), name="x"), layers.Dense(8, "gelu"), classes])
    mlp.save(directory / "mlp.keras")
    mlp.save(directory / "mlp.h5")
    mlp.save_weights(directory / "only.weights.h5")
    pixels = [Input((8, 8, 1)), layers.Conv2D(4, 3), layers.BatchNormalization()]
    cnn = Sequential([*pixels, layers.Flatten(), layers.Dense(2)])
    cnn.save(directory / "cnn.keras")
    steps = Sequential([Input((6, 3)), layers.Bidirectional(layers.LSTM(4)), layers.Dense(1, name="score")])
    steps.save(directory / "bilstm.keras")
    gru = Sequential([Input((5, 2)), layers.GRU(3)])
    gru.save(directory / "gru.keras")
    a, b = Input((3,), name="a"), Input((2,), name="b")
    both = layers.Concatenate()([a, b])
    two = Model([a, b], [layers.Dense(1, name="score")(both), layers.Dense(2, name="label")(both)])
    two.save(directory / "two.keras")
    words = Input((7, 4), name="words")
    seen = layers.MultiHeadAttention(2, 4)(words, words)
    score = layers.Dense(1, name="score")(layers.GlobalAveragePooling1D()(seen))
    Model(words, score).save(directory / "attention.keras")
    Sequential([Input((2,)), layers.Lambda(lambda x: x + 1)]).save(directory / "lambda.keras")
    live = sys.argv[2:]
    if live:
        import mserve

        done = mserve.export(mlp, live[0])
        print(done.metagraph.provenance["source"]["object"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
