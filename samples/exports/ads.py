"""The models that ad clicks are predicted with: trained, exported, compared and served side by side.

python ads.py BASE_PATH                 needs mserve[torch] and mserve[lightgbm]

Logistic regression, a factorization machine, boosted trees, and a mixture of logistic
regression, a deep network, a convolutional and a recurrent one, all on the same ids of
categorical fields. Each becomes a bundle under BASE_PATH. Then `mserve diff` says what it means to
go from one to another, and one `mserve serve BASE_PATH` answers for all of them. data.py says where the
rows come from.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import data
import numpy as np
import torch
from lightgbm import LGBMClassifier
from torch import nn

import mserve

WIDTH, HIDDEN, EPOCHS, ROWS = 8, 32, 3, 256
STEP = 4  # the recurrent network reads so many fields at a time
ASKED, START_TURNS = 3, 600


class Logistic(nn.Module):
    """A weight for each id; ids [batch, fields] to the log odds of a click, [batch]."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.weights, self.bias = nn.Embedding(data.BUCKETS, 1), nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.weights.weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weights(ids).sum((1, 2)) + self.bias


class Factorized(Logistic):
    """A factorization machine: the weights, and the products of all pairs of vectors."""

    def __init__(self, fields: int) -> None:
        super().__init__(fields)
        self.vectors = nn.Embedding(data.BUCKETS, WIDTH)
        nn.init.normal_(self.vectors.weight, std=0.05)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        v = self.vectors(ids)
        return super().forward(ids) + (v.sum(1).square() - v.square().sum(1)).sum(1) / 2


class Mixture(nn.Module):
    """Four models that look at the same vectors in their own ways; a gate weighs what they say."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.linear, self.vectors = Logistic(fields), nn.Embedding(data.BUCKETS, WIDTH)
        nn.init.normal_(self.vectors.weight, std=0.05)
        self.deep = nn.Sequential(
            nn.Flatten(), nn.Linear(fields * WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        )
        self.convolved = nn.Sequential(
            nn.Conv1d(WIDTH, HIDDEN, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool1d(1)
        )
        self.recurrent, self.gate = (
            nn.RNN(STEP * WIDTH, HIDDEN, batch_first=True),
            nn.Linear(fields * WIDTH, 4),
        )
        self.from_convolved, self.from_recurrent = nn.Linear(HIDDEN, 1), nn.Linear(HIDDEN, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        v = self.vectors(ids)
        said = [
            self.linear(ids).unsqueeze(1),
            self.deep(v),
            self.from_convolved(self.convolved(v.transpose(1, 2)).flatten(1)),
            self.from_recurrent(self.recurrent(v.unflatten(1, (-1, STEP)).flatten(2))[0][:, -1]),
        ]
        return (torch.cat(said, 1) * self.gate(v.flatten(1)).softmax(1)).sum(1)


class Answer(nn.Module):
    """The chance of a click, as it is served."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"p_click": self.model(ids).sigmoid()}


def trained(model: nn.Module, ids: np.ndarray, clicked: np.ndarray) -> Answer:
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    x, y = torch.from_numpy(ids), torch.from_numpy(clicked.astype(np.float32))
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(ROWS):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return Answer(model).eval()


def main(base: str) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # of PyTorch about itself
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small steps: more threads wait for each other
    ids, clicked, source = data.clicks()
    train, test = data.split(len(ids))
    print(f"{source}: {len(train)} rows to train, {len(test)} to test, clicks {clicked.mean():.3f}\n")
    print("AUC      framework    bundle  the export found")
    for name, kind in (("lr", Logistic), ("fm", Factorized), ("mixture", Mixture)):
        model = trained(kind(ids.shape[1]), ids[train], clicked[train])
        example = {"ids": ids[test[:16]]}
        # isolate=False: PyTorch is loaded here, and needs no process of its own for a model of our own.
        done = mserve.export(model, Path(base) / name, example=example, isolate=False)
        with torch.no_grad():
            own = model(torch.from_numpy(ids[test]))["p_click"].numpy()
        found = mserve.load(done.path).run({"ids": ids[test]})["p_click"]
        show(name, clicked[test], own, found, done.notes[0])
    trees = LGBMClassifier(n_estimators=60, num_leaves=15, n_jobs=1, verbosity=-1)
    trees.fit(ids[train].astype(np.float32), clicked[train])
    done = mserve.export(trees, Path(base) / "gbdt", isolate=False)
    asked = ids[test].astype(np.float32)
    found = mserve.load(done.path).run({"features": asked})["probabilities"][:, 1]
    show("gbdt", clicked[test], trees.predict_proba(asked)[:, 1], found, done.notes[0])
    compare(base, "lr", "fm", ids[test], clicked[test])
    some = np.concatenate([test[clicked[test] == said][:ASKED] for said in (1, 0)])
    serve(base, ids[some], clicked[some])


def show(name: str, clicked: np.ndarray, own: np.ndarray, found: np.ndarray, note: str) -> None:
    first, second = data.auc(clicked, own), data.auc(clicked, found)
    print(f"{name:8} {first:9.6f} {second:9.6f}  {note}")


def compare(base: str, old: str, new: str, ids: np.ndarray, clicked: np.ndarray) -> None:
    """What `mserve diff` says of the answers of two models that take the same requests."""
    with tempfile.TemporaryDirectory() as work:
        np.savez(f"{work}/clicks.npz", ids=ids)
        np.save(f"{work}/clicked.npy", clicked.astype(np.float32))
        flags = ["--inputs", f"{work}/clicks.npz", "--labels", f"{work}/clicked.npy", "--json"]
        command = [sys.executable, "-m", "mserve", "diff", f"{base}/{old}", f"{base}/{new}", *flags]
        told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    print(f"\nmserve diff {old} {new}: {told['verdict']}")
    for change in told["levels"]["outputs"]["changes"]:
        print(f"  {change['rule']}: {change['text']}")


def serve(base: str, ids: np.ndarray, clicked: np.ndarray) -> None:
    """One server for all models, which are asked with the same rows."""
    names = sorted(path.name for path in Path(base).iterdir())
    with serving(base) as url:
        scores = np.array([scored(url, name, ids) for name in names])
    print(f"\nserved   {''.join(f'{name:>9}' for name in names)}  clicked")
    for row, one in enumerate(scores.T):
        print(f"row {row:<5}{''.join(f'{score:9.4f}' for score in one)}  {'yes' if clicked[row] else 'no'}")


@contextmanager
def serving(base: str) -> Iterator[str]:
    """`mserve serve BASE_PATH` on a free port: its address. It is stopped by its own process id."""
    command = [sys.executable, "-m", "mserve", "serve", base, "--port", "0", "--grpc-port", "off"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr)
            said = next(found for line in lines if (found := re.search(r"listening on (http://\S+)", line)))
            wait_until_ready(said[1])
            yield said[1]
        finally:
            process.terminate()


def wait_until_ready(url: str) -> None:
    """Return when every model has a version that answers."""
    for _ in range(START_TURNS):
        try:
            urllib.request.urlopen(f"{url}/readyz").close()
            return
        except urllib.error.HTTPError:  # 503: some still load
            time.sleep(0.05)
    raise TimeoutError(f"{url} is not ready")


def scored(url: str, name: str, ids: np.ndarray) -> list[float]:
    """The chance of a click of each row. A lone input needs no name, so the request is the same for all."""
    body = json.dumps({"instances": ids.tolist()}).encode()
    with urllib.request.urlopen(f"{url}/v1/models/{name}:predict", body) as answer:
        rows = json.load(answer)["predictions"]
    return [row["probabilities"][1] if isinstance(row, dict) else row for row in rows]


if __name__ == "__main__":
    main(sys.argv[1])
