"""GIVEN Gaussian weights, WHEN a format stores them, THEN unpacking gives them back to within its rounding."""

from __future__ import annotations

import json

import pytest

from qmeter import catalog
from qmeter.catalog.shape import ModelShape
from qmeter.errors import MethodUnsupported, SourceError
from qmeter.sources.synth.formats import FORMATS, checkpoint_format

torch = pytest.importorskip("torch", reason="synthetic weights need torch")

from qmeter.sources.synth import packing  # noqa: E402
from qmeter.sources.synth.checkpoint import Recipe, write_checkpoint  # noqa: E402
from qmeter.sources.synth.weights import check_shape, gaussian, tensors  # noqa: E402

N, K, GROUP = 256, 512, 128
TINY = ModelShape(
    name="tiny", hf_id="x/tiny", architecture="LlamaForCausalLM", hidden=256, layers=2, heads=4, kv_heads=2,
    head_dim=64, intermediate=512, vocab=320, tied_embeddings=False, qkv_bias=False, rope_theta=1e4, max_positions=2048,
    norm_eps=1e-5, published_params=0,
)  # fmt: skip


@pytest.fixture
def weight():
    return gaussian((N, K), 0.02, "w", 1, "cpu")


def unpack(packed, bits, along):
    """int32 lanes back to values, lowest bits first, written independently of the packer."""
    lanes = [(packed >> shift) & (2**bits - 1) for shift in range(0, 32, bits)]
    stacked = torch.stack(lanes, dim=along + 1)
    shape = list(packed.shape)
    shape[along] *= 32 // bits
    return stacked.reshape(shape)


def relative_error(found, weight):
    return float((found.float() - weight).norm() / weight.norm())


def grouped(scale):
    return scale.float().repeat_interleave(GROUP, dim=-1)


@pytest.mark.parametrize(("bits", "limit"), [(4, 0.13), (8, 0.008)])
def test_gptq_unpacks_to_the_weights(weight, bits, limit):
    stored = checkpoint_format(f"gptq-int{bits}-g128").store(weight)
    assert stored["qweight"].shape == (K * bits // 32, N)
    assert stored["qzeros"].shape == (K // GROUP, N * bits // 32)
    values = unpack(stored["qweight"], bits, 0)
    zeros = unpack(stored["qzeros"], bits, 1) + 1  # the v1 format stores one less
    groups = stored["g_idx"].long()
    found = ((values - zeros[groups]) * stored["scales"].float()[groups]).t()
    assert relative_error(found, weight) < limit


def test_awq_unpacks_to_the_weights_in_its_own_order(weight):
    stored = checkpoint_format("awq-int4-g128").store(weight)
    position = [0, 4, 1, 5, 2, 6, 3, 7]  # nibble that holds output j of eight, as readers of the format have it

    def columns(packed):
        lanes = torch.stack([(packed >> 4 * p) & 15 for p in position], dim=-1)
        return lanes.reshape(packed.shape[0], -1)

    values, zeros = columns(stored["qweight"]), columns(stored["qzeros"])
    scales = stored["scales"].float()
    groups = torch.arange(K) // GROUP
    found = ((values - zeros[groups]) * scales[groups]).t()
    assert relative_error(found, weight) < 0.12


@pytest.mark.parametrize("kind", ["rtn-int4-g128", "ct-w4a8-fp8"])
def test_pack_quantized_unpacks_to_the_weights(weight, kind):
    stored = checkpoint_format(kind).store(weight)
    assert stored["weight_shape"].tolist() == [N, K]
    found = (unpack(stored["weight_packed"], 4, 1) - 8) * grouped(stored["weight_scale"])
    assert relative_error(found, weight) < 0.13


@pytest.mark.parametrize(("kind", "limit"), [("ct-int8-w8a8", 0.01), ("ct-fp8-dynamic", 0.03), ("ct-fp8-static", 0.03)])
def test_8_bit_formats_times_scale_are_the_weights(weight, kind, limit):
    stored = checkpoint_format(kind).store(weight)
    assert relative_error(stored["weight"].float() * stored["weight_scale"], weight) < limit
    if kind.endswith("static"):
        assert float(stored["input_scale"]) == pytest.approx(8.0 / 448)


def test_fp8_blocks_have_a_scale_each_and_edges_may_be_short():
    weight = gaussian((200, 300), 0.02, "w", 1, "cpu")
    values, scales = packing.float8_block(weight, 128)
    assert values.shape == (200, 300)
    assert scales.shape == (2, 3)
    spread = scales.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    assert relative_error(values.float() * spread, weight) < 0.03


def test_int4_values_are_the_gaussians_distribution_and_not_uniform_noise(weight):
    values = unpack(checkpoint_format("rtn-int4-g128").store(weight)["weight_packed"], 4, 1).flatten()
    share = torch.bincount(values, minlength=16).float() / values.numel()
    assert share[8] > 3 * share[14]
    assert share[0] < 0.02
    assert float(share[1:].min()) > 0


def test_same_seed_same_bytes_another_seed_others():
    def made(seed):
        return {name: tensor for name, tensor in tensors(TINY, FORMATS["rtn-int4-g128"], seed, "cpu")}

    first, again, other = made(1), made(1), made(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "model.layers.0.mlp.up_proj.weight_packed"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first["model.layers.1.mlp.up_proj.weight_packed"])


@pytest.mark.parametrize("kind", [k for k in FORMATS if k not in ("f16",)])
def test_files_and_the_stream_into_the_engine_are_the_same(tmp_path, kind):
    safetensors = pytest.importorskip("safetensors.torch")
    size = write_checkpoint(tmp_path, Recipe(TINY, kind, 3), device="cpu")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = {f for f in index["weight_map"].values()}
    read = {n: t for f in files for n, t in safetensors.load_file(tmp_path / f).items()}
    stream = dict(tensors(TINY, checkpoint_format(kind), 3, "cpu"))
    assert read.keys() == stream.keys()
    assert all(torch.equal(read[n].view(torch.uint8), stream[n].view(torch.uint8)) for n in read)
    assert size == index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in read.values())
    assert Recipe.read(tmp_path) == Recipe(TINY, kind, 3)


def test_every_catalogued_shape_fits_or_is_refused_with_the_projection_named():
    for shape in catalog.models():
        for kind in FORMATS:
            try:
                check_shape(shape, FORMATS[kind])
            except MethodUnsupported as error:
                assert shape.name in error.message
                assert "_proj" in error.message


def test_a_kind_that_cannot_be_made_names_the_nearest():
    with pytest.raises(SourceError) as caught:
        checkpoint_format("gptq-int4-g12x")
    assert "gptq-int4-g128" in caught.value.hint
