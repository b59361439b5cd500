"""Saving a captioner as one folder that loads anywhere, its card, and pushing both to the Hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import (
    CommitInfo,
    ModelCard,
    ModelCardData,
    create_branch,
    create_repo,
    file_exists,
    hf_hub_download,
    upload_folder,
)
from transformers import PreTrainedConfig

NO_LICENSE = "unknown"  # the Hub's identifier for it
# The Hub's name of the task, for which it shows how to load the model. It is the one that transformers 5 answers to:
# its pipeline `image-to-text` is gone. The pipeline's own name is `image-captioning`.
HUB_TASK = "image-text-to-text"
_TEXT = """
# {title}

An image captioner: {system}, on the regions that {vision} model sees. Its code, in this
repository, is that of hf_captioner, under the Apache License 2.0; what the weights may be used for depends on the
licences of the training data and of the vision model's weights.

## Use

```python
from transformers import pipeline

captioner = pipeline("image-captioning", model="{name}", trust_remote_code=True)
captioner("photo.jpg", num_beams=3)  # or a URL, a PIL image, a list of them
```

gives `generated_text`, `score` (the geometric mean of the tokens' probabilities) and `tokens` with a probability each;
with `attention=True`, where it looked at each of them. Model and processor alone: `AutoModelForImageTextToText` and
`AutoProcessor`.
"""


def model_card(config: PreTrainedConfig, name: str, license: str = NO_LICENSE) -> ModelCard:
    """
    The card of a captioner as far as its configuration tells: what it is and how to use it.

    Args:
        config: of the captioner.
        name: by which the card tells to load it, a folder or a Hub repository.
        license: of the weights, by the Hub's identifier.

    Returns:
        a `huggingface_hub.ModelCard`, metadata included.
    """
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=HUB_TASK,
        tags=["image-captioning", config.model_type],
    )
    vision = config.vision_config.model_type
    vision = f"{'an' if vision[0] in 'aeiou' else 'a'} {vision}"
    text = _TEXT.format(title=name.split("/")[-1], system=config.describe(), vision=vision, name=name)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


class CaptionerSharingMixin:
    """`save_pretrained` and `push_to_hub` of a captioner, to stand before `PreTrainedModel` among its bases."""

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, push_to_hub: bool = False, **kwargs
    ) -> None:
        """
        As in transformers. Also writes a model card if the folder has none, and the code that `AutoModel` and
        `pipeline()` need to load the model with `trust_remote_code=True`.

        Examples:
            >>> from pathlib import Path
            >>> from transformers import AutoModelForImageTextToText, ResNetConfig
            >>> from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
            >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
            >>> model = RnnCaptionerForConditionalGeneration(RnnCaptionerConfig(vision_config=vision, vocab_size=40))
            >>> model.save_pretrained("captioner")
            >>> sorted(path.name for path in Path("captioner").iterdir() if path.suffix not in (".py", ".json"))
            ['README.md', 'model.safetensors']
            >>> type(AutoModelForImageTextToText.from_pretrained("captioner")).__name__
            'RnnCaptionerForConditionalGeneration'
        """
        with self._own_class():
            self._save_whole(save_directory, is_main_process, push_to_hub, **kwargs)

    @contextmanager
    def _own_class(self) -> Iterator[None]:
        """
        Inside, the model is of the class that it was written as: FSDP gives a model whose weights it keeps in parts
        another one, of torch, whose name and file would go to the Hub.
        """
        given = type(self)
        self.__class__ = next(cls for cls in given.__mro__ if not cls.__module__.startswith("torch."))
        try:
            yield
        finally:
            self.__class__ = given

    def _save_whole(
        self, save_directory: str | os.PathLike, is_main_process: bool, push_to_hub: bool, **kwargs
    ) -> None:
        if self._auto_class is not None:
            # transformers copies the files that the modeling file imports from, itself or through others; this import
            # makes it copy the pipeline's file, too.
            from .pipeline_captioner import TASK, ImageCaptioningPipeline

            # Always rewritten: a model loaded from the Hub has entries that point to the repository it came from.
            config, model, pipeline = (
                f"{cls.__module__.split('.')[-1]}.{cls.__name__}"
                for cls in (type(self.config), type(self), ImageCaptioningPipeline)
            )
            auto = "AutoModelForImageTextToText"
            self.config.auto_map = {"AutoConfig": config, "AutoModel": model, auto: model}
            packages = {cls.__module__.rpartition(".")[0] for cls in (type(self), ImageCaptioningPipeline)}
            # Otherwise the pipeline's file is not copied: a family from elsewhere needs this package.
            if len(packages) == 1:
                self.config.custom_pipelines = {TASK: {"impl": pipeline, "pt": [auto]}}
        # Pushed by our own `push_to_hub` below: transformers' would put its empty form in the card's place.
        pushing = {name: kwargs.pop(name) for name in _PUSHING if name in kwargs} if push_to_hub else {}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        card = Path(save_directory, "README.md")
        if is_main_process and not card.exists():
            model_card(self.config, card.absolute().parent.name).save(card)
        if push_to_hub and is_main_process:
            repo_id = pushing.pop("repo_id", Path(save_directory).absolute().name)
            self.push_to_hub(repo_id, token=kwargs.get("token"), **pushing)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: list[str] | None = None,
    ) -> CommitInfo:
        """
        As in transformers, in one commit to one branch, with our card where that branch has none; a card that is there
        stays, and gets the `tags` that it lacks.

        Args:
            repo_id: the repository, made if it does not exist.
            commit_message: first line of the commit, `"Upload "` and the class's name by default.
            commit_description: what follows it.
            private: whether a repository that is made is private.
            token: to write with; the stored one by default.
            revision: the branch, made from the main one if it does not exist; the main one by default.
            create_pr: whether to open a pull request in place of writing to the branch.
            max_shard_size: size of a weight file from which on there are several.
            tags: of the card.
        """
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if revision is not None and not create_pr and not revision.startswith("refs/pr"):
            create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        tags = [*(self.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])]
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            card = Path(folder, "README.md")
            if file_exists(repo_id, card.name, revision=revision, token=token):
                path = hf_hub_download(repo_id, card.name, revision=revision, token=token)
                content = ModelCard.load(path, ignore_metadata_errors=True)
                card.unlink()
                changed = not set(tags) <= set(content.data.tags or [])
            else:
                content, changed = model_card(self.config, repo_id), True
            if changed:
                content.data.tags = list(dict.fromkeys([*(content.data.tags or []), *tags]))
                content.save(card)
            return upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )


_PUSHING = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")

__all__ = ["HUB_TASK", "NO_LICENSE", "CaptionerSharingMixin", "model_card"]
