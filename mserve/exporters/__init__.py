"""Export: what a framework has trained becomes a bundle.

`pipeline` is the list of steps; `sources` the table of the kinds of sources, which `kinds` defines;
`conversion`, `isolation` and `child` run a conversion in a process of its own; `verify` holds the
result to the source's own answers; `signatures`, `signatures_file` and `ports` say what clients
send and get; `build`, `sparse_graph` and `feature_rows` put graphs together for readers of our own.

Each room holds the readers of one family, a file for each kind of source: `tables`, `trees`,
`linear`, `pytorch`, `sklearn`, `tensorflow`, `spark` and `legacy`; `onnx_model` and `keras_model`
are alone.
"""
