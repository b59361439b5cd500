"""
Makes the small CNN in this folder, from which the lessons' captioners start as real ones start from a CNN that has
seen ImageNet: it learns to say what each region shows, which shape of which colour and size, or nothing, and where
the region lies, which the background's colours tell.

    python docs/course/cnn/train.py
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel

from hf_captioner import CaptionerImageProcessor
from hf_captioner.data import shapes_dataset
from hf_captioner.data.shapes import COLORS, IMAGE_SIZE, SHAPES, SIZES

FOLDER = Path(__file__).parent
CONFIG = dict(layer_type="basic", embedding_size=24, hidden_sizes=[32, 64], depths=[1, 1])
KINDS = [("shape", SHAPES), ("color", tuple(COLORS)), ("size", tuple(SIZES))]
NOTHING = -100


def targets(rows: list[dict], grid: int) -> torch.Tensor:
    """(B, 3, grid * grid): shape, colour and size of the object whose box has the region's centre, or NOTHING."""
    answer = torch.full((len(rows), 3, grid, grid), NOTHING)
    for place, row in enumerate(rows):
        for thing in row["objects"]:
            left, top, right, bottom = (edge * grid / IMAGE_SIZE for edge in thing["box"])
            for kind, (name, values) in enumerate(KINDS):
                x, y = int((left + right) / 2), int((top + bottom) / 2)
                answer[place, kind, y, x] = values.index(thing[name])  # where the box has no region's centre
                for i in range(grid):
                    for j in range(grid):
                        if left <= j + 0.5 < right and top <= i + 0.5 < bottom:
                            answer[place, kind, i, j] = values.index(thing[name])
    return answer.flatten(2)


def main(rows: int = 2000, steps: int = 400, images: int = 32) -> None:
    torch.manual_seed(0)
    data = list(shapes_dataset(rows, seed=1000))
    processor = CaptionerImageProcessor(size={"height": 48, "width": 48}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pixels = processor([row["image"] for row in data], return_tensors="pt")["pixel_values"]
    cnn = ResNetModel(ResNetConfig(**CONFIG))
    with torch.no_grad():
        width, grid = cnn(pixels[:1]).last_hidden_state.shape[1:3]
    answers = targets(data, grid)
    heads = nn.ModuleList(
        [nn.Linear(width, len(values)) for _, values in KINDS] + [nn.Linear(width, size) for size in (2, grid, grid)]
    )
    parameters = [*cnn.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    down, right = torch.arange(grid).repeat_interleave(grid), torch.arange(grid).repeat(grid)
    test = slice(rows - 300, rows)
    for step in range(1, steps + 1):
        chosen = torch.randint(rows - 300, (images,))
        cnn.train()
        regions = cnn(pixels[chosen]).last_hidden_state.flatten(2).mT
        loss = F.cross_entropy(heads[3](regions).mT, (answers[chosen][:, 0] != NOTHING).long())
        loss = loss + F.cross_entropy(heads[4](regions).mT, down.expand(images, -1))
        loss = loss + F.cross_entropy(heads[5](regions).mT, right.expand(images, -1))
        for kind in range(3):
            loss = loss + F.cross_entropy(heads[kind](regions).mT, answers[chosen][:, kind], ignore_index=NOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            cnn.eval()
            with torch.no_grad():
                regions = cnn(pixels[test]).last_hidden_state.flatten(2).mT
            shown = answers[test][:, 0] != NOTHING
            shares = [
                (heads[kind](regions).argmax(-1) == answers[test][:, kind])[shown].float().mean().item()
                for kind in range(3)
            ]
            shares += [(heads[4](regions).argmax(-1) == down).float().mean().item()]
            shares += [(heads[5](regions).argmax(-1) == right).float().mean().item()]
            print(step, round(loss.item(), 3), "right:", [round(share, 3) for share in shares], flush=True)
    cnn.half().save_pretrained(FOLDER)
    processor.to_json_file(FOLDER / "preprocessor_config.json")


if __name__ == "__main__":
    main()
