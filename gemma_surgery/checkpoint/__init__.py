"""Bytes: opening, reading and writing checkpoints. Knows no model family."""

from __future__ import annotations

from gemma_surgery.checkpoint.dtypes import ITEM_BYTES
from gemma_surgery.checkpoint.header import Header, TensorInfo, encode_header, parse_header, read_header
from gemma_surgery.checkpoint.index import INDEX_NAME
from gemma_surgery.checkpoint.json_types import Json, load_json_object, parse_json_object
from gemma_surgery.checkpoint.model_folder import (
    CONFIG_NAME,
    MANIFEST_NAME,
    Checkpoint,
    StoredTensor,
    open_checkpoint,
)
from gemma_surgery.checkpoint.page_edges import PAGE_BYTES
from gemma_surgery.checkpoint.reading import SourceFiles
from gemma_surgery.checkpoint.target import check_separate
from gemma_surgery.checkpoint.weights_file import WeightsFile, aligned_buffer
from gemma_surgery.checkpoint.wording import human_bytes
from gemma_surgery.checkpoint.writing import OutputFolder

__all__ = [
    "CONFIG_NAME",
    "INDEX_NAME",
    "ITEM_BYTES",
    "MANIFEST_NAME",
    "PAGE_BYTES",
    "Checkpoint",
    "Header",
    "Json",
    "OutputFolder",
    "SourceFiles",
    "StoredTensor",
    "TensorInfo",
    "WeightsFile",
    "aligned_buffer",
    "check_separate",
    "encode_header",
    "human_bytes",
    "load_json_object",
    "open_checkpoint",
    "parse_header",
    "parse_json_object",
    "read_header",
]
