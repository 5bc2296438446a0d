"""Flow language models for transformers: configurations, models, generation.

Importing the package registers both model types with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel

from .configuration_flm import FLMConfig, FMLMConfig
from .drafts_flm import DraftStreamer
from .generation_config_flm import FlowGenerationConfig
from .generation_flm import FlowGenerationOutput, prompt_ids
from .guidance_flm import Lookahead
from .modeling_flm import FLMModel, FLMOutput, FLMPreTrainedModel, FMLMModel

for _config, _model in ((FLMConfig, FLMModel), (FMLMConfig, FMLMModel)):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)

__all__ = [
    "DraftStreamer",
    "FLMConfig",
    "FLMModel",
    "FLMOutput",
    "FLMPreTrainedModel",
    "FMLMConfig",
    "FMLMModel",
    "FlowGenerationConfig",
    "FlowGenerationOutput",
    "Lookahead",
    "prompt_ids",
]
