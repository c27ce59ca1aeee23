import pytest
import torch
import torch.nn.functional as F

from tldr.nn.text import Attention, Cache, Layer, TextTransformer, quick_gelu

V, D, L, C = 11, 16, 3, 8


def build(**kwargs):
    torch.manual_seed(0)
    options = {"width": D, "depth": 2, "heads": 2, "max_length": 12, "image_width": C, "separate_decoder": True}
    model = TextTransformer(V, **(options | kwargs))
    for parameter in model.parameters():  # BERT's start is so small that roles would hardly differ
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module", params=[False, True], ids=["post_norm", "pre_norm"])
def pre_norm(request) -> bool:
    return request.param


@pytest.fixture(scope="module")
def model(pre_norm):
    return build(pre_norm=pre_norm)


@pytest.fixture
def tokens():
    return torch.randint(0, V, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def image():
    return torch.randn(2, L, C, generator=torch.Generator().manual_seed(2))


def test_the_decoder_does_not_see_what_follows(model, tokens, image):
    before = model(tokens, image=image, causal=True)
    for place in range(1, 7):
        changed = tokens.clone()
        changed[:, place:] = (changed[:, place:] + 1) % V
        after = model(changed, image=image, causal=True)
        torch.testing.assert_close(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place], before[:, place])


def test_the_encoder_sees_both_ways(model, tokens, image):
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % V
    for picture in (None, image):
        assert not torch.allclose(model(changed, image=picture)[:, 0], model(tokens, image=picture)[:, 0])


def test_pads_change_nothing(model, tokens, image):
    mask = torch.ones(2, 7).bool()
    mask[1, 4:] = False
    other = torch.where(mask, tokens, (tokens + 3) % V)
    short = {"image": image[1:]}
    for causal in (False, True):
        hidden = model(tokens, mask, image=image, causal=causal)
        torch.testing.assert_close(model(other, mask, image=image, causal=causal)[mask], hidden[mask])
        torch.testing.assert_close(model(tokens[1:, :4], causal=causal, **short), hidden[1:, :4])


@pytest.mark.parametrize("steps", [[1] * 7, [3, 1, 1, 1, 1], [2, 3, 2]])
def test_the_cache_changes_nothing(model, tokens, image, steps):
    whole = model(tokens, image=image, causal=True)
    cache = Cache()
    parts = [model(part, image=image, causal=True, cache=cache) for part in tokens.split(steps, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def used(model, **role):
    """Names of the parameters that a role of the transformer depends on."""
    model.zero_grad()
    tokens = torch.randint(0, V, (2, 7), generator=torch.Generator().manual_seed(1))
    model.logits(model(tokens, **role)).square().sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.ne(0).any()}


def test_encoder_and_decoder_share_all_but_self_attention(image, pre_norm):
    model = build(pre_norm=pre_norm)
    encoder, decoder = used(model, image=image), used(model, image=image, causal=True)
    # A bias of all keys changes no softmax, so its gradient is zero but for rounding: it says nothing here.
    names = {name for name, _ in model.named_parameters() if "key.bias" not in name}
    assert encoder & decoder & names == {name for name in names if "attention." not in name or "cross_" in name}
    assert (encoder - decoder) & names == {name for name in names if ".attention." in name}
    assert (decoder - encoder) & names == {name for name in names if ".decoder_attention." in name}


def test_without_an_image_there_is_no_cross_attention():
    model = build()
    assert not any("cross_attention" in name for name in used(model))


def test_without_a_decoder_of_its_own_the_roles_share_everything(image):
    model = build(separate_decoder=False)
    assert not any("decoder_attention" in name for name, _ in model.named_parameters())
    encoder, decoder = used(model, image=image), used(model, image=image, causal=True)
    assert all("key.bias" in name for name in encoder ^ decoder)
    assert any("attention.query" in name for name in encoder & decoder)


def test_gradient_checkpointing_gives_the_same_gradients(tokens, image):
    gradients = []
    for checkpointing in (False, True):
        model = build(gradient_checkpointing=checkpointing).train()
        model.logits(model(tokens, image=image, causal=True)).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_layer_by_itself_reads_any_tokens():
    """Padded rows of what is no text, as ViLT's."""
    torch.manual_seed(0)
    layer = Layer(D, 2, pre_norm=True, norm_eps=1e-12).eval()
    x, real = torch.randn(2, 9, D), torch.ones(2, 1, 1, 9, dtype=torch.bool)
    real[1, ..., 5:] = False
    torch.testing.assert_close(layer(x, real)[1:, :5], layer(x[1:, :5]))
    other = x.clone()
    other[1, 5:] += 1
    torch.testing.assert_close(layer(other, real)[1, :5], layer(x, real)[1, :5])


def test_pre_norm_attention_normalises_once_and_post_norm_after(monkeypatch):
    x = torch.randn(2, 4, D)
    for pre_norm in (False, True):
        attention, calls = Attention(D, 2, pre_norm=pre_norm), []
        attention.norm.register_forward_hook(lambda module, given, found, calls=calls: calls.append(found))
        out = attention(x)
        assert len(calls) == 1
        torch.testing.assert_close(calls[0], F.layer_norm(x, (D,), eps=1e-12)) if pre_norm else None
        assert torch.equal(out, calls[0]) is not pre_norm


def test_what_the_options_build(tokens):
    model = build(activation="quick_gelu", mlp_width=10, norm_eps=1e-3, embed_norm=False, pre_norm=True)
    layer = model.layers[0]
    assert isinstance(layer, Layer)
    assert (layer.inner.out_features, layer.activation) == (10, "quick_gelu")
    norms = [part for part in model.modules() if isinstance(part, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert not any(name.startswith("norm.") for name in model.state_dict())
    usual = build(pre_norm=True)
    assert isinstance(usual.last_norm, torch.nn.LayerNorm)
    assert (usual.last_norm.eps, usual.norm.eps) == (1e-5, 1e-12)  # as checkpoints of ours were trained
    assert not torch.allclose(build(activation="quick_gelu")(tokens), build()(tokens), atol=1e-3)
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(quick_gelu(x), x / (1 + (-1.702 * x).exp()))


def test_errors_name_the_option(model, tokens, image):
    with pytest.raises(ValueError, match=r"13 tokens, but text\.max_length is 12"):
        model(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="without image_width"):
        build(image_width=None)(tokens, image=image)
    with pytest.raises(ValueError, match="width=16 is not divisible by heads=3"):
        build(heads=3)
    with pytest.raises(ValueError, match="activation='relu'; choose from gelu, quick_gelu"):
        build(activation="relu")
