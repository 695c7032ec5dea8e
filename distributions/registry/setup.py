"""What setup.cfg cannot say: the SDK that the registry needs has the registry's own version."""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = (HERE / "VERSION").read_text().strip()
LIBRARIES = (HERE / "requirements.txt").read_text().splitlines()

setup(install_requires=[f"peerseal=={VERSION}", *(line for line in LIBRARIES if not line.startswith("#"))])
