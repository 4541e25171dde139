"""Small TensorFlow models, written by TensorFlow: `python tests/tf_models.py DIRECTORY`.

A process of its own makes them, since TensorFlow prints, warns and never lets go of its memory.
Each function makes one, in a directory of its own name.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf: Any = None


def gelu(path: Path) -> None:
    """An activation whose operator (Erfc) the converter does not know."""
    weights = tf.Variable(tf.random.stateless_normal([4, 3], [1, 2]))

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def serve(x: Any) -> Any:
        y = tf.matmul(x, weights)
        return {"y": 0.5 * y * tf.raw_ops.Erfc(x=-y / 1.4142135)}

    _save(path, serve, weights=weights)


def lookup(path: Path) -> None:
    """Words to numbers by a vocabulary file, numbers to buckets, and back to words."""
    vocabulary = path.with_suffix(".txt")
    vocabulary.write_text("red\ngreen\nblue\n")
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(vocabulary),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        1,
    )
    plain = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([5, 7], tf.int64)), -1
    )
    edges = tf.constant([[0.25, 0.5, 0.75]])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.float32)])
    def serve(word: Any, x: Any) -> Any:
        bucket = tf.searchsorted(edges, tf.expand_dims(x, 0), side="right")[0]
        return {"id": plain.lookup(word) + plain.size(), "bucket": bucket}

    _save(path, serve, tables=[table, plain])


def examples(path: Path) -> None:
    """Examples parsed in the graph: dense with and without default, sparse, ragged; text and numbers."""
    spec = {
        "x": tf.io.FixedLenFeature([2], tf.float32),
        "n": tf.io.FixedLenFeature([], tf.int64, default_value=3),
        "tags": tf.io.VarLenFeature(tf.int64),
        "steps": tf.io.RaggedFeature(tf.float32, row_splits_dtype=tf.int32),
    }
    scale = tf.Variable([1.0, 2.0])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples: Any) -> Any:
        found = tf.io.parse_example(examples, spec)
        tags = tf.cast(tf.reduce_sum(tf.sparse.to_dense(found["tags"]), 1), tf.float32)
        lengths = tf.math.unsorted_segment_sum(
            found["steps"].values, found["steps"].value_rowids(), found["steps"].nrows()
        )
        total = tf.reduce_sum(found["x"] * scale, 1) + tags + tf.cast(found["n"], tf.float32) + lengths
        return {"outputs": tf.expand_dims(total, 1)}

    _save(path, serve, scale=scale)


def _answers_examples(path: Path, spec: dict[str, Any], answer: Any) -> None:
    """A model that answers examples, and has two tables of vectors."""
    table = tf.Variable(tf.random.stateless_normal([10, 4], [1, 2]))
    words = tf.Variable(tf.random.stateless_normal([1000, 3], [1, 3]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples: Any) -> Any:
        return answer(tf.io.parse_example(examples, spec), table, words)

    _save(path, serve, tables=[table, words])


def bags(path: Path) -> None:
    """Vectors of a row's entries, combined in every way in which a row without entries is a row."""
    spec = {
        "ids": tf.io.VarLenFeature(tf.int64),
        "words": tf.io.VarLenFeature(tf.string),
        "ragged": tf.io.RaggedFeature(tf.int64),
    }

    def answer(found: Any, table: Any, words: Any) -> Any:
        ids, text, ragged = (found[name] for name in ("ids", "words", "ragged"))
        buckets = tf.SparseTensor(
            text.indices, tf.strings.to_hash_bucket_fast(text.values, 1000), text.dense_shape
        )
        every = {
            kind: tf.nn.safe_embedding_lookup_sparse(table, ids, combiner=kind)
            for kind in ("sum", "mean", "sqrtn")
        }
        rows, segments = ragged.nrows(), ragged.value_rowids()
        vectors = tf.gather(table, ragged.values)
        odd = tf.where(ragged.values % 2 == 1, segments, -1)
        few = tf.nn.embedding_lookup_sparse(table, ids, None, combiner="sum")
        missing = tf.cast(ids.dense_shape[0], tf.int32) - tf.shape(few)[0]
        return every | {
            "words": tf.nn.safe_embedding_lookup_sparse(words, buckets, combiner="sum"),
            "ragged": tf.reduce_mean(tf.gather(table, ragged), 1),
            "largest": tf.math.unsorted_segment_max(vectors, segments, rows),
            "product": tf.math.unsorted_segment_prod(vectors, segments, rows),
            "odd": tf.math.unsorted_segment_min(vectors, odd, rows),
            "hot": tf.reduce_sum(tf.one_hot(tf.sparse.to_dense(ids, default_value=-1), 10), 1),
            "padded": tf.pad(few, [[0, missing], [0, 0]]),
            "wide": tf.ensure_shape(ragged.to_tensor(default_value=-1, shape=[None, 3]), [None, 3]),
        }

    _answers_examples(path, spec, answer)


def last_rows(path: Path) -> None:
    """Lookups that end with the last row that has entries, as TensorFlow's plain ones do."""

    def answer(found: Any, table: Any, _: Any) -> Any:
        ids = found["ids"]
        sums = {
            kind: tf.nn.embedding_lookup_sparse(table, ids, None, combiner=kind) for kind in ("sum", "mean")
        }
        segments = tf.cast(ids.indices[:, 0], tf.int32)
        return sums | {
            "least": tf.math.segment_min(tf.gather(table, ids.values), segments),
            "dense": tf.reduce_sum(tf.gather(table, tf.sparse.to_dense(ids)), 1),
        }

    _answers_examples(path, {"ids": tf.io.VarLenFeature(tf.int64)}, answer)


def weighted(path: Path) -> None:
    """Entries with weights, which are another feature."""
    spec = {"ids": tf.io.VarLenFeature(tf.int64), "weights": tf.io.VarLenFeature(tf.float32)}

    def answer(found: Any, table: Any, _: Any) -> Any:
        ids, weights = found["ids"], found["weights"]
        return {
            kind: tf.nn.safe_embedding_lookup_sparse(table, ids, weights, combiner=kind)
            for kind in ("sum", "mean", "sqrtn")
        }

    _answers_examples(path, spec, answer)


def text(path: Path) -> None:
    """Steps on text that ONNX does not have: two operators."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def serve(words: Any) -> Any:
        return {"n": tf.strings.length(tf.strings.regex_replace(tf.strings.upper(words), "A", "B"))}

    _save(path, serve)


def counter(path: Path) -> None:
    """A model that counts its calls."""
    calls = tf.Variable(0.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def serve(x: Any) -> Any:
        calls.assign_add(1.0)
        return {"y": x + calls}

    _save(path, serve, calls=calls)


def file_reader(path: Path) -> None:
    """A model that writes a file while it answers."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def serve(x: Any) -> Any:
        with tf.control_dependencies([tf.io.write_file(str(path.with_suffix(".planted")), "x")]):
            return {"y": x + 1.0}

    _save(path, serve)


def across(path: Path) -> None:
    """A model whose rows depend on one another."""

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32)])
    def serve(x: Any) -> Any:
        return {"y": x - tf.reduce_mean(x, 0, keepdims=True)}

    _save(path, serve)


def unsigned(path: Path) -> None:
    """A SavedModel without signatures."""
    tf.saved_model.save(tf.Module(), str(path))


def trained(path: Path) -> None:
    """A model in training, as TensorFlow 1 saves it: MetaGraph and checkpoint."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 3], name="x")
        weights = tf.compat.v1.get_variable("w", initializer=[[1.0], [2.0], [3.0]], use_resource=False)
        tf.sigmoid(tf.matmul(x, weights), name="score")
        session.run(tf.compat.v1.global_variables_initializer())
        path.mkdir()
        tf.compat.v1.train.Saver().save(session, str(path / "model.ckpt"))


def _save(path: Path, serve: Any, **kept: Any) -> None:
    module = tf.Module()
    module.kept, module.serve = kept, serve
    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})


MODELS = (
    *(gelu, lookup, examples, bags, last_rows, weighted),
    *(text, counter, file_reader, across, unsigned, trained),
)


def main(directory: Path) -> None:
    global tf
    import tensorflow

    tf = tensorflow
    for make in MODELS:
        make(directory / make.__name__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
