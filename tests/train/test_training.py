"Training learns, goes on exactly where it was interrupted, averages as it says, and never keeps what is no number."

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from commands import refused
from toy import TINY, tiny, toy, toy_manifest

from lados.files import to_json
from lados.model import callbacks, learner
from lados.model.backbones import batch_norms, preprocessing
from lados.model.batches import prepare_dataset, training_batches
from lados.model.train import Checkpoints, load_state, lr_find, read_history, refit, start_network, train
from lados.runs.events import read_events

CURVE = ["epoch", "train_loss", "valid_loss", "macro_f1", "accuracy", "lr"]
RECIPES = {
    "plain": {},
    "ema": {"ema": 0.9},
    "accumulate": {"accumulate": 2},
    "mixed": {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1},
    "head-first": {"freeze_epochs": 2, "layer_decay": 0.7},
    "sampler": {"balance": "sampler", "augment": "nadir", "drop_rate": 0.2},
    "one-cycle": {"schedule": "one-cycle", "warmup": 0.3, "balance": "loss"},
    "all": {"ema": 0.9, "accumulate": 2, "mixup": 0.4, "cutmix": 1.0, "freeze_epochs": 1, "balance": "sampler",
            "layer_decay": 0.8, "schedule": "one-cycle", "augment": "strong", "precision": "bf16", "drop_rate": 0.1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    before = dict(os.environ)
    os.environ.update(LADOS_HOME=str(tmp_path_factory.mktemp("home")), LADOS_THREADS="1")
    learner.settings.cache_clear()
    torch.set_num_threads(1)
    yield toy(tmp_path_factory.mktemp("toy"))
    os.environ.clear()
    os.environ.update(before)
    learner.settings.cache_clear()


two_processes = pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need two GPUs, or none")


def weights(net):
    return {k: v.cpu().clone() for k, v in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stop_after(monkeypatch, epoch):
    "The power goes: once the epoch is written down, nothing more is."
    write = Checkpoints._write

    def cut(self, folder, keeper, best):
        write(self, folder, keeper, best)
        if keeper["history"][-1]["epoch"] == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "_write", cut)


def test_learns_what_can_be_learned(data):
    rows = train(tiny(), data).history
    assert rows["accuracy"].iloc[-1] == 1 and rows["train_loss"].iloc[-1] < 0.5 * rows["train_loss"].iloc[0]
    assert rows["epoch"].tolist() == [0, 1, 2, 3] and (rows["images_per_s"] > 0).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_is_uninterrupted(data, tmp_path, monkeypatch, recipe):
    params = tiny(**RECIPES[recipe])
    whole = train(params, data, tmp_path / "whole")
    for epoch in (0, 2):
        stop_after(monkeypatch, epoch)
        with pytest.raises(KeyboardInterrupt):
            train(params, data, tmp_path / "cut")
        monkeypatch.undo()
        assert read_history(tmp_path / "cut" / "history.csv")["epoch"].tolist() == list(range(epoch + 1))
    parts = train(params, data, tmp_path / "cut")
    pd.testing.assert_frame_equal(parts.history[CURVE], whole.history[CURVE], check_exact=True)
    pd.testing.assert_frame_equal(read_history(tmp_path / "cut" / "history.csv")[CURVE], whole.history[CURVE], check_exact=True)
    assert same(weights(parts.net), weights(whole.net)) and parts.best_epoch == whole.best_epoch
    last = [load_state(tmp_path / run / "checkpoint" / "last.safetensors")[0] for run in ("whole", "cut")]
    assert same(*last), "weights, average and optimizer"


def test_same_seed_same_curve_other_seed_other_curve(data):
    a, b, c = (train(tiny(seed=s, epochs=2, augment="nadir"), data) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(a.history[CURVE], b.history[CURVE], check_exact=True)
    assert same(weights(a.net), weights(b.net))
    assert a.history["train_loss"].tolist() != c.history["train_loss"].tolist()


KILLED = """
    import sys
    from pathlib import Path
    from lados.data.manifest import load_manifest
    from lados.model.batches import prepare_dataset
    from lados.model.params import make_params
    from lados.model.train import train
    import json
    params = make_params(json.loads(sys.argv[2]))
    train(params, prepare_dataset(load_manifest(Path(sys.argv[1])), 32, 32), Path(sys.argv[3]))
"""


def start_training(data, run, environment, home, **changes):
    values = {**TINY, **changes}
    env = {**environment, "LADOS_HOME": str(home)}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(data.manifest.root), to_json(values), str(run)], env=env)


def wait_for(run, epochs, process, limit=60):
    "Until the run has so many epochs."
    until = time.monotonic() + limit
    while sum(e["event"] == "epoch" for e in read_events(run / "events.jsonl")) < epochs:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.long
def test_killed_is_uninterrupted(data, tmp_path, environment):
    recipe = {"ema": 0.9, "epochs": 40, "cutmix": 0.5, "accumulate": 2}
    run = tmp_path / "run"
    rng = np.random.default_rng()
    for epochs in (1, 15):
        process = start_training(data, run, environment, tmp_path / "home", **recipe)
        wait_for(run, epochs, process)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        rows = read_history(run / "history.csv")["epoch"].tolist()
        assert rows == list(range(len(rows)))
        assert len(rows) >= epochs - 1
    parts, whole = train(tiny(**recipe), data, run), train(tiny(**recipe), data)
    pd.testing.assert_frame_equal(parts.history[CURVE], whole.history[CURVE], check_exact=True)
    assert same(weights(parts.net), weights(whole.net))
    assert all((run / "checkpoint" / f"{n}.safetensors").exists() for n in ("best", "last"))


def test_stops_early_and_stays_stopped(data, tmp_path):
    stopped = train(tiny(epochs=30, patience=3), data, tmp_path)
    f1 = stopped.history["macro_f1"].tolist()
    assert stopped.best_epoch == int(np.argmax(f1)) and len(f1) == stopped.best_epoch + 1 + 3 < 30
    assert "3 epochs" in stopped.stopped
    again = train(tiny(epochs=30, patience=3), data, tmp_path)
    pd.testing.assert_frame_equal(again.history, stopped.history, check_exact=True)
    assert same(weights(again.net), weights(stopped.net))
    assert [e["event"] for e in read_events(tmp_path / "events.jsonl")].count("epoch") == len(f1)


def test_a_finished_run_is_not_trained_on(data, tmp_path):
    first, again = (train(tiny(epochs=2), data, tmp_path) for _ in range(2))
    pd.testing.assert_frame_equal(again.history, first.history, check_exact=True)
    assert same(weights(first.net), weights(again.net))


def test_a_run_goes_on_only_with_what_it_was_made_with(data, tmp_path):
    train(tiny(epochs=1), data, tmp_path)
    whole = (tmp_path / "checkpoint" / "last.safetensors").read_bytes()
    with refused("resume-refused", "size=32"):
        train(tiny(epochs=2, size=64), data, tmp_path)
    assert (tmp_path / "checkpoint" / "last.safetensors").read_bytes() == whole


def test_accumulated_steps_equal_one_larger_step(data):
    "A network without batch norm cannot tell two half batches from a whole one."
    common = {"backbone": "test_vit", "epochs": 2, "clip": 0.5, "lr": 1e-3}
    halves, whole = train(tiny(batch_size=4, accumulate=2, **common), data), train(tiny(batch_size=8, **common), data)
    np.testing.assert_allclose(halves.history["train_loss"], whole.history["train_loss"], rtol=1e-4)
    a, b = weights(halves.net), weights(whole.net)
    moved = weights(start_network(tiny(**common)))
    for k in a: # Adam's sign-like first steps make much of rounding where a gradient is nearly nothing
        assert (a[k] - b[k]).abs().mean() < 0.01 * (a[k] - moved[k]).abs().mean() + 1e-7, k


def test_a_rest_of_a_step_counts_as_much_as_the_others():
    "Three batches in steps of two: the mean over the first two, and the third alone."
    step = callbacks.Accumulate(2)
    for i, share in enumerate((0.5, 0.5, 1.0)):
        step.learn = SimpleNamespace(iter=i, n_iter=3, loss_grad=torch.tensor(1.0))
        step.after_loss()
        assert step.learn.loss_grad == share


def test_frozen_batch_norm_stays_as_it_is(data):
    params = tiny(freeze_bn=True, batch_size="auto", epochs=2)
    before, after = weights(start_network(params)), weights(train(params, data).net)
    norms = {n for n, m in start_network(params).named_modules() if m in batch_norms(m)}
    kept = [k for k in before if k.rsplit(".", 1)[0] in norms]
    assert len(kept) > 10 and all(torch.equal(before[k], after[k]) for k in kept)
    assert sum(not torch.equal(before[k], after[k]) for k in before) > 5, "the rest learns"


def test_head_first_leaves_the_body(data, tmp_path, monkeypatch):
    params = tiny(freeze_epochs=2, epochs=3)
    start = weights(start_network(params))
    head = {f"{n}.{k}" for n, m in start_network(params).named_modules() if m is not None
            for k, _ in m.named_parameters(recurse=False) if isinstance(m, torch.nn.Linear) and m.out_features == 6}
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train(params, data, tmp_path)
    monkeypatch.undo()
    now = {k[4:]: v for k, v in load_state(tmp_path / "checkpoint" / "last.safetensors")[0].items() if k.startswith("net.")}
    assert {k for k in start if not torch.equal(start[k], now[k])} == head
    train(params, data, tmp_path)
    end, _ = load_state(tmp_path / "checkpoint" / "last.safetensors")
    assert sum(not torch.equal(start[k], end[f"net.{k}"]) for k in start) > len(start) / 2


def test_the_average_is_what_is_scored_and_kept(data, tmp_path):
    params = tiny(ema=0.99, epochs=3)
    trained = train(params, data, tmp_path)
    tensors, _ = load_state(tmp_path / "checkpoint" / "last.safetensors")
    best, _ = load_state(tmp_path / "checkpoint" / "best.safetensors")
    assert same(best, weights(trained.net))
    assert any(not torch.equal(tensors[f"ema.{k}"], tensors[f"net.{k}"]) for k in best)
    # the last row's validation loss is that of the average
    net = start_network(params)
    net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    rows = data.rows("valid")
    x = torch.stack([torch.from_numpy(data.plain[int(i)]) for i in rows])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(net.eval()(trained.prep(x)), torch.from_numpy(data.labels[rows])).item()
    assert loss == pytest.approx(trained.history["valid_loss"].iloc[-1], rel=1e-4)


def test_half_precision_on_a_cpu(data):
    trained = train(tiny(precision="bf16", epochs=2), data)
    assert trained.place.dtype == torch.bfloat16 and np.isfinite(trained.history["train_loss"]).all()
    assert all(v.dtype != torch.bfloat16 for v in trained.net.state_dict().values())


def test_a_scaled_loss_makes_the_same_steps(data):
    "Scaled, clipped and unscaled by powers of two: to the bit what is learned without."
    ends = []
    for scaler in (torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)):
        params = tiny(precision="bf16", clip=0.5, accumulate=2, batch_size=4)
        net = start_network(params)
        place, prep = learner.choose_placement(params, net), preprocessing(net, 32)
        batches = [training_batches(data, params, prep, place.device) for _ in range(2)]
        cbs = [callbacks.SeedEpochs(0), callbacks.RateSchedule(params)]
        learner.make_learner(place.put(net), learner.make_dataloaders(data, *batches), params, place, cbs, scaler=scaler).fit(2)
        ends.append(weights(net))
    assert same(*ends) and scaler.get_scale() > 1024


def test_automatic_batch_size_is_settled_once(data, tmp_path, monkeypatch):
    params = tiny(batch_size="auto", epochs=3)
    stop_after(monkeypatch, 0)
    monkeypatch.setattr(learner, "find_batch_size", lambda *args: 4)
    with pytest.raises(KeyboardInterrupt):
        train(params, data, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(learner, "find_batch_size", lambda *args: pytest.fail("measured anew"))
    resumed = train(params, data, tmp_path)
    assert load_state(tmp_path / "checkpoint" / "last.safetensors")[1]["params"]["batch_size"] == 4
    pd.testing.assert_frame_equal(resumed.history[CURVE], train(tiny(batch_size=4, epochs=3), data).history[CURVE], check_exact=True)


def test_measuring_a_batch_leaves_the_network_alone(data):
    params = tiny()
    net = start_network(params)
    before = weights(net)
    found = learner.find_batch_size(net, 32, learner.choose_placement(params, net), largest=32)
    assert found in (8, 16, 32) and same(weights(net), before)


def test_a_probe_needs_no_epochs(data, tmp_path):
    trained = train(tiny(epochs=0, probe=True, probe_views=2), data, tmp_path)
    assert trained.history.empty and trained.best_epoch is None
    x = torch.stack([torch.from_numpy(data.plain[int(i)]) for i in data.rows("test")])
    with torch.no_grad():
        guess = trained.net.cpu()(trained.prep(x)).argmax(1).numpy()
    assert (guess == data.labels[data.rows("test")]).all(), "colours are separable in random features too"


def test_rates_are_tried_without_touching_anything(data):
    rates, losses, best = lr_find(tiny(), data, steps=25)
    assert len(rates) == len(losses) > 5 and rates[0] < best < rates[-1] and all(np.diff(rates) > 0)


def test_a_dry_run_does_one_batch(data, tmp_path):
    trained = train(tiny(dry_run=True, epochs=50, batch_size=5), data, tmp_path)
    assert len(trained.history) == 1
    assert load_state(tmp_path / "checkpoint" / "last.safetensors")[0]["opt.0.step"] == 1


def test_refit_learns_from_every_image(data, tmp_path):
    params = tiny(epochs=2)
    tmp_path.joinpath("run").mkdir()
    refit(params, data, train(params, data), tmp_path / "run")
    start = next(e for e in read_events(tmp_path / "run" / "refit" / "events.jsonl") if e["event"] == "start")
    assert start["images"] == len(data.labels)


def test_a_refit_goes_on_only_from_its_own_kind(data, tmp_path):
    trained = train(tiny(epochs=2), data, tmp_path)
    refit(tiny(epochs=2), data, trained, tmp_path)
    again = refit(tiny(epochs=3, lr=0.001), data, trained, tmp_path)
    fresh = train(tiny(epochs=3, lr=0.001, patience=None), data, split="all").net
    assert same(weights(again), weights(fresh)), "nothing of the first refit is left in the second"


def test_more_patience_wakes_a_stopped_run(data, tmp_path):
    stopped = train(tiny(epochs=40, patience=1), data, tmp_path)
    assert stopped.stopped and len(stopped.history) < 40
    woken = train(tiny(epochs=len(stopped.history) + 2, patience=30), data, tmp_path)
    assert not woken.stopped and len(woken.history) == len(stopped.history) + 2


def test_without_held_out_images_no_score_is_told(data, tmp_path):
    rows = train(tiny(epochs=2), data, tmp_path, split="all").history
    assert rows[["valid_loss", "macro_f1", "accuracy"]].isna().all().all() and rows["train_loss"].notna().all()


def test_one_step_moves_the_weights(data):
    params = tiny(epochs=1, batch_size=24, warmup=0.5)
    start = weights(start_network(params))
    history, net = (lambda t: (t.history, t.net))(train(params, data))
    assert history["lr"][0] > 0 and not same(start, weights(net))


def test_exploding_training_keeps_the_checkpoint_before(data, tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), data, tmp_path)
    monkeypatch.undo()
    whole = (tmp_path / "checkpoint" / "last.safetensors").read_bytes()

    def poison(self):
        with torch.no_grad():
            next(self.learn.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(callbacks.TrainingProgress, "before_train", poison, raising=False)
    with refused("loss-not-finite", "epoch 2") as e:
        train(tiny(), data, tmp_path)
    assert "lower lr" in e.value.remedy and (tmp_path / "checkpoint" / "last.safetensors").read_bytes() == whole
    assert read_history(tmp_path / "history.csv")["epoch"].tolist() == [0, 1]
    monkeypatch.undo()
    assert len(train(tiny(), data, tmp_path).history) == 4


def test_poisoned_by_the_last_step_of_an_epoch(data, tmp_path, monkeypatch):
    "The training loss was fine, the weights no longer are."
    def poison(self):
        if self.epoch == 1:
            with torch.no_grad():
                next(self.learn.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(callbacks.HeadFirst, "after_train", poison, raising=False)
    with refused("loss-not-finite", "validation"):
        train(tiny(), data, tmp_path)
    state = load_state(tmp_path / "checkpoint" / "last.safetensors")
    assert state[1]["keeper"]["epochs_done"] == 1
    assert all(torch.isfinite(v).all() for v in state[0].values() if v.is_floating_point())


def test_rare_classes_are_drawn_as_often_as_others(tmp_path, data):
    frame = data.manifest.frame
    few = np.flatnonzero((frame["label"] != "ship") | (frame["split"] != "train") | (frame["image"] == "train1.png"))
    rare = data.subset(few)
    params = tiny(balance="sampler")
    net = start_network(params)
    batches = training_batches(rare, params, preprocessing(net, 32), torch.device("cpu"))
    drawn = np.zeros(6)
    for epoch in range(60):
        batches.epoch = epoch
        drawn += np.bincount(np.concatenate([batches.labels[p] for p in batches.plan()]), minlength=6)
    share = drawn[drawn > 0] / drawn.sum()
    assert len(share) == 3 and np.allclose(share, 1 / 3, atol=0.05)
    weight = learner.loss_function(tiny(balance="loss"), rare.labels[rare.rows("train")], torch.device("cpu")).func.weight
    counts = np.bincount(rare.labels[rare.rows("train")], minlength=6)
    assert weight[counts == 1].item() > 2 * weight[counts > 1].max().item()


COMMON = {"backbone": "test_resnet", "freeze_bn": True, "epochs": 3, "clip": 0.5, "lr": 1e-3}


@pytest.mark.long
@two_processes
def test_two_processes_train_as_one_with_twice_the_batch(data, tmp_path):
    one = train(tiny(batch_size=8, **COMMON), data)
    two = train(tiny(batch_size=4, devices=2, **COMMON), data, tmp_path / "two")
    np.testing.assert_allclose(two.history[["train_loss", "valid_loss"]], one.history[["train_loss", "valid_loss"]], rtol=1e-3)
    assert two.history["epoch"].tolist() == [0, 1, 2] and two.history["lr"].tolist() == one.history["lr"].tolist()
    a, b, start = weights(two.net), weights(one.net), weights(start_network(tiny(**COMMON)))
    for k in a:
        assert (a[k] - b[k]).float().abs().mean() <= 0.02 * (b[k] - start[k]).float().abs().mean() + 1e-7, k
    epochs = [e["epoch"] for e in read_events(tmp_path / "two" / "events.jsonl") if e["event"] == "epoch"]
    assert epochs == [0, 1, 2], "only one process writes"


@two_processes
def test_two_processes_resume_and_stop_together(data, tmp_path, monkeypatch):
    "Head first, averaged, with early stopping: decisions that every process has to share. Interrupted with one process."
    recipe = {"ema": 0.9, "freeze_epochs": 1, "patience": 2, "epochs": 25, "mixup": 0.2}
    stop_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(**recipe), data, tmp_path)
    monkeypatch.undo()
    trained = train(tiny(devices=2, batch_size=4, **recipe), data, tmp_path)
    assert trained.history["epoch"].tolist() == list(range(len(trained.history)))
    assert trained.stopped and len(trained.history) == trained.best_epoch + 3
    assert same(weights(trained.net), load_state(tmp_path / "checkpoint" / "best.safetensors")[0])


@pytest.mark.long
@two_processes
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_do_not_outlive_who_started_them(data, tmp_path, environment, how):
    if signal.getsignal(how) == signal.SIG_IGN:
        pytest.skip("this signal is ignored here, as in a background job, and children inherit that")
    process = start_training(data, tmp_path / "run", environment, tmp_path / "home", devices=2, epochs=5000, batch_size=4)
    wait_for(tmp_path / "run", 1, process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert sum("lados.model.torchrun" in p.cmdline() for p in family) >= 2
    process.send_signal(how)
    assert process.wait(30) != 0
    left = psutil.wait_procs(family, 20)[1]
    assert not [p for p in left if p.is_running()]
    rows = read_history(tmp_path / "run" / "history.csv")["epoch"].tolist()
    assert rows == list(range(len(rows)))


@two_processes
def test_a_worker_that_fails_says_why(data, tmp_path, monkeypatch):
    gone = toy_manifest(tmp_path / "toy")
    some = prepare_dataset(gone, 32, 32)
    Path(gone.root, "train0.png").unlink()
    with pytest.raises(Exception, match=r"train0\.png"):
        train(tiny(devices=2, batch_size=4), some, tmp_path / "run")
