"""The steps of a recipe: one file each, a frozen dataclass with `plan(draft)`."""

from gemma_surgery.steps.base import Step
from gemma_surgery.steps.drop_layers import DropLayers
from gemma_surgery.steps.drop_vision_layers import DropVisionLayers
from gemma_surgery.steps.pad_vision_mlp import PadVisionMlp
from gemma_surgery.steps.prune_heads import PruneHeads
from gemma_surgery.steps.prune_neurons import PruneNeurons
from gemma_surgery.steps.prune_vocabulary import PruneVocabulary
from gemma_surgery.steps.quantize import Quantize
from gemma_surgery.steps.reduce_resolution import ReduceResolution
from gemma_surgery.steps.split_weights import SplitWeights
from gemma_surgery.steps.tie_head import TieHead

STEPS: dict[str, type[Step]] = {
    "quantize": Quantize,
    "tie_head": TieHead,
    "prune_vocabulary": PruneVocabulary,
    "pad_vision_mlp": PadVisionMlp,
    "drop_layers": DropLayers,
    "drop_vision_layers": DropVisionLayers,
    "reduce_resolution": ReduceResolution,
    "prune_heads": PruneHeads,
    "prune_neurons": PruneNeurons,
    "split_weights": SplitWeights,
}

__all__ = ["STEPS", "Step"]
