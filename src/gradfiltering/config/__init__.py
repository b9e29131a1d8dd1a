"""Options to objects: the only package that knows option paths."""

from omegaconf import OmegaConf

from gradfiltering.config.locations import default_cache_folder

OmegaConf.register_new_resolver("default_cache_folder", lambda: str(default_cache_folder()), replace=True)
