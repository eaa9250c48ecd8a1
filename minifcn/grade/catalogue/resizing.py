"""Wrong versions of the bilinear kernel and of bilinear resizing."""

import numpy as np

from minifcn.grade.catalogue.base import right, wrong
from minifcn.grade.subjects.convolution import pair

kernel, interpolate = right("bilinear_kernel"), right("interpolate")


def tents(channels, tent):
    """A kernel of one tent for each channel with itself."""
    return np.eye(channels)[:, :, None, None] * np.outer(tent, tent)


@wrong("bilinear_kernel", "the centre lies at K // 2: half a pixel too far for an even K")
def _(in_channels, out_channels, kernel_size):
    K = kernel_size
    return tents(in_channels, 1 - abs(np.arange(K) - K // 2) / ((K + 1) // 2))


@wrong("bilinear_kernel", "every channel enters every other: no zeros between two channels")
def _(in_channels, out_channels, kernel_size):
    return np.broadcast_to(kernel(in_channels=1, out_channels=1, kernel_size=kernel_size),
                           (in_channels, out_channels, kernel_size, kernel_size)).copy()


@wrong("bilinear_kernel", "the weights sum to 1")
def _(in_channels, out_channels, kernel_size):
    w = kernel(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size)
    return w / w[0, 0].sum()


@wrong("bilinear_kernel", "the factor is K // 2, one too small for an odd K")
def _(in_channels, out_channels, kernel_size):
    K = kernel_size
    return tents(in_channels, 1 - abs(np.arange(K) - (K - 1) / 2) / max(K // 2, 1))


@wrong("bilinear_kernel", "the tent is one-sided: it falls from the first tap on")
def _(in_channels, out_channels, kernel_size):
    return tents(in_channels, 1 - np.arange(kernel_size) / kernel_size)


@wrong("bilinear_kernel", "the sum of two tents in place of their product")
def _(in_channels, out_channels, kernel_size):
    K = kernel_size
    tent = 1 - abs(np.arange(K) - (K - 1) / 2) / ((K + 1) // 2)
    return np.eye(in_channels)[:, :, None, None] * (tent[:, None] + tent) / 2


# ---- interpolate ----

def resize(x, size, position):
    """Bilinear resize with another rule for the position: position(i, H, OH)."""
    for axis, O in zip((2, 3), pair(size)):
        H = x.shape[axis]
        s = np.clip(position(np.arange(O), H, O), 0, H - 1)
        low = np.floor(s).astype(int)
        part = (s - low).reshape(-1, *[1] * (3 - axis))
        x = np.take(x, low, axis) * (1 - part) + np.take(x, np.minimum(low + 1, H - 1), axis) * part
    return x


@wrong("interpolate", "align_corners is ignored")
def _(x, size, align_corners=False):
    return interpolate(x=x, size=size)


@wrong("interpolate", "corners are always aligned")
def _(x, size, align_corners=False):
    return interpolate(x=x, size=size, align_corners=True)


@wrong("interpolate", "align_corners is turned round")
def _(x, size, align_corners=False):
    return interpolate(x=x, size=size, align_corners=not align_corners)


@wrong("interpolate", "without align_corners the half pixel is forgotten: s = i * H / OH")
def _(x, size, align_corners=False):
    if align_corners:
        return interpolate(x=x, size=size, align_corners=True)
    return resize(x, size, lambda i, H, O: i * H / O)


@wrong("interpolate", "the nearest pixel below in place of a mixture")
def _(x, size, align_corners=False):
    return resize(x, size, lambda i, H, O: np.floor(
        i * (H - 1) / max(O - 1, 1) if align_corners else np.maximum((i + 0.5) * H / O - 0.5, 0)))


@wrong("interpolate", "OH and OW are exchanged")
def _(x, size, align_corners=False):
    return interpolate(x=x, size=pair(size)[::-1], align_corners=align_corners)


@wrong("interpolate", "the ratio is turned round: s = (i + 1/2) * OH / H - 1/2")
def _(x, size, align_corners=False):
    if align_corners:
        return interpolate(x=x, size=size, align_corners=True)
    return resize(x, size, lambda i, H, O: (i + 0.5) * O / H - 0.5)
