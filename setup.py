"""The packages of the wheel: all of the project, below ``lightning_vision_recipes`` (see its docstring)."""

from setuptools import find_packages, setup

PACKAGE = "lightning_vision_recipes"
NOT_INSTALLED = ("benchmarks*", "build*", "tests*", f"{PACKAGE}*")
inner = find_packages(".", exclude=NOT_INSTALLED)

setup(
    packages=[PACKAGE, *(f"{PACKAGE}.{name}" for name in inner), f"{PACKAGE}.configs"],
    package_dir={
        PACKAGE: PACKAGE,
        f"{PACKAGE}.configs": "configs",
        **{f"{PACKAGE}.{name}": name.replace(".", "/") for name in inner},
    },
    package_data={
        f"{PACKAGE}.configs": ["*.yaml", "*/*.yaml", "*/*.txt", "*/*.sbatch"],
        f"{PACKAGE}.networks.integer": ["kernel/*"],
        f"{PACKAGE}.tools.report": ["*.jinja"],
    },
)
