"""Train a small convolutional network on scanned digits, export it, and ask both.

python torch_digits.py BASE_PATH        needs mserve[torch]
"""

from __future__ import annotations

import sys

import data
import numpy as np
import torch
from torch import nn

import mserve

STEPS = 150


class Digits(nn.Module):
    """Images [batch, 64] to probabilities [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(256, 10),
        )

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(pixels)
        return {"probabilities": logits.softmax(-1), "label": logits.argmax(-1)}


def main(base: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small steps: more threads wait for each other
    pixels, digit = data.digits()
    train, test = data.split(len(digit))
    x, y = torch.from_numpy(pixels[train]), torch.from_numpy(digit[train])
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.nll_loss(model(x)["probabilities"].clamp_min(1e-9).log(), y)
        loss.backward()
        optimizer.step()
    done = mserve.export(model, base, version=STEPS, example={"pixels": pixels[test[:16]]})
    print("\n".join(done.notes))
    found = mserve.load(done.path).run({"pixels": pixels[test]})["label"]
    with torch.no_grad():
        own = model.eval()(torch.from_numpy(pixels[test]))["label"].numpy()
    print(f"accuracy: torch {np.mean(own == digit[test]):.4f}, bundle {np.mean(found == digit[test]):.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
