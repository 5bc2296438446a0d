"""Models of a small world: the exact denoiser and the exact flow map, dressed as models so that the package's own code
meets them (identity tables, the logarithm of the prediction for a hidden state), and networks that learn them."""

from functools import cache

import torch
from torch import Tensor
from worlds import World

from modeling_flm import FLMConfig, FLMModel, FMLMConfig, FMLMModel


def exact_denoiser(world: World) -> FLMModel:
    return _dress(_ExactDenoiser(_config(FLMConfig, world)), world)


def exact_map(world: World, solver_steps: int) -> FMLMModel:
    """The map by an ODE solver of so many steps from any s to any t."""
    model = _dress(_ExactMap(_config(FMLMConfig, world)), world)
    model.solver_steps = solver_steps
    return model


def network(kind: type[FLMModel], world: World, width: int = 32, **changes) -> FLMModel:
    """An untrained network for a world."""
    values = dict(
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        conditioning_size=32,
        time_embedding_size=32,
        hidden_dropout=0.0,
        initializer_range=0.1,
    )
    sizes = dict(vocab_size=world.vocab_size, hidden_size=width, max_position_embeddings=world.ids.shape[1])
    torch.manual_seed(0)
    return kind(kind.config_class(**sizes | values | changes))


@cache
def trained(world: World, width: int, steps: int) -> FLMModel:
    """A network after so many steps on 64 items each."""
    model = network(FLMModel, world, width, intermediate_size=4 * width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        loss = model(labels=world.draw(64, generator), generator=generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _config(kind: type[FLMConfig], world: World) -> FLMConfig:
    sizes = dict(vocab_size=world.vocab_size, hidden_size=world.vocab_size, num_hidden_layers=1, num_attention_heads=1)
    length = world.ids.shape[1]
    return kind(**sizes, intermediate_size=4, max_position_embeddings=length, final_logit_softcapping=None)


def _dress(model, world: World):
    identity = torch.eye(world.vocab_size)
    with torch.no_grad():
        model.embed_tokens.weight.copy_(identity)
        model.lm_head.weight.copy_(identity)
        model.lm_head.bias.zero_()
    model.world = world
    return model.eval()


def _hidden(prediction: Tensor, like: Tensor) -> Tensor:
    return prediction.clamp(min=1e-30).log().to(like.dtype)


class _ExactDenoiser(FLMModel):
    def denoise(self, state, timesteps, target_timesteps=None, attention_mask=None, all_hidden=None) -> Tensor:
        t = self.clock.t(timesteps.double()).clamp(max=1 - 1e-6)
        return _hidden(self.world.denoise(state.double(), t), state)


class _ExactMap(FMLMModel):
    def denoise(self, state, timesteps, target_timesteps=None, attention_mask=None, all_hidden=None) -> Tensor:
        end = timesteps if target_timesteps is None else target_timesteps
        s, t = (self.clock.t(tau.double()) for tau in (timesteps, end))
        return _hidden(
            self.world.two_time_denoiser(state.double(), s.clamp(max=1 - 1e-6), t, self.solver_steps), state
        )
