"""
What several lessons need and is not their subject: shapes as tensors, a training loop, captions and their exact match,
maps over pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from hf_captioner import CaptionerImageProcessor, train_tokenizer
from hf_captioner.data import shapes_dataset

CNN = Path(__file__).with_name("cnn")  # a small CNN, which has learned to see shapes; see the script in that folder
GRID = (6, 6)  # rows and columns of its regions
WORDS = """a small medium large red green blue yellow purple white circle square triangle diamond that there is and,
to the left right of above below between from top bottom"""
TOKENIZER = train_tokenizer([WORDS])  # <unk> 0, <pad> 1, <bos> 2, <eos> 3, then the words and the comma


@dataclass
class Shapes:
    """
    Images of shapes with their captions. `shapes[places]` are those at these places, a list or a tensor of indices.

    Attributes:
        rows: of [`shapes_dataset`], a dictionary for each image.
        pixels: (B, 3, 48, 48), from -1 to 1.
        features: (B, 36, 64), what the CNN sees in each of 6 x 6 regions, row by row.
        labels: (B, 5, T), ids of the captions' tokens and of <eos>; -100 behind them.
    """

    rows: list[dict]
    pixels: torch.Tensor
    features: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places) -> "Shapes":
        places = torch.as_tensor(places)
        rows = [self.rows[place] for place in places.tolist()]
        return Shapes(rows, self.pixels[places], self.features[places], self.labels[places])

    def of(self, objects: int) -> "Shapes":
        """The images that show this many objects."""
        return self[[place for place, row in enumerate(self.rows) if len(row["objects"]) == objects]]


@torch.no_grad()
def load(rows: int, seed: int) -> Shapes:
    """So many images of shapes; other seeds give other images."""
    data = list(shapes_dataset(rows, seed))
    processor = CaptionerImageProcessor.from_vision_pretrained(CNN)
    pixels = processor([row["image"] for row in data], return_tensors="pt")["pixel_values"]
    cnn = AutoModel.from_pretrained(CNN, dtype=torch.float32).eval()
    features = torch.cat([cnn(some).last_hidden_state.flatten(2).mT for some in pixels.split(250)])
    ids = TOKENIZER([caption for row in data for caption in row["captions"]], padding=True, return_tensors="pt")
    labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
    return Shapes(data, pixels, features, labels.unflatten(0, (rows, -1)))


def captioner_loss(model: torch.nn.Module, batch: Shapes) -> torch.Tensor:
    """The loss of one of the package's captioners, which start from the CNN's features."""
    return model(image_features=batch.features, labels=batch.labels).loss


def train(
    model: torch.nn.Module,
    shapes: Shapes,
    steps: int,
    rate: float = 3e-3,
    images: int = 32,
    captions: int = 2,
    loss: Callable[[torch.nn.Module, Shapes], torch.Tensor] = captioner_loss,
    seed: int = 0,
) -> list[float]:
    """
    Trains with AdamW, the rate rising over the first tenth of the steps (if there are more than ten) and falling to 0
    over the rest, and prints the loss now and then.

    Args:
        model: whose parameters that have gradients are trained.
        shapes: images, from which each step draws some.
        steps, rate: number of steps, highest learning rate.
        images, captions: a step has so many images, and of each so many of its five captions.
        loss: from the model and a batch (`batch.labels` is (images, captions, T)) to a number.
        seed: of what is drawn.

    Returns:
        the loss of every step.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    rise = 0.1 if steps > 10 else 0.0  # a tenth of ten is one step, over which PyTorch divides by 0
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=rise)
    losses = []
    model.train()
    for step in range(1, steps + 1):
        batch = shapes[torch.randint(len(shapes), (images,), generator=generator)]
        batch.labels = batch.labels[:, torch.randperm(5, generator=generator)[:captions]]
        length = int((batch.labels != -100).any(dim=(0, 1)).sum())
        batch.labels = batch.labels[..., :length]
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        if step % max(steps // 5, 1) == 0:
            print(f"step {step:4}: loss {np.mean(losses[-max(steps // 5, 1) :]):.3f}")
    model.eval()
    return losses


@torch.no_grad()
def write(model: torch.nn.Module, shapes: Shapes, **options) -> list[str]:
    """The captions that one of the package's captioners writes; `options` go to `generate()`."""
    encoded = model.get_encoder()(image_features=shapes.features)
    ids = model.generate(encoder_outputs=encoded, **{"max_new_tokens": 24, "do_sample": False, **options})
    return TOKENIZER.batch_decode(ids, skip_special_tokens=True)


def exact_matches(captions: list[str], shapes: Shapes) -> np.ndarray:
    """(B,), for each image whether its caption is one of its references, word for word."""
    return np.array([caption in row["captions"] for caption, row in zip(captions, shapes.rows, strict=True)])


def draw_map(axes, row: dict, weights, title: str = "") -> None:
    """
    Draws a map (h, w), an array or any tensor, over the picture of a row. Where the weights are high, the picture
    stays bright.
    """
    size, weights = row["image"].size[0], torch.as_tensor(weights).detach().float().cpu().numpy()
    axes.imshow(row["image"], extent=(0, size, size, 0))
    dark = 1 - weights / max(weights.max(), 1e-9)
    axes.imshow(np.zeros_like(dark), cmap="gray", alpha=0.8 * dark, extent=(0, size, size, 0), vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.axis("off")
