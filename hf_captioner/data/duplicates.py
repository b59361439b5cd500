"""Finds images that are the same file or the same picture."""

import numpy as np
from PIL import Image as PILImage

NEAR = 6  # bits of 256 in which the hashes of two images may differ that are taken for the same picture


FLAT = 8  # levels of 255; an image with less contrast shows nothing that could be compared


def difference_hash(image: PILImage.Image) -> int | None:
    """
    256 bits that similar pictures share: whether each of 16 x 16 places is brighter than the one on its right, in grey
    (the "dHash" of N. Krawetz, 2013); `None` for an image of one colour. Ours and not a library's, for it is these few
    lines.
    """
    grey = np.asarray(image.convert("L").resize((17, 16), PILImage.Resampling.LANCZOS), dtype=np.int16)
    if grey.max() - grey.min() < FLAT:
        return None
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


class Pictures:
    """
    Images by content. Of two hashes that differ in at most `NEAR` bits, one of `NEAR` + 1 bands of bits is the same,
    so that only images with an equal band are compared.
    """

    def __init__(self) -> None:
        self._by_digest: dict[bytes, str] = {}
        self._by_band: dict[tuple[int, int], list[tuple[str, int]]] = {}

    def add(self, name: str, digest: bytes, picture: int | None) -> None:
        self._by_digest.setdefault(digest, name)
        if picture is not None:
            for band in self._bands(picture):
                self._by_band.setdefault(band, []).append((name, picture))

    def twin(self, digest: bytes, picture: int | None) -> tuple[str, bool] | None:
        """An image that is the same file (true), or else one that is the same picture (false)."""
        if digest in self._by_digest:
            return self._by_digest[digest], True
        if picture is None:
            return None
        for band in self._bands(picture):
            for name, other in self._by_band.get(band, []):
                if (other ^ picture).bit_count() <= NEAR:
                    return name, False
        return None

    @staticmethod
    def _bands(picture: int) -> list[tuple[int, int]]:
        width = -(-256 // (NEAR + 1))
        return [(band, picture >> (band * width) & ((1 << width) - 1)) for band in range(NEAR + 1)]
