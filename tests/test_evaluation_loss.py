"""The evaluation loss: what it is, and that it depends on the weights and the data alone."""

import json

import pytest
import torch
from datasets import Dataset
from training import by_step, counting_rows, fresh_model, history, make_trainer, padded_rows, same, weights

BINS = ["0.0_0.2", "0.2_0.4", "0.4_0.6", "0.6_0.8", "0.8_1.0"]


def losses_of(metrics: dict) -> dict:
    return {name: value for name, value in metrics.items() if "loss" in name}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that has learned a little, in training mode and with dropout."""
    trainer = make_trainer(tmp_path_factory.mktemp("trained"), fresh_model(hidden_dropout=0.2), max_steps=60)
    trainer.train()
    return trainer.model


def evaluate(folder, model, dataset, **changes) -> dict:
    return losses_of(make_trainer(folder, model, eval_dataset=dataset, **changes).evaluate())


def by_hand(model, dataset) -> tuple[float, dict[str, float]]:
    """The mean loss over scored positions, of all rows and of the rows of each fifth of the times."""
    model.eval()
    sums, counts = dict.fromkeys(BINS, 0.0), dict.fromkeys(BINS, 0)
    for i, row in enumerate(dataset):
        tau = (0.5 + 0.6180339887498949 * i) % 1
        batch = {name: torch.tensor([values]) for name, values in row.items()}
        labels = batch.pop("labels", batch["input_ids"])
        with torch.no_grad():
            output = model(**batch, labels=labels, timesteps=torch.tensor([tau]), noise_seed=[i], num_items_in_batch=1)
        sums[BINS[int(5 * tau)]] += output.token_losses.sum().item()
        counts[BINS[int(5 * tau)]] += int(output.scored.sum())
    return sum(sums.values()) / sum(counts.values()), {b: sums[b] / counts[b] for b in BINS if counts[b]}


def partly_labelled(rows: int) -> Dataset:
    return counting_rows(rows).map(lambda row: {"labels": [-100] * 5 + row["input_ids"][5:]})


def partly_given(rows: int) -> Dataset:
    return counting_rows(rows).map(lambda row: {"conditioning_mask": [i % 3 == 0 for i in range(16)]})


def not_all_labelled(rows: int) -> Dataset:
    return counting_rows(rows).map(
        lambda row, i: {"labels": [-100] * 16 if 4 <= i < 8 else row["input_ids"]}, with_indices=True
    )


@pytest.mark.parametrize("make", [counting_rows, padded_rows, partly_labelled, partly_given, not_all_labelled])
def test_it_is_the_mean_over_the_scored_positions_also_by_time(tmp_path, trained, make):
    metrics = evaluate(tmp_path, trained, make(13), per_device_eval_batch_size=4)
    total, bins = by_hand(trained, make(13))
    assert metrics == pytest.approx({"eval_loss": total} | {f"eval_loss_tau_{b}": bins[b] for b in bins}, rel=1e-5)
    assert metrics["eval_loss_tau_0.0_0.2"] > metrics["eval_loss_tau_0.8_1.0"] + 0.5


def test_it_is_the_same_again_and_with_other_batch_sizes(tmp_path, trained):
    first = evaluate(tmp_path, trained, padded_rows(13), per_device_eval_batch_size=8)
    assert evaluate(tmp_path, trained, padded_rows(13), per_device_eval_batch_size=8, seed=5) == first
    assert evaluate(tmp_path, trained, padded_rows(13), per_device_eval_batch_size=3) == pytest.approx(first, rel=1e-5)


def test_a_learned_weight_does_not_enter(tmp_path, trained):
    plain = evaluate(tmp_path, trained, counting_rows(9))
    model = fresh_model()
    model.load_state_dict(trained.state_dict())
    model.add_loss_weighting()
    torch.nn.init.constant_(model.loss_weighting.linear_2.bias, 3.0)
    assert evaluate(tmp_path, model, counting_rows(9)) == plain


def test_evaluation_and_sampling_do_not_change_training(tmp_path):
    runs = []
    often = {"eval_strategy": "steps", "eval_steps": 1, "num_samples": 2, "sample_num_steps": [1, 3]}
    for changes in ({}, often):
        trainer = make_trainer(
            tmp_path, fresh_model(hidden_dropout=0.1), max_steps=6, conditioning_rate=0.3, **changes
        )
        trainer.train()
        runs.append(trainer)
    assert len(history(runs[1], "eval_loss")) == 6
    assert history(runs[0], "loss") == history(runs[1], "loss")
    assert same(weights(runs[0].model), weights(runs[1].model))


def test_a_dataset_given_later_or_by_name_is_evaluated_alike(tmp_path, trained):
    rows = counting_rows(9)
    expected = evaluate(tmp_path, trained, rows)
    trainer = make_trainer(tmp_path, trained, eval_dataset=None)
    assert losses_of(trainer.evaluate(rows)) == expected
    assert losses_of(trainer.evaluate(list(rows))) == expected
    named = evaluate(tmp_path, trained, {"a": rows, "b": padded_rows(9)})
    assert {name.replace("eval_a", "eval"): named[name] for name in named if "eval_a" in name} == expected
    assert named["eval_b_loss"] != named["eval_a_loss"]
    assert trainer.predict(rows).metrics["test_loss"] == expected["eval_loss"]


def test_samples_are_kept_with_their_steps(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "num_samples": 3, "sample_num_steps": [1, 4]}
    trainer = make_trainer(tmp_path, **options)
    trainer.train()
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(r["step"], r["num_steps"]) for r in records] == [(2, 1), (2, 4), (4, 1), (4, 4)]
    with trainer.averaged_weights():
        last = trainer.model.eval().generate(num_steps=4, num_return_sequences=3, seed=trainer.args.seed)
    assert records[-1]["samples"] == last.tolist()
    assert by_step(trainer, "eval_loss").keys() == {2, 4}
