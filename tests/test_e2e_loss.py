"""The loss that overwrites its logits is torch's, in value and gradient, and so is that of a completion."""

import pytest
import torch
import torch.nn.functional as F

from tasks.e2e.loss import completion_loss, smoothed_cross_entropy
from tiny_models import LANGUAGE_MODELS, tiny
from training.batches import IGNORED, pad_right


def both(smoothing, scale=1.0, dtype=torch.float32):
    """(value, gradient of what the logits are computed from) of ours and of torch's."""
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(7, 5), torch.randn(11, 5), torch.randint(0, 11, (7,))
    found = []
    precise = torch.promote_types(dtype, torch.float32)
    for loss in (smoothed_cross_entropy, lambda z, y, s: F.cross_entropy(z.to(precise), y, label_smoothing=s)):
        leaf = hidden.clone().requires_grad_()
        value = loss((scale * leaf @ weight.T).to(dtype), labels, smoothing)
        (3 * value).backward()  # with a gradient that is not 1
        found.append((value.detach(), leaf.grad))
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])  # 100: the exponentials would overflow without their maximum
def test_value_and_gradient_are_those_of_torch(smoothing, scale):
    (value, gradient), (expected, expected_gradient) = both(smoothing, scale)
    assert torch.isfinite(value)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5 * scale)


def test_float64_stays_float64():
    (value, gradient), (expected, expected_gradient) = both(0.1, dtype=torch.float64)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient, expected_gradient)


def test_another_smoothing_is_another_loss():
    assert not torch.allclose(both(0.1)[0][0], both(0.2)[1][0])
    assert not torch.allclose(both(0.1)[0][1], both(0.2)[1][1])


def test_lower_precision_is_computed_in_float32_and_its_logits_stay():
    (value, gradient), (expected, expected_gradient) = both(0.1, dtype=torch.bfloat16)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    logits = torch.randn(3, 4, dtype=torch.bfloat16)
    before = logits.clone()
    smoothed_cross_entropy(logits, torch.tensor([0, 1, 2]), 0.1)
    assert torch.equal(logits, before)


def test_without_a_gradient_it_is_a_number():
    with torch.no_grad():
        logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
        expected = F.cross_entropy(logits, labels)
        torch.testing.assert_close(smoothed_cross_entropy(logits, labels), expected)


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_completions_loss_and_gradients_are_those_of_the_full_logits(family, smoothing):
    rows = [([5, 6, 7, 0], [8, 9, 10, 0]), ([11, 0], [12, 0]), ([13, 14, 0], [15, 16, 17, 18, 0])]
    batch = pad_right([{"input_ids": c + text, "labels": [IGNORED] * len(c) + text} for c, text in rows])
    gradients, losses = [], []
    for plain in (False, True):
        model = tiny(family)
        if plain:
            logits, labels = model(input_ids=batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
            options = {"label_smoothing": smoothing, "ignore_index": IGNORED}
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), **options)
        else:
            loss = completion_loss(model, batch, smoothing)
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert all(gradient.any() for gradient in gradients[1].values())
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_a_label_at_another_place_is_another_loss(family):
    model, row = tiny(family), {"input_ids": [5, 6, 0, 7, 0], "labels": [IGNORED, IGNORED, IGNORED, 7, 0]}
    shifted = row | {"labels": [IGNORED, IGNORED, 0, 7, 0]}
    assert abs(completion_loss(model, pad_right([row])) - completion_loss(model, pad_right([shifted]))) > 1e-3
