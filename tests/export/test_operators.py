# SPDX-License-Identifier: Apache-2.0
"""torch's table of ONNX functions: read once for all graphs, and the one that torch itself would read."""

import pytest
from torch.onnx._internal.exporter import _registration

from edvit_hf.export.graphs.draw import operators_read_once

OPSET = 20


def names_of(table):
    return {name: [each.onnx_function for each in functions] for name, functions in table.functions.items()}


def test_the_table_is_torchs_own_and_is_read_once(monkeypatch):
    registry, reads = _registration.ONNXRegistry, []
    former = registry.__dict__["from_torchlib"]

    def counted(cls, opset_version):
        reads.append(opset_version)
        return former.__func__(cls, opset_version=opset_version)

    expected = registry.from_torchlib(opset_version=OPSET)
    monkeypatch.setattr(registry, "from_torchlib", classmethod(counted))
    for _ in range(3):  # as for three graphs
        with operators_read_once():
            found = registry().from_torchlib(opset_version=OPSET)
            assert type(found) is registry
            assert (found.opset_version, names_of(found)) == (expected.opset_version, names_of(expected))
            for functions in found.functions.values():  # what one graph adds is no other's
                functions.clear()
    assert reads == [OPSET]
    registry.from_torchlib(opset_version=OPSET)
    assert len(reads) == 2, "outside of the block torch reads for itself"


def test_where_torch_has_other_names_it_reads_its_table_itself(monkeypatch):
    monkeypatch.delattr(_registration.ONNXRegistry, "from_torchlib")
    with operators_read_once():
        assert not hasattr(_registration.ONNXRegistry, "from_torchlib")
    monkeypatch.delattr(_registration, "ONNXRegistry")
    with operators_read_once(), pytest.raises(AttributeError):
        _registration.ONNXRegistry  # noqa: B018
