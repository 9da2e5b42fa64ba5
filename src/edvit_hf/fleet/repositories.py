# SPDX-License-Identifier: Apache-2.0
"""Model repositories and configurations for servers that are not ours: Triton on each device, or KServe's.

Comes in: an exported ensemble and the placement of its sub-models. Goes out: a folder for each device, to be copied
there. The names of the models are those that `runtime.engines.oip` asks for, so that the same coordinator asks our own
workers and these servers, side by side.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from edvit_hf import __version__
from edvit_hf.errors import EDViTError, named_extra
from edvit_hf.hub.pulling import pull
from edvit_hf.hub.selection import select_by_placement
from edvit_hf.manifest import Manifest, Variant, verify_file
from edvit_hf.manifest.placement import PlacedDevice, load_placement
from edvit_hf.runtime.engines.oip_wire import model_name
from edvit_hf.storage import whole_folder
from edvit_hf.strict import one_of
from edvit_hf.tasks import GRAPH_INPUTS
from edvit_hf.transforms import load_transform

Server = Literal["triton", "kserve"]
SERVERS: tuple[Server, ...] = get_args(Server)

MAX_BATCH = 256
MAX_QUEUED = 16
KSERVE_GRPC_PORT = 8081
_GPU_PROFILES = ("jetson",)


def write_repositories(root: Path, placement: Path, server: Server, output: Path) -> list[Path]:
    """Write a folder for each device of a placement that runs or stands in for a sub-model.

    Args:
        root: The exported ensemble.
        placement: The placement.json of `edvit plan`.
        server: `triton` (the layout that OpenVINO Model Server reads too) or `kserve`.
        output: A folder that does not exist yet; it appears whole.

    Returns:
        The devices' folders.

    Raises:
        EDViTError: The server is unknown, or `output` exists.
        ManifestError: The placement or a file is not what it should be.
        HubError: The placement is of another ensemble.
        MissingExtraError: For triton, the extra `oip` is not installed.
    """
    one_of("server", server, SERVERS, "each reads folders of its own form", EDViTError)
    if output.exists():
        raise EDViTError(
            f"Expected a folder that does not exist yet, got {output}. What it holds would be mixed with the new "
            "files. Name another --server-output, or remove it."
        )
    manifest, placed = Manifest.load(root), load_placement(placement)
    write: Callable[..., None] = _write_triton if server == "triton" else _write_kserve
    devices = {name: device for name, device in placed.devices.items() if device.sub_models or device.replicas}
    with whole_folder(output) as partial:
        for name, device in devices.items():
            chosen = select_by_placement(manifest, placed, name).variants
            write(
                partial / name,
                root=root,
                manifest=manifest,
                placement=placement,
                name=name,
                device=device,
                files=chosen,
            )
    return [output / name for name in devices]


def _write_triton(
    folder: Path, *, root: Path, manifest: Manifest, device: PlacedDevice, files: Mapping[int, Variant], **_: Any
) -> None:
    """`NAME/config.pbtxt` and `NAME/1/model.onnx` for each sub-model, its hash checked."""
    for index, variant in files.items():
        model = folder / model_name(manifest.ensemble.content_hash, index)
        (model / "1").mkdir(parents=True)
        shutil.copyfile(verify_file(root, variant), model / "1" / "model.onnx")
        (model / "config.pbtxt").write_text(triton_config(root, manifest, index, device.profile), encoding="utf-8")


def triton_config(root: Path, manifest: Manifest, index: int, profile: str) -> str:
    """`config.pbtxt` of one sub-model: prepared inputs, a short queue that turns away the rest, one instance.

    Raises:
        MissingExtraError: The extra `oip` is not installed.
    """
    with named_extra("`edvit export --server triton`", "oip"):
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2 as pb
    from edvit_hf.runtime.inputs import prepared_shape

    task, entry = manifest.ensemble.task, manifest.sub_models[index]
    shape = [-1 if size is None else size for size in prepared_shape(load_transform(root, task))]
    kind = pb.TYPE_INT64 if task == "text-classification" else pb.TYPE_FP32
    on_gpu = profile.startswith(_GPU_PROFILES)
    config = pb.ModelConfig(
        name=model_name(manifest.ensemble.content_hash, index),
        backend="onnxruntime",
        max_batch_size=MAX_BATCH,
        input=[pb.ModelInput(name=name, data_type=kind, dims=shape) for name in GRAPH_INPUTS[task]],
        output=[
            pb.ModelOutput(name="features", data_type=pb.TYPE_FP32, dims=[entry.feature_size]),
            pb.ModelOutput(name="logits", data_type=pb.TYPE_FP32, dims=[manifest.vote_sizes[index]]),
        ],
        instance_group=[
            pb.ModelInstanceGroup(
                count=1, kind=pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU
            )
        ],
    )
    config.version_policy.specific.versions.append(1)
    queue = config.dynamic_batching.default_queue_policy
    queue.max_queue_size, queue.timeout_action = MAX_QUEUED, pb.ModelQueuePolicy.REJECT
    config.parameters["edvit_content_hash"].string_value = manifest.ensemble.content_hash
    return str(text_format.MessageToString(config))


def _write_kserve(folder: Path, *, root: Path, manifest: Manifest, placement: Path, name: str, **_: Any) -> None:
    """The device's share, a Dockerfile of a server for it, and the InferenceService that pins it to the device."""
    pull(str(root), placement=placement, device=name, output=folder / "share")
    (folder / "Dockerfile").write_text(_DOCKERFILE.format(version=__version__), encoding="utf-8")
    service = f"edvit-{manifest.ensemble.content_hash[:8]}-{name}".lower().replace("_", "-")
    text = _SERVICE.format(service=service, device=name, port=KSERVE_GRPC_PORT)
    (folder / "inference-service.yaml").write_text(text, encoding="utf-8")


_DOCKERFILE = """\
FROM python:3.12-slim
RUN pip install --no-cache-dir "edvit_hf=={version}" "kserve>=0.15"
COPY share /share
USER 1000
ENTRYPOINT ["python", "-m", "edvit_hf.fleet.kserve_server", "/share"]
"""

_SERVICE = """\
# The node of this device needs the label: kubectl label node NODE edvit-device={device}
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {service}
  annotations:
    serving.kserve.io/deploymentMode: RawDeployment
spec:
  predictor:
    nodeSelector:
      edvit-device: "{device}"
    containers:
      - name: kserve-container
        image: {service}  # built from the Dockerfile beside this file
        ports:
          - name: h2c
            containerPort: {port}
            protocol: TCP
"""
