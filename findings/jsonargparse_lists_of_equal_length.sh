#!/usr/bin/env bash
# jsonargparse 4.53.0, PyYAML 6.0.4 (CPython 3.11): a list in a second configuration file replaces the list of the first one, unless
# both have the same length: then its items inherit what they leave out, place by place.
#
# Guess before: a list is a value; the later file's list is the whole list, as in YAML and as for lists of numbers.
# Behaviour: for a list of dataclasses, or of classes given by class_path and init_args, item n of the second list is parsed with item
# n of the first as its default, but only if the lists have equal lengths. One more item at the end changes what the first item means.
#
# Output seen (the first file has folder: shipped, groups: shipped.csv, and EMA with start: 5):
#   one item      sets: mine shipped.csv            callbacks: EMA decay 0.5 start 5
#   two items     sets: mine None, second None      callbacks: EMA decay 0.5 start 0, EMA decay 0.9 start 0
#
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check jsonargparse==4.53.0 pyyaml==6.0.4 2> /dev/null
cd "$folder"
cat > first.yaml <<'YAML'
sets: [{folder: shipped, groups: shipped.csv}]
callbacks: [{class_path: __main__.EMA, init_args: {start: 5}}]
YAML
cat > one.yaml <<'YAML'
sets: [{folder: mine}]
callbacks: [{class_path: __main__.EMA, init_args: {decay: 0.5}}]
YAML
cat > two.yaml <<'YAML'
sets: [{folder: mine}, {folder: second}]
callbacks: [{class_path: __main__.EMA, init_args: {decay: 0.5}}, {class_path: __main__.EMA}]
YAML
cat > run.py <<'PYTHON'
from dataclasses import dataclass

import jsonargparse


@dataclass
class Set:
    folder: str
    groups: str | None = None


class EMA:
    def __init__(self, decay: float = 0.9, start: int = 0):
        pass


parser = jsonargparse.ArgumentParser()
parser.add_argument("--config", action="config")
parser.add_argument("--sets", type=list[Set])
parser.add_argument("--callbacks", type=list[EMA])
found = {}
for name in ("one", "two"):
    config = parser.parse_args(["--config", "first.yaml", "--config", f"{name}.yaml"])
    sets = ", ".join(f"{one.folder} {one.groups}" for one in config.sets)
    callbacks = ", ".join(f"EMA decay {one.init_args.decay} start {one.init_args.start}" for one in config.callbacks)
    found[name] = (sets, callbacks)
    print(f"{name} item{'s' * (name == 'two'):4} sets: {sets:29} callbacks: {callbacks}")
assert found == {
    "one": ("mine shipped.csv", "EMA decay 0.5 start 5"),
    "two": ("mine None, second None", "EMA decay 0.5 start 0, EMA decay 0.9 start 0"),
}
PYTHON
env/bin/python run.py
