"""The models that ad clicks are predicted with, trained, exported and compared side by side.

python ads.py BASE_PATH                 needs mserve[torch] and mserve[lightgbm]

Logistic regression, a factorization machine, boosted trees, and a mixture of logistic
regression, a deep network, a convolutional and a recurrent one, all on the same ids of
categorical fields. Each becomes a bundle under BASE_PATH; `mserve serve BASE_PATH/fm` serves
one, and `mserve diff BASE_PATH/lr BASE_PATH/fm` compares two. MSERVE_ADS names a file of Avazu's rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import data
import numpy as np
import torch
from lightgbm import LGBMClassifier
from torch import nn

import mserve

WIDTH, HIDDEN, EPOCHS, ROWS = 8, 32, 3, 256


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
        self.recurrent, self.gate = nn.GRU(WIDTH, HIDDEN, batch_first=True), nn.Linear(fields * WIDTH, 4)
        self.from_convolved, self.from_recurrent = nn.Linear(HIDDEN, 1), nn.Linear(HIDDEN, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        v = self.vectors(ids)
        said = [
            self.linear(ids).unsqueeze(1),
            self.deep(v),
            self.from_convolved(self.convolved(v.transpose(1, 2)).flatten(1)),
            self.from_recurrent(self.recurrent(v)[0][:, -1]),
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
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small steps: more threads wait for each other
    ids, clicked, source = data.clicks()
    train, test = data.split(len(ids))
    print(f"{source}: {len(train)} rows to train, {len(test)} to test, clicks {clicked.mean():.3f}")
    for name, kind in (("lr", Logistic), ("fm", Factorized), ("mixture", Mixture)):
        model = trained(kind(ids.shape[1]), ids[train], clicked[train])
        done = mserve.export(model, Path(base) / name, example={"ids": ids[test[:16]]})
        found = mserve.load(done.path).run({"ids": ids[test]})["p_click"]
        with torch.no_grad():
            own = model(torch.from_numpy(ids[test]))["p_click"].numpy()
        show(name, clicked[test], own, found, done.notes[0])
    trees = LGBMClassifier(n_estimators=60, num_leaves=15, n_jobs=2, verbosity=-1)
    trees.fit(ids[train].astype(np.float32), clicked[train])
    done = mserve.export(trees, Path(base) / "gbdt")
    asked = ids[test].astype(np.float32)
    found = mserve.load(done.path).run({"features": asked})["probabilities"][:, 1]
    show("gbdt", clicked[test], trees.predict_proba(asked)[:, 1], found, done.notes[0])


def show(name: str, clicked: np.ndarray, own: np.ndarray, found: np.ndarray, note: str) -> None:
    first, second = data.auc(clicked, own), data.auc(clicked, found)
    print(f"AUC of {name}: framework {first:.6f}, bundle {second:.6f}; {note}")


if __name__ == "__main__":
    main(sys.argv[1])
