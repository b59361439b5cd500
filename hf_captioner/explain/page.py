"""The page that shows an explanation: one HTML file that needs no network, no server and no library."""

import html
import re
from pathlib import Path

from ..files import replacing
from .explanation import Explanation
from .pictures import AGAINST, BRIGHTNESS, COLOR, FOR, data_url, in_script

TEMPLATE = Path(__file__).with_name("page.html")
SIDE = 1024  # largest width or height of the image in pixels
ABOUT = {
    "attention": "the decoder's attention",
    "rollout": "the decoder's attention, led on through the encoder's (rollout)",
    "gradient": "integrated gradients of the word's log-probability",
    "occlusion": "how much the word's log-probability falls when a region is covered (occlusion)",
}


def picture(explanation: Explanation) -> str:
    """The image as a `data:` URL: small ones, which JPEG would blur, as PNG."""
    image = explanation.image.copy()
    image.thumbnail((SIDE, SIDE))
    return data_url(image, "PNG" if max(image.size) <= 256 else "JPEG", quality=85)


def write_page(path: str | Path, explanation: Explanation, name: str = "") -> None:
    """
    Writes an explanation as one HTML page: the image, and over it the map of the word that one chooses.

    Args:
        path: file to write.
        explanation: what to show.
        name: of the image, for the title.

    Examples:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.explain import ExplainedWord, Explanation, write_page
        >>> word = ExplainedWord("circle", 0.8, (("square", 0.1),), np.array([[0.0, 0.7], [0.2, 0.1]]))
        >>> explanation = Explanation(shapes_dataset(1)[0]["image"], "circle", (word,), "attention")  # or explain(...)
        >>> write_page("explained.html", explanation, name="shapes.png")
        >>> "shapes.png" in Path("explained.html").read_text()
        True
    """
    path = Path(path)
    data = {
        "words": [word.text for word in explanation.words],
        "probabilities": [word.probability for word in explanation.words],
        "others": [word.others for word in explanation.words],
        "maps": [[[float(f"{value:.4g}") for value in row] for row in word.map] for word in explanation.words],
        "signed": explanation.signed,
        "colors": {"for": FOR, "against": AGAINST},
    }
    width, height = explanation.image.size
    values = {
        "caption": html.escape(explanation.caption),
        "name": html.escape(name),
        "image": picture(explanation),
        "width": str(width),
        "height": str(height),
        "under": f"saturate({COLOR}) brightness({BRIGHTNESS})",
        "for": f"rgb{FOR}",
        "against": f"rgb{AGAINST}",
        "signed": "signed" if explanation.signed else "",
        "method": html.escape(ABOUT.get(explanation.method, explanation.method)),
        "data": in_script(data),
    }
    # All places at once: what a caption says is never taken for a place.
    text = re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], TEMPLATE.read_text(encoding="utf-8"))
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


__all__ = ["write_page"]
