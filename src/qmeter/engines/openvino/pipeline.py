"""Loading the continuous-batching pipeline, with the evidence of what was loaded."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qmeter.engines.openvino.evidence import (
    Evidence,
    captured_stdout,
    constants_of,
    parse_primitives,
    parse_properties,
)
from qmeter.engines.openvino.options import ServerOptions
from qmeter.errors import MissingExtra

log = logging.getLogger("qmeter.openvino")

CONSTANTS_LIMIT_BYTES = 4 << 30
"""A larger GGUF is not written out again for its constants to be counted; its own tensors are counted instead."""
PROBE_TOKENS = 40
"""Prompt tokens of the first, evidence-giving generation; it also allocates the whole KV cache."""


@dataclass(frozen=True)
class Loaded:
    """A pipeline that is ready.

    Attributes:
        pipeline: the ``ContinuousBatchingPipeline``.
        tokenizer: its tokenizer.
        evidence: what it said of itself.
        kv_bytes: bytes of the whole KV cache, as the pipeline reports them.
        model_context_tokens: the longest sequence the model was made for, where the file says.
    """

    pipeline: Any
    tokenizer: Any
    evidence: Evidence
    kv_bytes: int
    model_context_tokens: int | None


def load(options: ServerOptions) -> Loaded:
    """Load the model, generate one token, and collect the evidence.

    Raises:
        MissingExtra: openvino-genai is not installed.
        RuntimeError: as OpenVINO gives it (bad file, not enough memory, unknown property).
    """
    try:
        import openvino_genai
    except ImportError as error:
        raise MissingExtra("openvino", "the embedded engine") from error
    with captured_stdout() as out, tempfile.TemporaryDirectory(prefix="qmeter-openvino-") as scratch:
        path, saved, properties = _where(options, Path(scratch))
        pipeline = openvino_genai.ContinuousBatchingPipeline(str(path), _scheduler(options), "CPU", properties)
        _probe(pipeline)
        constants = constants_of(saved) if saved is not None and saved.exists() else {}
    for line in out.text.splitlines():
        if not line.startswith(("onednn_verbose", "  ", "Model:", " CPU:")):
            log.info("openvino: %s", line)
    metrics = pipeline.get_metrics()
    evidence = Evidence(
        properties=parse_properties(out.text),
        primitives=parse_primitives(out.text.splitlines()),
        constants_bytes=constants,
        constants_source="constants of the model that openvino-genai built" if constants else "",
    )
    return Loaded(
        pipeline,
        pipeline.get_tokenizer(),
        evidence,
        int(metrics.kv_cache_size_in_bytes),
        _context_tokens(options.model),
    )


def _scheduler(options: ServerOptions) -> Any:
    import openvino_genai

    config = openvino_genai.SchedulerConfig()
    config.num_kv_blocks = options.kv_blocks
    config.max_num_batched_tokens = options.token_budget
    config.max_num_seqs = options.max_sequences
    config.dynamic_split_fuse = True
    config.enable_prefix_caching = options.prefix_cache
    return config


def _where(options: ServerOptions, scratch: Path) -> tuple[Path, Path | None, dict[str, Any]]:
    """Path to load, path of the IR with the constants, properties. A GGUF is loaded through a link in ``scratch``
    since GenAI saves the model it builds beside the file that it was given.
    """
    properties: dict[str, Any] = dict(options.property_map)
    if options.model.is_dir():
        return options.model, options.model / "openvino_model.xml", properties
    if options.model.stat().st_size > CONSTANTS_LIMIT_BYTES:
        return options.model, None, properties
    link = scratch / "model.gguf"
    link.symlink_to(options.model.resolve())
    return link, scratch / "openvino_model.xml", {**properties, "enable_save_ov_model": True}


def _probe(pipeline: Any) -> None:
    """Generate one token from a prompt and one from a single token, so that both kinds of product are built."""
    import openvino
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = 2
    config.ignore_eos = True
    config.apply_chat_template = False
    ids = openvino.Tensor(np.arange(1, PROBE_TOKENS + 1, dtype=np.int64)[None, :])
    handle = pipeline.add_request(0, ids, config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    handle.read_all()


def _context_tokens(model: Path) -> int | None:
    """``<arch>.context_length`` of a GGUF, ``max_position_embeddings`` of a folder's config."""
    if model.is_dir():
        import json

        config = model / "config.json"
        if not config.exists():
            return None
        value = json.loads(config.read_text()).get("max_position_embeddings")
        return int(value) if value else None
    from qmeter.engines.openvino.gguf_header import read_context_tokens

    return read_context_tokens(model)
