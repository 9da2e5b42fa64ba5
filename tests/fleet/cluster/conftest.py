# SPDX-License-Identifier: Apache-2.0
"""A real Ray fleet for these tests: a head here, and three machines with five sub-models of the bundled digits."""

import os
import sys
from pathlib import Path

import pytest

from edvit_hf.fleet.cluster import start_head, stop_head
from edvit_hf.fleet.joining import NodeConfig
from edvit_hf.manifest import Manifest
from edvit_hf.manifest.placement import EnsembleIdentity, PlacedDevice, PlacedFile, PlacementFile
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime
from support.device_shares import copy_share
from support.machines import Machines, free_port

TOKEN = "the-token-of-these-tests-0123456789"
DIGITS = Path(__file__).resolve().parents[3] / "space_app" / "model" / "digits"
HELD = {"pi0": (0, 1), "pi1": (2, 3), "pi2": (4,), "spare": ()}


@pytest.fixture(autouse=True)
def _no_network():
    """The machines of these tests are namespaces of this one: they have addresses of their own."""


def placement_of(manifest, held, **devices):
    def files(indices):
        return [PlacedFile(index=i, file=manifest.sub_models[i].variants[0].file, bytes=300_000) for i in indices]

    own = EnsembleIdentity(id=manifest.ensemble.id, content_hash=manifest.ensemble.content_hash)
    placed = {
        name: PlacedDevice(profile="x86-avx2", memory_mib=64, sub_models=files(indices), **devices.get(name, {}))
        for name, indices in held.items()
    }
    return PlacementFile(ensemble=own, fleet="tests", num_sub_models=len(manifest.sub_models), devices=placed)


class Cluster:
    """A head and machines; what tests do to them, they undo."""

    def __init__(self, machines, folder):
        self.machines, self.folder, self.digits = machines, folder, DIGITS
        self.head = f"{machines.coordinator}:{free_port(machines.coordinator)}"
        self.manifest = Manifest.load(DIGITS)
        self.placement = placement_of(self.manifest, HELD)
        self.file = self.placement.save(folder / "placement.json")
        for name, indices in HELD.items():
            copy_share(DIGITS, folder / f"share-{name}", *indices)

    def start_head(self):
        config = NodeConfig(
            name=None, head=self.head, is_head=True, first_port=None, spare_process=False, temp_dir=self.machines.shared
        )
        start_head(config, TOKEN)

    def join(self, name, *more, machine=None, token=TOKEN, words=("-m", "edvit_hf.cli")):
        machine = machine or name
        share = self.folder / f"share-{name}"
        options = ["--name", name, "--placement", self.file, "--share", share]
        options += ["--address", self.machines.address(machine), "--first-port", self.machines.first_port(machine) or 0]
        return self.machines.start(
            machine,
            [sys.executable, *words, "device", "join", self.head, *options, *more],
            {"EDVIT_FLEET_TOKEN": token} if token else {},
        )

    def engine(self, **options):
        from edvit_hf.runtime.engines.ray import RayEngine

        return RayEngine(self.head, **{"placement": self.placement, "token": TOKEN, "start_seconds": 120, **options})

    def runtime(self, engine, deadline_ms=1500.0, **config):
        return EDViTRuntime.from_pretrained(
            DIGITS, engine=engine, config=CoordinatorConfig(deadline_ms=deadline_ms, **config)
        )


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    os.environ["EDVIT_CACHE_DIR"] = str(folder / "cache")
    with Machines(folder, tuple(HELD)) as machines:
        print(f"\nseveral machines: {machines.kind}")
        cluster = Cluster(machines, folder)
        cluster.start_head()
        try:
            for name, indices in HELD.items():
                if indices:
                    cluster.join(name)
            yield cluster
        finally:
            stop_head(cluster.head)


@pytest.fixture(scope="session")
def ray_runtime(cluster):
    """A runtime that has every device; closed at the end."""
    engine = cluster.engine()
    with cluster.runtime(engine) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def local_runtime():
    with EDViTRuntime.from_pretrained(DIGITS, schedule="in_turn", num_threads=1) as runtime:
        yield runtime
