"""Loading from safetensors only, and saving that cannot damage an earlier model in the same folder."""

import os
import re
import tempfile
from typing import Any

from .generation_config_flm import FlowGenerationConfig


class LoadingAndSaving:
    """`from_pretrained` and `save_pretrained` of flow language models, which wrap those of `PreTrainedModel`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, use_safetensors: bool | None = None, **kwargs):
        """[`~PreTrainedModel.from_pretrained`] from safetensors only: pickled weights are not read.

        Raises:
            ValueError: if `use_safetensors` is False; if the file of the weights is damaged; or if the weights are
                those of a flow map and this is the class of a denoiser, which would ignore the second time.
        """
        if use_safetensors is False:
            raise ValueError("`use_safetensors=False`: pickled weights are not read, convert them to safetensors.")
        name = pretrained_model_name_or_path
        with_info = kwargs.pop("output_loading_info", False)
        try:
            loaded: Any = super().from_pretrained(
                name, *args, use_safetensors=True, output_loading_info=True, **kwargs
            )
        except Exception as error:
            if type(error).__name__ != "SafetensorError":
                raise
            raise ValueError(f"the weights of {name} are damaged ({error}): download or write them again.") from error
        if any(key.startswith("target_time_embedding.") for key in loaded[1]["unexpected_keys"]):
            raise ValueError(f"{name} is a flow map (FMLM), and {cls.__name__} is no class for it: use AutoModel.")
        started = any(key.startswith("target_time_embedding.") for key in loaded[1]["missing_keys"])
        if started and kwargs.get("generation_config") is None:  # a flow's files, whose settings are those of a flow
            loaded[0].generation_config = FlowGenerationConfig.from_model_config(loaded[0].config)
        return loaded if with_info else loaded[0]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        *,
        push_to_hub: bool = False,
        variant: str | None = None,
        **kwargs,
    ) -> None:
        """[`~PreTrainedModel.save_pretrained`] that cannot damage an earlier model in the same folder.

        All files are written to a temporary folder within it, and moved into place when they are complete. So a save
        that fails, for example on a full disk, leaves an earlier model as it was. With `push_to_hub` this is not so.

        Raises:
            ValueError: if `distributed_checkpoint` is set, whose processes write into one folder together.
        """
        if kwargs.get("distributed_checkpoint"):
            raise ValueError("`distributed_checkpoint` is not supported: the weights are saved whole.")
        kwargs |= {"is_main_process": is_main_process, "variant": variant}
        if push_to_hub:
            return super().save_pretrained(save_directory, push_to_hub=True, **kwargs)
        os.makedirs(save_directory, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=save_directory, prefix=".saving-") as staging:
            super().save_pretrained(staging, **kwargs)
            written = os.listdir(staging)
            for name in written:
                os.replace(os.path.join(staging, name), os.path.join(save_directory, name))
        of = "" if variant is None else re.escape(f".{variant}")
        weights = rf"model{of}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{of}\.json"
        if any(re.fullmatch(weights, name) for name in written):  # shards of an earlier save would be loaded, too
            for name in os.listdir(save_directory):
                if re.fullmatch(weights, name) and name not in written:
                    os.remove(os.path.join(save_directory, name))
