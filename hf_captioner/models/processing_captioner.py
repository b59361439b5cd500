"""Prepares images and text for a captioner's `forward` and `generate`."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers import BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, Unpack

_IGNORED = -100  # label of a position that the loss ignores

# A captioner follows no instructions: what a chat asks is left out, and the caption goes on with what the chat's last
# message has the assistant say already, if it does.
CHAT_TEMPLATE = """\
{%- set last = messages[-1] -%}
{%- if last['role'] == 'assistant' and not add_generation_prompt -%}
    {%- if last['content'] is string -%}
        {{- last['content'] -}}
    {%- else -%}
        {%- for part in last['content'] if part['type'] == 'text' -%}
            {{- part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
{%- endif -%}
"""


class CaptionerProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]  # its base is a TypedDict
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class CaptionerProcessor(ProcessorMixin):
    """
    An image processor and a tokenizer, saved together with a model.

    Args:
        image_processor: a [`CaptionerImageProcessor`] or another of transformers.
        tokenizer: made by [`train_tokenizer`], or any other that appends its EOS token.
        chat_template: Jinja template that makes a prompt of chat messages, by default the text that the assistant's
            last message begins with; what others say is left out.

    Examples:
        >>> from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
        >>> from hf_captioner.data import shapes_dataset
        >>> row = shapes_dataset(1)[0]
        >>> tokenizer = train_tokenizer(row["captions"])
        >>> processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 80, "width": 80}), tokenizer)
        >>> batch = processor(images=[row["image"]], text="a", text_target=[row["captions"]], return_tensors="pt")
        >>> batch["pixel_values"].shape, batch["decoder_input_ids"].tolist()
        (torch.Size([1, 3, 80, 80]), [[2, 4]])
        >>> batch["labels"].shape[:2]  # one image, five captions
        torch.Size([1, 5])
    """

    valid_processor_kwargs = CaptionerProcessorKwargs

    def __init__(
        self,
        image_processor: BaseImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | dict[str, str] | None = None,
        **kwargs,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs) -> Any:
        """
        As in transformers.

        Raises:
            OSError: if there is no such folder or repository.
            ValueError: if its files are not what transformers and tokenizers read.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (ImportError, OSError, ValueError):
            raise
        except Exception as error:  # tokenizers raises nothing but this for a file that it can't read
            raise ValueError(
                f"processor and tokenizer of {pretrained_model_name_or_path} (processor_config.json, tokenizer.json, "
                f"tokenizer_config.json) must be what transformers reads, got {type(error).__name__}: {error}"
            ) from error

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "decoder_input_ids", "decoder_attention_mask", "labels"]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | Sequence[str] | None = None,
        text_target: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        **kwargs: Unpack[CaptionerProcessorKwargs],
    ) -> BatchFeature:
        """
        Args:
            images: an image or a list of B of them, or of B lists of one, as chats have them.
            text: the prompt that the caption begins with, or a list of B prompts; `""` for none.
            text_target: captions to learn: one, a list (one per row), or a list of B lists, all captions of each
                image.
            **kwargs: settings of the image processor and the tokenizer, and `return_tensors`.

        Returns:
            `pixel_values` (B, 3, H, W); `decoder_input_ids` (B, t): start token and prompt, without EOS, padded on the
            left; with prompts of different lengths `decoder_attention_mask` (B, t), 0 at padding and 1 elsewhere;
            `labels` (N, T), or (B, k, T) from a list of lists: tokens and EOS, without start token, -100 for padding.
            Text is text: "<eos>" in a caption or prompt is no end.

        Raises:
            ValueError: if nothing is given, or an image has no caption.
        """
        if images is None and text is None and text_target is None:
            raise ValueError("one of `images`, `text` and `text_target` must be given, got none")
        merged = self._merge_kwargs(
            CaptionerProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs
        )
        text_kwargs = merged["text_kwargs"]
        tensor_type = text_kwargs.pop("return_tensors", None) or merged["images_kwargs"].get("return_tensors")
        data = {}
        if images is not None:
            data["pixel_values"] = self.image_processor(images, **merged["images_kwargs"])["pixel_values"]
        if text is not None:
            data |= self._prompts([text] if isinstance(text, str) else list(text))
        if text_target is not None:
            data["labels"] = self._labels(text_target, text_kwargs)
        return BatchFeature(data, tensor_type=tensor_type)

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        Chat messages as what `generate()` takes.

        Args:
            conversation: a chat, a list of messages as in transformers, or a list of B chats. What is asked for in
                words is left out: the answer is a caption. Where the last message is the assistant's, the caption
                begins with its text.
            chat_template: in place of the processor's own.
            tokenize: whether to return tokens and pixels rather than the text of the prompt.
            return_dict: whether to return both rather than the tokens alone.
            **kwargs: as in transformers, `add_generation_prompt`, `continue_final_message` and `return_tensors` say.

        Returns:
            with `tokenize` and `return_dict`, `pixel_values` (B, 3, H, W) and `decoder_input_ids` (B, t) as from
            calling the processor; with `tokenize` alone the latter; else the prompt, or a list of B prompts.

        Raises:
            ValueError: if a chat has no image, or several, and pixels are asked for.
        """
        if tokenize and return_dict:
            _check_images(conversation)
        found = super().apply_chat_template(
            conversation, chat_template, tokenize=tokenize, return_dict=tokenize, **kwargs
        )
        return found["decoder_input_ids"] if tokenize and not return_dict else found

    def _prompts(self, texts: list[str]) -> dict[str, list[list[int]]]:
        start, padding = self.tokenizer.bos_token_id, self.tokenizer.pad_token_id
        encode = partial(self.tokenizer, add_special_tokens=False, split_special_tokens=True)
        rows = [[start, *encode(text)["input_ids"]] for text in texts]
        longest = max(map(len, rows), default=0)
        found = {"decoder_input_ids": [[padding] * (longest - len(row)) + row for row in rows]}
        if any(len(row) < longest for row in rows):
            found["decoder_attention_mask"] = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return found

    def _labels(self, targets, text_kwargs) -> list:
        if isinstance(targets, str):
            targets = [targets]
        if not len(targets):
            raise ValueError(f"`text_target` must hold at least one caption, got {targets!r}")
        grouped = not isinstance(targets[0], str)
        if not grouped:
            return self._rows(list(targets), text_kwargs)
        for index, captions in enumerate(targets):
            if isinstance(captions, str) or not len(captions):
                raise ValueError(f"`text_target[{index}]` must be a list of at least one caption, got {captions!r}")
        rows = self._rows([caption for captions in targets for caption in captions], text_kwargs)
        most = max(len(captions) for captions in targets)
        empty = [_IGNORED] * len(rows[0])
        labels, start = [], 0
        for captions in targets:
            missing = most - len(captions)
            labels.append(rows[start : start + len(captions)] + [list(empty) for _ in range(missing)])
            start += len(captions)
        return labels

    def _rows(self, captions: list[str], text_kwargs) -> list[list[int]]:
        encoded = self.tokenizer(captions, split_special_tokens=True, **text_kwargs)
        return [
            [token if real else _IGNORED for token, real in zip(ids, mask, strict=True)]
            for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
        ]


def _check_images(conversation: Sequence) -> None:
    is_batch = bool(conversation) and not isinstance(conversation[0], dict)
    for place, chat in enumerate(conversation if is_batch else [conversation]):
        contents = [message.get("content") for message in chat]
        parts = [part for content in contents if isinstance(content, (list, tuple)) for part in content]
        count = sum(part.get("type") in ("image", "image_url") for part in parts)
        if count != 1:
            where = f" in chat {place}" if is_batch else ""
            raise ValueError(f"a chat must have one image to be captioned, got {count}{where}")


CaptionerProcessor.register_for_auto_class()

__all__ = ["CaptionerProcessor"]
