"""Downloads UCI HAR from the UCI repository, checks its SHA-256 and unpacks only the files of the layout from the nested zip."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import urllib.request
import zipfile
from pathlib import Path

from datamodules.signals.har_reader import FOLDER

URL = "https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip"
SHA256 = "c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031"
"""SHA-256 of the archive behind URL, as listed by two independent public projects."""
INNER = f"{FOLDER}.zip"
TIMEOUT = 60  # seconds without receiving data


def fetch(root: Path) -> Path:
    """Download and unpack the data set.

    Args:
        root: Folder in which `UCI HAR Dataset` is created.

    Returns:
        The created folder.

    Raises:
        FileNotFoundError: The download failed, or its checksum is wrong; the message explains how to get the data another way.
    """
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT) as response:
            archive = response.read()  # 60 MB
        if (found := hashlib.sha256(archive).hexdigest()) != SHA256:
            raise OSError(f"its SHA-256 is {found} and not {SHA256}: damaged, or another version")
    except OSError as error:
        raise FileNotFoundError(
            f"could not download {URL} ({error}); obtain the folder {FOLDER} another way and put it into {root.absolute()}"
        ) from error
    return unpack(archive, root)


def unpack(archive: bytes, root: Path) -> Path:
    """Unpack the text files of the windows.

    Args:
        archive: Bytes of the outer zip.
        root: Folder in which `UCI HAR Dataset` is created.

    Returns:
        The created folder.
    """
    unfinished = root / f"{FOLDER}.unfinished-{os.getpid()}"  # renamed once it is complete
    with zipfile.ZipFile(io.BytesIO(archive)) as outer, zipfile.ZipFile(io.BytesIO(outer.read(INNER))) as inner:
        for member in inner.infolist():
            top, _, name = member.filename.partition("/")
            # skips the 561 features and files added by macOS
            if top == FOLDER and name.endswith(".txt") and not name.endswith(("X_train.txt", "X_test.txt")):
                target = unfinished / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with inner.open(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    folder = root / FOLDER
    unfinished.replace(folder)
    return folder
