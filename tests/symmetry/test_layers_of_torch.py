"""Layers and functions of PyTorch, each with the groups it has: no rule is missing or wrong."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from slipstream.symmetry.tracing import find_neuron_groups

ROWS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TEXT = torch.tensor([[1, 5, 2, 7], [3, 3, 8, 0]])


class Wired(nn.Module):
    """Modules and parameters by name, and a function of them."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def zeros(count):
    return torch.zeros(4, count)


def weight(*sizes):
    return nn.Parameter(torch.randn(*sizes) * 0.5)


def rows(function, **parts):
    return (lambda: Wired(function, **{n: p() for n, p in parts.items()})), ROWS


def images(function, channels=6, last=6):
    def build():
        first, head = nn.Conv2d(3, channels, 1), nn.Conv2d(last, 2, 1)
        return Wired(lambda s, x: s.head(function(s.first(x))), first=first, head=head)

    return build, IMAGES


@torch.no_grad()
def _sum_in(first, second, result):
    return torch.add(first, second, out=result)


@torch.enable_grad()
def _slope(energy, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(energy(x).sum(), x, create_graph=True)[0]


def linear(inputs, outputs):
    return lambda: nn.Linear(inputs, outputs)


def forces(layer, inputs, widths):
    """The slope of an energy: two linear maps around a layer, of widths `widths`."""
    module, *parts = layer

    def build():
        first, last = parts[0](), nn.Linear(parts[1], 1)

        def energy(s, x):
            return s.last(module(s, s.first(x)))

        return Wired(
            lambda s, x: _slope(lambda x: energy(s, x), x),
            first=first,
            last=last,
            **{name: part() for name, part in (parts[2] if len(parts) > 2 else {}).items()},
        )

    return build, inputs


def maps():
    return nn.Conv2d(3, 6, 3)


BELOW_AUTOGRAD = {
    "a norm": (
        (lambda s, x: functional.gelu(s.n(x)), linear(5, 6), 6, {"n": lambda: nn.LayerNorm(6)}),
        ROWS,
        [6],
    ),
    "elu and softplus": (
        (lambda s, x: functional.softplus(functional.elu(x)), linear(5, 6), 6),
        ROWS,
        [6],
    ),
    "leaky rectifiers": (
        (lambda s, x: functional.leaky_relu(s.b(x.relu())), linear(5, 6), 4, {"b": linear(6, 4)}),
        ROWS,
        [4, 6],
    ),
    "convolutions": (
        (
            lambda s, x: s.c(functional.silu(s.b(functional.silu(x)))).tanh().mean((2, 3)),
            maps,
            4,
            {
                "b": lambda: nn.Conv2d(6, 7, 3, stride=2),
                "c": lambda: nn.ConvTranspose2d(7, 4, 3, stride=2),
            },
        ),
        IMAGES,
        [4, 6, 7],
    ),
    "statistics of batches": (
        (
            lambda s, x: functional.silu(s.n(x)).mean((2, 3)),
            maps,
            6,
            {"n": lambda: nn.BatchNorm2d(6)},
        ),
        IMAGES,
        [6],
    ),
    "pools": (
        (
            lambda s, x: functional.avg_pool2d(functional.max_pool2d(x.tanh(), 2), 3).flatten(1),
            maps,
            6,
        ),
        IMAGES,
        [6],
    ),
    "distances": (
        (lambda s, x: (-torch.cdist(x, s.c)).exp(), linear(5, 6), 7, {"c": lambda: weight(7, 6)}),
        ROWS,
        [6, 7],
    ),
}


def _unpooled(s, x, numbers):
    return s.o(functional.max_unpool2d(s.b(x), numbers, 2))


CASES = {
    "LSTMCell": (
        *rows(
            lambda s, x: s.o(s.c(x, (zeros(7).to(x), zeros(7).to(x)))[0]),
            c=lambda: nn.LSTMCell(5, 7),
            o=linear(7, 3),
        ),
        [7],
    ),
    "LSTMCell twice, both states": (
        *rows(
            lambda s, x: s.o(torch.cat(s.c(x, s.c(x)), 1)),
            c=lambda: nn.LSTMCell(5, 7, bias=False),
            o=linear(14, 3),
        ),
        [7],
    ),
    "GRUCell in a loop": (
        *rows(
            lambda s, x: s.o(s.c(x, s.c(x, s.start(x)))),
            c=lambda: nn.GRUCell(5, 7),
            start=linear(5, 7),
            o=linear(7, 3),
        ),
        [7],
    ),
    "RNNCell": (
        *rows(
            lambda s, x: s.o(s.c(x) + s.d(x)),
            c=lambda: nn.RNNCell(5, 7),
            d=lambda: nn.RNNCell(5, 7, nonlinearity="relu"),
            o=linear(7, 3),
        ),
        [7],
    ),
    "Bilinear": (
        *rows(
            lambda s, x: s.o(s.t(s.a(x), s.b(x)).relu()),
            a=linear(5, 4),
            b=linear(5, 6),
            t=lambda: nn.Bilinear(4, 6, 7),
            o=linear(7, 3),
        ),
        [4, 6, 7],
    ),
    "EmbeddingBag": (
        lambda: Wired(lambda s, x: s.o(s.e(x).relu()), e=nn.EmbeddingBag(9, 8), o=nn.Linear(8, 3)),
        TEXT,
        [8],
    ),
    "EmbeddingBag, maximum": (
        lambda: Wired(
            lambda s, x: s.o(s.e(x)), e=nn.EmbeddingBag(9, 8, mode="max"), o=nn.Linear(8, 3)
        ),
        TEXT,
        [8],
    ),
    "EmbeddingBag, weighted": (
        lambda: Wired(
            lambda s, x: s.o(s.e(x, per_sample_weights=s.w[x])),
            e=nn.EmbeddingBag(9, 8, mode="sum"),
            w=weight(9),
            o=nn.Linear(8, 3),
        ),
        TEXT,
        [8],
    ),
    "EmbeddingBag, weighted by position": (
        lambda: Wired(
            lambda s, x: s.o(s.e(x, per_sample_weights=s.w.expand(2, 4))),
            e=nn.EmbeddingBag(9, 8, mode="sum"),
            w=weight(4),
            o=nn.Linear(8, 3),
        ),
        TEXT,
        [8],
    ),
    "parametrized spectral norm": (
        *rows(
            lambda s, x: s.b(s.a(x).relu()),
            a=lambda: parametrizations.spectral_norm(nn.Linear(5, 8)),
            b=lambda: parametrizations.spectral_norm(nn.Linear(8, 3)),
        ),
        [8],
    ),
    "parametrized weight norm": (
        *rows(
            lambda s, x: s.b(s.a(x).relu()),
            a=lambda: parametrizations.weight_norm(nn.Linear(5, 8)),
            b=lambda: parametrizations.weight_norm(nn.Linear(8, 3), dim=1),
        ),
        [8],
    ),
    "spectral norm of older kind": (
        *rows(
            lambda s, x: s.b(s.a(x).relu()),
            a=lambda: nn.utils.spectral_norm(nn.Linear(5, 8)),
            b=lambda: nn.utils.spectral_norm(nn.Linear(8, 3)),
        ),
        [8],
    ),
    "choices by chance in training": (
        *rows(
            lambda s, x: s.o(
                functional.gumbel_softmax(s.a(x), hard=True) if s.training else s.a(x).softmax(-1)
            ),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "weight norm of the whole": (
        *rows(
            lambda s, x: s.b(s.a(x).relu()),
            a=lambda: parametrizations.weight_norm(nn.Linear(5, 8), dim=None),
            b=lambda: nn.utils.weight_norm(nn.Linear(8, 3), dim=None),
        ),
        [8],
    ),
    "grid_sample": (
        lambda: Wired(
            lambda s, x: s.o(
                functional.grid_sample(s.a(x), s.g(x).permute(0, 2, 3, 1), align_corners=False)
            ),
            a=nn.Conv2d(3, 6, 1),
            g=nn.Conv2d(3, 2, 1),
            o=nn.Conv2d(6, 2, 1),
        ),
        IMAGES,
        [6],
    ),
    "unfold": (*images(lambda x: functional.unfold(x, 3, padding=1)[..., None], last=54), [6]),
    "unfold and fold": (
        *images(lambda x: functional.fold(functional.unfold(x, 3, padding=1), 8, 3, padding=1)),
        [6],
    ),
    "windows along an axis": (*images(lambda x: x.unfold(2, 4, 2).mean(-1).relu()), [6]),
    "Fourier layers": (*images(lambda x: torch.fft.irfft(torch.fft.rfft(x), n=8)), [6]),
    "two-dimensional Fourier layers": (
        *images(lambda x: torch.fft.ifft2(torch.fft.fft2(x, norm="ortho") * 2).real),
        [6],
    ),
    "n-dimensional Fourier layers": (
        *images(lambda x: torch.fft.fftshift(torch.fft.fftn(x, dim=(2, 3)), dim=(2, 3)).abs()),
        [6],
    ),
    "spectral convolution": (
        lambda: Wired(
            lambda s, x: s.o(
                torch.fft.irfft(torch.einsum("bchw,cow->bohw", torch.fft.rfft(s.a(x)), s.w), n=8)
            ),
            a=nn.Conv2d(3, 6, 1),
            w=nn.Parameter(torch.randn(6, 7, 5, dtype=torch.complex64)),
            o=nn.Conv2d(7, 2, 1),
        ),
        IMAGES,
        [6, 7],
    ),
    "complex linear map": (
        *rows(
            lambda s, x: torch.view_as_real(
                (torch.complex(s.a(x), s.b(x)) @ s.w).conj().resolve_conj()
            ),
            a=linear(5, 6),
            b=linear(5, 6),
            w=lambda: nn.Parameter(torch.randn(6, 3, dtype=torch.complex64)),
        ),
        [6],
    ),
    "real and imaginary parts": (
        *rows(
            lambda s, x: s.o(torch.complex(s.a(x), s.b(x)).imag.relu() + (s.a(x) * 1j).imag),
            a=linear(5, 6),
            b=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "rotary by complex numbers": (
        lambda: Wired(
            lambda s, x: s.o(
                torch.view_as_real(
                    torch.view_as_complex(s.a(x).view(4, 5, 3, 4, 2))
                    * torch.polar(torch.ones(5, 1, 4), torch.arange(20.0).view(5, 1, 4))
                ).flatten(2)
            ),
            a=nn.Linear(5, 24),
            o=nn.Linear(24, 3),
        ),
        torch.randn(4, 5, 5),
        [3],
    ),
    "distances to codes": (
        *rows(
            lambda s, x: s.d(s.c[torch.cdist(s.e(x), s.c).argmin(-1)]),
            e=linear(5, 4),
            c=lambda: weight(7, 4),
            d=linear(4, 3),
        ),
        [4, 7],
    ),
    "radial basis functions": (
        *rows(
            lambda s, x: s.d((-torch.cdist(s.e(x), s.c)).exp()),
            e=linear(5, 4),
            c=lambda: weight(7, 4),
            d=linear(7, 3),
        ),
        [4, 7],
    ),
    "cosine similarity": (
        *rows(
            lambda s, x: functional.cosine_similarity(s.a(x)[:, None], s.p, dim=-1) * s.q,
            a=linear(5, 6),
            p=lambda: weight(3, 6),
            q=lambda: weight(3),
        ),
        [6],
    ),
    "pairwise distance": (
        *rows(
            lambda s, x: functional.pairwise_distance(s.a(x), s.b(x)),
            a=linear(5, 6),
            b=linear(5, 6),
        ),
        [6],
    ),
    "einsum of a diagonal": (
        *rows(
            lambda s, x: torch.einsum("bi,ii->bi", s.a(x).relu(), s.w) @ s.v,
            a=linear(5, 6),
            w=lambda: weight(6, 6),
            v=lambda: weight(6, 3),
        ),
        [6],
    ),
    "einsum of a trace": (
        *rows(
            lambda s, x: s.o(s.a(x)) * torch.einsum("ii", s.w) * torch.trace(s.w),
            a=linear(5, 6),
            o=linear(6, 3),
            w=lambda: weight(4, 4),
        ),
        [4, 6],
    ),
    "einsum with an ellipsis": (
        *rows(
            lambda s, x: torch.einsum("...i,io", s.a(x).relu(), s.w),
            a=linear(5, 6),
            w=lambda: weight(6, 3),
        ),
        [6],
    ),
    "einsum of several dots": (
        *rows(
            lambda s, x: torch.einsum("...i,...i->...", s.a(x).relu()[:, None], s.w),
            a=linear(5, 6),
            w=lambda: weight(3, 6),
        ),
        [6],
    ),
    "kron": (
        *rows(
            lambda s, x: s.a(x).relu() @ torch.kron(s.u, s.v) @ s.w,
            a=linear(5, 6),
            u=lambda: weight(2, 4),
            v=lambda: weight(3, 2),
            w=lambda: weight(8, 3),
        ),
        [2, 2, 3, 4],
    ),
    "diagonal": (
        *rows(
            lambda s, x: (s.a(x).relu() * torch.diagonal(s.w)) @ s.v,
            a=linear(5, 6),
            w=lambda: weight(6, 6),
            v=lambda: weight(6, 3),
        ),
        [6],
    ),
    "tensordot, inner and outer": (
        *rows(
            lambda s, x: (
                torch.inner(torch.tensordot(s.a(x), s.u, 1).relu(), s.v) + torch.outer(x[:, 0], s.b)
            ),
            a=linear(5, 6),
            u=lambda: weight(6, 4),
            v=lambda: weight(3, 4),
            b=lambda: weight(3),
        ),
        [4, 6],
    ),
    "a chain of matrices": (
        *rows(
            lambda s, x: torch.linalg.multi_dot([x, s.u, s.v, s.w]),
            u=lambda: weight(5, 6),
            v=lambda: weight(6, 4),
            w=lambda: weight(4, 3),
        ),
        [4, 6],
    ),
    "dots of vectors": (
        *rows(
            lambda s, x: s.o(s.a(x)) * torch.dot(s.u, s.v) * torch.vdot(s.u, s.v),
            a=linear(5, 6),
            o=linear(6, 3),
            u=lambda: weight(4),
            v=lambda: weight(4),
        ),
        [4, 6],
    ),
    "pooling of other axes": (
        *rows(
            lambda s, x: s.o(
                functional.avg_pool2d(s.a(x).relu()[None, None], (2, 1), stride=(2, 1))[0, 0]
            ),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "maximum of other axes": (
        *rows(
            lambda s, x: s.o(
                functional.max_pool2d(s.a(x)[None, None], (3, 1), stride=1, padding=(1, 0))[0, 0]
            ),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "mean over units": (
        *rows(
            lambda s, x: functional.adaptive_avg_pool1d(s.a(x).relu(), 1) + s.o(s.a(x)),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "convolution over other axes": (
        *rows(
            lambda s, x: s.o(s.c(s.a(x).relu()[None, None])[0].mean(0)),
            a=linear(5, 6),
            c=lambda: nn.Conv2d(1, 7, (2, 1)),
            o=linear(6, 3),
        ),
        [6, 7],
    ),
    "masked in place": (
        *rows(
            lambda s, x: s.o(s.a(x).relu().masked_fill_(x[:, :1] > 0, 0.0)),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "masked by a value in place": (
        *rows(
            lambda s, x: s.o(s.a(x).masked_fill_(s.a(x) > 0, -1.0)),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "loss between features": (
        *rows(
            lambda s, x: functional.mse_loss(s.a(x), s.b(x)) + functional.smooth_l1_loss(x, x * 2),
            a=linear(5, 6),
            b=linear(5, 6),
        ),
        [6],
    ),
    "running maximum": (*images(lambda x: x.cummax(-1).values), [6]),
    "result that is given": (
        *rows(
            lambda s, x: s.o(_sum_in(s.a(x), s.b(x), torch.empty(4, 6)).relu()),
            a=linear(5, 6),
            b=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "differences, with a first and a last one": (
        *rows(
            lambda s, x: s.o(s.a(x).relu().diff(dim=0, prepend=s.first, append=s.last)),
            a=linear(5, 6),
            first=lambda: weight(1, 6),
            last=lambda: weight(2, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "gates along places": (*images(lambda x: functional.glu(x, -1)), [6]),
    "pooling by powers": (*images(lambda x: functional.lp_pool2d(x.relu() + 1, 2, 2)), [6]),
    "neighbouring channels": (*images(lambda x: functional.local_response_norm(x, 3)), []),
    "spectrum behind a learned window": (
        *rows(
            lambda s, x: s.o(
                torch.stft(s.a(x).T, 4, window=s.w, return_complex=True).abs().sum((1, 2))
            ),
            a=linear(5, 6),
            w=lambda: weight(4),
            o=linear(6, 3),
        ),
        [6],
    ),
    "spectrum of units": (
        *rows(
            lambda s, x: s.o(torch.fft.fft(s.a(x)).abs()),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [],
    ),
    "norms of vectors and matrices": (
        *rows(
            lambda s, x: s.o(
                s.a(x) / torch.linalg.norm(s.a(x), dim=-1, keepdim=True)
                + torch.linalg.matrix_norm(s.w, "nuc")
            ),
            a=linear(5, 6),
            w=lambda: weight(7, 8),
            o=linear(6, 3),
        ),
        [6, 7, 8],
    ),
    "quantiles of units": (
        *rows(
            lambda s, x: s.o(
                s.a(x) - s.a(x).quantile(torch.tensor([0.2, 0.7]).to(x), -1, keepdim=True).sum(0)
            ),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "inverse of a matrix": (
        *rows(
            lambda s, x: s.o(s.a(x) @ torch.linalg.inv(s.w)),
            a=linear(5, 6),
            w=lambda: weight(6, 6),
            o=linear(6, 3),
        ),
        [6, 6],
    ),
    "inverse of a triangle": (
        *rows(
            lambda s, x: s.o(s.a(x) @ torch.linalg.pinv(s.w, hermitian=True)),
            a=linear(5, 6),
            w=lambda: weight(6, 6),
            o=linear(6, 3),
        ),
        [],
    ),
    "units on a diagonal": (
        *rows(
            lambda s, x: s.o((torch.diag_embed(s.a(x)) + s.w).sum(-1)),
            a=linear(5, 6),
            w=lambda: weight(6, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "units in steps": (
        *rows(
            lambda s, x: s.o(
                s.a(x) * torch.bucketize(s.a(x), torch.tensor([-1.0, 0.0, 1.0]).to(x))
            ),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "random slopes": (
        *rows(lambda s, x: s.o(s.r(s.a(x))), a=linear(5, 6), r=nn.RReLU, o=linear(6, 3)),
        [6],
    ),
    "one network for each row": (
        *rows(
            lambda s, x: torch.vmap(torch.vmap(lambda row: s.o(s.a(row).tanh())))(x[None]),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "an ensemble of one layer": (
        *rows(
            lambda s, x: torch.einsum(
                "eno,eop->np", torch.vmap(functional.linear, in_dims=(None, 0))(x, s.w).relu(), s.v
            ),
            w=lambda: weight(4, 6, 5),
            v=lambda: weight(4, 6, 2),
        ),
        [4, 6],
    ),
    "a gradient as output": (
        *rows(
            lambda s, x: torch.func.vmap(torch.func.grad(lambda row: s.o(s.a(row).tanh()).sum()))(
                x
            ),
            a=linear(5, 6),
            o=linear(6, 1),
        ),
        [6],
    ),
    "forces, by autograd": (
        *rows(lambda s, x: _slope(lambda x: s.o(s.a(x).tanh()), x), a=linear(5, 6), o=linear(6, 1)),
        [6],
    ),
    **{
        f"forces, by autograd, through {name}": (*forces(layer, given, widths), widths)
        for name, (layer, given, widths) in BELOW_AUTOGRAD.items()
    },
    "normalised maps, one by one": (
        lambda: Wired(
            lambda s, x: torch.vmap(lambda one: s.n(s.a(one[None])).relu().mean((2, 3)) @ s.w)(x),
            a=nn.Conv2d(3, 6, 1),
            n=nn.GroupNorm(2, 6),
            w=weight(6, 2),
        ),
        IMAGES,
        [2, 3],
    ),
    "stacks of rows and columns": (
        *rows(
            lambda s, x: s.o(
                torch.hstack(
                    [torch.vstack([s.a(x), s.a(x)]), torch.column_stack([s.b(x)] * 1).tile(2, 1)]
                )
            ),
            a=linear(5, 6),
            b=linear(5, 4),
            o=linear(10, 3),
        ),
        [4, 6],
    ),
    "pieces of stacks": (
        *rows(
            lambda s, x: s.o(torch.hsplit(s.a(x), 2)[0] * torch.hsplit(s.a(x), 2)[1]),
            a=linear(5, 6),
            o=linear(3, 3),
        ),
        [3],
    ),
    "a piece that is replaced": (
        *rows(
            lambda s, x: s.o(
                torch.slice_scatter(s.a(x), s.b(x), 1, 2, 4).select_scatter(s.c(x)[0], 0, 1)
            ),
            a=linear(5, 6),
            b=linear(5, 2),
            c=linear(5, 6),
            o=linear(6, 3),
        ),
        [2, 2, 2, 2],
    ),
    "gathered along an axis": (
        *rows(
            lambda s, x: s.o(s.a(x) + torch.take_along_dim(s.a(x), s.a(x).argsort(1)[:, :1], 1)),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "unpooled maps": (
        lambda: Wired(
            lambda s, x: _unpooled(s, *functional.max_pool2d(s.a(x), 2, return_indices=True)),
            a=nn.Conv2d(3, 6, 1),
            b=nn.Conv2d(6, 6, 1),
            o=nn.Conv2d(6, 2, 1),
        ),
        IMAGES,
        [6],
    ),
    "losses between embeddings": (
        *rows(
            lambda s, x: (
                functional.triplet_margin_loss(s.a(x), s.a(x + 1), s.b(x), margin=9.0)
                + functional.cosine_embedding_loss(s.a(x), s.b(x), torch.ones(4).to(x))
                + functional.cross_entropy(s.a(x), s.b(x).softmax(1))
                + torch.dist(s.a(x), s.b(x))
                + functional.pdist(s.a(x)).sum()
            ),
            a=linear(5, 6),
            b=linear(5, 6),
        ),
        [6],
    ),
    "solved equations": (
        *rows(
            lambda s, x: (
                s.o(torch.linalg.solve(s.w, s.a(x).T).T)
                + torch.linalg.solve(s.v, s.b(x), left=False) @ s.u
            ),
            a=linear(5, 6),
            w=lambda: weight(6, 6),
            o=linear(6, 3),
            b=linear(5, 4),
            v=lambda: weight(4, 4),
            u=lambda: weight(4, 3),
        ),
        [4, 4, 6, 6],
    ),
    "series of powers": (
        *rows(
            lambda s, x: s.o(s.a(x) @ torch.matrix_exp(s.w) @ torch.linalg.matrix_power(s.v, 2)),
            a=linear(5, 6),
            w=lambda: weight(6, 6),
            v=lambda: weight(6, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "singular values": (
        *rows(
            lambda s, x: s.o(s.a(x)) * torch.linalg.svdvals(s.w).sum(),
            a=linear(5, 6),
            w=lambda: weight(7, 4),
            o=linear(6, 3),
        ),
        [4, 6, 7],
    ),
    "between sorted values": (
        *rows(
            lambda s, x: s.o(s.a(x) * torch.searchsorted(torch.tensor([-1.0, 0.0]).to(x), s.a(x))),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "rows that are reduced by number": (
        *rows(
            lambda s, x: s.o(
                s.a(x)[:2].index_reduce(0, torch.tensor([0, 1, 1, 0]), s.a(x).tanh(), "amax")
            ),
            a=linear(5, 6),
            o=linear(6, 3),
        ),
        [6],
    ),
    "pairs of units as complex numbers": (
        *rows(
            lambda s, x: torch.view_as_complex(s.a(x).view(4, 3, 2)).abs() @ s.w,
            a=linear(5, 6),
            w=lambda: weight(3, 3),
        ),
        [3],
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_finds_the_groups_of_a_layer(name):
    build, inputs, expected = CASES[name]
    torch.manual_seed(0)
    groups = find_neuron_groups(build(), inputs)
    assert sorted(groups.sizes().values()) == expected, str(groups)
    assert not groups.dropped, str(groups)
    missing = [pin for pin in groups.pins if "no rule" in pin.reason]
    assert not missing, missing
