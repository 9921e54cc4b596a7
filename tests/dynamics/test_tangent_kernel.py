import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from cases import CASES
from slipstream.dynamics import PredictionPlan, predict_training_time, tangent_kernel
from slipstream.evaluation import Task, classification_loss
from slipstream.weights import clone, displace, weights_of

# MaxPool3d has no batching rule in torch.func: its error is tested below.
NETWORKS = [name for name in CASES if name != "volume"]


def network(name):
    return CASES[name].model().double().eval(), CASES[name].inputs(count=5).double()


def jacobian(model, inputs):
    """All of it at once: (examples, outputs, numbers)."""
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    slopes = jacrev(lambda at: functional_call(model, at, (inputs,)).flatten(1))(trained)
    return torch.cat([value.flatten(2) for value in slopes.values()], 2)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_product_of_explicit_jacobians(name):
    model, inputs = network(name)
    rows = jacobian(model, inputs)
    kernel = tangent_kernel(Task(model, [inputs[:2], inputs[2:]]))
    flat = rows.flatten(0, 1)
    assert_same(kernel.blocks[0], flat @ flat.T)
    assert_same(kernel.outputs, model(inputs).flatten(1).detach())
    separate = tangent_kernel(Task(model, [(inputs, None)]), outputs="separate")
    assert_same(separate.blocks, torch.einsum("ncp,mcp->cnm", rows, rows))


# Blocks of one row, layers one by one, and blocks of several examples.
@pytest.mark.parametrize("factor", [1, 4, 30])
@pytest.mark.parametrize("kind", ["full", "separate"])
@pytest.mark.parametrize("name", ["mlp", "tied_autoencoder", "functional_matmul"])
def test_little_memory_gives_the_same_in_more_pieces(name, kind, factor):
    model, inputs = network(name)
    done = []
    whole = tangent_kernel(Task(model, [inputs]), outputs=kind)
    memory = whole.blocks.numel() * 8 * factor
    pieces = tangent_kernel(
        Task(model, [inputs]), outputs=kind, memory=memory, progress=lambda *at: done.append(at)
    )
    assert_same(pieces.blocks, whole.blocks)
    assert done == [(n + 1, len(done)) for n in range(len(done))]
    assert factor > 1 or len(done) > 3
    assert factor > 1 or name != "mlp" or set(pieces.factored) < set(whole.factored)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


def test_fused_attention_goes_the_same_way():
    model, inputs = Attending().double().eval(), torch.randn(3, 5, 4, dtype=torch.float64)
    rows = []
    for output in model(inputs).flatten():
        slopes = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([slope.flatten() for slope in slopes]))
    flat = torch.stack(rows)
    assert_same(tangent_kernel(Task(model, [inputs])).blocks[0], flat @ flat.T)
    found = predict_training_time(
        Task(model, [(inputs, torch.tensor([0, 1, 1]))], classification_loss),
        plan=PredictionPlan(thresholds=[0.1], lr=1e-3, weight_decay=0.1, max_steps=20, momentum=0),
    )
    assert found.trust.path_error < 0.02


def test_only_layers_with_one_vector_and_one_use_are_taken_apart():
    factored = {}
    for name in ("mlp", "tied_autoencoder", "functional_matmul", "sequence"):
        model, inputs = network(name)
        factored[name] = tangent_kernel(Task(model, [inputs])).factored
    assert factored == {
        "mlp": ("0", "2", "4"),
        "tied_autoencoder": ("head",),  # not `encode`, used again as decoder, nor `shared`
        "functional_matmul": (),
        "sequence": ("head",),  # not `mix`, which sees one vector for each time
    }


def test_frozen_parameters_are_left_out():
    model, inputs = network("mlp")
    model[0].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    rows = jacobian(model, inputs).flatten(0, 1)
    kernel = tangent_kernel(Task(model, [inputs]))
    assert kernel.tensors == ("0.bias", "2.weight", "2.bias", "4.weight")
    assert_same(kernel.blocks[0], rows @ rows.T)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        tangent_kernel(Task(model, [inputs]))


def test_at_other_weights_the_model_stays_as_it_was():
    model, inputs = network("conv_flatten")
    before = clone(weights_of(model))
    moved = displace(before, {"8.weight": torch.ones_like(before["8.weight"])})
    there = tangent_kernel(Task(model, [inputs]), weights=moved)
    assert all(torch.equal(before[name], value) for name, value in weights_of(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.load_state_dict(moved)
    assert_same(there.blocks, tangent_kernel(Task(model, [inputs])).blocks)


def test_precision_is_that_of_the_weights_or_what_is_asked_for():
    model, inputs = CASES["mlp"].model(), CASES["mlp"].inputs()
    single, double = (tangent_kernel(Task(model, [inputs]), dtype=d) for d in (None, torch.float64))
    assert (single.blocks.dtype, double.blocks.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.blocks, double.blocks.float())
    half = tangent_kernel(Task(model.to(torch.bfloat16), [inputs]))
    assert half.blocks.dtype == torch.float32


@pytest.mark.parametrize("kind", ["full", "separate"])
def test_products_and_eigenvalues_are_those_of_the_matrix(kind):
    model, inputs = network("mlp")
    kernel = tangent_kernel(Task(model, [inputs]), outputs=kind)
    values = torch.randn(5, 3, dtype=torch.float64)
    if kind == "full":
        matrix = kernel.blocks[0]
    else:  # zeros between outputs, in the order of the full one
        matrix = torch.einsum("cnm,cd->ncmd", kernel.blocks, torch.eye(3).double()).reshape(15, 15)
    assert_same(kernel.times(values), (matrix @ values.flatten()).view(5, 3))
    rows = torch.tensor([4, 1])
    some = torch.zeros_like(values)
    some[rows] = values[rows]
    assert_same(kernel.columns(rows, values[rows]), kernel.times(some))
    found = kernel.eigenvalues().flatten().sort().values
    assert_same(found, torch.linalg.eigvalsh(matrix))
    assert_same(kernel.part(2), tangent_kernel(Task(model, [inputs[:2]]), outputs=kind).blocks)


def test_a_network_that_no_rule_covers_is_told():
    model, inputs = CASES["volume"].model(), CASES["volume"].inputs()
    with pytest.raises(ValueError, match="cannot be differentiated example by example with torch"):
        tangent_kernel(Task(model, [inputs]))


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Wordy(Mixing):
    def forward(self, x):
        return {"logits": self.layer(x)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: (nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 3)), None), r"at 0: call model.eval"),
        (lambda: (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), None), "BatchNorm at 0 norm"),
        (lambda: (Mixing(), None), "depend on the others in its batch"),
        (lambda: (Wordy(), None), r"returns a dict\. Wrap it"),
        (lambda: (nn.Linear(6, 3), []), "data is empty"),
        (lambda: (nn.Linear(6, 3), [torch.zeros(0, 6)]), "data is empty"),
        (lambda: (nn.Linear(6, 3), [[{"x": torch.zeros(1, 6)}]]), "batch 0 .* are a dict"),
        (
            lambda: (nn.Linear(6, 3), [torch.ones(1, 6), torch.full((1, 6), torch.nan)]),
            "inputs of batch 1 .* not all finite",
        ),
    ],
)
def test_bad_input_is_told(change, message):
    model, data = change()
    with pytest.raises(ValueError, match=message):
        tangent_kernel(Task(model, [torch.randn(4, 6)] if data is None else data))


def test_too_large_a_kernel_is_told_with_what_would_do():
    model, data = nn.Linear(6, 10), [torch.randn(500, 6)]
    with pytest.raises(
        ValueError, match=r"500 examples with 10 outputs each takes 0\.1 GB"
    ) as told:
        tangent_kernel(Task(model, data), memory=4_000_000)
    assert "at most 100 examples" in str(told.value)
    assert 'outputs="separate" (0.01 GB)' in str(told.value)
    few = tangent_kernel(Task(model, [data[0][:100]]), memory=4_000_000)
    assert few.blocks.shape == (1, 1000, 1000)
    with pytest.raises(ValueError, match="at most 316 examples, or more memory"):
        tangent_kernel(Task(model, data), outputs="separate", memory=4_000_000)
    with pytest.raises(ValueError, match="outputs must be full or separate, got 'all'"):
        tangent_kernel(Task(model, data), outputs="all")


class Scaled(nn.Module):
    """A parameter of a single number, with no axis."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.inner(x).tanh() * self.scale


@pytest.mark.parametrize("kind", ["full", "separate"])
def test_a_parameter_without_axes_counts(kind):
    torch.manual_seed(0)
    model, inputs = Scaled().double(), torch.randn(4, 3, dtype=torch.float64)
    slope = model.inner(inputs).tanh().detach()
    model.inner.requires_grad_(False)
    kernel = tangent_kernel(Task(model, [inputs]), outputs=kind).blocks
    rows = slope.flatten()[None] if kind == "full" else slope.T
    assert_same(kernel, rows[:, :, None] * rows[:, None])


def test_complex_parameters_are_refused_in_words():
    model = nn.Linear(3, 2, dtype=torch.complex64)
    inputs = torch.randn(4, 3, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"'weight' is complex.*view_as_real"):
        tangent_kernel(Task(model, [inputs]))
