"""Reading images ahead of their use."""

import io
import pickle
import tarfile
import threading
import time

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from hf_captioner.data.image_files import ImageFile, ImageFiles, images_of, read_ahead
from hf_captioner.errors import InputError

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


def pictures(count: int) -> list[bytes]:
    """Images of one colour each, as PNG: the brightness of image `i` is `i`."""
    found = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.new("L", (3, 2), number).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def seen(images) -> list[int]:
    sources = (image.source() for image in images)
    return [(Image.open(one) if isinstance(one, str) else one).getpixel((0, 0)) for one in sources]


def tar_file(path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return str(path)


def test_a_shard_has_an_image_of_each_key(tmp_path):
    one, two, three, four = pictures(4)
    members = [("a/0.jpg", one), ("a/0.txt", b"a dog"), ("a/0.png", four), ("a/1.json", b"{}"), ("a/1.PNG", two)]
    members += [("b/1.jpeg", three), ("._c.jpg", b"no image"), ("d.jpg", b"words"), ("e.seg.png", four)]
    path = tar_file(tmp_path / "some.tar", members)
    found = list(ImageFiles([str(tmp_path / "*.tar")]))
    assert [image.name for image in found] == [
        f"{path}[{name}]" for name in ("a/0.jpg", "a/1.PNG", "b/1.jpeg", "d.jpg")
    ]
    assert seen(found[:3]) == [0, 1, 2]
    with pytest.raises(OSError, match="cannot identify an image in 5 bytes"):
        found[3].source()
    assert ImageFiles([path]).tables == [path]


def test_a_shard_that_ends_too_early_is_refused(tmp_path):
    path = tar_file(tmp_path / "some.tar", [(f"{number}.png", one) for number, one in enumerate(pictures(9))])
    content = (tmp_path / "some.tar").read_bytes()
    for cut in (700, 0):
        (tmp_path / "some.tar").write_bytes(content[:cut])
        with pytest.raises(InputError, match="some.tar must be a tar file that can be read"):
            ImageFiles([path])


@pytest.fixture
def many(tmp_path) -> list[str]:
    """Twelve images in a table with row groups of five, three in a shard, and two files."""
    found = pictures(17)
    cells = [{"bytes": one, "path": None} for one in found[2:14]]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), tmp_path / "table.parquet", row_group_size=5)
    tar_file(tmp_path / "shard.tar", [(f"{number}.png", one) for number, one in enumerate(found[14:])])
    for number, one in enumerate(found[:2]):
        (tmp_path / f"{number}.png").write_bytes(one)
    return [str(tmp_path), str(tmp_path / "table.parquet"), str(tmp_path / "shard.tar")]


def test_parts_are_the_images_in_order(many):
    images = ImageFiles(many)
    assert len(images) == 17 and seen(images) == list(range(17))
    names = [image.name for image in images]
    for size in range(1, 19):
        parts = pickle.loads(pickle.dumps(images.parts(size)))
        read = [list(images_of(part)) for part in parts]
        assert {len(part) for part in read[:-1]} <= {size} and 1 <= len(read[-1]) <= size
        assert [image.name for part in read for image in part] == names
        assert [number for part in read for number in seen(part)] == list(range(17))


def test_a_part_of_a_table_does_not_read_the_rest_of_it(many, monkeypatch):
    groups = []
    usual = pyarrow.parquet.ParquetFile.iter_batches

    def iter_batches(*args, row_groups, **kwargs):
        groups.append(row_groups)
        return usual(*args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", iter_batches)
    for part in ImageFiles(many).parts(4):  # rows until 2, 6, 10 and 12 of the table
        list(images_of(part))
    assert groups == [[0], [0, 1], [1], [2]]


def test_the_digest_is_of_names_and_their_order(many, tmp_path):
    digest = ImageFiles(many).digest()
    assert digest == ImageFiles([*many, many[1]]).digest()  # each image once
    assert digest != ImageFiles(many[::-1]).digest()
    (tmp_path / "2.png").touch()
    assert digest != ImageFiles(many).digest()
