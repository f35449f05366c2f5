"""What the embedded server is told on its command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KV_BLOCK_TOKENS = 32
"""Tokens a KV block holds in OpenVINO GenAI on a CPU (``cpu_block_size`` of its KVCacheManager)."""


@dataclass(frozen=True)
class ServerOptions:
    """The server's configuration.

    Attributes:
        model: GGUF file, or folder with OpenVINO IR and tokenizer.
        port: loopback port.
        served_model: the name that requests must carry.
        properties: OpenVINO properties of the compiled model, such as ``KV_CACHE_PRECISION``.
        kv_blocks: KV-cache blocks, all allocated at the start.
        token_budget: most tokens batched in one step.
        max_sequences: most sequences in the pipeline at once; others wait.
        max_model_tokens: longest sequence (prompt and output) accepted; 0: what the KV cache and the model hold.
        prefix_cache: whether KV blocks of equal prefixes are reused.
        steps: iterations that the log keeps.
    """

    model: Path
    port: int
    served_model: str
    properties: tuple[tuple[str, str], ...] = ()
    kv_blocks: int = 1024
    token_budget: int = 512
    max_sequences: int = 64
    max_model_tokens: int = 0
    prefix_cache: bool = False
    steps: int = 200_000

    @property
    def property_map(self) -> dict[str, str | int]:
        """The properties as OpenVINO takes them: whole numbers as such."""
        return {key: int(value) if value.lstrip("-").isdigit() else value for key, value in self.properties}


def to_argv(options: ServerOptions) -> list[str]:
    """Arguments that :func:`parse` reads back to the same options."""
    argv = ["--model", str(options.model), "--port", str(options.port), "--served-model", options.served_model]
    argv += ["--kv-blocks", str(options.kv_blocks), "--token-budget", str(options.token_budget)]
    argv += ["--max-sequences", str(options.max_sequences), "--max-model-tokens", str(options.max_model_tokens)]
    argv += ["--steps", str(options.steps)]
    if options.prefix_cache:
        argv.append("--prefix-cache")
    for key, value in options.properties:
        argv += ["--property", f"{key}={value}"]
    return argv


def parse(argv: Sequence[str] | None = None) -> ServerOptions:
    """Read the command line; a fault ends the program with a message, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="python -m qmeter.engines.openvino",
        description="OpenAI-compatible server around OpenVINO GenAI's continuous batching, on loopback.",
    )
    parser.add_argument("--model", type=Path, required=True, help="GGUF file or OpenVINO model folder")
    parser.add_argument("--port", type=_positive, required=True, help="loopback port")
    parser.add_argument("--served-model", default=None, help="name that requests must carry (default: the file's)")
    parser.add_argument("--property", action="append", default=[], metavar="KEY=VALUE", help="OpenVINO property")
    parser.add_argument("--kv-blocks", type=_positive, default=1024, help="KV-cache blocks of 32 tokens")
    parser.add_argument("--token-budget", type=_positive, default=512, help="most tokens in one step")
    parser.add_argument("--max-sequences", type=_positive, default=64, help="most sequences at once")
    parser.add_argument("--max-model-tokens", type=int, default=0, help="longest sequence (0: what fits)")
    parser.add_argument("--prefix-cache", action="store_true", help="reuse KV blocks of equal prefixes")
    parser.add_argument("--steps", type=_positive, default=200_000, help="iterations that the log keeps")
    args = parser.parse_args(argv)
    if not args.model.exists():
        parser.error(f"--model {args.model}: no such file or folder")
    properties = []
    for text in args.property:
        key, equals, value = text.partition("=")
        if not equals or not key:
            parser.error(f"--property {text!r}: expected KEY=VALUE, such as KV_CACHE_PRECISION=u8")
        properties.append((key, value))
    return ServerOptions(
        model=args.model,
        port=args.port,
        served_model=args.served_model or args.model.stem,
        properties=tuple(properties),
        kv_blocks=args.kv_blocks,
        token_budget=args.token_budget,
        max_sequences=args.max_sequences,
        max_model_tokens=args.max_model_tokens,
        prefix_cache=args.prefix_cache,
        steps=args.steps,
    )


def default_threads() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value
