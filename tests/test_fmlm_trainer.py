"""FMLMTrainer: distillation learns the map, whatever the batch layout, and resumes exactly."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from exact_models import exact_denoiser, network
from training import (
    LENGTH,
    VOCABULARY,
    arguments,
    counting_rows,
    fresh_model,
    history,
    make_distiller,
    make_trainer,
    padding_on,
    rows_of_different_lengths,
    same,
    weights,
)
from transformers import default_data_collator
from worlds import two_cities

from modeling_flm import FLMModel, FMLMConfig, FMLMModel
from trainers import FMLMTrainer, FMLMTrainingArguments
from trainers.flow_map_times import draw_time_pairs

OBJECTIVES = ["semigroup", "lagrangian", "eulerian"]
LOGGED = ("loss", "grad_norm", "loss_diagonal", "loss_off_diagonal")


def distil_arguments(output_dir, **changes) -> FMLMTrainingArguments:
    return arguments(output_dir, kind=FMLMTrainingArguments, **changes)


def student(seed: int = 1, **changes) -> FMLMModel:
    return fresh_model(seed, kind=FMLMModel, **changes)


def distil(
    output_dir, teacher=None, resume=None, model=None, rows=None, collator=default_data_collator, **changes
) -> FMLMTrainer:
    args = distil_arguments(output_dir, **changes)
    data = dict(train_dataset=rows or counting_rows(64), data_collator=collator)
    trainer = FMLMTrainer(model or student(), teacher, args, **data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def teacher() -> FLMModel:
    model = fresh_model(0)
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


CASES = [
    ("semigroup", "right"),
    ("semigroup", "left"),
    ("lagrangian", "right"),
    ("lagrangian", None),
    ("eulerian", None),
]


@pytest.mark.parametrize("objective, padding", CASES)
def test_gradient_accumulation_equals_the_bigger_batch(objective, padding, teacher, tmp_path):
    """Also where micro-batches are padded to lengths of their own: the noise of a text does not depend on them."""
    data = {"objective": objective}
    if padding:
        data |= {"rows": rows_of_different_lengths(64), "collator": padding_on(padding), "conditioning_rate": 0.5}
    whole = distil(tmp_path / "whole", teacher, **data)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    parted = distil(tmp_path / "parts", teacher, **data, **parts)
    for name in LOGGED:
        assert history(parted, name) == pytest.approx(history(whole, name), rel=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_map_teaches_the_flow_on_its_diagonal(objective, teacher, tmp_path):
    torch.manual_seed(6)
    map_teacher = FMLMModel(FMLMConfig.from_dict(teacher.config.to_dict()))
    map_teacher.load_state_dict(teacher.state_dict(), strict=False)
    map_teacher.target_time_embedding.linear_2.weight.data.normal_()
    flow = FLMModel(teacher.config)
    flow.load_state_dict(teacher.state_dict())
    flow._time_condition = lambda start, end: map_teacher._time_condition(start, start)
    ids = torch.arange(LENGTH)[None]
    jump = map_teacher(input_ids=ids, timesteps=0.3, target_timesteps=0.9).logits
    assert (jump - flow(input_ids=ids, timesteps=0.3).logits).abs().max() > 0.01
    options = dict(objective=objective, initialize_from_teacher=False, learning_rate=1e-2)
    runs = [distil(tmp_path, one, **options) for one in (flow, map_teacher)]
    assert [history(runs[0], name) for name in LOGGED] == [history(runs[1], name) for name in LOGGED]


@pytest.mark.parametrize(
    "changes", [{}, {"ema_target": True}, {"learned_loss_weighting": True, "conditioning_rate": 0.5}]
)
def test_resuming_equals_never_having_stopped(changes, teacher, tmp_path):
    more = {"save_strategy": "steps", "save_steps": 2, **changes}
    whole = distil(tmp_path, teacher, **more)
    resumed = distil(tmp_path, teacher, resume=str(tmp_path / "checkpoint-2"), model=student(2), **more)
    assert history(resumed, "loss") == history(whole, "loss")
    assert same(weights(resumed.model), weights(whole.model))


def test_the_student_begins_with_the_teachers_weights(teacher, tmp_path):
    model = student()
    FMLMTrainer(model, teacher, distil_arguments(tmp_path))
    ids = torch.arange(LENGTH)[None]
    ours = model(input_ids=ids, timesteps=0.3, target_timesteps=0.9).logits
    torch.testing.assert_close(ours, teacher(input_ids=ids, timesteps=0.3).logits)


def test_self_distillation_takes_the_data_on_the_diagonal(tmp_path):
    trainer = distil(tmp_path, None, max_steps=30, learning_rate=1e-2, diagonal_fraction=1.0)
    assert history(trainer, "loss")[-1] < 0.8 * history(trainer, "loss")[0]
    assert not history(trainer, "loss_off_diagonal")


def test_one_step_of_the_map_pairs_what_belongs_together(tmp_path):
    """New York / San Diego, 1 : 1. Tokens drawn independently make 50 % spurious pairs, the map fewer than 1 %."""
    world = two_cities(0.5)
    rows = Dataset.from_dict({"input_ids": world.draw(20_000, torch.Generator().manual_seed(0)).tolist()})
    teacher, model = exact_denoiser(world), network(FMLMModel, world, learned_positions=True)
    settings = dict(learning_rate=4e-3, lr_scheduler_type="cosine", ema_decay=0.98, initialize_from_teacher=False)
    settings |= dict(max_steps=300, per_device_train_batch_size=256)
    distil(tmp_path, teacher, model=model, rows=rows, **settings).save_model()

    noise = torch.randn(10_000, 2, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        known = teacher(inputs_embeds=teacher.embed_state(noise), timesteps=torch.zeros(10_000)).logits
    independent = torch.distributions.Categorical(logits=known).sample()
    assert (world.items(independent) < 0).float().mean() == pytest.approx(0.5, abs=0.03)
    model = FMLMModel.from_pretrained(tmp_path).eval()
    items = world.items(model.generate(num_steps=1, num_return_sequences=10_000, seed=0))
    assert (items < 0).float().mean() < 0.01
    assert (items == 0).float().mean() == pytest.approx(0.5, abs=0.1)


def test_given_tokens_that_decide_the_others(tmp_path):
    """All tokens of a row are the first one, which is given. A teacher that knows nothing cannot teach that."""
    ids = torch.arange(64)[:, None].remainder(8).expand(64, LENGTH)

    def right(**changes) -> tuple[float, FMLMTrainer]:
        given = [[1] + [0] * (LENGTH - 1)] * 64
        rows = Dataset.from_dict({"input_ids": ids.tolist(), "conditioning_mask": given})
        settings = dict(max_steps=60, learning_rate=1e-2, per_device_train_batch_size=32, ema_decay=0.9)
        trainer = distil(tmp_path, fresh_model(0), rows=rows, **settings, **changes)
        with trainer.averaged_weights():
            written = trainer.model.generate(ids[:, :1], max_new_tokens=LENGTH - 1, num_steps=1, seed=list(range(64)))
        return (written == ids)[:, 1:].float().mean().item(), trainer

    share, trainer = right(unique_completion=True)
    assert share > 0.9 and history(trainer, "loss_given") and not history(trainer, "loss_off_diagonal")
    assert right(unique_completion=False)[0] < 0.3


def test_times_of_sequences_with_one_completion(teacher, tmp_path):
    """With given tokens (0, 0) and (0, 1); whole and padded sequences keep their times."""
    args = distil_arguments(tmp_path, unique_completion=True)
    trainer = FMLMTrainer(student(), teacher, args, train_dataset=counting_rows(8))
    labels = torch.zeros(6, LENGTH, dtype=torch.long)
    labels[:4, 0] = labels[5, 0] = -100
    mask = torch.ones(6, LENGTH, dtype=torch.long)
    mask[5, 0] = 0
    drawn = trainer._draw({"input_ids": labels, "labels": labels, "attention_mask": mask}, np.arange(6), 6)
    plain = draw_time_pairs(args.seed, 0, 6, np.arange(6), 0.5, 32)
    assert drawn["unique"].tolist() == [True] * 4 + [False] * 2
    assert (drawn["diagonal"] == plain.diagonal & ~drawn["unique"]).all()
    assert (drawn["timesteps"][:4] == 0).all()
    assert drawn["target_timesteps"][:4].tolist() == (~plain.diagonal[:4]).astype(float).tolist()
    for name, times in (("timesteps", plain.start), ("target_timesteps", plain.end)):
        assert (drawn[name][4:].numpy() == times[4:]).all()


@pytest.mark.parametrize("boundary_prob, latest", [(32, 1.0), (None, 0.999)])
def test_time_pairs_of_a_global_batch(boundary_prob, latest):
    def pairs(places):
        return draw_time_pairs(3, 5, 512, places, 0.5, boundary_prob, latest)

    every = np.arange(512)
    drawn = pairs(every)
    assert (drawn.start <= drawn.middle).all() and (drawn.middle <= drawn.end).all()
    assert drawn.diagonal.sum() == 256 and (drawn.start == drawn.end)[drawn.diagonal].all()
    at_boundary = (drawn.start == 0) & (drawn.end == 1)
    assert at_boundary.sum() == (8 if boundary_prob else 0)
    others = drawn.end[~drawn.diagonal & ~at_boundary]
    assert 0.99 * latest < others.max() <= latest
    parts = [pairs(part) for part in (every[:100], every[100:])]
    for whole, first, second in zip(drawn, *parts, strict=True):
        assert (whole[:100] == first).all() and (whole[100:] == second).all()


@pytest.mark.parametrize("size, fraction", [(1, 0.5), (2, 0.25), (3, 0.5)])
def test_the_share_on_the_diagonal_is_right_on_average_in_small_batches(size, fraction):
    drawn = [draw_time_pairs(0, step, size, np.arange(size), fraction, 4).diagonal.sum() for step in range(2000)]
    assert np.mean(drawn) == pytest.approx(fraction * size, abs=0.05)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "euler"}, "`objective` is 'euler', but it must be one of semigroup, lagrangian, eulerian"),
        ({"loss_type": "kl"}, "`loss_type` is 'kl'"),
        ({"objective": "eulerian", "loss_type": "ce"}, '`loss_type` must be "mse" with the eulerian objective'),
        ({"diagonal_fraction": 1.5}, "`diagonal_fraction` is 1.5"),
        ({"boundary_prob": 0}, "`boundary_prob` is 0"),
        ({"diagonal_fraction": "half"}, r"`diagonal_fraction` is 'half', but it must lie in \[0, 1\]"),
        ({"ema_target": True, "ema_decay": 0.0}, "`ema_target` needs the semigroup objective"),
    ],
)
def test_bad_arguments(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        distil_arguments(tmp_path, **changes)


@pytest.mark.parametrize("make", [make_trainer, lambda folder, **more: make_distiller(folder, 0, **more)])
def test_labels_of_another_kind_of_language_model_are_refused(make, tmp_path):
    """Also where no forward pass sees them: a distillation takes them for what is given and what is scored."""

    def masking(examples: list[dict]) -> dict:
        ids = torch.tensor([example["input_ids"] for example in examples])
        masked = torch.arange(ids.shape[1]) % 3 == 0
        return {"input_ids": ids.masked_fill(masked, 60), "labels": ids.masked_fill(~masked, -100)}

    with pytest.raises(ValueError, match="neither shifted nor masked.* needs `mlm=False`"):
        make(tmp_path, data_collator=masking).train()


def test_bad_networks(teacher, tmp_path):
    args, own, masked = distil_arguments(tmp_path), student(), fresh_model()
    masked.config.masked_diffusion = True
    for model, taught_by, given, message in (
        (fresh_model(), teacher, args, "`model` must be a two-time model"),
        (student(vocab_size=62), teacher, args, f"vocabulary of {VOCABULARY} tokens and the map of 62"),
        (own, own, args, "`teacher` is the student itself"),
        (student(), masked, args, "`teacher` is a masked diffusion model, no flow.*objective: distribution_matching"),
        (student(num_hidden_layers=3), teacher, args, "the teacher's weights do not fit"),
        (student(rope_theta=9.0, attn_logit_softcapping=None), teacher, args, "in rope_theta, attn_logit_softcapping"),
        (student(), teacher, arguments(tmp_path), "`args` must be FMLMTrainingArguments"),
    ):
        with pytest.raises(ValueError, match=message):
            FMLMTrainer(model, taught_by, given)
