"""COCO's other files: captions that a captioner gave (the results format), and the objects in images (instances)."""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError, shown


def _read(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{what} must be a file, and there is no {path}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{what} must be JSON, got {path} ({error})") from error
    except RecursionError as error:
        raise InputError(f"{what} must be JSON, got {path}, nested too deeply") from error


def read_results(path: str | Path) -> dict[int, list[str]]:
    """
    Captions in the COCO results format, a list of `{"image_id": 5, "caption": "a dog"}`.

    Args:
        path: the file.

    Returns:
        the captions of each image, in their order; those of an image need not be adjacent.

    Raises:
        InputError: if it is something else.
    """
    path = Path(path)
    results = _read(path, "`captions`")
    if not isinstance(results, list) or not results:
        raise InputError(f"`captions` must be a list of results, got {type(results).__name__} in {path}")
    found: dict[int, list[str]] = {}
    for place, result in enumerate(results):
        number, caption = (result.get(key) if isinstance(result, dict) else None for key in ("image_id", "caption"))
        if type(number) is not int or not isinstance(caption, str):
            raise InputError(
                f"`captions[{place}]` of {path} must have an integer `image_id` and a text `caption`, "
                f"got {shown(result)}"
            )
        found.setdefault(number, []).append(caption)
    return found


def read_instances(path: str | Path) -> dict[int, set[str]]:
    """
    The objects in images by COCO's `instances_*.json`: `annotations` with `image_id` and `category_id`, `categories`
    with `id` and `name`, `images` with `id`.

    Args:
        path: the file.

    Returns:
        the names of the categories that are in each image; images without objects have an empty set.

    Raises:
        InputError: if it is something else.
    """
    path = Path(path)
    content = _read(path, "`instances`")
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        found: dict[int, set[str]] = {image["id"]: set() for image in content["images"]}
        for annotation in content["annotations"]:
            found[annotation["image_id"]].add(names[annotation["category_id"]])
        if wrong := [name for name in names.values() if not isinstance(name, str)]:
            raise TypeError(f"{shown(wrong[0])} is no name")
    except (TypeError, KeyError) as error:
        raise InputError(f"`instances` must be COCO's annotations of objects, got {path} ({shown(error)})") from error
    return found
