"""What the bundles say of their batches, among the settings of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import BundleError
from ..format import Bundle, open_bundle
from ..format.serving import read_serving
from .config import DEFAULT, Config, Setting
from .tables import dotted


def with_bundles(config: Config, settings: Sequence[Setting]) -> list[Setting]:
    """The settings, with what the newest version of each model says where nobody has set anything.

    A base path that holds no readable version says nothing.
    """
    said = {
        f"models.{dotted(name)}.batching.{key}": (value, f"the bundle, version {bundle.version}")
        for name, table in config.models.items()
        if (bundle := _newest(table.base_path)) is not None
        for key, value in _said(bundle).items()
        if f"batching.{key}" not in config.origins
    }
    return [
        replace(s, value=said[s.key][0], origin=said[s.key][1])
        if s.key in said and s.origin == DEFAULT
        else s
        for s in settings
    ]


def _newest(base: object) -> Bundle | None:
    try:
        return open_bundle(str(base))
    except BundleError:
        return None


def _said(bundle: Bundle) -> dict[str, object]:
    try:
        return read_serving(bundle).to_json()
    except BundleError:
        return {}
