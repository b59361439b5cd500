"""What captioners add to transformers' `generate()`: rows per image, the grid of the regions, attention maps."""

import torch
from transformers.utils import ModelOutput

from .compat import RowsPerImageGenerationMixin

# What `generate()` may be asked for. Captions are sentences, of which the best comes from ten beams or fewer; risk
# minimisation draws some hundred samples. A thousand beams take about a thousand times the memory of one.
GENERATION_BOUNDS = {
    "num_beams": (1, 1000),
    "num_return_sequences": (1, 10_000),
    "max_new_tokens": (0, 10_000),
    "max_length": (1, 10_000),
}


class CaptionerGenerationMixin(RowsPerImageGenerationMixin):
    """
    transformers' `GenerationMixin` for captioners: greedy search, sampling and beam search with all rows of an image
    sharing its encoder output.
    """

    @property
    def eos_token_ids(self) -> list[int]:
        """The tokens that end a caption: none, one or several."""
        ids = self.generation_config.eos_token_id
        ids = self.config.eos_token_id if ids is None else ids
        return [] if ids is None else ids if isinstance(ids, list) else [ids]

    def ends_before(self, tokens: torch.LongTensor) -> torch.BoolTensor:
        """Generated tokens (N, T) -> which positions come after EOS, (N, T)."""
        ends = torch.isin(tokens, torch.tensor(self.eos_token_ids, dtype=tokens.dtype, device=tokens.device))
        return ends.cumsum(-1) - ends.long() > 0

    @torch.no_grad()
    def generate(self, inputs: torch.FloatTensor | None = None, *args, **kwargs) -> ModelOutput | torch.LongTensor:
        """
        As in transformers, from images, from `image_features` or from `encoder_outputs`.

        Args:
            inputs: images (B, C, H, W), which may also be given as `pixel_values`.
            *args, **kwargs: as for transformers' `generate()`; `image_features` and `grid` as for `forward`. A
                function given as `custom_generate` may have `generation_defaults`, a dictionary of what it needs where
                nothing else is asked for: a captioner's own settings are those of beam search.

        Raises:
            ValueError: if a number of beams, sequences or tokens is beyond `GENERATION_BOUNDS`: time and memory grow
                with each, and a folder's own settings may ask for any.

        Returns:
            as in transformers, token ids (N, T) or a `ModelOutput`. The latter also has `grid`, the rows and columns
            of the regions, which [`attention_maps`] reads, or `None` if it is not known. Attentions that the model
            does not have are `None` and not a tuple of `None` per step.
        """
        kwargs = {**getattr(kwargs.get("custom_generate"), "generation_defaults", {}), **kwargs}
        self._check_generation_sizes(kwargs)
        encoder_outputs = kwargs.pop("encoder_outputs", None)
        if encoder_outputs is None:
            if inputs is not None and kwargs.get("pixel_values") is not None:
                raise ValueError("only one of `inputs` and `pixel_values` may be given, got both")
            pixel_values = kwargs.pop("pixel_values", None)
            settings = kwargs.get("generation_config") or self.generation_config
            wanted = {
                name: kwargs.get(name, getattr(settings, name, None))
                for name in ("output_attentions", "output_hidden_states")
            }
            encoder_outputs = self.get_encoder()(
                pixel_values=pixel_values if inputs is None else inputs,
                image_features=kwargs.pop("image_features", None),
                grid=kwargs.pop("grid", None),
                **wanted,
            )
            inputs = None
        outputs = super().generate(inputs, *args, encoder_outputs=encoder_outputs, **kwargs)
        if isinstance(outputs, ModelOutput):
            outputs.grid = getattr(encoder_outputs, "grid", None)
            for name in ("decoder_attentions", "cross_attentions"):
                steps = getattr(outputs, name, None)
                if steps is not None and all(step is None or all(layer is None for layer in step) for step in steps):
                    setattr(outputs, name, None)
        return outputs

    def _check_generation_sizes(self, options: dict) -> None:
        settings = [options, options.get("generation_config"), self.generation_config]
        for name, (smallest, largest) in GENERATION_BOUNDS.items():
            for source in settings:
                value = source.get(name) if isinstance(source, dict) else getattr(source, name, None)
                if value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
                    raise ValueError(f"`{name}` must be a whole number from {smallest} to {largest}, got {value!r}")
                break

    def attention_maps(
        self, outputs: ModelOutput, grid: tuple[int, int] | None = None, layer: int = -1, head: int | None = None
    ) -> torch.FloatTensor:
        """
        Attention over the image for each generated token.

        Args:
            outputs: what `generate(output_attentions=True, return_dict_in_generate=True)` returned.
            grid: (h, w), the rows and columns of regions, by default those in `outputs`.
            layer: decoder layer.
            head: attention head; the mean over heads if `None`.

        Returns:
            (N, tokens, h, w): weights over the grid for every generated token of every returned sequence, EOS
            included, zero after EOS. They sum to 1, or to less where prefix tokens (`keep_prefix_tokens`), which have
            no place in the grid, get a part of the attention.

        Raises:
            ValueError: if there are no attentions in `outputs`, the grid is not known, or it does not have as many
                cells as there are regions.

        Examples:
            >>> import torch
            >>> from transformers import ResNetConfig
            >>> from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
            >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
            >>> config = RnnCaptionerConfig(attention="additive", vision_config=vision, vocab_size=40, hidden_size=16)
            >>> model = RnnCaptionerForConditionalGeneration(config).eval()
            >>> options = dict(output_attentions=True, return_dict_in_generate=True)
            >>> outputs = model.generate(torch.randn(2, 3, 32, 48), min_new_tokens=5, max_new_tokens=5, **options)
            >>> maps = model.attention_maps(outputs)
            >>> maps.shape  # of two images, five tokens, 4 rows and 6 columns
            torch.Size([2, 5, 4, 6])
            >>> torch.allclose(maps.sum((2, 3)), torch.ones(2, 5))
            True
        """
        cross_attentions = getattr(outputs, "cross_attentions", None)
        if cross_attentions is None or cross_attentions[0] is None:
            why = "" if self.config.attends else " and a model that attends"
            raise ValueError(
                "`outputs` must come from generate(output_attentions=True, return_dict_in_generate=True)"
                f"{why}, got no cross_attentions"
            )
        prefix = self.vision_encoder.num_prefix_regions
        num_regions = cross_attentions[0][layer].shape[-1] - prefix
        if grid is None:
            grid = getattr(outputs, "grid", None)
        if grid is None:
            raise ValueError(
                f"`grid` must be given for the {num_regions} regions, since `outputs` come from features without one, "
                "got None"
            )
        if grid[0] * grid[1] != num_regions:
            raise ValueError(f"`grid` must have {num_regions} cells, one per region, got {tuple(grid)}")

        steps = len(cross_attentions)
        generated = outputs.sequences[:, -steps:] if steps else outputs.sequences[:, :0]
        beam_indices = getattr(outputs, "beam_indices", None)
        if beam_indices is None:
            rows = torch.arange(len(generated), device=generated.device)[:, None].expand(-1, steps)
        else:
            # Beam search returns no more tokens than its longest returned sequence, fewer than the steps it ran.
            generated = outputs.sequences[:, outputs.sequences.shape[1] - beam_indices.shape[1] :]
            steps = min(steps, beam_indices.shape[1])
            rows = beam_indices[:, :steps].clamp(min=0)
        maps = []
        for step in range(steps):
            weights = cross_attentions[step][layer][rows[:, step], :, -1, prefix:]  # (N, heads, h * w)
            maps.append(weights.mean(1) if head is None else weights[:, head])
        maps = torch.stack(maps, dim=1)  # (N, tokens, h * w)
        after = self.ends_before(generated[:, :steps]).to(maps.device)
        return maps.masked_fill(after[..., None], 0).unflatten(-1, tuple(grid))
