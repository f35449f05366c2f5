"""An OpenAI-compatible router on loopback that carries a schedule out: which replicas are up, and who serves what."""
