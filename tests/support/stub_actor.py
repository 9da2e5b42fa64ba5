# SPDX-License-Identifier: Apache-2.0
"""A device's actor whose sub-model only waits: what an engine adds is not hidden by what a shared core computes."""

import time

import numpy as np

from edvit_hf.manifest import Manifest
from edvit_hf.runtime.device import DeviceIdentity, preprocessing_hash
from edvit_hf.runtime.engines import ProbeResponse, SubModelResponse
from edvit_hf.runtime.engines.ray_actor import SubModelActor

MILLISECONDS = (20.0, 25.0, 30.0)


class StubHost:
    def __init__(self, manifest, milliseconds):
        self.manifest, self.milliseconds = manifest, milliseconds
        own, processor = manifest.ensemble, preprocessing_hash(manifest)
        from edvit_hf import __version__

        self.identity = DeviceIdentity(
            ensemble_id=own.id,
            content_hash=own.content_hash,
            preprocessing=processor,
            sub_models=(),
            package=__version__,
            python="",
            inputs={},
        )

    def run(self, index, content_hash, request_id, inputs, budget_ms=None):
        begin = time.perf_counter()
        time.sleep(self.milliseconds / 1e3)
        entry, rows = self.manifest.sub_models[index], len(next(iter(inputs.values())))
        return SubModelResponse(
            request_id=request_id,
            sub_model=index,
            content_hash=content_hash,
            features=np.zeros((rows, entry.feature_size), np.float32),
            logits=np.zeros((rows, self.manifest.vote_sizes[index]), np.float32),
            compute_ms=1e3 * (time.perf_counter() - begin),
        )

    def probe(self, index):
        return ProbeResponse(sub_model=index, content_hash=self.identity.content_hash)


class StubActor(SubModelActor):
    def _opened(self):
        return StubHost(Manifest.load(self._folder), MILLISECONDS[self._index])
