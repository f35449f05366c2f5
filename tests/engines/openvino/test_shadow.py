"""GIVEN the scheduler's rule, WHEN steps agree with it, THEN prompt tokens are known; WHEN they do not, unknown."""

from __future__ import annotations

from qmeter.engines.openvino.shadow import UNKNOWN, Shadow


def test_a_long_prompt_is_split_by_the_budget_and_decodes_go_first() -> None:
    shadow = Shadow(token_budget=100)
    shadow.add(1, 30)
    assert shadow.observe(1, {1}) == 30
    shadow.add(2, 250)
    assert shadow.observe(2, {1}) == 99
    assert shadow.observe(2, {1}) == 99
    assert shadow.observe(2, {1, 2}) == 52
    assert shadow.observe(2, {1, 2}) == 0
    shadow.remove(1)
    assert shadow.observe(1, {2}) == 0


def test_prompts_share_a_step_in_order_of_arrival() -> None:
    shadow = Shadow(token_budget=100)
    for request, tokens in ((1, 60), (2, 60), (3, 60)):
        shadow.add(request, tokens)
    assert shadow.observe(2, {1}) == 60 + 40
    assert shadow.observe(3, {1, 2, 3}) == 20 + 60
    assert shadow.observe(3, {1, 2, 3}) == 0


def test_a_step_that_contradicts_the_rule_is_unknown_until_the_prompt_is_done() -> None:
    shadow = Shadow(token_budget=100)
    shadow.add(1, 30)
    shadow.add(2, 30)
    assert shadow.observe(1, {1}) == UNKNOWN, "it scheduled one where the rule says two"
    assert shadow.observe(2, {1, 2}) == UNKNOWN, "how far request 2 had come is not known"
    assert shadow.observe(2, {1, 2}) == 0


def test_a_prefix_cache_makes_prompt_tokens_unknown() -> None:
    shadow = Shadow(token_budget=100, prefix_cache=True)
    shadow.add(1, 30)
    assert shadow.observe(1, {1}) == UNKNOWN
    assert shadow.is_generating(1)
    assert shadow.observe(1, {1}) == 0
