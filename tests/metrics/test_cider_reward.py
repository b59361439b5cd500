"""CIDEr-D in a training loop: cooked references, document frequencies from elsewhere and from a file."""

import numpy as np
import pytest
from testing.caption_corpora import generated_corpus

from hf_captioner.metrics import Cider, CiderD, DocumentFrequency

REFERENCES = [
    [["a", "red", "dog", "runs"], ["the", "dog", "runs"]],
    [["a", "blue", "cat"]],
    [["two", "birds", "fly"], ["birds", "in", "the", "air"], ["a", "bird"]],
]


def test_taking_images_scores_as_the_whole_corpus_does():
    candidates, references = generated_corpus(80, seed=4)
    scorer = CiderD(DocumentFrequency.from_references(references))
    cooked = scorer.cook(references)
    whole = scorer.score(candidates, cooked)
    images = np.random.default_rng(0).integers(80, size=200)  # in any order, several times, some not at all
    again = scorer.score([candidates[image] for image in images], cooked.take(images))
    np.testing.assert_allclose(again, whole[images], atol=1e-12)
    np.testing.assert_allclose(scorer.score([candidates[3]], cooked.take([3])), whole[[3]], atol=1e-12)
    assert len(set(whole.round(6))) > 40


def test_several_samples_of_an_image_are_scored_each():
    scorer = CiderD(DocumentFrequency.from_references(REFERENCES))
    cooked = scorer.cook(REFERENCES).take([0, 0, 1])
    good, bad, cat = scorer.score([["a", "red", "dog", "runs"], ["a", "cat"], ["a", "blue", "cat"]], cooked)
    assert good > 3 and bad < 0.1 and cat > 7


def test_a_single_image_means_something_with_frequencies_from_a_corpus():
    reference = [REFERENCES[0]]
    alone = CiderD(DocumentFrequency.from_references(reference))
    assert alone.score([["the", "dog", "runs"]], alone.cook(reference)) == [0]
    corpus = CiderD(DocumentFrequency.from_references(REFERENCES))
    expected = corpus.score([["the", "dog", "runs"], ["x"], ["x"]], corpus.cook(REFERENCES))[0]
    assert corpus.score([["the", "dog", "runs"]], corpus.cook(reference)) == pytest.approx([expected])
    assert expected > 1


@pytest.mark.parametrize("kind", [Cider, CiderD])
def test_ngrams_that_the_frequencies_lack_weigh_as_if_met_once(kind):
    frequency = DocumentFrequency.from_references(REFERENCES)
    scorer = kind(frequency)
    strange = [[["quite", "another", "thing"]]]
    assert scorer.score([["quite", "another", "thing"]], scorer.cook(strange))[0] == pytest.approx(7.5)  # no 4-gram
    # "dog" occurs in one image of three, as does, by the rule, a word never met
    known = scorer.score([["dog", "x"]], scorer.cook([[["dog", "y"]]]))
    unknown = scorer.score([["fox", "x"]], scorer.cook([[["fox", "y"]]]))
    assert known == pytest.approx(unknown) and known > 0


def test_frequencies_count_images_not_captions():
    frequency = DocumentFrequency.from_references(REFERENCES)
    one = DocumentFrequency.from_references([[["dog"]], [["x"]], [["y"]]])
    assert frequency.num_images == 3
    assert frequency.inverse(one.ngrams[one.counts == 1]).max() == pytest.approx(np.log(3))
    # "a" stands in all three images: log(3 / 3)
    scorer = Cider(frequency)
    assert scorer.score([["a"]], scorer.cook([[["a"]]])) == [0]


def test_frequencies_survive_a_file(tmp_path):
    candidates, references = generated_corpus(40, seed=5)
    frequency = DocumentFrequency.from_references(references)
    frequency.save(tmp_path / "frequencies")
    loaded = DocumentFrequency.load(tmp_path / "frequencies")
    expected = CiderD(frequency).score(candidates, CiderD(frequency).cook(references))
    np.testing.assert_array_equal(CiderD(loaded).score(candidates, CiderD(loaded).cook(references)), expected)
    with np.load(tmp_path / "frequencies", allow_pickle=False) as file:
        assert set(file) == {"ngrams", "counts", "num_images"}


def test_names_of_ngrams_do_not_depend_on_the_process():
    # a file must mean the same tomorrow: Python's own hash() would not
    assert DocumentFrequency.from_references([[["dog"]]]).ngrams.tolist() == [11501171807684625465]


def test_errors_name_the_field(tmp_path):
    scorer = CiderD(DocumentFrequency.from_references(REFERENCES))
    with pytest.raises(ValueError, match="candidates must be one for each of the 3 images, got 1"):
        scorer.score([["a"]], scorer.cook(REFERENCES))
    with pytest.raises(ValueError, match=r"references\[1\] must hold at least one caption"):
        scorer.cook([[["a"]], []])
    with pytest.raises(ValueError, match="num_images must be at least 1, got 0"):
        DocumentFrequency.from_references([])
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="path must be a file that DocumentFrequency.save wrote"):
        DocumentFrequency.load(tmp_path / "other.npz")
