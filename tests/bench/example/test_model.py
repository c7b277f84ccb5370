import pytest
import torch

from zipfmax.errors import UsageError
from zipfmax_bench.example.model import LanguageModel, ModelOptions, default_cutoffs


def model(**options):
    torch.manual_seed(0)
    return LanguageModel(60, ModelOptions(**({"features": 16, "cutoffs": (8, 20)} | options)))


def batch():
    torch.manual_seed(1)
    return torch.randint(0, 60, (3, 7)), torch.randint(0, 60, (3, 7))


def test_a_seed_gives_the_same_weights_whatever_the_layer():
    states = {layer: model(layer=layer).state_dict() for layer in ("zipfmax", "torch", "full")}
    shared = [name for name in states["full"] if not name.startswith("output")]
    assert len(shared) == 5
    for name in shared:
        assert torch.equal(states["zipfmax"][name], states["full"][name])
    assert states["zipfmax"].keys() == states["torch"].keys()
    assert all(torch.equal(states["zipfmax"][name], states["torch"][name]) for name in states["torch"])


@pytest.mark.parametrize("layer", ["zipfmax", "torch", "full"])
def test_the_loss_is_the_mean_nll_of_the_following_words(layer):
    net = model(layer=layer)
    ids, targets = batch()
    loss, state = net(ids, targets, None)
    hidden, _ = net.hidden(ids, None)
    if layer == "full":
        log_prob = net.output.linear(hidden).log_softmax(2)
    else:
        log_prob = net.output.log_prob(hidden.flatten(0, 1)).reshape(3, 7, 60)
    torch.testing.assert_close(loss, -log_prob.gather(2, targets.unsqueeze(2)).mean())
    assert state[0].shape == (1, 3, 16)


def test_the_state_carries_the_words_before():
    net = model()
    ids, targets = batch()
    _, state = net(ids[:, :4], targets[:, :4], None)
    hidden, _ = net.hidden(ids, None)
    later, _ = net.hidden(ids[:, 4:], state)
    torch.testing.assert_close(later, hidden[:, 4:])


def test_a_tied_embedding_shares_the_layers_weights():
    net = model(embedding="tied")
    assert net.embedding.embeddings[1] is net.output.tail[0][1].weight
    loss, _ = net(*batch(), None)
    loss.backward()
    assert (net.output.head.weight.grad != 0).any()


@pytest.mark.parametrize("n_words", [8, 60, 267_735])
def test_default_cutoffs_are_a_partition_of_any_vocabulary(n_words):
    net_cutoffs = default_cutoffs(n_words)
    assert 0 < net_cutoffs[0] < net_cutoffs[1] < n_words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "fast"}, "unknown layer 'fast'; choose one of: zipfmax, torch, full"),
        ({"embedding": "wide"}, "unknown embedding 'wide'; choose one of: plain, adaptive, tied"),
        ({"embedding": "tied", "layer": "torch"}, "choose --layer zipfmax"),
        ({"cutoffs": (20, 8)}, "cutoffs should be a sequence of unique"),
        ({"cutoffs": (20, 80), "layer": "torch"}, "cutoffs should be a sequence of unique"),
        ({"backend": "fast"}, "unknown backend 'fast'"),
        ({"div_value": 1e-4}, "weights of div_value 0.0001 take .* GiB, this machine has"),
    ],
)
def test_options_that_fit_no_model_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        model(**options)
