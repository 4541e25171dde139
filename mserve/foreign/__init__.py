"""Readers of layouts that others wrote: bytes to facts, without their frameworks.

    detect           what a path is, by content
    onnx_file        a bare ONNX file
    saved_model      a TensorFlow SavedModel
    session_bundle   a TensorFlow version directory of 2016: export.meta and a checkpoint
    checkpoint       the variables of a TensorFlow checkpoint, both formats; values reads their bytes

Beneath them: meta_graph (TensorFlow's messages), table, snappy and crc32c (the file format of
checkpoints), slices (variables stored in parts), tftypes, files. Everything is hostile until
checked: nothing is allocated on the word of a file beyond a fixed multiple of its size.
"""
