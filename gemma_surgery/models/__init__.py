"""MLX modules that run the model families."""

from gemma_surgery.models.gemma3.model import Gemma3Model, load_model
from gemma_surgery.models.gemma3.vocabulary import TokenRows, Vocabulary
from gemma_surgery.models.kv_cache import CacheOptions, KVCache

__all__ = ["CacheOptions", "Gemma3Model", "KVCache", "TokenRows", "Vocabulary", "load_model"]
