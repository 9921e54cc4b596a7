import torch
from torch import nn

from slipstream.training import Lion, Muon


def test_lion_steps_by_the_sign_of_its_average_and_keeps_a_slower_one():
    weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = Lion([weight], lr=0.1, betas=(0.5, 0.9))
    weight.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    assert torch.allclose(weight, torch.tensor([0.9, 1.1]))
    # Kept: (0.1, -0.1). In the step: (0.05 - 0.02, -0.05 + 0.03), whose signs are not the slopes'.
    weight.grad = torch.tensor([-0.04, 0.06])
    optimizer.step()
    assert torch.allclose(weight, torch.tensor([0.8, 1.2]))


def test_muon_steps_orthogonally_inside_and_as_adamw_at_the_ends():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Conv1d(4, 6, 3), nn.Flatten(), nn.Linear(12, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = Muon(model, lr=0.01)
    model[3](model[2](model[1](model[0](torch.tensor([[0, 1, 2, 3]])).mT)).relu()).sum().backward()
    slopes = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    moved = {name: value - before[name] for name, value in model.state_dict().items()}
    for name in ("0.weight", "1.bias", "3.weight", "3.bias"):  # the first step of AdamW
        assert torch.allclose(moved[name], -0.01 * slopes[name].sign(), atol=1e-6), name
    filters = moved["1.weight"].flatten(1)  # 6 x 12, of rank 4 at most: two positions, one slope
    sizes = torch.linalg.svdvals(filters) / (0.01 * 0.2 * 12**0.5)
    rank = int(torch.linalg.matrix_rank(slopes["1.weight"].flatten(1)))
    assert 0 < rank < 6
    assert ((sizes[:rank] > 0.6) & (sizes[:rank] < 1.3)).all()
    assert (filters * slopes["1.weight"].flatten(1)).sum() < 0
