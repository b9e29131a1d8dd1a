"""Configuration of other packages: their scorers, judges and data sets are found by name, as ours are."""

from importlib.metadata import entry_points
from importlib.util import find_spec

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

ENTRY_POINT_GROUP = "gradfiltering.config"


class PackageConfigurations(SearchPathPlugin):
    """Adds the folders that packages name as entry points of the group `gradfiltering.config`.

    An entry point names a folder of YAML files as a module: `my_package.conf`.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders, so that no package can take a name that is ours."""
        for entry_point in entry_points(group=ENTRY_POINT_GROUP):
            module_spec = find_spec(entry_point.value)
            for conf_folder in module_spec.submodule_search_locations or () if module_spec else ():
                search_path.append(provider=entry_point.name, path=f"file://{conf_folder}")
