"""What `generate()` and a training step are timed beside: a bare loop, a tutorial's loop, models of transformers."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BlipTextConfig,
    PreTrainedModel,
    ResNetConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from .. import (
    RnnCaptionerConfig,
    RnnCaptionerForConditionalGeneration,
    TransformerCaptionerConfig,
    TransformerCaptionerForConditionalGeneration,
)
from .parsing import CommandParser

START, PAD = 2, 1
LEAST_ROUNDS = 3  # however long they take
# name: how its configuration differs
SYSTEMS = {
    "none": {"attention": "none"},
    "additive": {"attention": "additive"},
    "dot": {"attention": "dot"},
    "scaled_dot": {"attention": "scaled_dot"},
    "multi_head": {"attention": "multi_head"},
    "cnn_transformer": {},
    "vit_transformer": {"encoder_layers": 0, "tie_word_embeddings": True},  # as in the models beside it
}


def read_arguments(arguments: type, small: dict[str, Any], argv: list[str] | None, description: str | None) -> Any:
    """
    A benchmark's arguments, with the sizes of `small` where `--small` asks for them. torch gets the `threads` that
    they name.

    Raises:
        InputError: as [`CommandParser.parse`].
    """
    (args,) = CommandParser(arguments, description=description).parse(argv)
    if args.small:
        for name, value in small.items():
            setattr(args, name, value)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return args


def in_turns(
    runs: dict[str, Callable[[], object]], rounds: int, device: str, seconds: float = float("inf")
) -> dict[str, list[float]]:
    """
    Times all that is compared, one after the other in every round; a first round warms up.

    Args:
        runs: by name, what is timed.
        rounds: how many, without the first.
        device: on which they run.
        seconds: after which no round begins, if there are `LEAST_ROUNDS`.

    Returns:
        the seconds of every round.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    end = time.monotonic() + seconds
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device != "cpu":
                torch.accelerator.synchronize()
            if round_:
                found[name].append(time.perf_counter() - start)
        if round_ >= LEAST_ROUNDS and time.monotonic() > end:
            break
    return found


def of_length(tokens: int, num_beams: int) -> dict:
    """Options of `generate()` for captions of so many tokens."""
    return dict(max_new_tokens=tokens, min_new_tokens=tokens, num_beams=num_beams, do_sample=False)


def build(system: str, width: int, sizes: dict[str, int]) -> PreTrainedModel:
    """
    A captioner with random weights, no caption of which ends before its last token.

    Args:
        system: one of `SYSTEMS`.
        width: channels of a region.
        sizes: `vocab_size`, `hidden_size`, and of a Transformer `layers`, `heads` and `intermediate_size`.
    """
    vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, width], depths=[1, 1], layer_type="bottleneck")
    common = dict(vision_config=vision, vocab_size=sizes["vocab_size"], hidden_size=sizes["hidden_size"])
    if "attention" in SYSTEMS[system]:
        model = RnnCaptionerForConditionalGeneration(RnnCaptionerConfig(**common, **SYSTEMS[system]))
    else:
        layers = {"encoder_layers": sizes["layers"], "decoder_layers": sizes["layers"], **SYSTEMS[system]}
        heads, inner = sizes["heads"], sizes["intermediate_size"]
        model = TransformerCaptionerForConditionalGeneration(
            TransformerCaptionerConfig(**common, **layers, num_attention_heads=heads, intermediate_size=inner)
        )
    model.generation_config.eos_token_id = None
    return model.eval()


def searched(model: PreTrainedModel, features: torch.Tensor, tokens: int, num_beams: int) -> torch.Tensor:
    """What our `generate()` says of regions (B, L, D): (B, T)."""
    return model.generate(image_features=features, **of_length(tokens, num_beams))[:, 1:]


@torch.no_grad()
def bare_search(model: PreTrainedModel, features: torch.Tensor, tokens: int, num_beams: int) -> torch.Tensor:
    """
    The same search over the same modules, with nothing but what captions of one length need.

    Returns:
        captions (B, T).
    """
    encoded = model.get_encoder()(image_features=features)
    cache, images = model.model.make_cache(), len(features)
    words = torch.full((images * num_beams, 1), START, device=features.device)
    said = words[:, :0]
    scores = torch.full((images, num_beams), -torch.inf, device=features.device)
    scores[:, 0] = 0
    first = num_beams * torch.arange(images, device=features.device)[:, None]
    for _ in range(tokens):
        hidden = model.model.decoder(words, encoded, past_key_values=cache).last_hidden_state
        logits = model.lm_head(hidden[:, -1])
        if num_beams == 1:
            words = logits.argmax(-1, keepdim=True)
            said = torch.cat([said, words], dim=1)
            continue
        vocabulary = logits.shape[-1]
        totals = scores[..., None] + logits.float().log_softmax(-1).view(images, num_beams, vocabulary)
        scores, best = totals.flatten(1).topk(num_beams)
        rows, words = (first + best // vocabulary).flatten(), (best % vocabulary).view(-1, 1)
        said = torch.cat([said[rows], words], dim=1)
        cache.reorder_cache(rows)
    return said.view(images, num_beams, tokens)[:, 0]


class TutorialCaptioner(nn.Module):
    """
    Show, Attend and Tell as tutorials write it (after S. Vinodababu, "a PyTorch Tutorial to Image Captioning", 2018):
    regions are repeated for every caption and every beam, their projection is computed anew at every word, and
    captions are searched for one image after the other.

    Args:
        width: channels of a region.
        hidden: of the LSTM, the embeddings and the attention.
        vocabulary: number of words.
    """

    def __init__(self, width: int, hidden: int, vocabulary: int):
        super().__init__()
        self.encoder_att, self.decoder_att = nn.Linear(width, hidden), nn.Linear(hidden, hidden)
        self.full_att = nn.Linear(hidden, 1)
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.decode_step = nn.LSTMCell(hidden + width, hidden)
        self.init_h, self.init_c = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.f_beta = nn.Linear(hidden, width)
        self.fc = nn.Linear(hidden, vocabulary)

    def begin(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = regions.mean(dim=1)
        return self.init_h(mean), self.init_c(mean)

    def step(self, words, regions, h, c) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Words (N,), regions (N, L, D) and the state (N, H) give logits (N, V) and the next state."""
        att = self.full_att(torch.relu(self.encoder_att(regions) + self.decoder_att(h).unsqueeze(1))).squeeze(2)
        alpha = att.softmax(dim=1)
        awe = torch.sigmoid(self.f_beta(h)) * (regions * alpha.unsqueeze(2)).sum(dim=1)
        h, c = self.decode_step(torch.cat([self.embedding(words), awe], dim=1), (h, c))
        return self.fc(h), h, c

    @torch.no_grad()
    def search(self, features: torch.Tensor, tokens: int, num_beams: int) -> torch.Tensor:
        """Captions (B, T) of regions (B, L, D)."""
        found = []
        for image in features:
            regions = image[None].expand(num_beams, *image.shape)
            words = torch.full((num_beams,), START, device=features.device)
            said, scores = words[:, None][:, :0], torch.zeros(num_beams, 1, device=features.device)
            h, c = self.begin(regions)
            for place in range(tokens):
                logits, h, c = self.step(words, regions, h, c)
                totals = scores + logits.log_softmax(dim=1)
                # all beams are the same before the first word
                scores, best = (totals[0] if place == 0 else totals.view(-1)).topk(num_beams)
                rows, words, scores = best // logits.shape[1], best % logits.shape[1], scores.unsqueeze(1)
                said, h, c = torch.cat([said[rows], words[:, None]], dim=1), h[rows], c[rows]
            found.append(said[0])
        return torch.stack(found)

    def forward(self, image_features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss of captions (B, k, T): every one has its own copy of the regions (B, L, D)."""
        regions, labels = image_features.repeat_interleave(labels.shape[1], dim=0), labels.flatten(0, 1)
        words = torch.cat([torch.full_like(labels[:, :1], START), labels[:, :-1]], dim=1)
        h, c = self.begin(regions)
        logits = []
        for place in range(labels.shape[1]):
            one, h, c = self.step(words[:, place], regions, h, c)
            logits.append(one)
        return nn.functional.cross_entropy(torch.stack(logits, dim=1).flatten(0, 1), labels.flatten())


def vision_encoder_decoder(width: int, sizes: dict[str, int]) -> VisionEncoderDecoderModel:
    """With a BERT decoder of these sizes; of its vision model only the width counts here."""
    hidden, layers, heads = sizes["hidden_size"], sizes["layers"], sizes["heads"]
    vision = ViTConfig(
        hidden_size=width, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32
    )
    text = BertConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=sizes["intermediate_size"],
        is_decoder=True,
        add_cross_attention=True,
    )
    return encoder_decoder(vision, BertLMHeadModel(text)).eval()


def encoder_decoder(vision: ViTConfig, decoder: PreTrainedModel) -> VisionEncoderDecoderModel:
    """transformers' model of a ViT and a decoder; no caption ends before its last token."""
    model = VisionEncoderDecoderModel(encoder=ViTModel(vision, add_pooling_layer=False), decoder=decoder)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = START
    model.config.pad_token_id = model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model


def encoder_decoder_search(model, features: torch.Tensor, tokens: int, num_beams: int) -> torch.Tensor:
    given = BaseModelOutput(last_hidden_state=features)
    return model.generate(encoder_outputs=given, **of_length(tokens, num_beams))[:, 1:]


def encoder_decoder_loss(model, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of captions (B, k, T); it takes one caption for an image, so regions (B, L, D) are repeated."""
    repeated = BaseModelOutput(last_hidden_state=features.repeat_interleave(labels.shape[1], dim=0))
    return model(encoder_outputs=repeated, labels=labels.flatten(0, 1)).loss


def blip_decoder(width: int, sizes: dict[str, int]) -> BlipTextLMHeadModel:
    """BLIP's text decoder, which attends to regions of this width."""
    config = BlipTextConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        encoder_hidden_size=width,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["intermediate_size"],
        is_decoder=True,
        bos_token_id=START,
        pad_token_id=PAD,
        eos_token_id=None,
        sep_token_id=None,
    )
    model = BlipTextLMHeadModel(config)
    model.generation_config.eos_token_id = None
    return model.eval()


def blip_loss(model, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of captions (B, k, T), with regions (B, L, D) repeated for each."""
    repeated = features.repeat_interleave(labels.shape[1], dim=0)
    words = nn.functional.pad(labels.flatten(0, 1), (1, 0), value=START)  # of which it predicts all but the first
    return model(input_ids=words, encoder_hidden_states=repeated, labels=words, is_decoder=True).loss


def blip_search(model, features: torch.Tensor, tokens: int, num_beams: int) -> torch.Tensor:
    """As `BlipForConditionalGeneration.generate` calls it."""
    start = torch.full((len(features), 1), START, device=features.device)
    seen = torch.ones(features.shape[:2], dtype=torch.long, device=features.device)
    given = dict(encoder_hidden_states=features, encoder_attention_mask=seen, pad_token_id=PAD)
    return model.generate(input_ids=start, **given, **of_length(tokens, num_beams))[:, 1:]
