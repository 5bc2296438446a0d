"""PEFT adapters through the trainers: what is trained, averaged, saved, resumed, merged and pushed."""

import copy

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import randomise
from training import arguments, by_step, counting_rows, fresh_model, history, make_trainer, same, weights
from transformers import AutoModel, Trainer, TrainingArguments

from modeling_flm import FLMModel, FMLMModel
from trainers import FMLMTrainer, FMLMTrainingArguments

ATTENTION, TABLES = ["qkv_proj", "o_proj"], ["lm_head", "embed_tokens"]
SAVING = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a model whose every weight matters."""
    folder = tmp_path_factory.mktemp("base")
    randomise(fresh_model()).save_pretrained(folder)
    return folder


def adapted(base, seed: int = 0, **changes) -> PeftModel:
    torch.manual_seed(seed)
    return get_peft_model(
        AutoModel.from_pretrained(base), LoraConfig(**{"r": 4, "target_modules": ATTENTION} | changes)
    )


def logits(model) -> torch.Tensor:
    model.eval()
    ids = torch.tensor(counting_rows(3)["input_ids"])
    with torch.no_grad():
        return model(input_ids=ids, timesteps=torch.tensor([0.2, 0.5, 0.8])).logits


@pytest.mark.parametrize(
    "config",
    [{}, {"target_modules": "all-linear"}, {"modules_to_save": TABLES}, {"target_modules": [*ATTENTION, *TABLES]}],
    ids=["attention", "all-linear", "tables in full", "and tables"],
)
def test_the_averaged_adapter_is_saved_and_merges(base, tmp_path, config):
    model = adapted(base, **config)
    trainer = make_trainer(tmp_path, model, max_steps=20, learning_rate=1e-2, eval_on_start=True)
    trainer.train()
    assert by_step(trainer, "eval_loss")[0] > trainer.evaluate()["eval_loss"]  # of the average
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainer.ema.average.keys() == trained and all(parameter.any() for parameter in trainer.ema.average.values())
    trainer.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.safetensors").exists()

    with trainer.averaged_weights():
        averaged = logits(model)
    reloaded = PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "saved")
    assert torch.equal(logits(reloaded), averaged)
    assert not torch.allclose(averaged, logits(model), atol=1e-4)  # the raw weights
    written = reloaded.generate(num_steps=3, num_return_sequences=4, seed=1)
    merged = reloaded.merge_and_unload()
    assert type(merged) is FLMModel
    torch.testing.assert_close(logits(merged), averaged, atol=1e-4, rtol=0)
    assert torch.equal(merged.generate(num_steps=3, num_return_sequences=4, seed=1), written)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(FLMModel.from_pretrained(tmp_path / "merged")), logits(merged))


def test_only_the_adapter_changes_and_a_resumed_run_equals_one_that_never_stopped(base, tmp_path):
    start = weights(AutoModel.from_pretrained(base))
    whole = make_trainer(tmp_path, adapted(base), **SAVING, max_steps=6)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", adapted(base, seed=1), **SAVING, max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert by_step(resumed, "loss") == by_step(whole, "loss")
    assert same(weights(resumed.model), weights(whole.model))
    assert same(resumed.ema.average, whole.ema.average)
    assert same(weights(whole.model.unload()), start)


OF_THE_TABLES = {
    "lm_head": {"target_modules": ["lm_head"]},
    "embed_tokens": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": TABLES},
    "DoRA": {"target_modules": [*ATTENTION, *TABLES], "use_dora": True},
    "in full": {"modules_to_save": TABLES},
}


def moved(model: PeftModel) -> PeftModel:
    """The model with an adapter that is no longer zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def loss_of(model, **inputs) -> torch.Tensor:
    ids = torch.tensor(counting_rows(3)["input_ids"])
    return model(labels=ids, noise_seed=[1, 2, 3], timesteps=torch.tensor([0.2, 0.5, 0.8]), **inputs).loss


@pytest.mark.parametrize("config", OF_THE_TABLES.values(), ids=OF_THE_TABLES)
def test_adapted_tables_compute_what_they_merge_to(base, config):
    model = moved(adapted(base, **config)).eval()
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(logits(model), logits(merged), atol=1e-5, rtol=0)
    assert loss_of(model).item() == pytest.approx(loss_of(merged).item(), rel=1e-6)
    for settings in ({"num_steps": 1}, {"sampler": "multistep"}, {"sampler": "bridge"}, {"guidance_scale": 2.0}):
        settings = {"num_steps": 3, "num_return_sequences": 4, "seed": 0} | settings
        if "guidance_scale" in settings:
            settings["guidance_model"] = AutoModel.from_pretrained(base)
        assert torch.equal(model.generate(**settings), merged.generate(**settings)), settings
    model.zero_grad()
    loss_of(model).backward()
    assert all(parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad)


def test_the_gradient_of_adapted_tables_is_that_of_the_tables(base):
    """Of W = W_0 + c B A: dL/dB = c dL/dW A^T, dL/dA = c B^T dL/dW."""
    model = moved(adapted(base, target_modules=TABLES, lora_alpha=12))
    dense = copy.deepcopy(model).merge_and_unload().requires_grad_()
    loss_of(model).backward(), loss_of(dense).backward()
    head, table = model.lm_head, model.embed_tokens
    factors = [
        (dense.lm_head.weight.grad, head.lora_A["default"].weight, head.lora_B["default"].weight),
        (dense.embed_tokens.weight.grad.T, table.lora_embedding_A["default"], table.lora_embedding_B["default"]),
    ]
    for of_weight, a, b in factors:
        for factor, expected in ((a, 3 * b.T @ of_weight), (b, 3 * of_weight @ a.T)):
            torch.testing.assert_close(factor.grad, expected, atol=1e-6, rtol=1e-4)


def test_adapted_tables_are_trained_by_the_plain_trainer(base, tmp_path):
    model = adapted(base, target_modules=TABLES)
    options = dict(max_steps=30, learning_rate=2e-2, label_names=["labels"], report_to="none", use_cpu=True)
    args = TrainingArguments(str(tmp_path), **options)
    rows = counting_rows(64)
    trainer = Trainer(model, args, train_dataset=rows.add_column("labels", rows["input_ids"]))
    before = loss_of(model.eval()).item()
    trainer.train()
    assert loss_of(model.eval()).item() < before - 0.5
    assert all(parameter.any() for name, parameter in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize(
    "config",
    [{}, {"modules_to_save": TABLES}, {"target_modules": [*ATTENTION, *TABLES]}],
    ids=["", "tables in full", "and tables"],
)
@pytest.mark.parametrize("objective", ["semigroup", "lagrangian", "eulerian"])
def test_a_map_is_distilled_by_lora(tmp_path, objective, config):
    """The loss of an adapted map is that of the map it merges to."""
    randomise(fresh_model(kind=FMLMModel)).save_pretrained(tmp_path)
    before, teacher = weights(FMLMModel.from_pretrained(tmp_path)), randomise(fresh_model(), seed=1)
    model, losses = moved(adapted(tmp_path, **config)), []
    merged = copy.deepcopy(model).merge_and_unload()
    args = arguments(tmp_path, FMLMTrainingArguments, objective=objective, initialize_from_teacher=False, max_steps=2)
    for student in (model, merged.requires_grad_()):
        trainer = FMLMTrainer(student, teacher, args, train_dataset=counting_rows(32))
        trainer.train()
        losses.append(history(trainer, "loss"))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5) and losses[0][1] != losses[1][1]
    assert same(weights(model.unload()), before) == ("modules_to_save" not in config)


@pytest.mark.parametrize("changes", [{}, {"initialize_from_teacher": False, "ema_target": True}])
def test_what_needs_a_whole_student_is_refused(tmp_path, changes):
    fresh_model(kind=FMLMModel).save_pretrained(tmp_path)
    args = arguments(tmp_path, FMLMTrainingArguments, **changes)
    with pytest.raises(ValueError, match="PEFT adapter.*`initialize_from_teacher=False` and `ema_target=False`"):
        FMLMTrainer(adapted(tmp_path), fresh_model(), args)


def test_the_card_of_an_adapter(base, tmp_path):
    trainer = make_trainer(tmp_path, adapted(base), max_steps=1)
    trainer.train()
    for given, linked in ((None, None), ("org/flm", "org/flm")):
        trainer.create_model_card(model_name="me/adapter", finetuned_from=given)
        card = (tmp_path / "README.md").read_text()
        head = yaml.safe_load(card.split("---")[1])
        assert head["library_name"] == "peft" and head.get("base_model") == linked
        assert f"Trained from: {linked or base.name}." in card and str(base) not in card
        assert f'AutoModel.from_pretrained("{linked or base.name}", trust_remote_code=True), "me/adapter")' in card
