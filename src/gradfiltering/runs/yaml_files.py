"""Reading YAML files of runs."""

from pathlib import Path
from typing import Any

import yaml

# Six times faster on a configuration, where there is libyaml; its dumper is not used, as it escapes emoji.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """The plain Python value in a YAML file."""
    return yaml.load(path.read_bytes(), Loader)
