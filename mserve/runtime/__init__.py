"""The engines.

ONNX Runtime's packages send usage data to their maker by default, from version 1.31 on,
and keep a database for it in the user's cache. A model server must not do that unasked:
it is switched off before the engine is imported, unless the user's environment says
something else.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
