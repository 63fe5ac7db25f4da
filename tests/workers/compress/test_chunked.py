"""`workers.compress.chunked` against the same losses on the logits of all tokens."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.support.memory import peak_bytes
from workers.compress.chunked import chunk_tokens, chunked_loss
from workers.compress.fused import MATRICES_FUSED
from workers.compress.head import Head
from workers.compress.losses import NO_LABEL, TEACHER_LOSSES, Objective, cross_entropy

V, H, K = 37, 6, 9

OBJECTIVES = [
    Objective(teacher_loss=None, cross_entropy_weight=1.0),
    *(Objective(teacher_loss=name, interpolation=0.3) for name in TEACHER_LOSSES),
    Objective(teacher_loss="forward_kl", temperature=2.0),
    Objective(teacher_loss="jensen_shannon", temperature=0.5),
    Objective(teacher_loss="forward_kl", cross_entropy_weight=0.5),
    Objective(teacher_loss="reverse_kl", cross_entropy_weight=0.5),
]


class Case:
    """Hidden states, heads and labels of 2 x 7 tokens; the last of each window has no label."""

    def __init__(self, *, cap: float | None = None, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        self.hidden, self.weight = draw(2, 7, H).requires_grad_(), draw(V, H).requires_grad_()
        self.teacher_hidden, self.cap = draw(2, 7, K), cap
        self.teacher_head = Head(weight_VH=draw(V, K), cap=cap)
        self.labels = torch.randint(V, (2, 7), generator=generator)
        self.labels[:, -1] = NO_LABEL

    def chunked(self, objective: Objective, *, max_bytes: int | None = None) -> Tensor:
        head = Head(weight_VH=self.weight, cap=self.cap)
        return chunked_loss(
            self.hidden,
            head,
            self.teacher_hidden,
            self.teacher_head,
            objective,
            labels_N=self.labels,
            max_bytes=max_bytes,
        )

    def whole(self, objective: Objective) -> Tensor:
        """From the logits of all tokens."""
        student = Head(weight_VH=self.weight, cap=self.cap)(self.hidden)
        value = objective.cross_entropy_weight * cross_entropy(student, self.labels)
        if objective.teacher_loss is not None:
            teacher = self.teacher_head(self.teacher_hidden)
            value = value + TEACHER_LOSSES[objective.teacher_loss](student, teacher, objective)
        return value

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(3 * loss, (self.hidden, self.weight))


def bytes_for(tokens: int, objective: Objective, dtype: torch.dtype = torch.float64) -> int:
    """What makes chunks of that many tokens."""
    sizes = range(0, 10**6, 500)
    return next(size for size in sizes if chunk_tokens(objective, V, dtype, max_bytes=size) == tokens)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_loss_and_both_gradients_do_not_depend_on_chunks(objective: Objective, cap: float | None) -> None:
    case = Case(cap=cap)
    whole = case.whole(objective)
    expected = case.gradients(whole)
    for tokens in (1, 3, 7, 13, 14, 20):
        chunked = case.chunked(objective, max_bytes=bytes_for(tokens, objective))
        torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-14)
        for ours, theirs in zip(case.gradients(chunked), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o.teacher_loss != "taid"])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_gradients_are_slopes(objective: Objective, cap: float | None) -> None:
    """By central differences along a random direction; `gradcheck` would ask for several backward passes."""
    case, max_bytes, step = Case(cap=cap), bytes_for(5, objective), 1e-4
    generator = torch.Generator().manual_seed(1)
    gradients = torch.autograd.grad(case.chunked(objective, max_bytes=max_bytes), (case.hidden, case.weight))
    for parameter, gradient in zip((case.hidden, case.weight), gradients, strict=True):
        direction, values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64), []
        with torch.no_grad():
            for amount in (step, -2 * step):
                parameter.add_(amount * direction)
                values.append(case.chunked(objective, max_bytes=max_bytes))
            parameter.add_(step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_without_gradient_there_is_the_same_value_and_no_graph(
    objective: Objective, guard: Callable[[], torch.no_grad]
) -> None:
    case = Case()
    with guard():
        value = case.chunked(objective, max_bytes=bytes_for(5, objective))
    assert not value.requires_grad
    torch.testing.assert_close(value, case.whole(objective).detach(), rtol=1e-12, atol=1e-14)


def test_only_what_requires_gradients_gets_one() -> None:
    case = Case()
    expected_hidden, expected_weight = case.gradients(case.whole(Objective()))
    case.weight.requires_grad_(False)
    (3 * case.chunked(Objective())).backward()
    assert case.weight.grad is None
    torch.testing.assert_close(case.hidden.grad, expected_hidden)
    case = Case()
    case.hidden.requires_grad_(False)
    (3 * case.chunked(Objective())).backward()
    assert case.hidden.grad is None
    torch.testing.assert_close(case.weight.grad, expected_weight)


def test_gradients_of_micro_batches_add_up() -> None:
    case = Case()
    expected = case.gradients(case.whole(Objective()))[1]
    for _ in range(3):
        case.chunked(Objective()).backward()
    torch.testing.assert_close(case.weight.grad, expected)


def test_a_tied_head_gets_its_gradient_beside_the_embeddings() -> None:
    ids, case = torch.arange(14).view(2, 7), Case()
    embeddings = nn.Embedding(V, H, dtype=torch.float64)

    def gradient(chunked: bool) -> Tensor:
        case.hidden, case.weight = embeddings(ids).tanh(), embeddings.weight
        loss = case.chunked(Objective(), max_bytes=1) if chunked else case.whole(Objective())
        return torch.autograd.grad(loss, embeddings.weight)[0]

    torch.testing.assert_close(gradient(True), gradient(False))


def test_without_a_teacher_none_is_asked_for() -> None:
    case, objective = Case(), Objective(teacher_loss=None, cross_entropy_weight=1.0)
    value = chunked_loss(case.hidden, Head(weight_VH=case.weight), None, None, objective, labels_N=case.labels)
    torch.testing.assert_close(value, case.whole(objective))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_logits_of_a_float32_head_have_the_gradients_of_a_stock_training_step(
    objective: Objective, autocast: bool
) -> None:
    """Hidden states in bfloat16, or in float32 under autocast; against `linear` under autocast on all tokens."""
    case = Case(dtype=torch.float32)
    case.teacher_hidden = case.teacher_hidden.bfloat16()
    case.teacher_head = Head(weight_VH=case.teacher_head.weight_VH.bfloat16())
    if not autocast:
        case.hidden = case.hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = case.whole(objective)
    expected = case.gradients(whole)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        chunked = case.chunked(objective, max_bytes=bytes_for(5, objective, torch.bfloat16))
    assert chunked.dtype == torch.float32
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(case.gradients(chunked), expected, strict=True):
        assert ours.dtype == theirs.dtype
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.01 * scale)


def test_gradients_of_many_chunks_are_summed_in_float32() -> None:
    """In bfloat16 the sum over 2,000 equal tokens would stop growing after some 256 of them."""
    tokens = 2_000
    hidden = torch.ones(tokens, 1, dtype=torch.bfloat16)
    weight = torch.tensor([[1.0], [0.0]], requires_grad=True)
    teacher = Head(weight_VH=torch.tensor([[0.0], [1.0]], dtype=torch.bfloat16))
    chunked_loss(hidden, Head(weight_VH=weight), hidden, teacher, Objective(), max_bytes=1).backward()
    assert weight.grad is not None
    q, p = torch.softmax(torch.tensor([1.0, 0.0]), 0), torch.softmax(torch.tensor([0.0, 1.0]), 0)
    torch.testing.assert_close(weight.grad[:, 0], q - p, rtol=0.005, atol=0)


def test_a_second_backward_pass_is_refused() -> None:
    case = Case()
    loss = case.chunked(Objective())
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="one backward pass"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_memory_is_what_the_docstring_calculates(
    objective: Objective, gradient: bool, cap: float | None, dtype: torch.dtype
) -> None:
    tokens, vocab, hidden_size, max_bytes = 512, 4_096, 16, 2**22
    hidden = torch.randn(tokens, hidden_size, dtype=dtype, requires_grad=gradient)
    weight = torch.randn(vocab, hidden_size, requires_grad=gradient)
    head = Head(weight_VH=torch.randn(vocab, hidden_size, dtype=dtype), cap=cap)
    labels = torch.randint(vocab, (tokens,))

    def act() -> Tensor:
        student = Head(weight_VH=weight, cap=cap)
        loss = chunked_loss(hidden, student, hidden.detach(), head, objective, labels_N=labels, max_bytes=max_bytes)
        if gradient:
            loss.backward()
        return loss

    copy = 0 if dtype == torch.float32 else weight.numel() * dtype.itemsize
    gradients = weight.nbytes + hidden.nbytes if gradient else 0
    few = 64 * 1024  # scalars, labels, and a chunk's hidden states
    peak = peak_bytes(act)
    assert peak <= copy + gradients + max_bytes + few
    assert peak < tokens * vocab * 4 + gradients  # the logits of all tokens in float32
    assert peak >= gradients + max_bytes // 6  # what is measured is the work, and chunks are not far too small


def test_a_real_vocabulary_takes_less_than_2_gib() -> None:
    """The docstring's arithmetic, from the tests' measurements: 8,192 tokens, 128,256 words, 4,096 channels."""
    copy, of_hidden, work = 2 * 128_256 * 4_096, 2 * 8_192 * 4_096, 768 * 2**20
    assert copy + of_hidden + work == 1_923_088_384 < 2**31
    assert chunk_tokens(Objective(), 128_256, torch.bfloat16, max_bytes=work) == 256
    assert chunk_tokens(Objective(), 128_256, torch.bfloat16, max_bytes=work, fused=True) == 1_024
    assert work >= 1_024 * MATRICES_FUSED * 2 * 128_256
