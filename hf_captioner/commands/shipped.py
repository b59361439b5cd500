"""The settings of trainings that come with the package, found by name."""

from pathlib import Path

from ..errors import InputError

CONFIGS = Path(__file__).parent / "configs"


def find_config(name_or_file: str) -> Path:
    """
    The YAML file of that path, or of that name among those that are shipped.

    Raises:
        InputError: if there is neither.
    """
    shipped = CONFIGS / f"{name_or_file}.yaml"
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise InputError(f"`config` must be a YAML file or one of {names}, got {name_or_file!r}")
