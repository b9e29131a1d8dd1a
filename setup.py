"""The list of packages: all of `src`, and `conf/` as gradfiltering.conf."""

from setuptools import find_namespace_packages, setup

setup(packages=[*find_namespace_packages("src"), "gradfiltering.conf"])
