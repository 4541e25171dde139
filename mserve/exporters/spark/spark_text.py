"""Spark's text stages: words of a text, and their counts as a vector.

`Tokenizer` lowers a text and splits it at every white space as Java does: two in a row have an
empty word between them, which counts like any other; empty words at the end are dropped; an
empty text is one empty word. Here the text is split at one kind of white space after the
other, each into a new axis, and the words in the end are those before the last that is not empty.

`HashingTF` puts a word at its MurmurHash3 with seed 42, as Spark does since 3.0; before, the
hash treated the last bytes of a word otherwise, and such models are refused.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import InputError
from ...tensors import Array
from ..build import ML, Graph
from .spark_columns import Block, Table, Vector, Words, dense, vector_of
from .spark_files import Stage
from .spark_numbers import MAX_LABELS

SPACES = " \t\n\x0b\f\r"
SEED = 42
# Stands for an empty word while texts are split: a code point that is no character.
NOTHING = "\uffff"
MICROSOFT = "com.microsoft"


def tokenizer(table: Table, stage: Stage) -> None:
    graph = table.graph
    text = _lower(graph, table.text(stage.text("inputCol"), stage.where))
    words, there, count = _split(graph, text)
    steps = graph.add("CumSum", graph.cast(there, "int64"), graph.weight(_array(1)))
    places = graph.add("Sub", steps, graph.scalar(1, "int64"))
    filled = graph.add("And", there, graph.add("Not", graph.add("Equal", words, _text(graph, ""))))
    marked = graph.add("Where", filled, places, graph.scalar(-1, "int64"))
    last = graph.add("ReduceMax", marked, graph.weight(_array([1])), keepdims=1)
    only = graph.add("Equal", count, graph.scalar(1, "int64"))  # a text without white space is one word
    last = graph.add("Where", only, graph.scalar(0, "int64"), last)
    kept = graph.add("And", there, graph.add("LessOrEqual", places, last))
    table.columns[stage.text("outputCol")] = Words(words, kept)


def regex_tokenizer(table: Table, stage: Stage) -> None:
    """Words between white space, for the patterns that mean this; others have no ONNX operator."""
    pattern, least = stage.text("pattern", "\\s+"), stage.number("minTokenLength", 1.0)
    if not stage.flag("gaps", default=True) or pattern not in ("\\s+", "\\s") or least < 1:
        raise InputError(
            "a pattern that has no ONNX operator",
            where=stage.where,
            expected="gaps of \\s+, words of one letter at least",
            found=pattern[:60],
            hint="split the text in the client, or train with Tokenizer",
        )
    if least > 1:
        raise InputError("words are chosen by length", where=stage.where, expected="1", found=least)
    graph, text = table.graph, table.text(stage.text("inputCol"), stage.where)
    if stage.flag("toLowercase", default=True):
        text = _lower(graph, text)
    words, there, _ = _split(graph, text)
    empty = graph.add("Equal", words, _text(graph, ""))
    kept = graph.add("And", there, graph.add("Not", empty))
    table.columns[stage.text("outputCol")] = Words(words, kept)


def _lower(graph: Graph, text: str) -> str:
    return graph.add("StringNormalizer", text, case_change_action="LOWER", locale="C.UTF-8")


def _split(graph: Graph, text: str) -> tuple[str, str, str]:
    """Words at every white space [batch, n], which of them are there, and how many [batch, 1]."""
    there = ""
    tensor = text
    for depth, space in enumerate(SPACES, 1):
        tensor = _swapped(graph, tensor, "", NOTHING)  # the operator finds no word in an empty text
        tensor, counts = graph.add_many("StringSplit", 2, tensor, delimiter=space)
        width = graph.add("Shape", tensor, start=depth, end=depth + 1)
        steps = graph.add(
            "Range", graph.scalar(0, "int64"), graph.add("Squeeze", width), graph.scalar(1, "int64")
        )
        inside = graph.add("Less", steps, graph.add("Unsqueeze", counts, graph.weight(_array([-1]))))
        if there:
            inside = graph.add("And", inside, graph.add("Unsqueeze", there, graph.weight(_array([-1]))))
        there = inside
    words = graph.add("Flatten", _swapped(graph, tensor, NOTHING, ""), axis=1)
    there = graph.cast(graph.add("Flatten", graph.cast(there, "int64"), axis=1), "bool")
    count = graph.add("ReduceSum", graph.cast(there, "int64"), graph.weight(_array([1])))
    return words, there, count


def _swapped(graph: Graph, texts: str, old: str, new: str) -> str:
    """Texts, with `new` where they are `old`."""
    return graph.add("Where", graph.add("Equal", texts, _text(graph, old)), _text(graph, new), texts)


def _array(values: object) -> Array:
    import numpy as np

    return np.array(values, np.int64)


def _text(graph: Graph, text: str) -> str:
    import numpy as np

    return graph.weight(np.array(text, object))


def stop_words_remover(table: Table, stage: Stage) -> None:
    graph = table.graph
    pairs = zip(
        stage.columns("inputCol", "inputCols"), stage.columns("outputCol", "outputCols"), strict=False
    )
    sensitive = stage.flag("caseSensitive")
    stops = stage.texts("stopWords")
    for given, made in pairs:
        words = table.words(given, stage.where)
        compared = words.tensor
        if not sensitive:
            compared = _lower_words(graph, compared)
            stops = [word.lower() for word in stops]
        found = _places(graph, compared, stops)
        stay = graph.add("Equal", found, graph.scalar(len(stops), "int64"))
        table.columns[made] = Words(words.tensor, graph.add("And", words.there, stay))


def _lower_words(graph: Graph, words: str) -> str:
    """Words [batch, n] in small letters: the operator takes one row."""
    import numpy as np

    shape = graph.add("Shape", words)
    flat = graph.add("Reshape", words, graph.weight(np.array([-1])))
    return graph.add("Reshape", _lower(graph, flat), shape)


def _places(graph: Graph, words: str, known: list[str]) -> str:
    """The place of each word in a list; its length for one that is not there."""
    import numpy as np

    unique = list(dict.fromkeys(known))
    places = {word: place for place, word in reversed(list(enumerate(known)))}
    return graph.add(
        "LabelEncoder",
        words,
        domain=ML,
        keys_strings=unique or [""],
        values_int64s=np.array([places[word] for word in unique] or [0]).tolist(),
        default_int64=len(known),
    )


def hashing(table: Table, stage: Stage) -> None:
    size = 1 << 18
    if "numFeatures" in stage.params:
        size = stage.param("numFeatures").integer(1, MAX_LABELS)
    major = stage.version.partition(".")[0]
    if not major.isdecimal() or int(major) < 3:
        raise InputError(
            "words are hashed in the way of Spark before 3.0",
            where=stage.where,
            expected="a model saved by Spark 3.0 or later",
            found=stage.version,
            hint="load the pipeline with a newer Spark, fit it again and save it",
        )
    graph, words = table.graph, table.words(stage.text("inputCol"), stage.where)
    hashed = graph.add("MurmurHash3", words.tensor, domain=MICROSOFT, seed=SEED, positive=0)
    place = graph.add("Mod", graph.cast(hashed, "int64"), graph.scalar(size, "int64"))
    bag = graph.add("Where", words.there, place, graph.scalar(size, "int64"))
    _counted(table, stage, bag, size)


def count_vectorizer(table: Table, stage: Stage) -> None:
    """Counts of the words of a vocabulary."""
    if stage.number("minTF", 1.0) != 1.0:
        raise InputError("words are left out by their count in a row", where=stage.where, expected="minTF 1")
    vocabulary = [one.text() for one in (stage.row() / "vocabulary").items()]
    size = len(vocabulary)
    if not 0 < size <= MAX_LABELS:
        raise InputError("a bad vocabulary", where=stage.where, found=size)
    graph, words = table.graph, table.words(stage.text("inputCol"), stage.where)
    place = _places(graph, words.tensor, vocabulary)
    _counted(table, stage, graph.add("Where", words.there, place, graph.scalar(size, "int64")), size)


def _counted(table: Table, stage: Stage, bag: str, size: int) -> None:
    """The bag as a vector of counts; or of ones, where a word counts once."""
    found = vector_of([Block(bag, size, bag=True)])
    if stage.flag("binary"):
        found = _binary(table.graph, found)
    table.columns[stage.text("outputCol")] = found


def _binary(graph: Graph, vector: Vector) -> Vector:
    return vector_of([Block(graph.add("Min", dense(graph, vector), graph.scalar(1.0)), vector.size)])


TEXTS: dict[str, Callable[[Table, Stage], None]] = {
    "Tokenizer": tokenizer,
    "RegexTokenizer": regex_tokenizer,
    "StopWordsRemover": stop_words_remover,
    "HashingTF": hashing,
    "CountVectorizerModel": count_vectorizer,
}
