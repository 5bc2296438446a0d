"""Ingredients of training that are tried by `benchmarks.ingredients` and are no part of the package.

    python -m benchmarks.prototypes adamw recipes/tinystories.yaml model.type=unit-rows     # more overrides may follow
    python -m benchmarks.prototypes muon recipes/tinystories.yaml

`model.type` can also be self-conditioned or focal. The models load with `AutoModel` once this file is imported.
"""

import functools
import sys
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel

from modeling_flm import FLMConfig, FLMModel, guidance_flm
from modeling_flm.layers_flm import FLMEmbedding, FLMZeroLinear
from trainers import FLMTrainer
from trainers.recipe import load_recipe
from trainers.train import MODEL_CLASSES, build_trainer, run_training


class UnitRowsConfig(FLMConfig):
    model_type = "unit-rows"
    model_class = "UnitRows"
    _auto_class = None


class UnitEmbedding(FLMEmbedding):
    """An embedding whose rows all have the same norm r: the mean norm of its weights' rows."""

    @property
    def norm(self) -> Tensor:
        return self.weight.detach().norm(dim=-1).mean()

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm * F.normalize(super().forward(ids), dim=-1)


class UnitRows(FLMModel):
    """A flow in the embedded space itself: rows E_v of equal norm r, and isotropic noise x0 ~ r N(0, I_d), which with
    fewer tokens than dimensions is that of the space that the rows span.

    Along each token's row the signal over the noise is t / (1 - t), as it is along an axis of the one-hot space. So
    the clock of V tokens holds here, too.
    """

    config_class = UnitRowsConfig
    _auto_class = None  # its folder carries no code

    def __init__(self, config: FLMConfig):
        super().__init__(config)
        self.embed_tokens = UnitEmbedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def embed_white_noise(self, white: Tensor) -> Tensor:
        if white.shape[-1] < self.config.hidden_size:
            with torch.autocast(white.device.type, enabled=False):
                white = white @ torch.linalg.qr(self.vocabulary_table().detach().T)[0].T
        return self.embed_tokens.norm * white


class SelfConditionedConfig(FLMConfig):
    model_type = "self-conditioned"
    model_class = "SelfConditioned"
    _auto_class = None


class SelfConditioned(FLMModel):
    """A denoiser that is told its own last prediction of the same text (arXiv 2208.04202).

    In a quarter of the training steps the prediction is that for the same state, made in a pass of its own; otherwise
    there is none. In generation it is that of the evaluation before.
    """

    config_class = SelfConditionedConfig
    _auto_class = None  # its folder carries no code

    def __init__(self, config: FLMConfig):
        super().__init__(config)
        self.previous = FLMZeroLinear(config.hidden_size, config.hidden_size)
        self.last: Tensor | None = None  # the embedded prediction (batch, length, d) of the last pass
        self.post_init()

    def denoise(self, state: Tensor, timesteps: Tensor, *args) -> Tensor:
        last = torch.zeros_like(state) if self.last is None else self.last
        hidden = super().denoise(state + self.previous(last), timesteps, *args)
        self.last = None if torch.is_grad_enabled() else self.embed_prediction(hidden)
        return hidden

    def generate(self, *args, **kwargs):
        self.last = None  # new texts
        # All rows in one call, so that each is told its own prediction.
        with mock.patch.object(guidance_flm, "_CPU_TOKENS", sys.maxsize):
            return super().generate(*args, **kwargs)

    @functools.wraps(FLMModel.forward)  # whose arguments the Trainer looks for in the data
    def forward(self, *args, labels: Tensor | None = None, noise_seed=None, **kwargs):
        self.last = None
        if labels is not None and (not self.training or noise_seed[0] % 4 == 0):
            with torch.no_grad():
                super().forward(*args, labels=labels, noise_seed=noise_seed, **kwargs)
        return super().forward(*args, labels=labels, noise_seed=noise_seed, **kwargs)


class FocalConfig(FLMConfig):
    model_type = "focal"
    model_class = "Focal"
    _auto_class = None


class Focal(FLMModel):
    """A denoiser that learns most from the tokens it is unsure of: in training it weights the cross entropy of each
    by (1 - p)^2, with p the probability of the right token (arXiv 1708.02002; for Sudoku arXiv 2410.14157)."""

    config_class = FocalConfig
    _auto_class = None  # its folder carries no code

    def _loss(self, hidden: Tensor, labels: Tensor, scored: Tensor, *args) -> tuple[Tensor, Tensor]:
        if not self.training:
            return super()._loss(hidden, labels, scored, *args)
        logits = self.logits(hidden).transpose(1, 2)
        losses = F.cross_entropy(logits, labels, reduction="none")  # 0 at labels of -100
        weights = scored * (1 - torch.exp(-losses.detach())).square()
        return (weights * losses).sum() / scored.sum(), losses.detach() * scored


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (orthogonalised momentum) for matrices, AdamW for the rest; each has the root mean square step of AdamW."""

    def __init__(self, matrices: list[Tensor], others: list[Tensor], lr: float, betas: tuple[float, float]):
        super().__init__([{"params": matrices}, {"params": others}], {"lr": lr})
        muon = torch.optim.Muon([self.param_groups[0]], lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self.inner = muon, torch.optim.AdamW([self.param_groups[1]], lr, betas, weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure=None):
        for optimizer, group in zip(self.inner, self.param_groups, strict=True):
            optimizer.param_groups, optimizer.state = [group], self.state  # loading a checkpoint makes new ones
            optimizer.step()


class MuonTrainer(FLMTrainer):
    """[`FLMTrainer`] with Muon for the matrices of the blocks, at the learning rate of the recipe."""

    def create_optimizer(self, model=None):
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in self.model.named_parameters():
            (matrices if name.startswith("layers.") and parameter.ndim == 2 else others).append(parameter)
        betas = self.args.adam_beta1, self.args.adam_beta2
        self.optimizer = MuonAndAdamW(matrices, others, self.args.learning_rate, betas)
        return self.optimizer


TRAINERS = {"adamw": FLMTrainer, "muon": MuonTrainer}

for _config, _model in (
    (UnitRowsConfig, UnitRows),
    (SelfConditionedConfig, SelfConditioned),
    (FocalConfig, Focal),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    MODEL_CLASSES[_config.model_type] = _config, _model


def main() -> None:
    recipe = load_recipe(sys.argv[2], sys.argv[3:])
    run_training(build_trainer(recipe, TRAINERS[sys.argv[1]]), resume=True)


if __name__ == "__main__":
    main()
