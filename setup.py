"""pip's view of the project: every fact comes from settings.ini."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
facts = config["DEFAULT"]

setup(
    name=facts["lib_name"],
    version=facts["version"],
    description=facts["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=facts["author"],
    keywords=facts["keywords"].split(),
    license="Apache-2.0 AND CC-BY-SA-3.0",
    license_files=["LICENSE", "vae_course/datasets/README.md",
                   "vae_course/live/explorer_assets/runtime/LICENSE"],
    packages=find_packages(include=["vae_course*"]),
    package_data={"vae_course": ["*.mplstyle", "datasets/*", "pretrained/*"],
                  "vae_course.live": ["explorer_assets/*", "explorer_assets/runtime/*"]},
    python_requires=">=" + facts["min_python"],
    install_requires=facts["requirements"].split(),
    extras_require={
        "lab": facts["lab_requirements"].split(),
        "bench": facts["bench_requirements"].split(),
        "export": facts["export_requirements"].split(),
        "dev": " ".join(facts[f"{name}_requirements"] for name in ("dev", "lab", "export")).split(),
    },
    entry_points={
        "console_scripts": [facts["console_scripts"]],
        "nbdev": [f"{facts['lib_name']}={facts['lib_name']}._modidx:d"],
    },
)
