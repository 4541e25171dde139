"""The package tensorflow-serving-api, with TensorFlow, as a client.

It is too large for this suite's own environment, so it is looked for in another one:
MSERVE_TFS_PYTHON is a Python interpreter that has it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from server_tools import serving
from tfs_models import echo, export_flowers

import mserve


def test_every_call(tmp_path: Path) -> None:
    python = os.environ.get("MSERVE_TFS_PYTHON")
    if not python:
        pytest.skip("MSERVE_TFS_PYTHON names no interpreter with tensorflow-serving-api")
    export_flowers(tmp_path / "models" / "flowers", version=1)
    export_flowers(tmp_path / "models" / "flowers", version=2, factor=10)
    mserve.export(echo(), tmp_path / "models" / "echo")
    client = Path(__file__).with_name("tfs_api_client.py")
    with serving(tmp_path / "models", tmp_path / "log", "--admin", "--latest", "2") as server:
        server.wait_until(lambda: server.get("/v1/models/flowers/versions/1/metadata").status == 200)
        command = [python, str(client), f"127.0.0.1:{server.grpc_port}", str(tmp_path / "models" / "flowers")]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, timeout=110, check=False, env=environment)
    assert b"all calls answered" in done.stdout, done.stderr.decode()
