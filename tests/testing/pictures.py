"""Pictures of every kind that there is: what a person sees in the good ones, and bad ones."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def noise(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return values.repeat(8, 0).repeat(8, 1)


def saved(values: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(file, kind, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 black pixels in a hundred kilobytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(bytes(3751 * 1000)) for _ in range(30)) + packer.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def good_files() -> dict[str, tuple[bytes, np.ndarray]]:
    """name -> (content, what a person sees)"""
    found = {}

    def add(name: str, content: bytes, seen: np.ndarray | Image.Image) -> None:
        found[name] = content, np.asarray(seen)

    rgb, other = noise(), noise(seed=1)
    grey, alpha = rgb[..., 0], other[..., 1]
    as_rgb = np.repeat(grey[..., None], 3, -1)
    over_white = Image.alpha_composite(
        Image.new("RGBA", (56, 40), "white"), Image.fromarray(np.dstack([rgb, alpha]))
    ).convert("RGB")
    add("plain.png", saved(rgb), rgb)
    add("grey16.png", saved(grey.astype(np.uint16) * 257), as_rgb)
    add("deep32.tif", saved(Image.fromarray(grey.astype(np.int32) * 257), "TIFF"), as_rgb)
    add("float.tif", saved(Image.fromarray((grey / 255).astype(np.float32)), "TIFF"), as_rgb)
    add("rgba.png", saved(np.dstack([rgb, alpha])), over_white)
    add("hidden.png", saved(np.dstack([rgb, np.zeros_like(grey)])), np.full_like(rgb, 255))
    add("hidden.webp", saved(np.dstack([rgb, np.zeros_like(grey)]), "WEBP", lossless=True), np.full_like(rgb, 255))
    half = np.where(alpha > 127, 255, 0).astype(np.uint8)
    grey_over = np.where(half[..., None] == 255, as_rgb, 255).astype(np.uint8)
    add("grey_alpha.png", saved(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(half)])), grey_over)
    palette = Image.fromarray(rgb).quantize(16)
    holes = np.asarray(palette) == 3
    add("palette.png", saved(palette), palette.convert("RGB"))
    seen = np.where(holes[..., None], 255, np.asarray(palette.convert("RGB"))).astype(np.uint8)
    add("see_through.png", saved(palette, transparency=3), seen)
    cmyk = saved(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=95)
    add("print.jpg", cmyk, Image.open(io.BytesIO(cmyk)).convert("RGB"))
    one_bit = Image.fromarray(grey).convert("1")
    add("one_bit.png", saved(one_bit), one_bit.convert("RGB"))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = saved(rgb, "JPEG", exif=exif, quality=95)
        stored = Image.fromarray(np.asarray(Image.open(io.BytesIO(content))))
        upright = stored.transpose(TURNS[orientation]) if orientation in TURNS else stored
        add(f"turned{orientation}.jpg", content, upright)
    frames = dict(save_all=True, append_images=[Image.fromarray(other).quantize(16)], duration=50)
    add("moving.gif", saved(palette, "GIF", **frames), palette.convert("RGB"))
    frames = dict(save_all=True, append_images=[Image.fromarray(other)], duration=50, lossless=True)
    add("moving.webp", saved(rgb, "WEBP", **frames), rgb)
    add("dot.png", saved(rgb[:1, :1]), rgb[:1, :1])
    line = np.random.default_rng(2).integers(0, 256, (1, 10_000, 3)).astype(np.uint8)
    add("line.png", saved(line), line)
    add("column.png", saved(line.transpose(1, 0, 2)), line.transpose(1, 0, 2))
    add("really_a_png.jpg", saved(rgb), rgb)
    add("new\nline, \U0001f415 and \u05d0\u0301.png", saved(rgb), rgb)
    return found


def bad_files() -> dict[str, bytes]:
    nan = np.full((8, 8), 0.5, np.float32)
    nan[2, 3] = np.nan
    photo = saved(noise(200, 200), "JPEG")
    tiff = saved(noise(), "TIFF")
    return {
        "bomb.png": bomb(),
        "nan.tif": saved(Image.fromarray(nan), "TIFF"),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "words.jpg": b"these are words",
        "empty.png": b"",
        "cut.jpg": photo[: len(photo) // 2],
        "cut.png": saved(noise())[:200],
        "cut.tif": tiff[:40] + bytes(len(tiff) - 40),
        "zeros.png": bytes(2000),
        "phone.heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(500),
        "head.webp": saved(noise(), "WEBP")[:30],
        "broken\n\U0001f415.gif": saved(Image.fromarray(noise()).quantize(16), "GIF")[:50],
    }


# Good ones are content and what a person sees.
GOOD, BAD = good_files(), bad_files()
