"""The header of a cache names the place of the backbone's weights: kept, checked, and no part of the identity."""

import json
from pathlib import Path
from typing import Any

import pytest

from features import CacheError, Header, read_header
from features.header import header_bytes
from features.identity import json_hash
from tests.features.caches import identity, samples, write


@pytest.mark.parametrize("place", [{"file": "/somewhere/w.pt"}, {"pretrained": "resnet50.a1_in1k"}, None])
def test_the_place_of_the_weights_is_kept_and_is_no_part_of_the_identity(tmp_path: Path, place: Any) -> None:
    header = write(tmp_path / "a", identity(), {"train": samples(4)}, weights_from=place)
    other = write(tmp_path / "b", identity(), {"train": samples(4)}, weights_from={"file": "elsewhere.pt"})
    assert read_header(tmp_path / "a") == header
    assert header.weights_from == place
    assert header.identity.fingerprint == other.identity.fingerprint


@pytest.mark.parametrize("place", ["w.pt", {"file": 3}, {"url": "x"}, {"file": "a", "pretrained": "b"}, {}])
def test_a_wrong_place_of_the_weights_is_refused(tmp_path: Path, place: Any) -> None:
    header = write(tmp_path, identity(), {"train": samples(4)})
    wrong = Header(header.identity, header.splits, {"file": "w.pt"})
    content = json.loads(header_bytes(wrong))
    del content["checksum"]
    content["weights_from"] = place
    (tmp_path / "header.json").write_text(json.dumps(content | {"checksum": json_hash(content)}))
    with pytest.raises(CacheError, match="weights_from: must be one of file and pretrained"):
        read_header(tmp_path)
