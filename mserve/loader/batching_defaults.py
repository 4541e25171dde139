"""How one version's batches close, put together from what several places say of it."""

from __future__ import annotations

from ..format.serving import Serving
from .servable import Batching


def resolved(said: Serving) -> Batching:
    """How batches close; what is not said is as without any configuration.

    A smaller limit lets larger sizes out, and the largest allowed size is the limit.
    """
    default = Batching()
    most = default.max_batch_rows if said.max_batch is None else said.max_batch
    allowed = tuple(n for n in said.allowed_batch or () if n <= most)
    most = allowed[-1] if allowed else most
    preferred = tuple(n for n in said.preferred_batch or () if n <= most)
    delay_ns, soft = int((said.delay_ms or 0) * 1e6), said.max_batch is None
    return Batching(most, delay_ns, allowed=allowed, preferred=preferred, soft=soft)
