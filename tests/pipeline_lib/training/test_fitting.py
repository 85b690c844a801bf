"""The epoch loop: early stopping, best weights, and the same bits after a kill as without one."""

import logging
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline_lib.compute.determinism import reproducible
from pipeline_lib.networks.dropout import Dropout, draw_from
from pipeline_lib.training.fitting import fit

pytestmark = pytest.mark.usefixtures("single_thread")

INPUTS = torch.linspace(-1, 1, 40).reshape(10, 4)
TARGETS = INPUTS.sum(dim=1, keepdim=True).sin()


def run(state_path, *, epochs=6, patience=10, val_losses=None, on_epoch=None, dropout=None):
    """Fit a small network with dropout (global generator, or the one given) and random order (the fit's generator)."""
    with reproducible(3, deterministic=True):
        model = nn.Sequential(nn.Linear(4, 8), Dropout(0.5), nn.Linear(8, 1))
        if dropout:
            draw_from(dropout, model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        validations = iter(val_losses or ())

        def train_epoch(epoch, generator):
            model.train()
            for index in torch.randperm(10, generator=generator).split(3):
                loss = (model(INPUTS[index]) - TARGETS[index]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return {"train_loss": loss.item()}

        def validate():
            model.eval()
            with torch.no_grad():
                return {"val_loss": next(validations, (model(INPUTS) - TARGETS).square().mean().item())}

        progress = fit(
            model,
            optimizer,
            train_epoch=train_epoch,
            validate=validate,
            epochs=epochs,
            patience=patience,
            seed=1,
            state_path=state_path,
            device_generator=dropout,
            on_epoch=on_epoch,
        )
    return model.state_dict(), progress


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def same_bits(ours, theirs):
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def break_off_after(epoch):
    def on_epoch(row):
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    return on_epoch


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run(tmp_path_factory.mktemp("unbroken") / "state.pt")


@pytest.mark.parametrize("epoch", [1, 3, 6])
def test_a_broken_fit_ends_with_the_same_bits(tmp_path, unbroken, epoch):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state.pt", on_epoch=break_off_after(epoch))
    rows = []
    weights, progress = run(tmp_path / "state.pt", on_epoch=rows.append)
    assert same_bits(weights, unbroken[0])
    assert without_seconds(progress.history) == without_seconds(unbroken[1].history)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.integration
def test_killed_while_writing_its_state(tmp_path, unbroken):
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        import torch
        from test_fitting import run

        save = torch.save
        def killed_halfway(state, file):
            if len(state["progress"]["history"]) == 4:
                file.write(b"half a state")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            save(state, file)
        torch.save = killed_halfway
        run(Path(sys.argv[1]))
    """)
    state_path = tmp_path / "state.pt"
    folder = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", script, str(state_path)], cwd=folder, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    assert torch.load(state_path, weights_only=True)["progress"]["history"][-1]["epoch"] == 3
    weights, progress = run(state_path)
    assert same_bits(weights, unbroken[0])
    assert progress.epoch == 6


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "foreign"])
def test_a_damaged_state_is_begun_anew_and_said_so(tmp_path, unbroken, caplog, damage):
    state_path = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        run(state_path, on_epoch=break_off_after(2))
    content = bytearray(state_path.read_bytes())
    if damage == "empty":
        content.clear()
    elif damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        weight = torch.load(state_path, weights_only=True)["model"]["0.weight"].numpy().tobytes()
        content[content.index(weight)] ^= 0xFF
    else:
        torch.save({"something": "else"}, state_path)
        content = state_path.read_bytes()
    state_path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        weights, progress = run(state_path)
    assert "training starts over" in caplog.text
    assert progress.epoch == 6
    assert same_bits(weights, unbroken[0])


def test_stops_after_patience_and_keeps_the_best_weights(tmp_path):
    weights_at = {}
    original = torch.save

    def spy(state, file):
        weights_at[len(state["progress"]["history"])] = {k: v.clone() for k, v in state["model"].items()}
        original(state, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", spy)
        weights, progress = run(tmp_path / "s.pt", epochs=9, patience=2, val_losses=[3, 2, 1, 1, 1.5, 0.1])
    assert (progress.epoch, progress.best_epoch, progress.best_value) == (5, 3, 1)
    assert same_bits(weights, weights_at[3])


def test_a_finished_fit_is_only_reported(tmp_path, unbroken):
    run(tmp_path / "state.pt")
    rows = []
    weights, _ = run(tmp_path / "state.pt", val_losses=[0.0], on_epoch=rows.append)
    assert len(rows) == 6
    assert same_bits(weights, unbroken[0])


def test_settings_are_put_back():
    before = torch.get_rng_state()
    with reproducible(0, deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
        torch.rand(3)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(before, torch.get_rng_state())


def test_a_fit_begun_on_a_gpu_goes_on_without_one(tmp_path, unbroken):
    state_path = tmp_path / "state.pt"
    run(state_path, epochs=2)
    state = torch.load(state_path, weights_only=True)
    state["optimizer"]["param_groups"][0]["capturable"] = True  # as the trainer has it on a GPU; refused on a CPU
    torch.save(state, state_path)
    weights, progress = run(state_path)
    assert progress.epoch == 6
    assert all(torch.equal(weights[name], weight) for name, weight in unbroken[0].items())


def own_generator(seed=7):
    return torch.Generator().manual_seed(seed)


def test_a_broken_fit_goes_on_with_its_own_generator_and_leaves_the_global_ones_alone(tmp_path):
    unbroken, _ = run(None, dropout=own_generator())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state.pt", dropout=own_generator(), on_epoch=break_off_after(3))
    torch.manual_seed(11)
    before = torch.get_rng_state()
    weights, progress = run(tmp_path / "state.pt", dropout=own_generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert progress.epoch == 6
    assert same_bits(weights, unbroken)
    assert not same_bits(weights, run(None, dropout=own_generator(8))[0])


@pytest.mark.parametrize("states", [0, 2])
def test_a_state_without_the_devices_generator_is_gone_on_from(tmp_path, states):
    """As a CPU leaves it, or a former version on several GPUs."""
    state_path = tmp_path / "state.pt"
    run(state_path, epochs=2)
    state = torch.load(state_path, weights_only=True)
    torch.save(state | {"cuda_rng": [torch.zeros(16, dtype=torch.uint8)] * states}, state_path)
    assert run(state_path, dropout=own_generator())[1].epoch == 6
