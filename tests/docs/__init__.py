"""Tests of README.md, CONTRIBUTING.md, docs/ and of the commands in the headers of the configurations and in --help."""
