"""
Does a captioner trained on shapes look at what it names?

    python training/measure_pointing.py --model outputs/quickstart --rows 500

Every time that a caption, one of the image's references word for word, says "circle", "square", "triangle" or
"diamond", the reference tells which object is meant. It is a hit if the centre of the cell with the largest weight at
that word lies in the object's box. Weights are the mean over heads; with several layers each is reported, and their
mean. `pointing_near` lets the peak lie up to one cell beside the box: neighbouring cells see the same object, and
nothing in the loss prefers the one in its middle. `pointing_in_phrase` counts a hit at the shape's word or at one of
the two before it, its size and colour in most captions: a decoder may take in an object at once and remember it.
"""

import json
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from ..data import shapes_dataset
from ..data.shapes import IMAGE_SIZE, is_hit, named_objects
from ..models.tokenization_captioner import decode_captions
from . import run
from .inputs import read_captioner
from .parsing import CommandParser


@dataclass
class Arguments:
    """What to measure on."""

    model: str = field(metadata={"help": "folder of a captioner trained on shapes"})
    rows: int = field(default=500, metadata={"help": "number of images"})
    seed: int = field(default=1, metadata={"help": "seed of the shapes; use another one than for training"})
    num_beams: int = field(default=1, metadata={"help": "beams of the captions"})
    batch_size: int = field(default=50, metadata={"help": "number of images processed at once"})


@torch.no_grad()
def measure(model, processor, dataset, num_beams: int, batch_size: int) -> dict[str, float]:
    """
    `exact_match`; `named`, the number of words that name a shape; `pointing`, the share of these words whose attention
    peak lies in the object's box; for models with several layers also per layer.
    """
    exact, named, hits = 0, 0, {}
    for start in tqdm(range(0, len(dataset), batch_size), desc="captioning", unit="batch"):
        rows = dataset[start : start + batch_size]
        rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        pixels = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
        outputs = model.generate(
            pixel_values=pixels, num_beams=num_beams, output_attentions=True, return_dict_in_generate=True
        )
        layers = range(len(outputs.cross_attentions[0]))
        maps = {f"pointing_layer_{layer}": model.attention_maps(outputs, layer=layer) for layer in layers}
        maps["pointing"] = sum(maps.values()) / len(layers)
        captions = decode_captions(processor.tokenizer, outputs.sequences)
        for index, (row, caption) in enumerate(zip(rows, captions, strict=True)):
            if caption not in row["captions"]:
                continue
            exact += 1
            tokens = processor.tokenizer.convert_ids_to_tokens(outputs.sequences[index, 1:].tolist())
            for place, box in named_objects(tokens, caption, row):
                named += 1
                for name, weights in maps.items():
                    hits[name] = hits.get(name, 0) + is_hit(weights[index, place], box)
                near = is_hit(maps["pointing"][index, place], box, margin=IMAGE_SIZE / outputs.grid[1])
                hits["pointing_near"] = hits.get("pointing_near", 0) + near
                phrase = maps["pointing"][index, max(place - 2, 0) : place + 1]
                looked = any(is_hit(word, box) for word in phrase)
                hits["pointing_in_phrase"] = hits.get("pointing_in_phrase", 0) + looked
    shares = {name: count / named for name, count in hits.items()}
    if len(layers) == 1:  # it is its own mean
        shares.pop("pointing_layer_0", None)
    return {"exact_match": exact / len(dataset), "named": named, **shares}


def main(argv: list[str] | None = None) -> None:
    (args,) = CommandParser(Arguments, description=__doc__).parse(argv)
    model, processor = read_captioner(args.model)
    model.eval()
    dataset = shapes_dataset(args.rows, args.seed)
    print(json.dumps(measure(model, processor, dataset, args.num_beams, args.batch_size), indent=2))


if __name__ == "__main__":
    run(main)
