"""TensorFlow, 1 and 2: SavedModels, SessionBundles, MetaGraphs."""
