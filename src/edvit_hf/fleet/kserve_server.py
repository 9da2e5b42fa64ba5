# SPDX-License-Identifier: Apache-2.0
"""Offers the sub-models of a share on KServe's own server: `python -m edvit_hf.fleet.kserve_server SHARE [options]`.

The server, its protocol and its options are KServe's; only the model that it runs is ours. It listens on all addresses
without TLS on gRPC, so put it behind a network that you trust. KServe pins other versions of some packages than the
extras here: install it with the base of edvit_hf, in an environment of its own.
"""

import argparse
from typing import Any

import numpy as np
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
from kserve.errors import InvalidInput

from edvit_hf.errors import DataError
from edvit_hf.runtime.device import DeviceHost
from edvit_hf.runtime.engines.oip_wire import DATATYPE_OF, model_name


class SubModel(Model):
    """One sub-model under the name by which coordinators ask for it."""

    def __init__(self, host: DeviceHost, index: int) -> None:
        super().__init__(model_name(host.identity.content_hash, index))
        self._host, self._index = host, index
        self.ready = True

    async def get_input_types(self) -> list[dict[str, Any]]:
        """See KServe: names, datatypes and shapes."""
        shape = [-1, *(-1 if size is None else size for size in self._host.input_shape)]
        types = self._host.identity.inputs
        return [{"name": n, "datatype": DATATYPE_OF[kind], "shape": shape} for n, kind in types.items()]

    async def get_output_types(self) -> list[dict[str, Any]]:
        """See KServe."""
        manifest = self._host.manifest
        sizes = {"features": manifest.sub_models[self._index].feature_size, "logits": manifest.vote_sizes[self._index]}
        return [{"name": name, "datatype": "FP32", "shape": [-1, size]} for name, size in sizes.items()]

    def predict(self, payload: InferRequest, *_: Any, **__: Any) -> InferResponse:
        """See KServe. Raises `InvalidInput` for an input that no sub-model can run."""
        inputs = {each.name: np.asarray(each.as_numpy()) for each in payload.inputs}
        try:
            answer = self._host.run(self._index, self._host.identity.content_hash, payload.id or "", inputs)
        except DataError as error:
            raise InvalidInput(str(error)) from error
        outputs = []
        for name, values in (("features", answer.features), ("logits", answer.logits)):
            outputs.append(InferOutput(name=name, shape=list(values.shape), datatype="FP32"))
            outputs[-1].set_data_from_numpy(values, binary_data=True)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=outputs)


def main() -> None:
    """Serve a share until a signal comes."""
    parser = argparse.ArgumentParser(parents=[model_server.parser], description=__doc__)
    parser.add_argument("share", help="folder that `edvit pull` fetched for this device")
    arguments, _ = parser.parse_known_args()
    host = DeviceHost.load(arguments.share)
    ModelServer().start([SubModel(host, index) for index in host.identity.sub_models])


if __name__ == "__main__":
    main()
