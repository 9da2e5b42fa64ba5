# SPDX-License-Identifier: Apache-2.0
"""Two gloo processes: one training over both, and one training in each."""

import dataclasses
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from edvit_hf.training import ClassifyData, TrainConfig, classify_objective, my_share, train
from edvit_hf.training.loading import share_of
from support.ready import Process

# 48 items in batches of 9: shares of 5 and 4, and a last batch of 3. Each number of processes adds up the gradients in
# its own order; after 9 steps of AdamW the largest difference that was seen is 5e-6. Biases of keys are left out: the
# softmax does not see them, so their gradient is nothing but rounding, which AdamW enlarges.
TOLERANCE = 5e-5
TOGETHER = TrainConfig(epochs=3, batch_size=9, learning_rate=3e-3, gradient_accumulation_steps=2, seed=7)
ALONE = TrainConfig(epochs=2, batch_size=10, learning_rate=3e-3, seed=7)
NUM_RUNS = 3

PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
import test_processes
folder = Path(sys.argv[2])
test_processes.train_together(folder, interrupt_at=8)  # in the second epoch: goes on from the first's checkpoint
test_processes.train_together(folder)
test_processes.train_alone(folder)
test_processes.train_together(folder / "after")
test_processes.train_until(folder)
"""


def train_together(folder, interrupt_at=None):
    """The teacher over all processes; its weights and log."""
    from accelerate import PartialState
    from safetensors.torch import save_file
    from test_training import interrupting, make_split

    from edvit_hf.storage import write_json
    from support.tiny_architectures import tiny_vit

    model, objective = tiny_vit(), classify_objective(0.1)
    if interrupt_at is not None:
        objective = interrupting(objective, interrupt_at, ZeroDivisionError())
    try:
        log = train(
            model,
            ClassifyData(make_split()),
            objective,
            TOGETHER,
            checkpoint_dir=folder / "together",
            description="teacher",
            progress=False,
        )
    except ZeroDivisionError:
        return
    if PartialState().is_main_process:
        save_file(model.state_dict(), folder / "together.safetensors")
        write_json(folder / "together.json", {**log.to_dict(), "num_processes": PartialState().num_processes})


def train_until(folder):
    """Together until validation stops rising, each process measuring something else; what each of them did."""
    from accelerate import PartialState
    from safetensors.torch import save_file
    from test_training import make_split

    from edvit_hf.storage import write_json
    from support.tiny_architectures import tiny_vit

    rank, told = PartialState().process_index, iter([0.1, 0.4, 0.3, 0.2, 0.1, 0.1])

    def validate(model):
        return {"accuracy": 1 - next(told) if rank else next(told)}  # the second would never see a rise

    config = dataclasses.replace(TOGETHER, epochs=8, patience=2, warmup_fraction=0.0)
    model, options = tiny_vit(), {"description": "until", "progress": False, "validate": validate}
    log = train(model, ClassifyData(make_split()), classify_objective(), config, checkpoint_dir=folder / "u", **options)
    save_file(model.state_dict(), folder / f"until_{rank}.safetensors")
    write_json(folder / f"until_{rank}.json", log.to_dict())


def train_alone(folder):
    """This process's share of three independent runs of different lengths, dropout and all; their weights."""
    from accelerate import PartialState
    from safetensors.torch import save_file
    from test_training import make_model, make_split

    for index in my_share(NUM_RUNS):
        model = make_model()
        data = ClassifyData(make_split(num_items=16 * (index + 1)))
        log = train(
            model,
            data,
            classify_objective(),
            ALONE,
            checkpoint_dir=folder / f"run_{index}",
            description=f"run {index}",
            progress=False,
            distributed=False,
        )
        assert log.epochs[-1]["samples_per_second"] > 0
        save_file(model.state_dict(), folder / f"run_{index}_by_{PartialState().process_index}.safetensors")


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Everything, by two processes that are told of each other as torchrun tells them."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "after").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "EDVIT_NUM_THREADS": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with (folder / "said").open("w") as said:
        ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        both = [Process(PROGRAM, Path(__file__).parent, folder, env=environment | rank, err=said) for rank in ranks]
        codes = [process.wait() for process in both]
    assert codes == [0, 0], (folder / "said").read_text()[-4000:]
    return folder


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("EDVIT_NUM_THREADS", "1")


@pytest.mark.slow
def test_two_processes_train_the_teacher_as_one_does(launched, tmp_path):
    train_together(tmp_path)
    one, two = (load_file(folder / "together.safetensors") for folder in (tmp_path, launched))
    seen = {name for name in one if not name.endswith("k_proj.bias")}
    assert len(seen) == len(one) - 2
    for name in seen:
        value = one[name]
        assert torch.allclose(value, two[name], rtol=0, atol=TOLERANCE), f"{name}: {(value - two[name]).abs().max()}"
    logs = [json.loads((folder / "together.json").read_text()) for folder in (tmp_path, launched)]
    assert [log["num_processes"] for log in logs] == [1, 2]
    for single, double in zip(logs[0]["epochs"], logs[1]["epochs"], strict=True):
        for name in ("loss", "accuracy", "learning_rate"):
            assert double[name] == pytest.approx(single[name], abs=1e-5), name


@pytest.mark.slow
def test_a_run_over_two_processes_after_runs_of_their_own_is_the_same(launched):
    before, after = (load_file(launched / part / "together.safetensors") for part in (".", "after"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.slow
def test_runs_of_one_process_each_equal_the_same_runs_in_turn_bit_for_bit(launched, tmp_path):
    train_alone(tmp_path)
    for index in range(NUM_RUNS):
        in_turn = load_file(tmp_path / f"run_{index}_by_0.safetensors")
        (file,) = launched.glob(f"run_{index}_by_*.safetensors")
        assert file.stem.endswith(str(index % 2)), "the processes share the runs"
        for name, value in load_file(file).items():
            assert torch.equal(value, in_turn[name]), f"run {index}: {name} differs"


def test_one_process_has_all_the_runs():
    assert my_share(3) == [0, 1, 2]
    assert my_share(0) == []


@given(size=st.integers(1, 40), count=st.integers(1, 6))
def test_shares_hold_every_item_once_and_weigh_like_the_whole_batch(size, count):
    batch = np.random.default_rng(size).permutation(100)[:size]
    shares = [share_of(batch, rank, count) for rank in range(count)]
    counted = np.concatenate([share.positions[: share.num_items] for share in shares])
    assert sorted(counted) == sorted(batch)
    assert all(len(share.positions) >= 1 for share in shares)
    losses = np.random.default_rng(count).random(100)
    mean = np.mean([share.scale * losses[share.positions].mean() for share in shares])
    assert mean == pytest.approx(losses[batch].mean())


@pytest.mark.slow
def test_processes_that_train_together_stop_together_by_what_the_first_measures(launched):
    logs = [json.loads((launched / f"until_{rank}.json").read_text()) for rank in range(2)]
    kept = [load_file(launched / f"until_{rank}.safetensors") for rank in range(2)]
    for log in logs:
        assert (log["best_epoch"], len(log["epochs"]), log["stopped"]) == (1, 4, "validation stopped rising")
        assert log["passes"] == 4 * 48
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())
