"""All parameters of a network in two flat arrays: one for their values, one for their gradients.

    data    [ conv1.weight | bn1.weight | bn1.bias | ... ]        p.data is a view of its part,
    grad    [ conv1.weight | bn1.weight | bn1.bias | ... ]        and so is p.grad when p has a gradient

An optimiser then changes one long array instead of sixty small ones, and the gradients for other processes lie side by side.
An array that is assigned to `p.data` or `p.grad` is copied into its place, so views stay views. An array of another dtype or
device (`net.to("gpu")`) does not fit: the parameter leaves the arena, and the next step of the optimiser makes new arrays.

Source: torch.nn.parallel.DistributedDataParallel(gradient_as_bucket_view=True).
"""

from minifcn.core.backend import array_module

ALIGN = 64                  # each part begins at a multiple of so many numbers, since kernels read 16 or 128 bytes at once


class Arena:
    """Moves parameters into two flat arrays.

    params: Tensors of one dtype on one device, each once. A later Arena of the same Tensors takes them from this one.
    Attributes: `data`, `grad` the flat arrays; gaps between the parts hold 0. `span(p)` says where a parameter lies.
    Raises ValueError if dtypes or devices differ. Cost: the array of gradients stays in memory as long as the Arena.

    >>> a, b = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0], requires_grad=True)
    >>> arena = Arena([a, b])
    >>> (a * b).sum().backward()
    >>> arena.grad[arena.span(a)], arena.grad[arena.span(b)]
    (array([3., 3.], dtype=float32), array([3.], dtype=float32))
    """

    def __init__(self, params):
        self.params = list(params)
        self.build()

    def moved(self):
        """Has a parameter left the flat arrays? Then `build()` makes new ones."""
        left = any(p.home is not home for p, home in zip(self.params, self._homes))
        shared = array_module(self.data).may_share_memory(self.params[0].data, self.data)
        return left or not shared                                        # in a deep copy the views are separate arrays

    def span(self, p):
        """The slice of the flat arrays that belongs to a parameter."""
        return self._spans[p]

    def zeros(self):
        """One more flat array, of zeros, such as an optimiser's velocities. `piece(array, p)` is the part of a parameter."""
        return array_module(self.data).zeros_like(self.data)

    def piece(self, flat, p):
        """A parameter's part of a flat array, in the parameter's shape: a view."""
        return flat[self.span(p)].reshape(p.shape)

    def build(self):
        """Make the flat arrays, in the parameters' dtype and on their device, and move the parameters in."""
        kinds = sorted({f"{p.dtype} on the {p.device}" for p in self.params})
        if len(kinds) > 1:
            raise ValueError(f"Arena: parameters must have one dtype and one device, got {' and '.join(kinds)}")
        first, end, self._spans = self.params[0].data, 0, {}
        for p in self.params:
            self._spans[p] = slice(end, end + p.size)
            end += -(-p.size // ALIGN) * ALIGN
        self.data, self.grad = (array_module(first).zeros(end, first.dtype) for _ in range(2))
        self._homes = [(self.piece(self.data, p), self.piece(self.grad, p)) for p in self.params]
        for p, home in zip(self.params, self._homes):
            data, grad, written, p.home = p.data, p.grad, p.written, home
            p.data, p.grad = data, grad                                  # copies them in
            p.written = list(written)                                    # the values are as they were, and p's own now
