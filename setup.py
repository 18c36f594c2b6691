"""The packages of a wheel; everything else stands in pyproject.toml, which cannot say this.

``components/`` lies beside the package in the repository and is installed within it, so that a wheel owns
``nasrec_torchrec`` alone. ``apps/`` is for the checkout.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["nasrec_torchrec", "nasrec_torchrec.*"]), "nasrec_torchrec.components"],
    package_dir={"nasrec_torchrec.components": "components"},
)
