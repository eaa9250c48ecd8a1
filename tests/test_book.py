"""The names that the book's cells call: torch's, torchvision's and d2l's, with torch's values."""

import numpy as np
import pytest
from PIL import Image

from minifcn import Tensor, nn
from minifcn import book as d2l
from minifcn import book as torch
from minifcn import book as torchvision
from minifcn.core.integers import Integers


def test_creation():
    assert torch.zeros(2, 3).shape == torch.ones((2, 3)).shape == torch.rand(size=(2, 3)).shape == torch.randn([2, 3]).shape
    assert torch.zeros(5).dtype == np.float32 and torch.zeros(2, dtype=torch.float64).dtype == np.float64
    for x, kind in ((torch.tensor([1.0, 2]), Tensor), (torch.tensor([1, 2]), Integers), (torch.tensor([True]), Integers),
                    (torch.arange(3), Integers), (torch.arange(3.0), Tensor), (torch.zeros(2, dtype=torch.long), Integers)):
        assert isinstance(x, kind)
    assert torch.tensor([1.0]).dtype == torch.arange(0, 1, 0.5).dtype == np.float32
    assert torch.tensor(np.ones(2)).dtype == np.float64 and torch.tensor(2.0, requires_grad=True).requires_grad
    a = np.zeros(2, np.float32)
    torch.tensor(a).fill_(1)
    assert a.tolist() == [0, 0]                                          # a copy


def test_manual_seed_seeds_everything():
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append([torch.rand(4).data, torch.randn(4).data, nn.Linear(2, 2).weight.data,
                      nn.Dropout()(np.ones(20, np.float32)).data])
    for first, second in zip(*draws):
        assert np.array_equal(first, second)


def test_operations_are_the_librarys():
    x, y = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)
    assert torch.cat([x, y], dim=1).shape == (2, 6) and torch.stack((x, y)).shape == (2, 2, 3)
    assert torch.matmul(x, y.T).data.tolist() == [[3, 3], [12, 12]] and torch.clamp(x, 1, 3).data.max() == 3
    assert torch.abs(-x).sum().item() == torch.sum(x).item() == 15 and torch.sqrt(y).data.max() == 1
    assert x.view(-1).size() == (6,) and x.flatten().unsqueeze(0).squeeze().shape == (6,)
    assert torch.where(x > 2, x, y * 0).data.tolist() == [[0, 0, 0], [3, 4, 5]]


def test_what_is_not_there_says_what_to_use():
    for name, words in (("cuda", "try_all_gpus"), ("load", "load_state"), ("einsum", "matmul"), ("fft", "")):
        with pytest.raises(AttributeError, match=f"minifcn.book has no '{name}'.*{words}"):
            getattr(torch, name)
    with pytest.raises(AttributeError, match="'Adam' is not in minifcn.book; there are SGD, lr_scheduler"):
        torch.optim.Adam  # noqa: B018
    with pytest.raises(AttributeError, match="'vgg16' is not in minifcn.book; there are resnet18"):
        torchvision.models.vgg16  # noqa: B018
    with pytest.raises(ValueError, match="only 'voc2012' is there, not 'banana-detection'"):
        d2l.download_extract("banana-detection")


@pytest.mark.parametrize("owner, name, words", [
    (Tensor([1.0]), "cuda", r"Tensor has no 'cuda'; in place of torch's use x.to\(\"gpu\"\)"),
    (Tensor([1.0]), "numel", "use x.size"), (Tensor([1.0]), "backwrad", "Tensor has no 'backwrad'$"),
    (nn.Linear(1, 1), "cuda", r"Linear has no 'cuda'; in place of torch's use net.to\(\"gpu\"\)"),
    (nn.Linear(1, 1), "weihgt", "Linear has no 'weihgt'$"), (nn, "MSELoss", r"use \(\(a - b\) \*\* 2\).mean\(\)"),
    (nn, "Tanh", "minifcn.nn has no 'Tanh'$"),
])
def test_torchs_other_names_say_what_to_use(owner, name, words):
    with pytest.raises(AttributeError, match=words):
        getattr(owner, name)


def test_transforms():
    picture = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    x = torchvision.transforms.ToTensor()(Image.fromarray(picture))
    assert x.dtype == np.float32 and np.array_equal(x.data, picture.transpose(2, 0, 1) / np.float32(255))
    assert torchvision.transforms.ToTensor()(Image.fromarray(picture[..., 0])).shape == (3, 4, 5)        # grey becomes RGB
    with pytest.raises(TypeError, match="uint8, 0..255, got float64"):
        torchvision.transforms.ToTensor()(picture / 255)
    for img in (x, torch.tensor(picture.transpose(2, 0, 1))):
        a, crop = np.asarray(img), torchvision.transforms.functional.crop
        assert np.array_equal(np.asarray(crop(img, 1, 2, 2, 3)), a[:, 1:3, 2:5])
        outside = np.asarray(crop(img, -1, 2, 4, 5))                     # zeros where there is no picture, as in torchvision
        assert np.array_equal(outside[:, 1:, :3], a[:, :3, 2:]) and not outside[:, 0].any() and not outside[:, :, 3:].any()
        assert type(crop(img, -1, 2, 4, 5)) is type(img)


def test_schedules_equal_torchs():
    reference = pytest.importorskip("torch")
    for ours, theirs in ((lambda o: torch.optim.lr_scheduler.StepLR(o, 2), lambda o: reference.optim.lr_scheduler.StepLR(o, 2)),
                         (torch.optim.lr_scheduler.PolynomialLR, reference.optim.lr_scheduler.PolynomialLR),
                         (lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
                          lambda o: reference.optim.lr_scheduler.StepLR(o, 2, 0.5)),
                         (lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3]),
                          lambda o: reference.optim.lr_scheduler.MultiStepLR(o, [1, 3])),
                         (lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 4, 0.9),
                          lambda o: reference.optim.lr_scheduler.PolynomialLR(o, 4, 0.9)),
                         (lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.9 ** n),
                          lambda o: reference.optim.lr_scheduler.LambdaLR(o, lambda n: 0.9 ** n))):
        p, q = Tensor([1.0], requires_grad=True), reference.tensor([1.0], requires_grad=True)
        p.grad, q.grad = np.ones(1, np.float32), reference.ones(1)
        mine = torch.optim.SGD([p], lr=0.5)
        other = reference.optim.SGD([q], lr=0.5)
        a, b = ours(mine), theirs(other)
        for _ in range(6):
            mine.step()
            other.step()
            a.step()
            b.step()
            assert a.get_last_lr() == pytest.approx(b.get_last_lr(), rel=1e-12)
        assert p.item() == pytest.approx(q.item(), rel=1e-6)


def test_show_images_takes_all_kinds():
    picture = np.zeros((4, 5, 3), np.uint8)
    axes = d2l.show_images([picture, torch.tensor(picture), Tensor(picture / np.float32(1)), Image.fromarray(picture)], 2, 2,
                           titles="abcd")
    assert len(axes) == 4 and all(len(place.images) == 1 for place in axes) and axes[3].get_title() == "d"
    d2l.plt.close("all")
