"""A run that goes on from a checkpoint is the run that never stopped, bit for bit."""

import shutil

import pytest
from training import by_step, counting_rows, fresh_model, make_trainer, same, weights

# Everything random or stateful at once.
OPTIONS = {
    "max_steps": 10,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "conditioning_rate": 0.5,
    "learned_loss_weighting": True,
    "num_samples": 1,
    "sample_num_steps": [2],
    "warmup_steps": 5,
}
STREAM = counting_rows(32).to_iterable_dataset().repeat(None).shuffle(seed=0, buffer_size=10)
LAYOUTS = {
    "plain": {},
    "accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "streamed": {"train_dataset": STREAM},
}


def trainer_with_dropout(folder, model_seed: int = 0, **layout):
    return make_trainer(folder, fresh_model(model_seed, hidden_dropout=0.1), **OPTIONS | layout)


def state(trainer) -> tuple[dict, ...]:
    """What was logged at each step: losses, norms of gradients, evaluation losses."""
    return tuple(by_step(trainer, name) for name in ("loss", "grad_norm", "learning_rate", "eval_loss"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path, layout):
    whole = trainer_with_dropout(tmp_path, **LAYOUTS[layout])
    whole.train()
    for step in (2, 4, 6):  # an epoch has four steps
        resumed = trainer_with_dropout(tmp_path / "resumed", model_seed=1, **LAYOUTS[layout])
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert state(resumed) == state(whole)
        assert same(weights(resumed.model), weights(whole.model))
        assert same(resumed.ema.average, whole.ema.average)


def test_true_takes_the_last_whole_checkpoint(tmp_path):
    whole = trainer_with_dropout(tmp_path)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text('{"global_step": 8, "log_h')
    (tmp_path / "checkpoint-12").mkdir()
    shutil.copytree(tmp_path / "checkpoint-2", tmp_path / "checkpoint-14")
    resumed = trainer_with_dropout(tmp_path, model_seed=1)
    steps = []
    resumed.model.register_forward_pre_hook(lambda *_: steps.append(resumed.state.global_step))
    resumed.train(resume_from_checkpoint=True)
    assert steps[0] == 6
    assert state(resumed) == state(whole)


@pytest.mark.parametrize("resume", [True, "checkpoint-2", "checkpoint-4"])
def test_a_checkpoint_that_is_missing_or_cut_off_is_refused(tmp_path, resume):
    (tmp_path / "checkpoint-4").mkdir()
    named = str(tmp_path) if resume is True else str(tmp_path / resume)
    with pytest.raises(ValueError) as raised:
        make_trainer(tmp_path).train(resume_from_checkpoint=resume if resume is True else named)
    assert named in str(raised.value) and "whole checkpoint" in str(raised.value)


def test_a_checkpoint_without_an_optimiser_is_refused(tmp_path):
    make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2, save_only_model=True).train()
    for resume in (True, str(tmp_path / "checkpoint-2")):
        with pytest.raises(ValueError, match="no state of the optimiser.*`save_only_model`"):
            make_trainer(tmp_path).train(resume_from_checkpoint=resume)


def test_resuming_a_finished_run_trains_nothing_more(tmp_path):
    whole = trainer_with_dropout(tmp_path)
    whole.train()
    resumed = trainer_with_dropout(tmp_path, model_seed=1)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 10
    assert same(weights(resumed.model), weights(whole.model))
    assert same(resumed.ema.average, whole.ema.average)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_finished_run_can_be_made_longer(tmp_path, renamed):
    longer = make_trainer(tmp_path / "longer", max_steps=6)
    longer.train()
    make_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=3).train()
    copied = shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "best")
    resumed = make_trainer(tmp_path, fresh_model(1), max_steps=6)
    resumed.train(resume_from_checkpoint=str(copied) if renamed else True)
    assert by_step(resumed, "loss") == by_step(longer, "loss")
    assert same(weights(resumed.model), weights(longer.model))
