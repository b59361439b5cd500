"""The same seed gives the same draws, order, weights and captions, however many workers and however large batches."""

import copy
import pickle

import pytest
import torch
from test_resume import CNN_TRANSFORMER, HARD, RNN, outcome, settings
from testing.kills import train_apart
from testing.tiny_models import SYSTEMS, random_images, tiny_model
from testing.training import arguments
from torch.utils.data import DataLoader

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.data import CaptionCollator, shapes_dataset


@pytest.fixture(scope="module")
def rows():
    dataset = shapes_dataset(12, seed=3).select_columns(["image", "captions"])
    return dataset.add_column("index", list(range(12)))


@pytest.fixture(scope="module")
def processor(rows):
    tokenizer = train_tokenizer([text for texts in rows["captions"] for text in texts])
    return CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)


def drawn(collator, rows, epoch, **options) -> dict[int, list]:
    """The captions that were drawn for each image."""
    collator.set_epoch(7, epoch)
    batches = DataLoader(rows, collate_fn=collator, **options)
    return {
        int(index): [[token for token in row if token != -100] for row in labels.tolist()]
        for batch in batches
        for index, labels in zip(batch["index"], batch["labels"], strict=True)
    }


def test_draws_depend_on_seed_epoch_and_row_alone(rows, processor):
    collator = CaptionCollator(processor, captions_per_image=2)
    epochs = [drawn(collator, rows, epoch, batch_size=5) for epoch in range(3)]
    assert all(len(texts) == 2 and texts[0] != texts[1] for texts in epochs[0].values())
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    torch.manual_seed(99)
    again = drawn(collator, rows, 1, batch_size=2, shuffle=True)
    assert again == epochs[1]
    stays = DataLoader(rows, batch_size=4, collate_fn=collator, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):  # workers that were started in another epoch
        collator.set_epoch(7, epoch)
        labels = [texts for batch in stays for texts in batch["labels"].tolist()]
        assert [[[t for t in row if t != -100] for row in texts] for texts in labels] == [*epochs[epoch].values()]
    assert drawn(copy.copy(collator), rows, 2, batch_size=5) == epochs[2]
    other = drawn(pickle.loads(pickle.dumps(CaptionCollator(processor, 2))), rows, 0, batch_size=12)
    assert other == epochs[0]
    plain = rows.remove_columns("index")
    collator.set_epoch(7, 0)
    first, second = (collator(list(plain.select(order)))["labels"] for order in ([0, 1, 2], [2, 1, 0]))
    width = min(first.shape[-1], second.shape[-1])
    assert torch.equal(first[:, :, :width], second.flip(0)[:, :, :width])


def test_every_caption_is_drawn_about_equally_often(processor):
    captions = ["red", "green", "blue", "white", "black"]
    collator = CaptionCollator(processor, captions_per_image=2)
    counts = dict.fromkeys(captions, 0)
    for epoch in range(20):
        collator.set_epoch(0, epoch)
        for index in range(100):
            for text in collator._choose({"captions": captions, "index": index}):
                counts[text] += 1
    assert sum(counts.values()) == 4000 and all(abs(count - 800) < 100 for count in counts.values())  # 4.5 deviations


@pytest.mark.parametrize("system", ["additive", "hard_additive", "cnn_transformer"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_do_not_depend_on_the_batch(system, num_beams):
    options, images, seen = dict(num_beams=num_beams, max_new_tokens=8), 3 * random_images(11), set()
    for seed in range(4):
        model = tiny_model(seed, **SYSTEMS[system])

        def captions(size, model=model):
            found = [row for part in images.split(size) for row in model.generate(part, **options).tolist()]
            return [tuple(token for token in row if token != 1) for row in found]

        assert captions(1) == captions(4) == captions(11)
        seen.update(captions(11))
    assert len(seen) > 3


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("system", [RNN, HARD, CNN_TRANSFORMER], ids=["RNN", "hard attention", "CNN-Transformer"])
def test_trainings_do_not_depend_on_workers(tmp_path, system):
    results = []
    for workers, stay in ((0, False), (0, False), (1, False), (2, True)):
        folder = tmp_path / f"{len(results)}"
        options = dict(dataloader_num_workers=workers, dataloader_persistent_workers=stay)
        done = train_apart(arguments(folder, **settings(**system, **options)), tmp_path / "log")
        assert done.exit == 0, done.log[-3000:]
        results.append(outcome(folder))
    assert results[0] == results[1] == results[2] == results[3]
