"""What the package offers by name."""

import importlib
import pkgutil

import pytest

import hf_captioner

PACKAGES = ["hf_captioner", *(f"hf_captioner.{room.name}" for room in pkgutil.iter_modules(hf_captioner.__path__))]


@pytest.mark.parametrize("name", PACKAGES)
def test_no_public_name_is_a_module_too(name):
    """Or which of the two `import hf_captioner.metrics.bleu` gives depends on what was imported before."""
    package = importlib.import_module(name)
    if hasattr(package, "__path__"):
        modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
        assert not modules & set(getattr(package, "__all__", ()))
