"""PreEmbed and PreLayer: trained positions before the input, held against a prefix in the sequence itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from families import layers, positions
from methods.prefixes import add_prefix
from tasks.e2e.beam_search import DecodingSettings, beam_search, generate
from tasks.e2e.loss import completion_loss
from tiny_models import LANGUAGE_MODELS, POSITIONS, PREFIXES, TOKENS, WORDS, adapted, logits, tiny
from training.batches import IGNORED, pad_right

TOLERANCE = {"gpt2": 1e-12, "llama": 1e-5}  # Llama's RMSNorm computes in float32, whatever it is given
BESIDE_BFLOAT16 = [("preembed", "gpt2"), ("preembed", "llama"), ("prelayer", "llama"), ("prelayer", "bert")]
EVERY_PREFIX = pytest.mark.parametrize(("method", "family"), [(m, f) for m in PREFIXES for f in LANGUAGE_MODELS])


def with_prefix(
    method: str, family: str, trained: bool = True, **changes
) -> tuple[PreTrainedModel, PreTrainedModel, torch.Tensor]:
    """In float64: a model with a prefix, a plain one with the same weights, and the words that the prefix began as."""
    model, plain = tiny(family, **changes).double(), tiny(family, **changes).double()
    torch.manual_seed(1)
    add_prefix(model, PREFIXES[method], 4)
    torch.manual_seed(1)
    words = torch.randint(WORDS, (4,))
    if trained:
        nn.init.normal_(prefix_of(model))
    return model, plain, words


def prefix_of(model: PreTrainedModel) -> nn.Parameter:
    return next(model.base_model.prefix.parameters())


def recomputed(plain: PreTrainedModel, prefix: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The logits with the prefix in the sequence itself: its embeddings, or its activations before each layer."""
    body, length, rows = plain.base_model, prefix.shape[-2], len(tokens)
    x = body.get_input_embeddings()(tokens)
    if prefix.dim() == 2:
        embeddings = torch.cat((prefix.expand(rows, -1, -1), x), dim=1)
        return plain(inputs_embeds=embeddings).logits[:, length:]
    end = length + tokens.shape[1]
    if plain.config.model_type == "gpt2":
        x, norm, others = x + body.wpe.weight[length:end], body.ln_f, {}
    else:
        norm, others = body.norm, {"position_embeddings": body.rotary_emb(x, torch.arange(end)[None])}
    for layer, activations in zip(layers(plain), prefix, strict=True):
        x = layer(torch.cat((activations.expand(rows, -1, -1), x), dim=1), **others)[:, length:]
    return plain.get_output_embeddings()(norm(x))


@EVERY_PREFIX
def test_a_new_prefix_is_like_real_words_before_the_input(method, family):
    model, plain, words = with_prefix(method, family, trained=False)
    longer = torch.cat((words.expand(2, -1), TOKENS), dim=1)
    assert torch.allclose(logits(model), logits(plain, longer)[:, 4:], atol=TOLERANCE[family])
    assert not torch.allclose(logits(plain), logits(plain, longer)[:, 4:], atol=0.1)


@EVERY_PREFIX
def test_a_trained_prefix_and_its_gradient_are_those_of_a_prefix_in_the_sequence(method, family):
    model, plain, _ = with_prefix(method, family)
    ours = prefix_of(model)
    theirs = ours.detach().clone().requires_grad_(True)
    expected = recomputed(plain, theirs, TOKENS)
    found = model(TOKENS).logits
    assert torch.allclose(found, expected, atol=TOLERANCE[family])
    assert not torch.allclose(found, recomputed(plain, theirs.roll(1, -1), TOKENS), atol=1e-3)
    found.square().sum().backward()
    expected.square().sum().backward()
    tolerance = max(1e-9, TOLERANCE[family])
    assert torch.allclose(ours.grad, theirs.grad, rtol=tolerance, atol=tolerance)
    assert ours.grad.abs().amax(dim=(-2, -1)).min() > 1e-3  # of every layer's activations


@EVERY_PREFIX
def test_the_training_loss_sees_the_prefix(method, family):
    model, plain, _ = with_prefix(method, family)
    rows = [{"input_ids": row, "labels": [IGNORED, IGNORED, *row[2:]]} for row in ([5, 6, 7, 8, 9, 0], [5, 6, 7, 0])]
    batch = pad_right(rows)
    labels = batch["labels"][:, 1:]
    prefix = prefix_of(model)
    all_logits = recomputed(plain, prefix, batch["input_ids"])[:, :-1]
    expected = nn.functional.cross_entropy(all_logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    assert completion_loss(model, batch).item() == pytest.approx(expected.item(), abs=TOLERANCE[family])
    assert completion_loss(plain, batch).item() != pytest.approx(expected.item(), abs=1e-2)


@EVERY_PREFIX
def test_decoding_with_a_cache_and_left_padding_is_decoding_without(method, family):
    model, plain, _ = with_prefix(method, family)
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = (torch.arange(4) >= torch.tensor([[2], [0]])).long()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(ids, attention_mask=mask, **options)
    prefix = prefix_of(model).detach()
    for row, start in zip(cached, (2, 0), strict=True):
        for end in range(4, 10):
            best = recomputed(plain, prefix, row[None, start:end])[0, -1].argmax()
            assert best == row[end]
    assert not torch.equal(cached, plain.generate(ids, attention_mask=mask, **options))


@EVERY_PREFIX
def test_beam_search_answers_a_new_prefix_as_the_plain_model_answers_its_words_before_the_prompt(method, family):
    model, plain, words = with_prefix(method, family, trained=False, max_position_embeddings=40)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [3]]
    chosen = DecodingSettings(beams=4, max_new_tokens=10, no_repeat_ngram=3)
    answers = beam_search(model, prompts, [0], chosen)
    assert answers == [beam_search(plain, [[*words.tolist(), *prompt]], [0], chosen)[0] for prompt in prompts]
    assert answers != beam_search(plain, prompts, [0], chosen)


@EVERY_PREFIX
def test_the_input_has_the_positions_that_the_prefix_leaves(method, family):
    model = adapted(method, family)
    assert positions(model) == POSITIONS - 4
    full = torch.randint(WORDS, (1, POSITIONS - 4))
    assert logits(model, full).isfinite().all()
    if family == "gpt2":  # has a row for each position; Llama's are angles, of which there is no end
        with pytest.raises(IndexError):
            logits(model, torch.cat((full, full[:, :1]), dim=1))


@EVERY_PREFIX
def test_a_long_context_is_cut_to_what_the_prefix_leaves(method, family):
    class Numbers:
        eos_token, eos_token_id = "0", 0

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [] if text == "\n\n" else [int(word) for word in text.split()]

        def decode(self, ids: list[int], clean_up_tokenization_spaces: bool) -> str:
            return " ".join(map(str, ids))

    lengths, model = [], adapted(method, family)
    model.register_forward_pre_hook(
        lambda _, __, inputs: lengths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    chosen = DecodingSettings(beams=2, max_new_tokens=5)
    generate(model, Numbers(), ["7 8 9 " * 10], chosen, progress=False)
    assert lengths[0] == POSITIONS - 4 - 5


@EVERY_PREFIX
def test_a_prefix_works_in_bfloat16_autocast(method, family):
    model = adapted(method, family)
    expected = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(TOKENS).logits
        (output.float() ** 2).sum().backward()
    assert torch.allclose(output.float(), expected, rtol=0.1, atol=0.5)
    assert not torch.allclose(logits(tiny(family)), expected, rtol=0.1, atol=0.5)
    assert prefix_of(model).grad.dtype == torch.float32


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_behind_a_layernorm_a_prefix_has_a_direction_and_no_size(family):
    model, ids = adapted("prelayer", family), torch.arange(1, 13).view(2, 6)
    activations = prefix_of(model)
    with torch.no_grad():
        activations.normal_()
        before = model(input_ids=ids).logits
        activations.mul_(10)
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-3, rtol=1e-3)
        activations.normal_()
        assert (model(input_ids=ids).logits - before).abs().max() > 0.1


# Encoders: PreLayer alone, and the text keeps its positions.

ENCODERS = ("bert", "roberta")
PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def classified(plain: PreTrainedModel, activations: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The logits with the activations in the sequence before each layer."""
    body, rows, length = plain.base_model, len(TOKENS), activations.shape[1]
    x = body.embeddings(TOKENS)
    hidden = nn.functional.pad(1.0 - mask, (length, 0)).to(x) * torch.finfo(x.dtype).min
    for layer, before in zip(layers(plain), activations, strict=True):
        x = layer(torch.cat((before.expand(rows, -1, -1), x), dim=1), hidden[:, None, None])[:, length:]
    return plain.classifier(body.pooler(x) if body.pooler is not None else x)


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("mask", [PADDED, torch.ones_like(PADDED)], ids=["padded", "not padded"])
def test_an_encoder_attends_to_the_activations_of_every_layer(family, mask):
    model, plain, _ = with_prefix("prelayer", family)
    ours = prefix_of(model)
    theirs = ours.detach().clone().requires_grad_(True)
    found, expected = model(TOKENS, attention_mask=mask).logits, classified(plain, theirs, mask)
    assert torch.allclose(found, expected, atol=1e-12)
    assert not torch.allclose(found, classified(plain, theirs.roll(1, 0), mask), atol=1e-3)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-9)
    assert ours.grad.abs().amax(dim=(-2, -1)).min() > 1e-4  # of every layer's activations
    assert positions(model) == positions(plain)


@pytest.mark.parametrize(("method", "family"), BESIDE_BFLOAT16)
def test_a_prefix_beside_a_bfloat16_base_is_float32_and_all_of_it_moves_in_small_steps(method, family):
    model = tiny(family).bfloat16()
    add_prefix(model, PREFIXES[method], 4)
    before = prefix_of(model).detach().clone()
    optimizer = torch.optim.AdamW([prefix_of(model)], lr=2e-5)
    for _ in range(20):
        labels = TOKENS if family in LANGUAGE_MODELS else torch.tensor([0, 1])
        model(TOKENS, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert before.dtype == torch.float32 and (prefix_of(model) != before).float().mean() > 0.9
