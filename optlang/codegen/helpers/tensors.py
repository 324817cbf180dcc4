"""Functions that generated functions of tensors call."""

import math

import torch


def sign(x):
    """Sign of x; NaN stays NaN, so a NaN gradient is not hidden."""
    return torch.maximum(torch.sign(x), torch.clamp(x, max=-2))  # NaN is the larger one; a number here never is


def diag(x):
    """The diagonals of some matrices, or the matrices with some diagonals."""
    return torch.diag_embed(x) if x.dim() == 2 else torch.diagonal(x, dim1=-2, dim2=-1)


def stack_sum(x, dim, keepdim=False):
    """Sums over dimensions; rows are accumulated in 32 bits at least, their sums in float64."""
    rows = x.sum(dim[-1], keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return rows.sum(dim, keepdim=keepdim, dtype=torch.float64).to(x.dtype)


def stack_dots(a, b):
    """Sums of products of vectors; of two alone with the function for two, which writes no products to memory."""
    if len(a) == len(b) == 1 and a.shape == b.shape and a.dtype == b.dtype and a.dtype.itemsize > 2:
        return torch.dot(a[0], b[0]).unsqueeze(0)
    return stack_sum(a * b, (1,))


def multiply_add_dot(x, c, y, out, z):
    """x + c*y of vectors, in ``out`` unless that is None, and the sum of its products with z; None without z."""
    found = torch.addcmul(x, c, y, out=out) if isinstance(c, torch.Tensor) else torch.add(x, y, alpha=c, out=out)
    return found, None if z is None else stack_dots(found, z)


def product(a, b):
    """Products of matrices; of two alone with the function for two, which is faster."""
    return torch.mm(a[0], b[0]).unsqueeze(0) if len(a) == len(b) == 1 else a @ b


def multiplied_in(x):
    """The number type that matrices in 16 bits are multiplied in: 32 on processors without instructions for 16."""
    without = x.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.float32 if without else x.dtype


def product_in_16_bits(a, b):
    """Products of matrices in 16 bits, rounded once."""
    wide = multiplied_in(a)
    return product(a.to(wide), b.to(wide)).to(a.dtype)


def multiply_add_in_16_bits(x, a, b, beta=1, alpha=1):
    """beta*x + alpha*(a @ b) of matrices in 16 bits, rounded once."""
    wide = multiplied_in(x)
    return torch.baddbmm(x.to(wide), a.to(wide), b.to(wide), beta=beta, alpha=alpha).to(x.dtype)


def stack_squares(x, dim, keepdim=False):
    """Sums of squares over dimensions, as stack_sum has them, without the squares in memory."""
    if x.dtype is torch.bfloat16:  # its numbers have few digits; and conversions row by row are slow
        norms = torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim, dtype=torch.float32)
        return norms.square().to(x.dtype)
    rows = torch.linalg.vector_norm(x, dim=dim[-1], keepdim=True)
    return rows.double().square().sum(dim, keepdim=keepdim).to(x.dtype)


def entries_of(history, start, *pushed):
    """The entries of a history in order, where they lie; then what is pushed: values, each with a condition."""
    found = history.unbind(1)
    found = found[int(start) :] + found[: int(start)]
    for x, held in zip(pushed[::2], pushed[1::2]):
        if held:
            found = (*found[1:], x.to(history.dtype))
    return found


def pushed(start, *values):
    """What is written of a history: where it begins then, and the values that are pushed, each with a condition."""
    return int(start), [x for x, held in zip(values[::2], values[1::2]) if held]


def collected(entries, i, x):
    """The values for the entries of a history, with one more filled in."""
    entries.select(1, int(i)).copy_(x)
    return entries


def stack_mean(x, dim, keepdim=False):
    """Means over dimensions; rows are accumulated in 32 bits at least, their means in float64."""
    rows = x.mean(dim[-1], keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return rows.mean(dim, keepdim=keepdim, dtype=torch.float64).to(x.dtype)


def ordered(x, order, dim):
    """Tensors with a dimension in another order, or parts of it; each has an order of its own."""
    shape = [order.shape[0]] + [1] * (x.dim() - 1)
    shape[dim] = order.shape[1]
    return torch.take_along_dim(x, order.reshape(shape).long(), dim)


def eigh(x):
    """Eigenvalues and eigenvectors of symmetric matrices; NaN where there are none to be found."""
    try:
        return torch.linalg.eigh(x)
    except torch.linalg.LinAlgError:
        if len(x) > 1:
            return tuple(map(torch.cat, zip(*map(eigh, x.split(1)))))
        return x.new_full(x.shape[:-1], math.nan), torch.full_like(x, math.nan)


def svd(x):
    """Singular value decompositions; NaN where there are none to be found."""
    try:
        return torch.linalg.svd(x, full_matrices=False)
    except torch.linalg.LinAlgError:
        if len(x) > 1:
            return tuple(map(torch.cat, zip(*map(svd, x.split(1)))))
        rank = min(x.shape[-2:])
        shapes = ((x.shape[-2], rank), (rank,), (rank, x.shape[-1]))
        return tuple(x.new_full((*x.shape[:-2], *shape), math.nan) for shape in shapes)


def in_one_type(x, y):
    """x in the number type in which x and y meet, as factors of a product must."""
    return x.to(torch.promote_types(x.dtype, y.dtype))


def regular(result, info):
    """Results of a decomposition; NaN where a matrix had none."""
    return torch.where(info[..., None, None] == 0, result, math.nan)


def cumsum(x, dim):
    """Sums up to each element along a dimension, accumulated in float64."""
    return torch.cumsum(x, dim, dtype=torch.float64).to(x.dtype)


def solve(a, b):
    """Solutions x of a @ x = b, for matrices and vectors b; NaN where there is none."""
    vector = b.dim() < a.dim()
    x, info = torch.linalg.solve_ex(a, b.unsqueeze(-1) if vector else b)
    x = torch.where(info[..., None, None] == 0, x, math.nan)
    return x.squeeze(-1) if vector else x
