"""MLX modules that run the model families."""

from gemma_surgery.models.gemma3.model import Gemma3Model, TokenRows, load_model
from gemma_surgery.models.kv_cache import CacheOptions, KVCache

__all__ = ["CacheOptions", "Gemma3Model", "KVCache", "TokenRows", "load_model"]
