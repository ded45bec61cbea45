"""Optional packages, and the extras of avspk that install them. Errors name the extra."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

EXTRAS = {
    "accelerate": ("train",),
    "facenet_pytorch": ("prepare",),
    "huggingface_hub": ("hub",),
    "matplotlib": ("report", "train"),
    "onnx": ("export",),
    "onnxruntime": ("export",),
    "pandas": ("prepare", "report", "train"),
    "pyarrow": ("prepare", "report", "train"),
    "sklearn": ("report", "train"),
    "tensorboard": ("tensorboard",),
    "torchvision": ("prepare", "train"),
}
"""Name in `import` -> the extras that install it, in alphabetical order."""


class MissingExtraError(ImportError):
    """A package of an extra is not installed; the message names the command that installs it."""


@contextmanager
def explained() -> Iterator[None]:
    """If an import in this block fails because a package of EXTRAS is missing, raise MissingExtraError.

    The message has the command that installs it. Any other ImportError passes unchanged.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        commands = " or ".join(f"pip install 'avspk[{extra}]'" for extra in EXTRAS[package])
        raise MissingExtraError(f"{package} is not installed. Install it: {commands}", name=package) from error


def require(*packages: str) -> None:
    """Import packages of EXTRAS that the following code needs. Raises: MissingExtraError."""
    with explained():
        for package in packages:
            import_module(package)
