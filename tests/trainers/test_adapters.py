"""Adapters in a vision model: nothing to begin with, low-rank changes later, and plain weights in the end."""

import torch
from testing.tiny_models import random_images, random_labels, tiny_model, tiny_vit

from hf_captioner.trainers.adapters import add_adapters


def test_adapters_of_a_vit_are_trained_alone_and_merged():
    model = tiny_model(vision_config=tiny_vit())
    pixels, labels = random_images(), random_labels()
    encoder, before = model.vision_encoder, {n: t.clone() for n, t in model.vision_encoder.state_dict().items()}
    with torch.no_grad():
        plain = encoder(pixels)[0]
    adapted = add_adapters(encoder, 2)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels)[0], plain)  # they add nothing yet
    model.train()
    learn = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert learn and all("lora" in name and "pooler" not in name for name in learn)
    optimizer = torch.optim.SGD(learn.values(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(pixel_values=pixels, labels=labels).loss.backward()
        assert all(p.grad is not None for p in learn.values())
        optimizer.step()
    model.eval()
    with torch.no_grad():
        trained = encoder(pixels)[0]
        adapted.merge_and_unload()
        merged = encoder(pixels)[0]
    assert (trained - plain).abs().max() > 1e-3
    torch.testing.assert_close(merged, trained)
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    changes = {name: after[name] - before[name] for name in after if not torch.equal(after[name], before[name])}
    assert changes and all(torch.linalg.matrix_rank(change, rtol=1e-3) <= 2 for change in changes.values())
