"""What a trainer sends to the Hub: a model that loads, its card, and nothing that is pickled."""

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, upload_folder
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from .checkpoints import AUXILIARY, RAW_WEIGHTS, STATE
from .model_card import listed
from .pushes import PICKLED, reason
from .training_card import training_card

STATES = (RAW_WEIGHTS, AUXILIARY, STATE, *PICKLED)  # in a checkpoint, what training goes on from

logger = logging.get_logger(__name__)


class PublishingMixin:
    """The part of a Trainer that writes its model card and pushes."""

    push_in_progress: PushInProgress | None

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write `README.md` in the output directory: see [`training_card`]. Its name is that of the repository on the
        Hub, if there is one, else `model_name` or that of the folder."""
        folder, datasets = Path(self.args.output_dir), listed(dataset or dataset_tags)
        self.write_card(folder, model_name, finetuned_from, datasets, listed(tags), language=language, license=license)

    def write_card(self, folder: Path, name: str | None = None, base_model=None, datasets=(), tags=(), **head) -> None:
        """Write the card in a folder, by the first process: see [`training_card`] for the arguments."""
        if self.is_world_process_zero():
            name = self.hub_model_id or name or self.args.hub_model_id or folder.resolve().name
            text = training_card(self, name, base_model, datasets or self.trained_on, tags, **head)
            (folder / "README.md").write_text(text, encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:
        """[`~Trainer.push_to_hub`] with the averaged weights. Pickled files such as `training_args.bin` are left out.

        Args:
            kwargs: of `create_model_card`, such as `dataset`, `license`, `language`, `finetuned_from`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()  # which reads the files that are written now
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        tags = listed(kwargs.pop("tags", None)) + listed(getattr(self.model, "model_tags", None))
        self.create_model_card(tags=list(dict.fromkeys(tags)), **kwargs)
        return self._upload(commit_message, token=token, revision=revision, run_as_future=not blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push in the background, as the plain Trainer does, with all files that a model needs to load. Pickled files
        are pushed with checkpoints only, which cannot be resumed without them. A push that fails is a warning."""
        args: Any = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not args.hub_always_push:
                return
            self._finish_current_push()  # which reads the files that are written now
        self.callback_handler.on_push_begin(args, self.state, self.control)
        for file in Path(checkpoint_folder).iterdir():  # which may be removed before all of it is uploaded
            if file.is_file() and not any(file.match(state) for state in STATES):
                shutil.copy(file, args.output_dir)
        self.create_model_card()
        message = f"Training in progress, step {self.state.global_step}"
        pushes = [self._upload(message)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            of_last = args.hub_strategy == HubStrategy.CHECKPOINT
            pushes.append(
                self._upload(
                    f"{message}, checkpoint",
                    folder_path=checkpoint_folder,
                    path_in_repo="last-checkpoint" if of_last else Path(checkpoint_folder).name,
                    ignore_patterns=[TRAINING_ARGS_NAME],
                )
            )
        for push in pushes:
            push.add_done_callback(self._warn_if_failed)  # the Trainer never asks how it ended
        self.push_in_progress = PushInProgress(pushes)

    def _upload(self, commit_message: str | None, token=None, revision=None, **changes) -> CommitInfo | Future:
        """Upload the output directory in the background, without its checkpoints, pickled files and what a save that
        was interrupted has left."""
        what: dict[str, Any] = dict(
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            ignore_patterns=["_*", ".saving-*", "checkpoint-*", *PICKLED],
            commit_message=commit_message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            run_as_future=True,
        )
        return upload_folder(**what | changes)

    def _warn_if_failed(self, push: Future) -> None:
        if error := push.exception():
            logger.warning(
                f"a push to {self.hub_model_id} failed, and training goes on: {reason(error)}. What it was to bring "
                f"is in {self.args.output_dir}. The next push brings the newest; `trainer.push_to_hub()`, the model."
            )
