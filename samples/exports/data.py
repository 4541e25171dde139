"""Data for the samples: scanned digits from this repository, and ad clicks where there are some."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent / "digits" / "digits.csv.gz"
HELD_OUT = 5  # every fifth row is for the test
BUCKETS = 4096
AVAZU = "12_ctr_data/avazu_train.csv.gz"
# Of Avazu's columns: no identity of a device, and nothing that the click follows from.
FIELDS = (
    "hour C1 banner_pos site_id site_domain site_category app_id app_domain app_category "
    "device_model device_type device_conn_type C14 C15 C16 C17 C18 C19 C20 C21"
).split()


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels, float32 [rows, 64] in 0..1, and the digit of each row."""
    table = np.loadtxt(DIGITS, delimiter=",", skiprows=1, dtype=np.float32)
    return table[:, :64] / 16, table[:, 64].astype(np.int64)


def clicks() -> tuple[np.ndarray, np.ndarray, str]:
    """Ids of fields, int64 [rows, fields] below BUCKETS, whether each row was clicked, and whence.

    Avazu's rows are the `train` file of Kaggle's "Click-Through Rate Prediction", or a part of it, gzipped
    or not: the file that MSERVE_ADS names, else the one that the tests look for. Without any, or where
    MSERVE_ADS is empty, digits stand in: a row's fields are its pixels, and a "click" is an odd digit.
    """
    path = os.environ.get("MSERVE_ADS", _collected())
    if not path:
        pixels, digit = digits()
        ids = (np.arange(64) * 17 + pixels * 16).astype(np.int64)
        return ids[:, 8:56:2], digit % 2, "UCI digits (set MSERVE_ADS for ad clicks)"
    with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as file:
        rows = list(csv.DictReader(file))
    ids = [[zlib.crc32(f"{name}={value(row, name)}".encode()) % BUCKETS for name in FIELDS] for row in rows]
    return np.array(ids), np.array([int(row["click"]) for row in rows]), f"{len(rows)} rows of Avazu"


def _collected() -> str:
    """Avazu's rows among the test data, "" where there are none."""
    places = (os.environ.get("MSERVE_TEST_DATA", ""), HERE.parents[2] / "shared" / "data")
    files = [Path(place) / AVAZU for place in places if place]
    return next((str(file) for file in files if file.is_file()), "")


def value(row: dict[str, str], name: str) -> str:
    """A field as text; of the time, the hour of the day."""
    return row[name][-2:] if name == "hour" else row[name]


def split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train and to test with."""
    index = np.arange(count)
    return index[index % HELD_OUT != 0], index[index % HELD_OUT == 0]


def auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """The chance that a row of class 1 scores above one of class 0; equal scores count half."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    positive = truth == 1
    wins = middle[ranks][positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(wins / (positive.sum() * (~positive).sum()))
