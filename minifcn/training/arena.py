"""All parameters of a network in two flat arrays: one for their values, one for their gradients.

    data    [ conv1.weight | bn1.weight | bn1.bias | ... ]        p.data is a view of its piece,
    grad    [ conv1.weight | bn1.weight | bn1.bias | ... ]        p.grad too, once it has a gradient

One run over one long array then takes the place of sixty small steps, and what is sent to other processes lies in one piece.
What is assigned to `p.data` or `p.grad` is copied into its place, so views stay views. Only another dtype, device or shape
(`net.to("gpu")`) makes a parameter leave; an optimiser's next step then builds the arrays anew.

Read after optim.py; read next parallel.py. Source: torch.nn.parallel.DistributedDataParallel(gradient_as_bucket_view=True).
"""

from minifcn.core.backend import array_module

ALIGN = 64                  # numbers: each piece begins at a multiple, as kernels that read 16 or 128 bytes at once want it


class Arena:
    """Moves parameters into two flat arrays.

    params: Tensors of one dtype on one device, each once; a later Arena of the same Tensors takes them over.
    Attributes: `data`, `grad` the flat arrays; gaps between the pieces hold 0. `span(p)` says where a parameter lies.
    Raises ValueError where dtypes or devices differ. Cost: the gradients' array stays for as long as the Arena.

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
        return left or not shared                                        # a deep copy's views are arrays of their own

    def span(self, p):
        """The slice of the flat arrays that belongs to a parameter."""
        return self._spans[p]

    def zeros(self):
        """One more array like the flat ones, of zeros: an optimiser's memory. `piece(array, p)` finds a parameter in it."""
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
            p.written = written                                          # the values are as they were
