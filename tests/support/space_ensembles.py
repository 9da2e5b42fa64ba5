# SPDX-License-Identifier: Apache-2.0
"""What the Space's tests share: toy ensembles of every task, and digits drawn by pen paths."""

import json

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from edvit_hf.tasks import TASKS
from support.tiny_ensemble import write_tiny_ensemble

DIGIT_GROUPS = [[0, 3], [1, 7], [2, 5], [4, 8], [6, 9]]
GROUPS = [[0, 3], [1], [2, 4]]
ABSENT = [
    {"num_absent": 0, "accuracy_mean": 0.958, "accuracy_min": 0.958, "accuracy_max": 0.958, "num_subsets": 1},
    {"num_absent": 1, "accuracy_mean": 0.931, "accuracy_min": 0.902, "accuracy_max": 0.956, "num_subsets": 5},
]
ROWS = [
    {
        "name": "teacher",
        "kind": "teacher",
        "parameters": 1000,
        "bytes": 4000,
        "bytes_per_device": 4000,
        "macs": 5000,
        "accuracy": 0.97,
        "note": "",
    },
    {
        "name": "ensemble",
        "kind": "ensemble",
        "parameters": 600,
        "bytes": 2400,
        "bytes_per_device": 400,
        "macs": 900,
        "accuracy": 0.958,
        "note": "five of them",
        "against_teacher": {"difference": -0.013, "low": -0.031, "high": 0.004},
    },
]
STROKES = {  # one pen path for each digit, in shares of the canvas
    0: [(0.5, 0.1), (0.3, 0.2), (0.22, 0.5), (0.3, 0.8), (0.5, 0.9), (0.7, 0.8), (0.78, 0.5), (0.7, 0.2), (0.5, 0.1)],
    1: [(0.4, 0.25), (0.55, 0.1), (0.55, 0.9)],
    2: [(0.28, 0.28), (0.4, 0.12), (0.6, 0.12), (0.7, 0.3), (0.6, 0.5), (0.28, 0.88), (0.74, 0.88)],
    4: [(0.6, 0.9), (0.6, 0.1), (0.25, 0.62), (0.78, 0.62)],
    7: [(0.26, 0.12), (0.74, 0.12), (0.45, 0.9)],
}


def digit_data():
    """Pictures (n, 8, 8) in 0..1 and labels."""
    data = load_digits()
    return data.images / 16, data.target


def write_digits(folder, **values):
    """An ensemble of matched filters with results: linear, yet right on nine digits of ten."""
    images, labels = digit_data()
    means = np.stack([images[labels == digit].mean(axis=0) for digit in range(10)])
    write_tiny_ensemble(folder, DIGIT_GROUPS, label_names=[str(i) for i in range(10)], templates=means, **values)
    sub_models = [{"index": i, "parameters": 80, "macs": 160} for i in range(len(DIGIT_GROUPS))]
    results = {"recipe": "toy", "rows": ROWS, "absent": ABSENT, "sub_models": sub_models}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def write_each(tmp_path_factory):
    """A folder with a toy ensemble of random weights for each task."""
    folders = {task: tmp_path_factory.mktemp(task.partition("-")[0]) for task in TASKS}
    for task, folder in folders.items():
        write_tiny_ensemble(folder, GROUPS, task=task)
    return folders


def drawn(digit, *, pen=24, side=280, scale=1.0, shift=(0, 0), colour=(17, 17, 17, 255)):
    """What the sketchpad hands over: a transparent layer with strokes, and the composite on white."""
    layer = Image.new("RGBA", (side, side))
    points = [(shift[0] + x * side * scale, shift[1] + y * side * scale) for x, y in STROKES[digit]]
    pencil = ImageDraw.Draw(layer)
    pencil.line(points, fill=colour, width=pen, joint="curve")
    for x, y in points:
        pencil.ellipse([x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2], fill=colour)
    composite = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return {"background": None, "layers": [np.asarray(layer)], "composite": np.asarray(composite)}
