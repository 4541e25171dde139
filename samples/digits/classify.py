"""Send real held-out digits to a server and print its predictions beside the true labels.

    python samples/digits/classify.py http://127.0.0.1:8501/v1/models/digits

Needs only Python. The request is the file heldout.json as it is; the server ignores the
labels in it.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path


def main() -> None:
    body = Path(__file__).with_name("heldout.json").read_bytes()
    with urllib.request.urlopen(f"{sys.argv[1]}:predict", data=body, timeout=30) as response:
        version = response.headers["mserve-model-version"]
        predictions = json.load(response)["predictions"]
    labels = json.loads(body)["labels"]
    print("true  predicted  probability")
    for label, prediction in list(zip(labels, predictions, strict=True))[:10]:
        sure = max(prediction["probabilities"])
        wrong = "" if label == prediction["label"] else "  wrong"
        print(f"{label:4}  {prediction['label']:9}  {sure:11.3f}{wrong}")
    right = sum(label == prediction["label"] for label, prediction in zip(labels, predictions, strict=True))
    print(f"{right} of {len(labels)} right ({right / len(labels):.0%}), answered by version {version}")


if __name__ == "__main__":
    main()
