"""The evaluation loss: what it is, and that it depends on the weights and the data alone."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from training import (
    by_step,
    counting_rows,
    fresh_model,
    history,
    make_trainer,
    padded_rows,
    padding_on,
    rows_of_different_lengths,
    same,
    weights,
)
from transformers import default_data_collator

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
    tensors = [{"input_ids": torch.tensor(ids)} for ids in rows["input_ids"]]  # and stay what a collator gets

    def stacked(examples: list[dict]) -> dict:
        batch = {"input_ids": torch.stack([example["input_ids"] for example in examples])}
        return batch | {name: torch.tensor([e[name] for e in examples]) for name in ("noise_seed", "timesteps")}

    assert evaluate(tmp_path, trained, tensors, data_collator=stacked) == expected
    named = evaluate(tmp_path, trained, {"a": rows, "b": padded_rows(9)})
    assert {name.replace("eval_a", "eval"): named[name] for name in named if "eval_a" in name} == expected
    assert named["eval_b_loss"] != named["eval_a_loss"]
    assert trainer.predict(rows).metrics["test_loss"] == expected["eval_loss"]


class _Rows(torch.utils.data.IterableDataset):
    """A stream that is none of `datasets`."""

    def __init__(self, rows: Dataset):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_stream_is_evaluated_alike_by_any_workers_in_any_batches(tmp_path, trained, side):
    """At the noise and times that the model takes from the ids, each row its own."""
    rows = rows_of_different_lengths(13)
    sums, counts, times = 0.0, 0, []
    for row in rows:
        with torch.no_grad():
            output = trained.eval()(labels=torch.tensor([row["input_ids"]]))
        sums, counts = sums + float(output.token_losses.sum()), counts + int(output.scored.sum())
        times.append(float(output.timesteps))
    assert len(set(times)) == 13
    stream = rows.to_iterable_dataset(num_shards=4)
    for dataset, size, workers in ((stream, 8, 0), (stream, 8, 2), (stream, 3, 2), (_Rows(rows), 8, 0)):
        layout = {"per_device_eval_batch_size": size, "dataloader_num_workers": workers}
        metrics = evaluate(tmp_path, trained, dataset, data_collator=padding_on(side), **layout)
        assert metrics["eval_loss"] == pytest.approx(sums / counts, rel=1e-5)
        assert metrics.keys() - {"eval_loss"} == {f"eval_loss_tau_{BINS[int(5 * tau)]}" for tau in times}


def test_options_of_evaluation_do_not_change_it(tmp_path, trained):
    rows = rows_of_different_lengths(13)
    collator = {"data_collator": padding_on("right"), "per_device_eval_batch_size": 4}
    expected = evaluate(tmp_path, trained, rows, **collator)
    options = [
        {"eval_do_concat_batches": False},
        {"batch_eval_metrics": True},
        {"include_for_metrics": ["inputs", "loss"]},
        {"eval_accumulation_steps": 2},
        {"eval_do_concat_batches": False, "include_for_metrics": ["loss"]},
    ]
    for option in options:
        seen = []

        def keep(evaluated, compute_result=True, seen=seen) -> dict:
            seen.append(evaluated)
            return {"calls": len(seen)}

        trainer = make_trainer(tmp_path, trained, eval_dataset=rows, **collator, **option)
        trainer.compute_metrics = keep
        metrics = trainer.evaluate()
        assert losses_of(metrics) == expected
        assert metrics["eval_calls"] == len(seen) == (4 if "batch_eval_metrics" in option else 1)
        last = seen[-1]
        if option == {"include_for_metrics": ["inputs", "loss"]}:
            losses, counts = last.predictions
            assert losses.sum() / counts.sum() == pytest.approx(expected["eval_loss"])
            assert ((last.inputs != -100) & (last.inputs != 60)).sum(1).tolist() == counts.tolist()
            assert last.label_ids.shape == (13,) and np.isfinite(last.losses).all()


def test_collators_that_leave_out_rows_or_add_them(tmp_path, trained):
    def every_other(examples):
        return default_data_collator([row for row in examples if row["noise_seed"] % 2 == 0])

    def two_of_each(examples):
        return default_data_collator([row for row in examples for _ in range(2)])

    options = {"per_device_eval_batch_size": 8}
    found = evaluate(tmp_path, trained, counting_rows(13), data_collator=every_other, **options)
    sums = []
    for i in range(0, 13, 2):
        ids, tau = (
            torch.tensor(counting_rows(13)["input_ids"][i])[None],
            torch.tensor([(0.5 + 0.6180339887498949 * i) % 1]),
        )
        with torch.no_grad():
            sums.append(float(trained.eval()(labels=ids, timesteps=tau, noise_seed=[i]).loss))
    assert found["eval_loss"] == pytest.approx(np.mean(sums), rel=1e-5)
    with pytest.raises(ValueError, match="16 rows of at most 8 examples"):
        evaluate(tmp_path, trained, counting_rows(13), data_collator=two_of_each, **options)
    # Fewer than a batch: nothing is left out of what was made.
    twice = evaluate(tmp_path, trained, counting_rows(4), data_collator=two_of_each, **options)
    assert twice == pytest.approx(evaluate(tmp_path, trained, counting_rows(4), **options), rel=1e-5)
    with pytest.raises(ValueError, match="nothing to evaluate: the data set has no rows[.]"):
        evaluate(tmp_path, trained, counting_rows(4).select([]), **options)
    given = counting_rows(4).map(lambda row: {"conditioning_mask": [1] * 16})
    with pytest.raises(ValueError, match="nothing to evaluate: all tokens are given or padding"):
        evaluate(tmp_path, trained, given, **options)
    with pytest.raises(ValueError, match="or too few for a batch .`dataloader_drop_last`."):
        evaluate(tmp_path, trained, counting_rows(4), dataloader_drop_last=True, **options)


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


def test_of_several_data_sets_samples_are_drawn_once_and_each_loss_is_in_the_card(tmp_path):
    sets = {"near": counting_rows(8), "far": counting_rows(8, 40)}
    options = {"eval_strategy": "steps", "eval_steps": 2, "num_samples": 1, "sample_num_steps": [1]}
    trainer = make_trainer(tmp_path, eval_dataset=sets, **options)
    for _ in range(2):
        trainer.train()
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [2, 4, 2, 4]
    trainer.save_model(str(tmp_path))
    card = ModelCard.load(tmp_path / "README.md")
    results = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    last = {name: by_step(trainer, f"eval_{name}_loss")[4] for name in sets}
    assert results == pytest.approx(last, abs=1e-4)
    assert all(f"* eval {name} loss: {loss:.4f}" in card.text for name, loss in last.items())
