"""Run by test_tensorflow.py in a process of its own: writes models with TensorFlow, and says what it reads in them."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np

keras: Any = import_module("keras")
tf: Any = import_module("tensorflow")


def read(prefix: str) -> dict[str, tuple[list[int], str]]:
    checkpoint = tf.train.load_checkpoint(prefix)
    values = {key: np.asarray(checkpoint.get_tensor(key)) for key in checkpoint.get_variable_to_shape_map()}
    return {
        key: (list(v.shape), v.tobytes().hex())
        for key, v in values.items()
        if v.dtype != object and v.dtype.kind != "S"
    }


class Module(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.floats = {
            t.name: tf.Variable(tf.cast(rng.standard_normal((3, 2)), t))
            for t in (tf.half, tf.float64, tf.bfloat16, tf.complex64)
        }
        self.ints = [tf.Variable(np.arange(5, dtype=d)) for d in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]
        self.flag = tf.Variable([True, False])
        self.text = tf.Variable("words that are no tensor")
        self.empty = tf.Variable(tf.zeros([0, 4]))
        self.weight = tf.Variable(tf.ones([2, 3]))

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[tf.TensorSpec([None, 2], tf.float32)]
    )
    def __call__(self, x: Any) -> Any:
        return x @ self.weight


def write_named(folder: Path) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default():
        tall = v1.get_variable("tall", [10, 3], partitioner=tf.compat.v1.fixed_size_partitioner(3, axis=0))
        wide = v1.get_variable("wide", [4, 200], partitioner=tf.compat.v1.fixed_size_partitioner(3, axis=1))
        dense = v1.get_variable("dense/kernel", [3, 2])
        step = v1.train.get_or_create_global_step()
        loss = tf.reduce_sum(tf.matmul(tf.convert_to_tensor(tall), dense)) + tf.reduce_sum(tf.convert_to_tensor(wide))
        train = v1.train.AdamOptimizer().minimize(loss, global_step=step)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(train)
            v1.train.Saver(sharded=True).save(session, str(folder / "named"))


def main(folder: Path) -> None:
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    )
    tf.train.Checkpoint(net=model).write(str(folder / "untrained"))
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)))
    model.optimizer.apply([tf.ones_like(v) for v in model.trainable_variables], model.trainable_variables)
    tf.train.Checkpoint(net=model, opt=model.optimizer).save(str(folder / "trained"))
    tf.saved_model.save(model, str(folder / "keras_model"))
    tf.train.Checkpoint(module=Module()).write(str(folder / "module"))
    tf.saved_model.save(Module(), str(folder / "module_model"))
    if hasattr(tf.train.experimental, "MaxShardSizePolicy"):
        options = tf.train.CheckpointOptions(
            experimental_sharding_callback=tf.train.experimental.MaxShardSizePolicy(max_shard_size=700)
        )
        big = tf.Variable(np.arange(600, dtype=np.float32).reshape(20, 30))
        tf.train.Checkpoint(big=big, small=tf.Variable([1.0])).write(str(folder / "shards"), options)
    x = tf.Variable([1.0, 2.0])
    slots = tf.compat.v1.train.AdamOptimizer()
    slots.minimize(lambda: tf.reduce_sum(x * x), var_list=[x])
    tf.train.Checkpoint(x=x, sgd=slots).write(str(folder / "slots"))
    write_named(folder)
    found = {path.relative_to(folder).as_posix(): read(str(path)[:-6]) for path in folder.rglob("*.index")}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
