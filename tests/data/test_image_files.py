"""Reading images ahead of their use."""

import threading
import time

import pytest

from hf_captioner.data.image_files import ImageFile, read_ahead

IMAGES = [ImageFile(str(number)) for number in range(40)]


def test_reads_ahead_in_order_and_no_further_than_told():
    lock, read = threading.Lock(), []

    def function(image):
        time.sleep(0.001 * (int(image.name) % 3))
        with lock:
            read.append(image.name)
        return int(image.name)

    found = []
    for image, result in read_ahead(function, iter(IMAGES), threads=4, ahead=8):
        time.sleep(0.002)
        found.append(result)
        assert image.name == str(result)
        assert len(read) <= len(found) + 8
        if len(found) == 10:
            assert len(read) > 11, "others were read meanwhile"
    assert found == list(range(40))


def test_an_exception_is_the_result_of_its_image():
    def function(image):
        if image.name == "3":
            raise KeyError("three")
        return image.name

    results = [result for _, result in read_ahead(function, IMAGES[:6], threads=2, ahead=3)]
    assert isinstance(results[3], KeyError) and [one for one in results if isinstance(one, str)] == list("01245")


def test_leaves_no_work_behind():
    started = []

    def function(image):
        started.append(image)
        time.sleep(0.02)

    reading = read_ahead(function, IMAGES, threads=1, ahead=30)
    next(reading)
    reading.close()
    count = len(started)
    time.sleep(0.1)
    assert len(started) <= count + 1 and count < 10


def test_an_objection_is_raised():
    with pytest.raises(OSError, match="^not this one$"):
        ImageFile("x.png", objection="not this one").source()
