"""The image formats that can be read, and their file endings. To accept another format (such as .heic), add it here.

Pictures only: Pillow passes some other formats, such as EPS, to external programs. HEIC needs the optional package pillow-heif,
AVIF needs Pillow 11.3 or newer.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

# Pillow's name of the format -> endings of its files, in lower case
ENDINGS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TGA": (".tga",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
EXTENSIONS = tuple(ending for endings in ENDINGS.values() for ending in endings)
"""Endings of all image files, those that need an optional package included."""
ARRAY = ".npy"
"""Ending of an array, which is an image where a class folder has no pictures; see `datamodules.images.stacks`."""
NEEDS = {
    "HEIF": "HEIC needs pillow-heif: uv sync --extra heif, or pip install pillow-heif",
    "AVIF": "AVIF needs Pillow 11.3 or newer: pip install -U pillow",
}


@lru_cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read here, for ``PIL.Image.open(formats=...)``."""
    from PIL import Image, features

    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    Image.init()
    avif = "AVIF" in Image.OPEN and bool(features.check("avif"))
    return tuple(name for name in ENDINGS if (avif if name == "AVIF" else name in Image.OPEN))


def is_image(path: Path) -> bool:
    """Whether a file has the ending of an image, in lower or upper case."""
    return path.suffix.lower() in EXTENSIONS


def is_array(path: Path) -> bool:
    """Whether a file has the ending of an array, in lower or upper case."""
    return path.suffix.lower() == ARRAY


def missing_package(path: Path) -> str | None:
    """What to install to read an image file of this ending; None if it can be read here."""
    ending = path.suffix.lower()
    name = next((name for name, advice in NEEDS.items() if ending in ENDINGS[name]), None)
    return None if name is None or name in readable_formats() else NEEDS[name]
