"""What is published of keys is what others keep of them, whatever kind of definition they are of."""

from __future__ import annotations

import numpy as np

from streaming.live.core import FIRST_ACTION, SERVED, Happened, LiveCore
from streaming.live.published import Kept, published_keys
from streaming.live.spec import LiveSpec, fields_of
from tests.streaming.live.test_live import LABELS, features_of, live_of
from tests.streaming.source.own_logs import T


def test_what_is_published_is_kept_by_who_reads_it() -> None:
    spec, features = LiveSpec.of(live_of(), LABELS), features_of(live_of())
    core, rng, keys = LiveCore(spec.settings, list(spec.windows)), np.random.default_rng(1), np.arange(9)
    kept = Kept(spec, features)
    for name, identity in spec.identities(features).items():
        definition = spec.definition(name)
        what = rng.integers(SERVED, FIRST_ACTION + len(spec.windows), 200).astype(np.int32)
        at = T + rng.integers(0, 3000, 200)
        ids = rng.integers(-5, 5, (200, len(fields_of(definition))))
        core.note(name, Happened(rng.integers(0, 8, 200), what, at, at, ids))
        kept.fold(0, [value for _, value in published_keys(identity, keys, core.packed(name, keys))])
        assert kept.core.packed(name, keys).tobytes() == core.packed(name, keys).tobytes()
        assert kept.core.kept()[name].keys == core.kept()[name].keys == 8
    assert not kept.skipped
