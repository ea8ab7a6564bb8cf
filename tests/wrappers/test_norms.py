"""Normalisations in front of activations: where they are put, what is removed, left alone and refused."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from untuned.wrappers import WeightProjector, insert_norms
from untuned.wrappers.norms import ChannelRMSNorm


def mlp(activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), activation(), nn.Dropout(0.0), nn.Linear(8, 6), activation(), nn.Linear(6, 2))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.act, self.down, self.last = nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width), nn.ReLU()

    def forward(self, x):
        return self.last(x + self.down(self.act(self.up(x))))


class Attributes(nn.Module):
    """Modules registered in another order than they are applied in."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.act = nn.Tanh()
        self.stem = nn.Linear(3, 4)

    def forward(self, x):
        x = self.act(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, bias=True)
        self.pool, self.act = nn.MaxPool2d(2), nn.LeakyReLU()
        self.conv = nn.Conv2d(4, 6, 1)
        self.bn, self.act2 = nn.BatchNorm2d(6), nn.ReLU()
        self.fc, self.act3, self.head = nn.Linear(6, 5), nn.ELU(), nn.Linear(5, 1)

    def forward(self, x):
        x = self.act(self.pool(self.stem(x)))
        x = self.act2(self.bn(self.conv(x)))
        return self.head(self.act3(self.fc(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))))


def rows(report):
    return [(one.name, one.kind, one.features, one.activation, one.affine, one.bias_removed) for one in report.layers]


def test_a_norm_goes_before_every_activation_and_the_report_says_so():
    model = mlp()
    report = insert_norms(model)
    assert rows(report) == [
        ("1.norm", "LayerNorm", 8, "ReLU", "joint", "0.bias"),
        ("4.norm", "LayerNorm", 6, "ReLU", "joint", "3.bias"),
    ]
    assert report.left == {}
    assert len(str(report).splitlines()) == 2
    assert [name for name, _ in model.named_parameters()] == [
        *("0.weight", "1.norm.weight", "1.norm.bias", "3.weight", "4.norm.weight", "4.norm.bias", "5.weight", "5.bias")
    ]
    assert "bias=False" in repr(model[0])
    x = torch.randn(5, 3)
    by_hand = functional.layer_norm(
        functional.relu(functional.layer_norm(x @ model[0].weight.T, (8,))) @ model[3].weight.T, (6,)
    )
    assert torch.allclose(model(x), model[5](by_hand.relu()), atol=1e-6)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("affine", ["joint", "free", "none"])
def test_modules_in_attributes_are_met_in_the_order_of_the_forward(kind, affine):
    model = Attributes()
    report = insert_norms(model, kind, affine=affine)
    one, pulled = ("LayerNorm" if kind == "layernorm" else "RMSNorm"), "pulled" if affine == "joint" else affine
    assert rows(report) == [
        ("act.norm", one, 4, "Tanh", pulled, "stem.bias"),
        ("blocks.0.act.norm", one, 8, "GELU", pulled, "blocks.0.up.bias"),
        ("blocks.0.last.norm", one, 4, "ReLU", affine, None),  # behind a sum: the bias stays
        ("blocks.1.act.norm", one, 8, "GELU", pulled, "blocks.1.up.bias"),
        ("blocks.1.last.norm", one, 4, "ReLU", affine, None),
    ]
    scales = [p for m in model.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm) for p in m.parameters()]
    assert len(scales) == (0 if affine == "none" else 10 if kind == "layernorm" else 5)
    model(torch.randn(2, 3)).sum().backward()
    kept = WeightProjector(model, exclude=[model.head]).state_dict()["kept_norms"]
    assert [name for name in kept if "norm" in name] == (
        ["blocks.0.last.norm", "blocks.1.last.norm"] if affine == "joint" else []
    )
    assert len(WeightProjector(pickle.loads(pickle.dumps(model))).state_dict()["kept_norms"]) == len(kept)
    assert len(WeightProjector(copy.deepcopy(model)).state_dict()["kept_norms"]) == len(kept)


def test_convolutions_are_normalised_over_channels_and_positions():
    for kind, name in (("layernorm", "GroupNorm"), ("rmsnorm", "ChannelRMSNorm")):
        model = Images()
        report = insert_norms(model, kind)
        assert rows(report) == [
            ("act.norm", name, 4, "LeakyReLU", "joint", None),  # the pool stands between
            ("act3.norm", "LayerNorm" if kind == "layernorm" else "RMSNorm", 5, "ELU", "pulled", "fc.bias"),
        ]
        assert report.left == {"act2": "a normalisation precedes it"}
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        if kind == "layernorm":
            assert model.act.norm.num_groups == 1


def test_rms_norm_of_channels():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    norm = ChannelRMSNorm(3, eps=0.0, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    rms = x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    assert torch.allclose(norm(x), x / rms * torch.tensor([1.0, 2.0, 3.0]).double().reshape(1, 3, 1, 1), rtol=1e-14)
    assert torch.allclose(ChannelRMSNorm(3, eps=0.0, affine=False)(x), x / rms, rtol=1e-14)


def test_activations_of_the_output_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid())
    report = insert_norms(model)
    assert report.left == {"3": "no layer with weights follows it"}
    assert len(report.layers) == 1
    narrow = nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1), nn.LogSoftmax(-1))
    report = insert_norms(narrow)  # a layer norm of one feature is 0
    assert report.layers == []
    assert report.left == {"1": "it has one feature"}
    assert narrow[0].bias is not None


def test_a_second_time_there_is_nothing_to_do():
    model = mlp()
    insert_norms(model)
    before = repr(model)
    assert insert_norms(model).left == {
        "1.activation": "a normalisation precedes it",
        "4.activation": "a normalisation precedes it",
    }
    assert repr(model) == before


def test_norms_are_made_where_the_weights_are():
    model = mlp().bfloat16()
    insert_norms(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    meta = mlp().to("meta")
    insert_norms(meta)
    assert {p.device.type for p in meta.parameters()} == {"meta"}


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


def test_activations_of_your_own():
    assert insert_norms(mlp(Swish), activations=(Swish,)).layers[0].activation == "Swish"
    refused(TypeError, "calls sigmoid()", mlp(Swish))


# ---------------------------------------------------------------- refusals


def refused(error, text, model, *args, **options):
    before = repr(model)
    names = [(name, id(p)) for name, p in model.named_parameters()] if isinstance(model, nn.Module) else []
    with pytest.raises(error) as caught:
        insert_norms(model, *args, **options)
    said = str(caught.value)
    assert text in said
    assert said.endswith(".")
    assert "\n" not in said
    assert repr(model) == before
    assert not names or [(name, id(p)) for name, p in model.named_parameters()] == names


class Forward(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between, **modules):
        super().__init__()
        self.first, self.act, self.second, self.third = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)
        for name, module in modules.items():
            setattr(self, name, module)
        self.between = [between]

    def forward(self, x):
        return self.third(self.between[0](self, self.act(self.first(x))))


@pytest.mark.parametrize(
    ("text", "between"),
    [
        ("calls relu()", lambda m, x: functional.relu(m.second(x))),
        ("calls relu()", lambda m, x: torch.relu(m.second(x))),
        ("calls relu()", lambda m, x: m.second(x).relu()),
        ("calls gelu()", lambda m, x: functional.gelu(m.second(x))),
        ("calls clamp()", lambda m, x: m.second(x).clamp(min=0)),
        ("calls tanh_()", lambda m, x: m.second(x).tanh_()),
        ("calls pow()", lambda m, x: m.second(x) ** 2),
        ("calls abs()", lambda m, x: abs(m.second(x))),
        ("cannot trace Forward", lambda m, x: m.second(x) if x.sum() > 0 else x),
    ],
)
def test_functions_and_what_cannot_be_traced_are_refused(text, between):
    refused(TypeError, text, Forward(between))


def test_modules_that_hide_activations_are_refused():
    refused(TypeError, "the activations inside 'lstm', a LSTM", Forward(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(4, 4)))
    layer = nn.TransformerEncoderLayer(4, 2)
    refused(TypeError, "inside 'layer', a TransformerEncoderLayer", Forward(lambda m, x: m.layer(x), layer=layer))


def test_activations_that_are_not_called_once_are_refused():
    refused(ValueError, "'act' is called 2 times", Forward(lambda m, x: m.act(m.second(x))))
    act = nn.ReLU()
    two_names = Forward(lambda m, x: m.b(m.second(x)), a=act, b=act)
    refused(ValueError, "each call needs a module of its own", two_names)


def test_what_has_unknown_features_is_refused():
    refused(ValueError, "how many features reach 'b'", Forward(lambda m, x: m.b(x.reshape(-1, 4)), b=nn.ReLU()))
    refused(ValueError, "how many features reach '0'", nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))


def test_other_bad_input_is_refused():
    refused(ValueError, "kind must be 'layernorm' or 'rmsnorm'", mlp(), "batchnorm")
    refused(ValueError, "where must be 'pre_activation'", mlp(), where="post")
    refused(ValueError, "affine must be 'joint' or 'free' or 'none'", mlp(), affine=True)
    refused(TypeError, "takes a torch.nn.Module", 3)
    refused(ValueError, "calls no activation", nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1)))


def test_a_bias_that_goes_elsewhere_too_stays():
    def skip(m, x):
        y = m.second(x)
        return m.b(y) + y

    report = insert_norms(Forward(skip, b=nn.ReLU()))
    assert [(one.name, one.bias_removed) for one in report.layers] == [("act.norm", "first.bias"), ("b.norm", None)]
    twice = Forward(lambda m, x: m.second(m.b(m.second(x))), b=nn.ReLU())  # once before a norm, once before a layer
    assert [one.bias_removed for one in insert_norms(twice).layers] == ["first.bias", None]
    assert twice.second.bias is not None


class OfModules(nn.Module):
    """A forward of the modules that are given."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.given = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.given(self, x)


def test_a_bias_that_the_forward_reads_stays():
    model = OfModules(
        lambda self, x: self.head(self.act(self.stem(x))) + self.stem.bias.sum(),
        stem=nn.Linear(3, 4),
        act=nn.ReLU(),
        head=nn.Linear(4, 2),
    )
    assert insert_norms(model).layers[0].bias_removed is None
    assert model(torch.ones(5, 3)).shape == (5, 2)


@pytest.mark.parametrize("first", ["gate", "stem"])
def test_features_of_a_sum_are_those_of_what_is_not_one_column(first):
    names = ["gate", "stem"] if first == "gate" else ["stem", "gate"]
    model = OfModules(
        lambda self, x: self.head(self.act(getattr(self, names[0])(x) + getattr(self, names[1])(x))),
        gate=nn.Linear(3, 1),
        stem=nn.Linear(3, 4),
        act=nn.ReLU(),
        head=nn.Linear(4, 2),
    )
    assert [one.features for one in insert_norms(model).layers] == [4]
    assert model(torch.ones(5, 3)).shape == (5, 2)


def test_norms_are_made_where_the_layer_before_is_though_it_keeps_its_bias():
    """The first parameter of the model is of another dtype here, and may be on another device."""
    model = OfModules(
        lambda self, x: self.head(self.act(self.up(self.stem(x).double()))),
        stem=nn.Linear(3, 4),
        up=nn.Linear(4, 6, bias=False).double(),
        act=nn.ReLU(),
        head=nn.Linear(6, 2).double(),
    )
    insert_norms(model)
    assert model.act.norm.weight.dtype == torch.float64
    assert model(torch.ones(5, 3)).shape == (5, 2)


@pytest.mark.parametrize("eps", [-1.0, "small", None, float("nan"), True])
def test_a_wrong_eps_is_refused(eps):
    refused(ValueError, "eps must be a number in [0, inf)", mlp(), eps=eps)


@pytest.mark.parametrize("activations", [nn.ReLU, (3,), None])
def test_wrong_activations_are_refused(activations):
    refused(TypeError, "activations must be a tuple of classes", mlp(), activations=activations)
