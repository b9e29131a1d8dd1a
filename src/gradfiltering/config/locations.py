"""Folders of the configuration and of the cache, for a checkout and for an installed package."""

import os
from pathlib import Path

_PACKAGE_FOLDER = Path(__file__).parents[1]
_CHECKOUT_FOLDER = _PACKAGE_FOLDER.parents[1]


def configuration_folder() -> Path:
    """Return the folder of YAML files: a package's own copy, else `conf/` of the checkout it stands in."""
    installed_folder = _PACKAGE_FOLDER / "conf"
    return installed_folder if installed_folder.is_dir() else _CHECKOUT_FOLDER / "conf"


def default_cache_folder() -> Path:
    """Return the folder for finished results.

    Set by GRADFILTERING_CACHE; else `logs/cache` of the checkout, or the user's cache folder for an installed package.
    """
    if named_folder := os.environ.get("GRADFILTERING_CACHE"):
        return Path(named_folder)
    if configuration_folder().parent == _CHECKOUT_FOLDER:
        return Path("logs/cache") if Path.cwd() == _CHECKOUT_FOLDER else _CHECKOUT_FOLDER / "logs" / "cache"
    import platformdirs

    return platformdirs.user_cache_path("gradfiltering")
