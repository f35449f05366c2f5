"""Classes of traffic for the plan tests."""

CHAT = """
  - name: chat
    rate: 60/s
    prompt_tokens: {kind: uniform, low: 50, high: 300}
    output_tokens: {kind: uniform, low: 20, high: 80}
    slo: {ttft: 300ms, tpot: 14ms}
"""
BATCH = """
  - name: batch
    rate: [10/s, 40/s, 20/s]
    prompt_tokens: {kind: fixed, tokens: 400}
    output_tokens: {kind: fixed, tokens: 60}
    slo: {ttft: 3s, tpot: 40ms}
"""
