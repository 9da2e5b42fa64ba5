# SPDX-License-Identifier: Apache-2.0
"""What a run and an export of each task could have written: the input of the card's tests, nothing of it measured."""

from edvit_hf.manifest import (
    Calibration,
    ContentFile,
    EnsembleEntry,
    FusionEntry,
    Manifest,
    Parity,
    Quantization,
    SubModelEntry,
    Variant,
    hash_of_content,
)
from edvit_hf.tasks import PREPROCESSING_FILE

GROUPS = [[0, 3], [1], [2, 4]]
NOT_YET = "not measured by the export: measure it on the device itself"
RECIPE = {
    "dataset": {"path": "digits", "local_name": None},
    "teacher": {"from_scratch": {"model_type": "vit"}, "checkpoint": None},
    "split": {"strategy": "similarity", "similarity": "group"},
    "prune": {
        "importance": "fisher",
        "attention": "whole",
        "compensate": True,
        "compensation_samples": 1024,
        "rounds": 1,
    },
    "distill": {"objective": "dekd", "hard": True},
    "fuse": {"joint": False, "joint_epochs": 5},
}
OF_TASK = {  # architecture and data of a recipe of each task
    "image-classification": ("vit", "digits"),
    "audio-classification": ("audio-spectrogram-transformer", "fsdd"),
    "text-classification": ("distilbert", "trec6"),
}
CONTENT = {"config.json": ContentFile(sha256="0" * 64, bytes=1)}


def interval(difference, low, high):
    return {"difference": difference, "low": low, "high": high}


def row(name, kind, parameters, share, accuracy, teacher, ensemble, note=""):
    per_device = parameters // share
    return {
        "name": name,
        "kind": kind,
        "parameters": parameters,
        "parameters_per_device": per_device,
        "bytes": 4 * parameters,
        "bytes_per_device": 4 * per_device,
        "macs": 65 * parameters,
        "macs_per_device": 65 * per_device,
        "accuracy": accuracy,
        "macro_f1": accuracy - 0.002,
        "calibration_error": 0.031,
        "per_group_accuracy": [accuracy + 0.01, accuracy - 0.02, accuracy + 0.005],
        "against_teacher": teacher,
        "against_ensemble": ensemble,
        "note": note,
    }


def sample_results(task="image-classification"):
    """A results.json of three sub-models over five labels."""
    model_type, data = OF_TASK[task]
    path = data if data == "digits" else "parquet"
    recipe = {
        **RECIPE,
        "dataset": {"path": path, "local_name": data},
        "teacher": {"from_scratch": {"model_type": model_type}, "checkpoint": None},
    }
    return {
        "schema_version": 1,
        "recipe": data,
        "task": task,
        "command": f"edvit run recipes/{data}.yaml",
        "seed": 0,
        "seeds": {"teacher": 0, "split": 0},
        "environment": {
            "commit": "3f2a9c1",
            "date": "2026-11-21",
            "versions": {"python": "3.12.3", "torch": "2.13.0", "onnx": None},
            "machine": {"cpu": "Example CPU 3000", "architecture": "x86_64", "cores": 2, "memory_gib": 23.5},
        },
        "dataset": {"path": path, "num_test_items": 450, "num_labels": 5, "label_names": list("01234")},
        "recipe_values": recipe,
        "class_groups": GROUPS,
        "rows": [
            row("teacher", "teacher", 812_042, 1, 0.9778, None, interval(0.0133, 0.002, 0.027)),
            row("ensemble", "ensemble", 287_450, 3, 0.9644, interval(-0.0133, -0.027, -0.002), None),
            row(
                "plain model, per-device size",
                "baseline",
                95_210,
                1,
                0.9578,
                interval(-0.02, -0.036, -0.007),
                interval(-0.0067, -0.02, 0.0067),
                "distilled, same budget",
            ),
            row(
                "plain model, total size",
                "baseline",
                281_004,
                1,
                0.9711,
                interval(-0.0067, -0.018, 0.004),
                interval(0.0067, -0.004, 0.02),
            ),
            row(
                "small CNN",
                "baseline",
                96_310,
                1,
                0.9489,
                interval(-0.0289, -0.047, -0.0133),
                interval(-0.0155, -0.033, 0.0),
            ),
        ],
        "absent": [
            {"num_absent": k, "accuracy_mean": mean, "accuracy_min": low, "accuracy_max": high, "num_subsets": n}
            for k, mean, low, high, n in (
                (0, 0.9644, 0.9644, 0.9644, 1),
                (1, 0.842, 0.771, 0.893, 3),
                (2, 0.391, 0.293, 0.462, 3),
            )
        ],
        "sub_models": [
            {
                "index": i,
                "classes": [str(c) for c in group],
                "parameters": 95_817,
                "bytes": 383_268,
                "macs": 6_228_105,
                "vote_accuracy": 0.95 + 0.01 * i,
                "group_accuracy": 0.91 + 0.02 * i,
            }
            for i, group in enumerate(GROUPS)
        ],
        "stages": [
            {"name": "teacher", "seconds": 61.2, "peak_memory_mib": 811.0, "commit": "3f2a9c1"},
            {"name": "export", "seconds": 20.0, "peak_memory_mib": 600.0, "commit": "3f2a9c2+changes"},
        ],
    }


def rival_results(task="image-classification"):
    """The same run as results of schema 2 state it: rivals, absences, passes, the gap and what to deploy."""
    results, names = sample_results(task), {}
    for each in results["rows"]:
        names[each["name"]] = each
    names["plain model, per-device size"]["name"] = "replicas"
    names["plain model, total size"]["name"] = "plain, N times the size"
    copies = row(
        "copies", "baseline", 285_630, 3, 0.9622, interval(-0.0156, -0.03, -0.002), interval(-0.0022, -0.01, 0.01)
    )
    results["rows"].insert(4, copies)
    fallen = {
        "ensemble": (0.842, 0.391),
        "copies": (0.96, 0.9578),
        "replicas": (0.9578, 0.9578),
        "small CNN": (0.9489,) * 2,
    }
    for each in results["rows"]:
        accuracies = [each["accuracy"], *fallen.get(each["name"], ())]
        each["absent"] = [
            {"num_absent": k, "accuracy": accuracy, "worst": accuracy - 0.01 * k, "num_subsets": 1 if k == 0 else 3}
            for k, accuracy in enumerate(accuracies)
        ]
        is_plain = each["name"] == "replicas"
        each["against_replicas"] = [
            {"num_absent": k, **interval(accuracy - 0.9578, accuracy - 0.97, accuracy - 0.9478)}
            for k, accuracy in enumerate([] if is_plain else accuracies)
        ]
        shares = 3 if each["name"] in ("ensemble", "copies") else 1
        each["passes"] = {"per_device": 43_000 // shares, "total": 43_000}
        each["minutes"] = 1.25
        each["rare_recall"] = [each["accuracy"] - 0.2, None]
    share = {each["name"]: (each["accuracy"] - 0.9478) / 0.0233 for each in results["rows"]}
    return results | {
        "schema_version": 2,
        "gap": {"plain": 0.9478, "large": 0.9711, "points": 2.33, "share": share},
        "choice": {
            "name": "replicas",
            "what": "one plain model on every device",
            "baseline": "replicas",
            "accuracies": {},
            "intervals": {},
            "verdict": "deploy: one plain model on every device because nothing measured is better beyond noise",
        },
        "rare_classes": [
            {"label": 3, "name": "3", "num_train_items": 12},
            {"label": 1, "name": "1", "num_train_items": 20},
        ],
    }


def quantization(mode="dynamic", kept=()):
    calibration = Calibration(method="entropy", split="train", num_items=128) if mode == "static" else None
    return Quantization(
        preset="arm64",
        mode=mode,
        weight_type="QInt8",
        activation_type="QUInt8",
        per_channel=True,
        reduce_range=False,
        weight_bytes=96_000,
        weight_bytes_fp32=371_000,
        kept_float=list(kept),
        calibration=calibration,
    )


def variant(file, *, precision="fp32", inputs="prepared", made=None, parity=2.1e-6, accuracy=None, ms=None, size=0):
    measured = accuracy and {"split": "test", "num_items": 450, "accuracy": accuracy}
    latency = ms and {"median": ms, "protocol": 0}
    return Variant(
        file=file,
        sha256="0" * 64,
        bytes=size or {"fp32": 391_000, "fp16": 199_000, "int8": 118_000}[precision],
        precision=precision,
        inputs=inputs,
        op_types_quantized=["Gemm", "MatMul"] if made else [],
        num_quantized_nodes=24 if made else 0,
        quantization=made,
        profiles=["raspberry-pi-5"] if made else [],
        opset=20,
        parity=Parity(max_abs=1.0, relative_to_largest_logit=parity, argmax_agreement=1 - parity, num_items=450),
        accuracy=measured or None,
        accuracy_note=None if measured else "not judged",
        latency_ms=latency or None,
        latency_note=None if latency else NOT_YET,
    )


def sample_manifest(task="image-classification"):
    """A manifest of the same: images with every kind of file and latencies, sounds with raw inputs, texts with int8."""
    is_image, is_text = task == "image-classification", task == "text-classification"
    sub_models = []
    for index, group in enumerate(GROUPS):
        at = f"sub_models/{index:02d}/onnx/model"
        ms = 2.0 + 0.25 * index if is_image else None
        files = [variant(f"{at}.onnx", accuracy=0.95 + 0.01 * index, ms=ms, size=391_000 + 9_000 * index)]
        if not is_text:
            files.append(variant(f"{at}_raw.onnx", inputs="raw", parity=3e-6))
        if is_image:
            static = quantization("static", kept=["MatMul_3", "Gemm_9"] if index == 1 else [])
            files.append(variant(f"{at}_fp16.onnx", precision="fp16", parity=4e-4))
            files.append(variant(f"{at}_qint8_arm64_static.onnx", precision="int8", made=static, parity=0.04))
        if is_image or is_text:
            int8 = {"precision": "int8", "made": quantization(), "parity": 0.02 + 0.01 * index, "ms": ms and ms / 2}
            files.append(variant(f"{at}_qint8_arm64.onnx", accuracy=0.945, **int8))
        sub_models.append(
            SubModelEntry(
                index=index,
                class_group=group,
                feature_size=32,
                feature_mean=[0.0] * 32,
                feature_std=[1.0] * 32,
                path=f"sub_models/{index:02d}",
                variants=files,
            )
        )
    whole = [variant("onnx/model.onnx", accuracy=0.9644, ms=7.5 if is_image else None, size=1_200_000)]
    if not is_text:
        whole.append(variant("onnx/model_raw.onnx", inputs="raw", size=1_210_000))
    return Manifest(
        ensemble=_ensemble(task, has_int8=is_image or is_text),
        label_names=list("01234"),
        class_groups=GROUPS,
        preprocessing=PREPROCESSING_FILE[task],
        sub_models=sub_models,
        fusion=FusionEntry(variants=[variant("onnx/fusion.onnx", size=31_000)]),
        whole=[] if is_text else whole,
        latency_protocols=[{"batch": 1, "threads": 1, "repeats": 5, "command": "edvit bench DIR"}] if is_image else [],
        content=CONTENT,
    )


def _ensemble(task, *, has_int8):
    accuracy = {"fp32": judged(0.9644, [0.9744, 0.9444, 0.9694])}
    gates = {}
    if has_int8:
        later = {"commit": "3f2a9c3", "machine": {"cpu": "Example CPU 3000", "cores": 4}, "date": "2026-11-22"}
        command = "edvit export DIR --profile raspberry-pi-5"
        accuracy["qint8_arm64"] = judged(0.9622, [0.9744, 0.9333, 0.9704]) | {"environment": later, "command": command}
        gates["qint8_arm64"] = {
            "split": "validation",
            "num_items": 60,
            "net_flips": 1,
            "max_net_flips": 2,
            "tolerance": 2 / 60,
            "accuracy_fp32": 0.9833,
            "accuracy_int8": 0.9667,
            "max_loss": 0.005,
            "max_group_loss": 0.01,
            "groups": [
                {"num_items": n, "net_flips": flips, "max_net_flips": 2, "tolerance": 2 / n, "passed": True}
                for n, flips in ((24, 0), (12, 1), (24, 0))
            ],
            "rule": "refused if ...",
            "passed": True,
        }
    return EnsembleEntry(
        id="sample", task=task, content_hash=hash_of_content(CONTENT), accuracy=accuracy, gates=gates or None
    )


def judged(accuracy, groups):
    return {
        "split": "test",
        "num_items": 450,
        "accuracy": accuracy,
        "per_group_accuracy": groups,
        "measured_on": "x86-avx512-vnni",
    }
