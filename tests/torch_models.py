"""PyTorch modules for tests, and the functions that make them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class MLP(nn.Module):
    """Eight features to three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).softmax(-1)


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(676, 10),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


class LSTM(nn.Module):
    """Answers a dict, with a list in it; batch and time may both be open."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        logits = self.head(self.rnn(x)[0][:, -1])
        return {"logits": logits, "probs": logits.softmax(-1), "aux": [logits.sum(1)]}


class LastStep(LSTM):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.head(self.rnn(x)[0][:, -1])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean(1))


class Bag(nn.Module):
    """Ids of a table of fifty, and dense features, to one score."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(50, 8, mode="sum"), nn.Linear(12, 1)

    def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.head(torch.cat([self.bag(ids), dense], 1))).squeeze(1)


class Reshaped(nn.Module):
    """Mixes rows: its first output axis is not the batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0)


class Centred(nn.Module):
    """Subtracts the mean of all rows: one row's answer depends on the others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class Frozen(nn.Module):
    """Reads the number of rows as a number while it is traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(int(x.shape[0].__index__()), 2, 4).sum(2)


class Wordy(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"x": x, "name": "a text"}


def seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(7)
    return kind().eval()


def mlp() -> nn.Module:
    return seeded(MLP)


def cnn() -> nn.Module:
    return seeded(CNN)


def lstm() -> nn.Module:
    return seeded(LSTM)


def last_step() -> nn.Module:
    return seeded(LastStep)


def transformer() -> nn.Module:
    return seeded(Transformer)


def bag() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """With example inputs: ids up to the last of the table."""
    return seeded(Bag), (torch.arange(20).reshape(4, 5) * 2 + 11, torch.randn(4, 4))


def reshaped() -> nn.Module:
    return Reshaped()


def centred() -> nn.Module:
    return Centred()


def frozen() -> nn.Module:
    return Frozen()


def wordy() -> nn.Module:
    return Wordy()


def no_module() -> int:
    return 7


def broken() -> nn.Module:
    raise RuntimeError("the data is not there")
