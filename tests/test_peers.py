import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import vitx
from benchmarks import peers, peers_chefer, peers_worker


def test_sides_answer_with_seconds_and_results(tmp_path) -> None:
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from benchmarks.peers_worker import serve\n"
        "print('what a library prints', file=sys.stderr)\n"
        "def noise(batch): print('more'); return np.random.RandomState(3).randn(batch, 4, 4)\n"
        f"serve({{'forward': noise}}, Path({str(tmp_path)!r}), lambda name, batch: 6.0 * batch)\n"
    )
    with (
        peers.Side([sys.executable, "-c", code]) as first,
        peers.Side([sys.executable, "-c", code]) as second,
    ):
        row = peers.Row("forward", "plain", "a package")
        found = peers.measure(row, 3, first, {"plain": second}, tmp_path, rounds=2, seconds=0.0)
        assert found.seconds.shape == (2, 2) and (found.seconds >= 0).all()
        assert found.correlation == pytest.approx(1) and found.flops == [6.0, 6.0]
        assert len(found.growth) == 2
        alone = peers.measure(peers.Row("forward"), 3, first, {}, tmp_path, rounds=2, seconds=0.0)
        assert alone.seconds.shape == (1, 2) and alone.correlation is None
        first.process.kill()
        with pytest.raises((RuntimeError, BrokenPipeError)):
            first.seconds("forward", 1)
    assert np.load(tmp_path / "vitx.npy").shape == (3, 4, 4)


def test_rows_of_peers() -> None:
    row = peers.Row("attn_lrp", "lxt", "lxt")
    times = np.array([[0.5, 1.0], [1.25, 2.0]])
    figures = peers.Figures(times, [2.04e9, 3e9], [1.5e6, None], 0.99999)
    expected = ("`attn_lrp`", "8", "0.500 (1.000)", "1.250 (2.000)", "2.5 (2.0)")
    assert peers.cells(row, 8, figures) == (*expected, "2.0 / 3.0", "2 / ?", "0.999990", "lxt")
    one = peers.Figures(times[:1], [2e9], [3e6], None)
    alone = peers.cells(peers.Row("rise"), 1, one)
    assert alone == ("`rise`", "1", "0.500 (1.000)", "", "", "2.0", "3", "", "")
    assert len(alone) == len(peers.HEADER)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say it")
def test_growth_is_what_a_call_holds_at_once() -> None:
    def call() -> np.ndarray:
        first = np.ones(8 << 20)
        (first + 1).sum()  # 64 MiB twice, given back
        return np.ones(2 << 20)

    for _ in range(2):
        result, grown = peers_worker.growth(call)
        assert len(result) == 2 << 20
        assert grown is not None and grown == pytest.approx(2 << 26, rel=0.1)


def test_a_folder_without_the_published_code_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is no clone.*ViT_LRP.py"):
        peers.main(chefer=str(tmp_path))
    for name in peers_chefer.FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    peers_chefer.require(tmp_path)


@pytest.fixture
def torch(monkeypatch):
    """PyTorch, whose softmax keeps the type of its input: transformers asks for float32."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.setattr(
        torch.nn.functional, "softmax", lambda x, dim, dtype=None: torch.softmax(x, dim)
    )
    return torch


@pytest.mark.slow
@pytest.mark.parametrize("method", ["transformer_attribution", "generic_attention"])
def test_the_papers_rules_in_pytorch_agree(torch, method, tmp_path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    from benchmarks import peers_attribution

    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    config = ViTConfig(
        **sizes,
        num_hidden_layers=3,
        image_size=32,
        patch_size=8,
        num_labels=10,
        attn_implementation="eager",
    )
    model = ViTForImageClassification(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path)
    images, classes = np.random.default_rng(0).standard_normal((3, 3, 32, 32)), [0, 3, 7]
    theirs = getattr(peers_attribution, method)(model, torch.from_numpy(images), classes)
    with jax.enable_x64(True):
        read = vitx.load(tmp_path, dtype="float64")
        x = jnp.asarray(images.transpose(0, 2, 3, 1))
        _, maps = vitx.explain(read, x, jnp.asarray(classes), method=method)
        ours = np.asarray(maps)
    assert ours.dtype == np.float64 and theirs.shape == (3, 16)
    assert peers.least_correlation(ours, theirs.detach().numpy()) > 1 - 1e-9
    np.testing.assert_allclose(theirs.reshape(ours.shape), ours, rtol=0, atol=1e-6 * ours.max())


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_the_rules_in_pytorch_keep_relevance(rows, inputs, outputs, seed) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.peers_attribution import add, clone, linear, matmul

    torch.manual_seed(seed)
    x, r = torch.rand(1, rows, inputs).double(), torch.randn(1, rows, outputs).double()
    layer = torch.nn.Linear(inputs, outputs).double().requires_grad_(False)
    layer.weight[:, 0].abs_()  # with x above 0, no output is without a positive part
    weights = (x[..., None] * layer.weight.mT).clamp(min=0)  # (1, rows, inputs, outputs)
    expected = (weights / weights.sum(2, keepdim=True) * r[:, :, None]).sum(-1)
    torch.testing.assert_close(linear(layer, x, r), expected, rtol=1e-5, atol=1e-6)

    y = torch.rand_like(x) + 1
    given_relevance = torch.rand_like(x)
    first, second = add(x + 1, y, given_relevance)
    torch.testing.assert_close(first.sum() + second.sum(), given_relevance.sum())
    halves = matmul(x, y.mT, x @ y.mT, torch.ones(1, rows, rows).double())
    for half in halves:
        torch.testing.assert_close(
            half.sum(), torch.tensor(rows**2 / 2).double(), rtol=1e-5, atol=0
        )
    torch.testing.assert_close(clone(y, x, x), 2 * x)


def test_products_of_pytorch_are_counted() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.peers_torch import products

    weight = torch.ones(5, 7)

    def call(batch: int) -> np.ndarray:
        x = torch.ones(batch, 5, requires_grad=True)
        (x @ weight).sum().backward()
        q = torch.ones(batch, 2, 11, 8)
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
        with torch.inference_mode():
            torch.nn.functional.linear(x, weight.mT.contiguous(), torch.ones(7))
        return x.grad.numpy()

    for batch in (1, 3):
        layers, attention = 3 * 2 * 5 * 7, 2 * 2 * (2 * 11 * 11 * 8)
        assert products({"f": call}, "f", batch) == batch * (layers + attention)
