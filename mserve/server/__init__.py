"""The server. Its gRPC library would print lines of its own where we word an error."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
