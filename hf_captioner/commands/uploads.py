"""What a request to the server holds: images as bytes or text, never as paths, and chats in the format of OpenAI."""

import base64
import io
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..data.image_files import ImageFile
from ..errors import InputError, shown

# What cameras, phones and web pages make. Pillow knows more, and some of it hands the file to another program (EPS) or
# holds images larger than it says (ICO).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PROMPT = 500  # characters of the text that a caption begins with
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@dataclass(frozen=True)
class Upload(ImageFile):
    """
    One image of a request, which is not decoded yet.

    Attributes:
        name: what the request calls it; no file is looked for by that name.
        content: its bytes.
        text: in their place, base64 or a `data:` URI.
        most_pixels: that it may have.
    """

    text: str = ""
    most_pixels: int = 0

    def source(self) -> Image.Image:
        """
        The image, whose pixels are not decoded yet.

        Raises:
            InputError: if the text is no base64, or the image has more pixels than it may.
            OSError: if there is no image in the bytes, or one of another format.
        """
        if self.objection is not None:
            raise InputError(self.objection)
        content = decoded(self.text) if self.content is None else self.content
        try:
            image = Image.open(io.BytesIO(content), formats=formats())
        except UnidentifiedImageError as error:  # which shows an address in memory
            known = ", ".join(formats())
            raise OSError(f"cannot identify an image ({known}) in {len(content)} bytes") from error
        except Image.DecompressionBombError:
            self._too_large("more than Pillow opens")
        if image.width * image.height > self.most_pixels:
            self._too_large(f"{image.width} x {image.height}")
        return image

    def _too_large(self, got: str) -> None:
        raise InputError(f"an image must have at most {self.most_pixels:,} pixels, got {got}") from None


def is_address(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://"))


def decoded(text: str) -> bytes:
    """
    The bytes of base64 text, or of a `data:` URI with such text.

    Raises:
        InputError: if it is neither.
    """
    head, comma, payload = text.partition(",") if text[:5].lower() == "data:" else ("", "", text)
    if head and not (comma and head.lower().endswith(";base64")):
        raise InputError(f"a `data:` URI must have base64 text, got {shown(text)}")
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except ValueError as error:
        raise InputError(f"an image must be base64 text or a `data:` URI, got {shown(text)} ({error})") from error


@dataclass(frozen=True)
class ImageText:
    """
    An image of a request in JSON.

    Attributes:
        name: where it stands there.
        text: base64, a `data:` URI, or an address.
    """

    name: str
    text: str


def read_images(body: Any) -> tuple[list[ImageText], str | None]:
    """
    Args:
        body: of a request for captions, `{"image": ...}` or `{"images": [...]}`, each base64 text, a `data:` URI or an
            address, and perhaps a `prompt`.

    Returns:
        the images, and the prompt if there is one.

    Raises:
        InputError: if it is anything else.
    """
    if not isinstance(body, dict) or ("image" in body) == ("images" in body):
        raise InputError(f"a request in JSON must be an object with `image` or `images`, got {shown(body)}")
    if "image" in body:
        texts = {"image": body["image"]}
    elif isinstance(body["images"], list) and body["images"]:
        texts = {f"images[{place}]": text for place, text in enumerate(body["images"])}
    else:
        raise InputError(f"`images` must be a list of at least one image, got {shown(body['images'])}")
    for name, text in texts.items():
        if not isinstance(text, str):
            raise InputError(f"`{name}` must be base64 text or a `data:` URI, got {shown(text)}")
    return [ImageText(name, text) for name, text in texts.items()], read_prompt(body.get("prompt"))


def read_prompt(text: Any) -> str | None:
    """
    The text that a caption begins with.

    Raises:
        InputError: if it is no text or too long.
    """
    if text is None:
        return None
    if not isinstance(text, str) or len(text) > MOST_PROMPT:
        raise InputError(f"`prompt` must be text of at most {MOST_PROMPT} characters, got {shown(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"`prompt` must be text that can be written as UTF-8, got {shown(text)}") from None
    return text


@dataclass(frozen=True)
class Chat:
    """
    A request for a chat completion.

    Attributes:
        image: to be captioned.
        prompt: with which the caption begins, if the last message is the assistant's.
        model: asked for by name, if at all.
        choices: captions wanted.
        most_tokens: of a caption.
        stream: whether the answer is to come in parts, and whether these end with the numbers of tokens.
    """

    image: ImageText
    prompt: str | None
    model: str | None
    choices: int
    most_tokens: int | None
    stream: bool
    usage: bool


def read_chat(body: Any, most_choices: int = 1) -> Chat:
    """
    What a captioner can do of a chat: say what is in an image. It follows no instructions, so what the messages say in
    words is left out. Of options, those that would change the answer's form are refused, those about how words are
    searched for (`temperature`, `top_p`, `stop`...) left out: that is the server's own.

    Args:
        body: of the request, in OpenAI's format.
        most_choices: captions that there are of an image.

    Raises:
        InputError: if it is not in that format, has no image in its messages or several in the last that has some, or
            asks for what a captioner cannot do.
    """
    if not isinstance(body, dict):
        raise InputError(f"a request must be an object in JSON, got {shown(body)}")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InputError(f"`messages` must be a list of at least one message, got {shown(messages)}")
    images: list[ImageText] = []
    prompt = None
    for place, message in enumerate(messages):
        found, text = _read_message(message, f"messages[{place}]")
        images = found or images
        prompt = text if message["role"] == "assistant" else None
    if len(images) != 1:
        raise InputError(
            f"`messages` must have one image to be captioned, as a part of type image_url, got {len(images)}"
            + (" in the last message that has some" if images else "")
        )
    model, stream = body.get("model"), body.get("stream") or False
    if model is not None and not isinstance(model, str):
        raise InputError(f"`model` must be a name, got {shown(model)}")
    if not isinstance(stream, bool):
        raise InputError(f"`stream` must be true or false, got {shown(stream)}")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise InputError(f"`stream_options` must be an object, got {shown(options)}")
    choices = _whole(body, "n", most_choices) or 1
    most_tokens = _whole(body, "max_completion_tokens") or _whole(body, "max_tokens")
    _refuse_other_answers(body)
    usage = bool(options.get("include_usage"))
    return Chat(images[0], read_prompt(prompt), model, choices, most_tokens, stream, usage)


def _read_message(message: Any, name: str) -> tuple[list[ImageText], str]:
    """The images of a message, and its text."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise InputError(f"`{name}` must be an object with a `role` of {', '.join(ROLES)}, got {shown(message)}")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return [], content or ""
    if not isinstance(content, list):
        raise InputError(f"`{name}.content` must be text or a list of parts, got {shown(content)}")
    images, texts = [], []
    for place, part in enumerate(content):
        where = f"{name}.content[{place}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, dict) else url
            if not isinstance(url, str):
                raise InputError(f"`{where}.image_url.url` must be a `data:` URI, got {shown(url)}")
            images.append(ImageText(f"{where}.image_url.url", url))
        elif kind != "refusal":
            raise InputError(f"`{where}` must be a part of type text or image_url, got {shown(part)}")
    return images, "".join(texts)


def _whole(body: dict, name: str, most: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        rule = "at least 1" if most is None else f"from 1 to {most}, the captions that there are of an image"
        raise InputError(f"`{name}` must be a whole number, {rule}, got {shown(value)}")
    return value


def _refuse_other_answers(body: dict) -> None:
    kind = body.get("response_format")
    kind = kind.get("type") if isinstance(kind, dict) else kind
    if kind not in (None, "text"):
        raise InputError(f"`response_format` must be text, as captions are, got {shown(kind)}")
    if body.get("logprobs"):
        raise InputError("`logprobs` must be left out; a choice has the caption's `score`")
    if body.get("modalities") not in (None, ["text"]):
        raise InputError(f"`modalities` must be text, as captions are, got {shown(body['modalities'])}")
