"""`pipeline("image-captioning")`: images in, captions with their probabilities out."""

from collections.abc import Sequence
from os import PathLike

import torch
from transformers import Pipeline
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image

from .tokenization_captioner import token_texts

TASK = "image-captioning"


class ImageCaptioningPipeline(Pipeline):
    """
    Captions images with any captioner and tells how sure it is.

        captioner = pipeline("image-captioning", model="folder or Hub name", trust_remote_code=True)
        captioner("photo.jpg", num_beams=3)
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __call__(self, images, **kwargs):
        """
        Args:
            images: a path, a URL, base64 text, a PIL image or an array ((H, W), (H, W, 3) or (3, H, W); integers up
                to 255 or fractions up to 1); or a list, a tuple or a column of a `datasets.Dataset` of these. A torch
                data set and a generator are read lazily and give an iterator.
            prompt: text that every caption begins with.
            attention: whether to return where the model looked.
            batch_size: images at a time, 1 by default.
            timeout: seconds to wait for a URL.
            generate_kwargs: options of `generate()`, as a dictionary; any other keyword is one, too, such as
                `num_beams`, `do_sample`, `num_return_sequences` or `max_new_tokens`. Defaults are the model's own.

        Returns:
            for one image a list of `num_return_sequences` dictionaries, for several images a list of such lists:
            `generated_text`; `score`, the geometric mean of the tokens' probabilities, in (0, 1]; `tokens`, of which
            each has its text as `token` and, as `probability`, what the model gave it after all before it (whatever
            the search did with it), the end token included and the prompt not; with `attention=True`, `attention`
            (tokens, h, w), the weights of the last layer over the grid of regions, mean over heads.

        Raises:
            ValueError: if an image cannot be read, or attention is asked of a model without.
            TypeError: if an image is of an unknown kind.
        """
        if isinstance(images, Sequence) and not isinstance(images, (str, bytes, list)):
            # What a data set's column holds is decoded one by one and not all at once.
            return list(super().__call__((image for image in images), **kwargs))
        if isinstance(images, list) and not images:
            return []
        return super().__call__(images, **kwargs)

    def _sanitize_parameters(self, prompt=None, timeout=None, attention=None, generate_kwargs=None, **options):
        preprocess = {"prompt": prompt, "timeout": timeout}
        forward = {"attention": attention, "generate_kwargs": {**(generate_kwargs or {}), **options} or None}
        # What is not said in a call is as it was said to `pipeline()`.
        preprocess, forward = (
            {name: value for name, value in part.items() if value is not None} for part in (preprocess, forward)
        )
        return preprocess, forward, {}

    def preprocess(self, image, prompt="", timeout=None):
        if hasattr(image, "shape"):
            if len(image.shape) not in (2, 3):
                raise ValueError(f"an image array must be (H, W), (H, W, 3) or (3, H, W), got {tuple(image.shape)}")
            image = to_pil_image(image if len(image.shape) == 3 else image[None])
        image = load_image(str(image) if isinstance(image, PathLike) else image, timeout=timeout)
        return self.processor(images=image, text=prompt, return_tensors="pt")

    def _forward(self, inputs, attention=False, generate_kwargs=None):
        model = self.model
        pixels = inputs["pixel_values"].to(model.dtype)
        prompt = inputs["decoder_input_ids"]
        if attention and getattr(model.config, "attention", None) == "none":
            raise ValueError("`attention` needs a model that attends, got one with attention='none'")
        encoder_outputs = model.get_encoder()(pixel_values=pixels)
        sequences = model.generate(
            encoder_outputs=encoder_outputs,
            decoder_input_ids=prompt,
            **{**(generate_kwargs or {}), "return_dict_in_generate": False},
        )  # (N, S), N = B * k
        length = sequences.shape[1] - prompt.shape[1]
        # Read once more what was said: beams, temperature and suppressed tokens change a search's own scores.
        reading = model(
            encoder_outputs=encoder_outputs,
            decoder_input_ids=sequences[:, :-1],
            logits_to_keep=length,
            output_attentions=attention,
            use_cache=False,
        )
        log_probabilities = reading.logits.float().log_softmax(-1).gather(-1, sequences[:, -length:, None])[..., 0]
        outputs = {"sequences": sequences, "log_probabilities": log_probabilities}
        if attention:
            _, grid = model.vision_encoder(pixels[:1])
            outputs["attention"] = reading.cross_attentions[-1].mean(1)[:, -length:].unflatten(-1, grid)
        return {name: tensor.unflatten(0, (len(pixels), -1)) for name, tensor in outputs.items()}  # (B, k, ...)

    def postprocess(self, outputs):
        config, tokenizer = self.model.config, self.processor.tokenizer
        eos = torch.as_tensor(self.model.generation_config.eos_token_id or config.eos_token_id)
        captions = []
        for row, (ids, logs) in enumerate(zip(outputs["sequences"][0], outputs["log_probabilities"][0], strict=True)):
            said = ids[-len(logs) :]
            ended = torch.isin(said, eos).cumsum(0) - torch.isin(said, eos).long() > 0
            real = ~ended & (said != (-1 if config.pad_token_id is None else config.pad_token_id))
            probabilities = logs[real].exp().tolist()
            texts = token_texts(tokenizer, said[real].tolist())
            captions.append(
                {
                    "generated_text": tokenizer.decode(ids, skip_special_tokens=True).strip(),
                    "score": logs[real].mean().exp().item(),
                    "tokens": [
                        {"token": text, "probability": probability}
                        for text, probability in zip(texts, probabilities, strict=True)
                    ],
                }
            )
            if "attention" in outputs:
                captions[-1]["attention"] = outputs["attention"][0, row, real]
        return captions

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers; and the processor, which that leaves out."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


__all__ = ["ImageCaptioningPipeline"]
