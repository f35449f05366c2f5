"""The road without a disk: a vLLM model loader that fills in the same tensors that the checkpoint would hold.

vLLM imports this module in each of its worker processes because the engine is started with
``--worker-extension-cls qmeter.sources.synth.inplace.SynthWorker``; importing it registers the load format. The
tensors go through the model's own ``load_weights``, as those of a file do, so fusing, sharding and
``process_weights_after_loading`` are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

from qmeter.sources.synth.checkpoint import Recipe
from qmeter.sources.synth.formats import checkpoint_format
from qmeter.sources.synth.weights import tensors

LOAD_FORMAT = "qmeter_synth"
logger = init_logger("vllm.qmeter_synth")


class SynthWorker:
    """Nothing to add to the worker: naming it makes vLLM import this module."""


@register_model_loader(LOAD_FORMAT)
class SynthLoader(BaseModelLoader):  # type: ignore[misc]
    """Makes the weights of the recipe beside config.json on the device they are needed on."""

    def download_model(self, model_config: Any) -> None:
        """Nothing to download; refuses a folder without a recipe before memory is taken."""
        Recipe.read(Path(model_config.model))

    def load_weights(self, model: Any, model_config: Any) -> None:
        """Stream the recipe's tensors into ``model``.

        Raises:
            ValueError: the model has weights that the recipe does not name (they would stay uninitialised).
        """
        import torch

        recipe = Recipe.read(Path(model_config.model))
        form = checkpoint_format(recipe.kind)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        expected = {name for name, _ in model.named_parameters()}
        with torch.inference_mode(False), torch.no_grad():
            loaded = model.load_weights(tensors(recipe.shape, form, recipe.seed, device))
        missing = sorted(n for n in expected - (loaded or expected) if ".attn." not in n)  # KV scales have defaults
        if missing:
            raise ValueError(f"the synthetic checkpoint lacks {len(missing)} weights: {', '.join(missing[:5])}")
        for line in kernel_configs(model):
            logger.info(line)


def kernel_configs(model: Any) -> list[str]:
    """What the model's mixed-precision kernels were configured with, once each; vLLM's own log lacks the types."""
    found: dict[str, None] = {}
    for module in model.modules():
        for owner in (getattr(module, "quant_method", None), getattr(module, "scheme", None)):
            kernel: Any = getattr(owner, "kernel", None)
            config: Any = getattr(kernel, "config", None)
            if hasattr(config, "weight_type") and hasattr(config, "act_type"):
                name = type(kernel).__name__
                found[f"{name} configured with weights {config.weight_type} and activations {config.act_type}"] = None
    return list(found)
