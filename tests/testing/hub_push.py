"""
Trains a captioner of every kind for two steps and pushes it to the environment's Hub, and starts others from a vision
model there: `hub_push.py FOLDER`.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel
from transformers.image_processing_backends import PilBackend

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.models.configuration_rnn_captioner import ATTENTION_SAMPLINGS
from hf_captioner.models.configuration_rnn_captioner import ATTENTIONS as ALIGNMENTS
from testing.tiny_models import (
    ATTENTIONS,
    TRANSFORMERS,
    random_images,
    random_labels,
    tiny_config,
    tiny_model,
    tiny_vision,
)

WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z one two three four five six seven eight nine ten"
KINDS = {
    **{alignment: dict(attention=alignment) for alignment in ALIGNMENTS},
    **{sampling: dict(attention_sampling=sampling) for sampling in ATTENTION_SAMPLINGS if sampling != "soft"},
    **TRANSFORMERS,
}
assert set(ATTENTIONS) <= set(KINDS)


def main(folder: Path) -> None:
    tokenizer = train_tokenizer([WORDS], vocab_size=40)
    processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    torch.manual_seed(0)
    inputs = {"pixel_values": random_images(), "decoder_input_ids": torch.randint(0, 40, (6, 4))}
    expected = dict(inputs)
    for name, settings in KINDS.items():
        model = tiny_model(**settings)
        model.generation_config.update(max_new_tokens=6, num_beams=3)
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
        for _ in range(2):
            model(pixel_values=random_images(), labels=random_labels()).loss.backward()
            optimizer.step()
        model.eval().push_to_hub(f"user/{name}")
        processor.push_to_hub(f"user/{name}")
        with torch.no_grad():
            expected[f"{name}.logits"] = model(**inputs).logits
            expected[f"{name}.beams"] = model.generate(inputs["pixel_values"], num_beams=3).contiguous()
    # A vision model from the Hub, for either family.
    vision = AutoModel.from_config(tiny_vision())
    vision.push_to_hub("user/vision")
    PilBackend(size={"shortest_edge": 40}, image_mean=[0.1, 0.2, 0.3]).push_to_hub("user/vision")
    for kind in ("additive", "cnn_transformer"):
        config = tiny_config(**KINDS[kind])
        started = AutoModel._model_mapping[type(config)].from_vision_pretrained("user/vision", config)
        for name, tensor in started.vision_encoder.model.state_dict().items():
            assert torch.equal(tensor, vision.state_dict()[name]), name
    copied = CaptionerImageProcessor.from_vision_pretrained("user/vision")
    assert copied.size == {"height": 40, "width": 40} and list(copied.image_mean) == [0.1, 0.2, 0.3]

    model.push_to_hub("user/private", private=True)
    changed = tiny_model(seed=1, attention="additive")
    changed.push_to_hub("user/additive", revision="changed")
    changed.push_to_hub("user/branch-only", revision="dev")
    changed.push_to_hub("user/own-card", tags=["theirs"])
    tiny_model(seed=2, attention="additive").save_pretrained(
        folder / "pushed", push_to_hub=True, repo_id="user/own-card", commit_message="saved and pushed"
    )
    changed.save_pretrained(folder / "saved", push_to_hub=True, repo_id="user/saved")
    with torch.no_grad():
        expected["changed.logits"] = changed(**inputs).logits
    save_file(expected, folder / "expected.safetensors")
    (folder / "labels.json").write_text(json.dumps(processor(text_target=["one z"])["labels"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
